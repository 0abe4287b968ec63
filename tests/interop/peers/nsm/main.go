// nsm-peer is a client of the stock NSM SDK: it looks for endpoints, registers one, and attaches
// by WIREGUARD with the stock wireguard-go as its data plane. It is the stock registry, manager and
// proxy of other domains, too.
package main

import (
	"context"
	"flag"
	"log"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	nsmlog "github.com/networkservicemesh/sdk/pkg/tools/log"
	"github.com/networkservicemesh/sdk/pkg/tools/log/logruslogger"
	"github.com/networkservicemesh/sdk/pkg/tools/spiffejwt"
	"github.com/networkservicemesh/sdk/pkg/tools/token"
	"github.com/sirupsen/logrus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

var (
	name     = flag.String("name", "go", "name of this element")
	identity = flag.String("identity", "", "directory with svid.pem, key.pem and bundle.pem")
	connect  = flag.String("connect", "", "URL of the registry or of the endpoint")
	service  = flag.String("service", "", "network service")
	lifetime = flag.Duration("lifetime", 10*time.Minute, "lifetime of the path tokens")
)

// peer holds what every call needs.
type peer struct {
	ctx    context.Context
	dial   []grpc.DialOption
	server credentials.TransportCredentials
	// plain is TLS without tokens, as stock dials an IPAM.
	plain  grpc.DialOption
	tokens token.GeneratorFunc
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: nsm-peer find|service|register|prefixes|attach|registry|ipam|manager|proxydns [flags]")
	}
	verb := os.Args[1]
	_ = flag.CommandLine.Parse(os.Args[2:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Coarser levels make the SDK's trace element drop call options.
	logrus.SetLevel(logrus.InfoLevel)
	ctx = nsmlog.WithLog(ctx, logruslogger.New(ctx))

	svid, err := x509svid.Load(filepath.Join(*identity, "svid.pem"), filepath.Join(*identity, "key.pem"))
	if err != nil {
		log.Fatal(err)
	}
	bundle, err := x509bundle.Load(svid.ID.TrustDomain(), filepath.Join(*identity, "bundle.pem"))
	if err != nil {
		log.Fatal(err)
	}
	tls := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeAny())
	tokens := spiffejwt.TokenGeneratorFunc(svid, *lifetime)
	server := credentials.NewTLS(tlsconfig.MTLSServerConfig(svid, bundle, tlsconfig.AuthorizeAny()))
	p := &peer{ctx: ctx, server: server, tokens: tokens, plain: grpc.WithTransportCredentials(credentials.NewTLS(tls)), dial: []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true),
			grpc.PerRPCCredentials(token.NewPerRPCCredentials(tokens))),
	}}

	run, ok := map[string]func(*peer) error{
		"find": findMain, "register": registerMain, "attach": attachMain, "registry": registryMain,
		"service": serviceMain, "prefixes": prefixesMain, "ipam": ipamMain, "manager": managerMain, "proxydns": proxydnsMain,
	}[verb]
	if !ok {
		log.Fatalf("unknown verb %q", verb)
	}
	if err := run(p); err != nil {
		log.Fatalf("%s: %v", verb, err)
	}
}

func parse(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		log.Fatal(err)
	}
	return u
}
