package main

import (
	"flag"
	"fmt"

	"github.com/networkservicemesh/sdk/pkg/registry/chains/memory"
	"github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/tools/grpcutils"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
)

var listen = flag.String("listen", "", "URL to listen on")

// serverPolicies are what the stock registry command applies to calls.
var serverPolicies = []string{
	"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/registry/.*.rego", "etc/nsm/opa/server/.*.rego",
}

// registryMain serves the stock in-memory registry until it is told to stop.
func registryMain(p *peer) error {
	// Nothing here passes descriptors: no tracing of every call.
	logrus.SetLevel(logrus.WarnLevel)
	chain := memory.NewServer(p.ctx, p.tokens,
		memory.WithAuthorizeNSRegistryServer(
			authorize.NewNetworkServiceRegistryServer(authorize.WithPolicies(serverPolicies...))),
		memory.WithAuthorizeNSERegistryServer(
			authorize.NewNetworkServiceEndpointRegistryServer(authorize.WithPolicies(serverPolicies...))),
		memory.WithDialOptions(p.dial...))
	server := grpc.NewServer(grpc.Creds(p.server))
	chain.Register(server)
	fmt.Println("serving", *listen)
	return <-grpcutils.ListenAndServe(p.ctx, parse(*listen), server)
}
