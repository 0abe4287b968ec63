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

var (
	listen   = flag.String("listen", "", "URL to listen on")
	policies = flag.Bool("policies", true, "check every call by the policies of the stock commands")
)

// serverPolicies are what the stock registry command applies to calls.
var serverPolicies = []string{
	"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/registry/.*.rego", "etc/nsm/opa/server/.*.rego",
}

// registryMain serves the stock in-memory registry until it is told to stop.
func registryMain(p *peer) error {
	// Nothing here passes descriptors: no tracing of every call.
	logrus.SetLevel(logrus.WarnLevel)
	options := []authorize.Option{authorize.Any()}
	if *policies {
		options = []authorize.Option{authorize.WithPolicies(serverPolicies...)}
	}
	chain := memory.NewServer(p.ctx, p.tokens,
		memory.WithAuthorizeNSRegistryServer(authorize.NewNetworkServiceRegistryServer(options...)),
		memory.WithAuthorizeNSERegistryServer(authorize.NewNetworkServiceEndpointRegistryServer(options...)),
		memory.WithDialOptions(p.dial...))
	server := grpc.NewServer(grpc.Creds(p.server))
	chain.Register(server)
	fmt.Println("serving", *listen)
	return <-grpcutils.ListenAndServe(p.ctx, parse(*listen), server)
}
