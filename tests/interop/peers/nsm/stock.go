package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"time"

	"github.com/networkservicemesh/api/pkg/api/ipam"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/ipam/vl3ipam"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/nsmgr"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/proxydns"
	"github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/tools/grpcutils"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
)

var (
	prefix  = flag.String("prefix", "", "prefix of an earlier life")
	exclude = flag.String("exclude", "", "range that the prefix must not touch")
	pool    = flag.String("pool", "", "prefix that an IPAM serves from")
	length  = flag.Uint("length", 24, "prefix length that an IPAM gives")
	release = flag.Bool("release", false, "give the prefix back at the end")
)

// managerMain is a stock nsmgr in front of a registry.
func managerMain(p *peer) error {
	manager := nsmgr.NewServer(p.ctx, p.tokens,
		nsmgr.WithName(*name), nsmgr.WithURL(*listen), nsmgr.WithRegistry(parse(*connect)),
		nsmgr.WithDialOptions(p.dial...),
		nsmgr.WithAuthorizeNSERegistryServer(authorize.NewNetworkServiceEndpointRegistryServer(
			authorize.WithPolicies(serverPolicies...))),
		nsmgr.WithAuthorizeNSERegistryClient(authorize.NewNetworkServiceEndpointRegistryClient(
			authorize.WithPolicies(clientPolicies...))))
	server := grpc.NewServer(grpc.Creds(p.server))
	manager.Register(server)
	fmt.Println("serving", *listen)
	return <-grpcutils.ListenAndServe(p.ctx, parse(*listen), server)
}

// ipamMain serves one stock prefix pool until it is told to stop.
func ipamMain(p *peer) error {
	server := grpc.NewServer(grpc.Creds(p.server))
	ipam.RegisterIPAMServer(server, vl3ipam.NewIPAMServer(*pool, uint8(*length)))
	fmt.Println("serving", *listen)
	return <-grpcutils.ListenAndServe(p.ctx, parse(*listen), server)
}

// proxydnsMain is the stock component that asks the registry of name@domain's domain.
func proxydnsMain(p *peer) error {
	proxy := proxydns.NewServer(p.ctx, p.tokens, net.DefaultResolver, proxydns.WithDialOptions(p.dial...))
	server := grpc.NewServer(grpc.Creds(p.server))
	proxy.Register(server)
	fmt.Println("serving", *listen)
	return <-grpcutils.ListenAndServe(p.ctx, parse(*listen), server)
}

// serviceMain registers a network service, finds and watches it, unregisters it and sees it go.
func serviceMain(p *peer) error {
	ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
	defer cancel()
	services := client.NewNetworkServiceRegistryClient(p.ctx,
		client.WithClientURL(parse(*connect)), client.WithDialOptions(p.dial...),
		client.WithAuthorizeNSRegistryClient(
			authorize.NewNetworkServiceRegistryClient(authorize.WithPolicies(clientPolicies...))))
	query := &registry.NetworkServiceQuery{NetworkService: &registry.NetworkService{Name: *service}}
	watch, err := services.Find(ctx, &registry.NetworkServiceQuery{Watch: true, NetworkService: query.NetworkService})
	if err != nil {
		return err
	}
	ns, err := services.Register(ctx, &registry.NetworkService{Name: *service, Payload: "ETHERNET"})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	event, err := watch.Recv()
	if err != nil || event.GetDeleted() || event.GetNetworkService().GetPayload() != "ETHERNET" {
		return fmt.Errorf("watch: expected the registration, got %s, %v", protojson.Format(event), err)
	}
	stream, err := services.Find(ctx, query)
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	if found := registry.ReadNetworkServiceList(stream); len(found) != 1 || found[0].GetName() != *service {
		return fmt.Errorf("find: expected the service alone, got %v", found)
	}
	// The SDK's chain has no connection any more for an Unregister of a service: its stub has.
	conn, err := grpc.NewClient(grpcutils.URLToTarget(parse(*connect)), p.dial...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err = registry.NewNetworkServiceRegistryClient(conn).Unregister(ctx, ns); err != nil {
		return fmt.Errorf("unregister: %w", err)
	}
	for !event.GetDeleted() {
		if event, err = watch.Recv(); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	fmt.Println("service registered, watched, found, unregistered, deletion seen")
	return nil
}

// lease opens a stream as the stock router does, asks for one prefix and closes the connection.
func (p *peer) lease(ctx context.Context, wanted string) (*ipam.PrefixResponse, error) {
	conn, err := grpc.NewClient(grpcutils.URLToTarget(parse(*connect)), p.plain)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stream, err := ipam.NewIPAMClient(conn).ManagePrefixes(ctx)
	if err != nil {
		return nil, err
	}
	request := &ipam.PrefixRequest{Type: ipam.Type_ALLOCATE, Prefix: wanted}
	if *exclude != "" {
		request.ExcludePrefixes = []string{*exclude}
	}
	if err = stream.Send(request); err != nil {
		return nil, err
	}
	response, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if _, network, err := net.ParseCIDR(response.GetPrefix()); err != nil || network.String() != response.GetPrefix() {
		return nil, fmt.Errorf("%q is no canonical prefix", response.GetPrefix())
	}
	if *release && wanted != "" {
		request = &ipam.PrefixRequest{Type: ipam.Type_DELETE, Prefix: response.GetPrefix()}
		if err = stream.Send(request); err != nil {
			return nil, err
		}
		// No answer to that, but an error ends the stream: a second request comes after it.
		request = &ipam.PrefixRequest{Type: ipam.Type_UNDEFINED}
		if err = stream.Send(request); err != nil {
			return nil, err
		}
		if _, err = stream.Recv(); err == nil {
			return nil, fmt.Errorf("an undefined request was answered")
		}
	}
	return response, nil
}

// prefixesMain leases a prefix, reconnects with it, and prints it with what is excluded.
func prefixesMain(p *peer) error {
	ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
	defer cancel()
	first, err := p.lease(ctx, *prefix)
	if err != nil {
		return err
	}
	again, err := p.lease(ctx, first.GetPrefix())
	if err != nil {
		return fmt.Errorf("reconnect: %w", err)
	}
	if first.GetPrefix() != again.GetPrefix() {
		return fmt.Errorf("reconnect: %s became %s", first.GetPrefix(), again.GetPrefix())
	}
	fmt.Println(again.GetPrefix(), again.GetExcludePrefixes())
	return nil
}
