package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
	"google.golang.org/protobuf/encoding/protojson"
)

var (
	serves   = flag.String("url", "tcp://192.0.2.1:5001", "URL that a registration says")
	labelled = flag.String("labelled", "", "registry in which the endpoint of that name has its labels")
)

// clientPolicies are what the stock commands apply to a registry's answer.
var clientPolicies = []string{
	"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/registry/.*.rego", "etc/nsm/opa/client/.*.rego",
}

func (p *peer) endpoints(at string) registry.NetworkServiceEndpointRegistryClient {
	return client.NewNetworkServiceEndpointRegistryClient(p.ctx,
		client.WithClientURL(parse(at)), client.WithDialOptions(p.dial...),
		client.WithAuthorizeNSERegistryClient(
			authorize.NewNetworkServiceEndpointRegistryClient(authorize.WithPolicies(clientPolicies...))))
}

// findMain prints every endpoint of the service.
func findMain(p *peer) error {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	stream, err := p.endpoints(*connect).Find(ctx, &registry.NetworkServiceEndpointQuery{
		NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{*service}}})
	if err != nil {
		return err
	}
	for _, nse := range registry.ReadNetworkServiceEndpointList(stream) {
		fmt.Println(protojson.Format(nse))
	}
	return nil
}

// registerMain registers an endpoint, sees it by a watch, unregisters it and sees it go.
func registerMain(p *peer) error {
	ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
	defer cancel()
	endpoints := p.endpoints(*connect)
	watch, err := endpoints.Find(ctx, &registry.NetworkServiceEndpointQuery{Watch: true,
		NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{Name: *name}})
	if err != nil {
		return err
	}
	own := &registry.NetworkServiceEndpoint{
		Name: *name, Url: *serves, NetworkServiceNames: []string{*service},
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{*service: {}},
	}
	if *labelled != "" {
		stream, findErr := p.endpoints(*labelled).Find(ctx, &registry.NetworkServiceEndpointQuery{
			NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{Name: *name}})
		if findErr != nil {
			return findErr
		}
		for _, found := range registry.ReadNetworkServiceEndpointList(stream) {
			own.NetworkServiceLabels = found.GetNetworkServiceLabels()
		}
	}
	nse, err := endpoints.Register(ctx, own)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	event, err := watch.Recv()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if event.GetDeleted() || event.GetNetworkServiceEndpoint().GetName() != *name {
		return fmt.Errorf("watch: expected the registration, got %s", protojson.Format(event))
	}
	select {
	case <-p.ctx.Done():
	case <-time.After(*hold):
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(p.ctx), 15*time.Second)
	defer cancel()
	if _, err = endpoints.Unregister(ctx, nse); err != nil {
		return fmt.Errorf("unregister: %w", err)
	}
	for *hold == 0 && !event.GetDeleted() {
		if event, err = watch.Recv(); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	fmt.Println("registered, watched, unregistered, deletion seen")
	return nil
}
