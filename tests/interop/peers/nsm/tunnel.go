package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/wireguard"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// newKey makes an X25519 key: the private one in hexadecimal (the control socket's way), the
// public one in base64 (NSM's way).
func newKey() (private, public string, err error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	return hex.EncodeToString(key.Bytes()), base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()), nil
}

// bringUp configures a running wireguard-go as a stock forwarder would: one peer, everything
// allowed, keepalive 10 s; then addresses, MTU and routes of the answer.
func bringUp(device, private string, conn *networkservice.Connection) error {
	mechanism := wireguard.ToMechanism(conn.GetMechanism())
	if mechanism == nil {
		return errors.New("the answer has no WIREGUARD mechanism")
	}
	key, err := base64.StdEncoding.DecodeString(mechanism.DstPublicKey())
	if err != nil || len(key) != 32 {
		return fmt.Errorf("dst_public_key %q is no key", mechanism.DstPublicKey())
	}
	endpoint := net.JoinHostPort(mechanism.DstIP().String(), fmt.Sprint(mechanism.DstPort()))
	config := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\n"+
		"persistent_keepalive_interval=10\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n",
		private, *port, hex.EncodeToString(key), endpoint)
	if err := tell("/var/run/wireguard/"+device+".sock", config); err != nil {
		return err
	}
	context := conn.GetContext()
	steps := [][]string{{"link", "set", device, "mtu", fmt.Sprint(context.GetMTU()), "up"}}
	for _, address := range context.GetIpContext().GetSrcIpAddrs() {
		steps = append(steps, []string{"addr", "add", address, "dev", device, "nodad"})
	}
	for _, route := range context.GetIpContext().GetSrcRoutes() {
		prefix, err := netip.ParsePrefix(route.GetPrefix())
		if err != nil {
			return fmt.Errorf("src_routes: %w", err)
		}
		steps = append(steps, []string{"route", "replace", prefix.Masked().String(), "dev", device})
	}
	for _, step := range steps {
		if out, err := exec.Command("ip", step...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(step, " "), err, out)
		}
	}
	return nil
}

// tell speaks to wireguard-go's control socket.
func tell(socket, config string) error {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err = conn.Write([]byte(config)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "errno=0" {
		return fmt.Errorf("wireguard-go answered %q: %w", answer, err)
	}
	return nil
}

// pingAll pings the router's addresses and the further targets.
func pingAll(conn *networkservice.Connection) error {
	var targets []string
	for _, address := range conn.GetContext().GetIpContext().GetDstIpAddrs() {
		targets = append(targets, strings.Split(address, "/")[0])
	}
	if *target != "" {
		targets = append(targets, strings.Split(*target, ",")...)
	}
	for _, target := range targets {
		took, err := ping(target)
		if err != nil {
			return fmt.Errorf("ping %s: %w", target, err)
		}
		fmt.Println("ping", target, took.Round(10*time.Microsecond))
	}
	return nil
}

// ping sends echo requests until one is answered, for at most 10 s.
func ping(target string) (time.Duration, error) {
	address, err := netip.ParseAddr(target)
	if err != nil {
		return 0, err
	}
	network, local, kind, protocol := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), 1
	reply := icmp.Type(ipv4.ICMPTypeEchoReply)
	if address.Is6() {
		network, local, kind, protocol = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, 58
		reply = ipv6.ICMPTypeEchoReply
	}
	conn, err := icmp.ListenPacket(network, local)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	buffer := make([]byte, 1500)
	for sequence := range 20 {
		message := icmp.Message{Type: kind, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: sequence, Data: []byte("vl3")}}
		packet, err := message.Marshal(nil)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		// No route yet, or no session: the next try says more.
		_, sendErr := conn.WriteTo(packet, &net.IPAddr{IP: address.AsSlice()})
		_ = conn.SetReadDeadline(start.Add(500 * time.Millisecond))
		for sendErr == nil {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				break
			}
			answer, err := icmp.ParseMessage(protocol, buffer[:n])
			if err == nil && answer.Type == reply && from.String() == address.String() {
				return time.Since(start), nil
			}
		}
		if sendErr != nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
	return 0, errors.New("no answer within 10 s")
}
