package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/cls"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/common"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/wireguard"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/heal"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
)

var (
	source = flag.String("source", "", "own address towards the router")
	port   = flag.Int("port", 51820, "own WireGuard port")
	device = flag.String("device", "", "interface of a running wireguard-go")
	target = flag.String("target", "", "further addresses to ping, comma between")
	hold   = flag.Duration("hold", 0, "how long to stay attached, over refreshes")
)

// preference offers WIREGUARD in every request, as a stock mechanism client does.
type preference struct{ key string }

func (m *preference) Request(ctx context.Context, request *networkservice.NetworkServiceRequest,
	opts ...grpc.CallOption) (*networkservice.Connection, error) {
	request.MechanismPreferences = append(request.MechanismPreferences, &networkservice.Mechanism{
		Cls: cls.REMOTE, Type: wireguard.MECHANISM,
		Parameters: map[string]string{
			common.SrcIP:           *source,
			common.SrcPort:         fmt.Sprint(*port),
			wireguard.SrcPublicKey: m.key,
		},
	})
	return next.Client(ctx).Request(ctx, request, opts...)
}

func (m *preference) Close(ctx context.Context, conn *networkservice.Connection,
	opts ...grpc.CallOption) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, conn, opts...)
}

// attachMain attaches, pings through the tunnel, stays over refreshes, pings again, closes.
func attachMain(p *peer) error {
	private, public, err := newKey()
	if err != nil {
		return err
	}
	c := client.NewClient(p.ctx, client.WithName(*name), client.WithClientURL(parse(*connect)),
		client.WithAuthorizeClient(authorize.NewClient()),
		client.WithHealClient(heal.NewClient(p.ctx)), client.WithDialOptions(p.dial...),
		client.WithAdditionalFunctionality(&preference{key: public}))
	ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
	defer cancel()
	start := time.Now()
	conn, err := c.Request(ctx, &networkservice.NetworkServiceRequest{
		Connection: &networkservice.Connection{
			Id: *name, NetworkService: *service, Payload: "IP",
			Labels: map[string]string{"podName": *name},
		}})
	if err != nil {
		return err
	}
	fmt.Println("attached in", time.Since(start).Round(time.Millisecond))
	show(conn)
	if err := bringUp(*device, private, conn); err != nil {
		return err
	}
	if err := pingAll(conn); err != nil {
		return err
	}
	select {
	case <-p.ctx.Done():
	case <-time.After(*hold):
	}
	if err := pingAll(conn); err != nil {
		return fmt.Errorf("after %s: %w", *hold, err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.Close(ctx, conn); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	fmt.Println("closed")
	return nil
}

func show(conn *networkservice.Connection) {
	shown := conn.Clone()
	for _, segment := range shown.GetPath().GetPathSegments() {
		segment.Token = "..."
	}
	fmt.Println(protojson.Format(shown))
}
