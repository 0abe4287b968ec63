//! Against the protocol library alone, in both roles, and what only a foreign end does.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use vl3_core::forward::{DropReason, PortClass, PortId, Route};
use vl3_dataplane::Endpoint;
use vl3_net::Namespace;

use super::bare::{Bare, udp_packet};
use super::world::{Host, MTU, Router, block_on, eventually, host, own_v4, public_key, routes_to};

const ROUTER: u8 = 1;

/// A router with one host at port 1.
fn router(underlay: &Namespace, listen: &str) -> (Router, Host) {
    let router = Router::start_at(underlay, ROUTER, 2, listen.parse().unwrap());
    let (host, tun) = host(1);
    router.tun(1, PortClass::Member, tun);
    (router, host)
}

/// The inner address of the bare end `key`.
fn inner(key: u8, v6: bool) -> IpAddr {
    if v6 {
        format!("fd02::{key}").parse().unwrap()
    } else {
        IpAddr::from([10, 2, 0, key])
    }
}

/// Routes to the host and to bare ends at the ports of their keys.
fn set_routes(router: &Router, host: &Host, keys: &[u8]) {
    let mut routes = routes_to(host, 1, PortClass::Member).to_vec();
    for key in keys {
        for v6 in [false, true] {
            let prefix = inner(*key, v6).into();
            routes.push(Route {
                prefix,
                port: PortId(u32::from(*key)),
                class: PortClass::Member,
                mtu: MTU,
            });
        }
    }
    router.plane.set_routes(routes);
}

fn payload_of(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[28..]
    } else {
        &packet[48..]
    }
}

/// The bare end asks, the host answers.
fn ask(bare: &mut Bare, key: u8, host: &Host, v6: bool) {
    let socket = host.udp(v6);
    let from = SocketAddr::new(inner(key, v6), 4000);
    let packet = udp_packet(from, socket.local_addr().unwrap(), b"question", 64);
    let mut buffer = [0; 64];
    eventually("the question", || {
        bare.send(&packet);
        let _ = bare.receive();
        matches!(socket.recv_from(&mut buffer), Ok((8, sender)) if sender == from)
    });
    socket.send_to(b"answer", from).unwrap();
    let answer = bare.packet("the answer", |packet| {
        payload_of(packet).starts_with(b"answer")
    });
    assert_eq!(payload_of(&answer), b"answer", "padding is cut off");
}

#[test]
fn a_bare_end_initiates_with_a_preshared_key() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7]);
    let mut spec = router.peer(7, 7, None);
    spec.preshared_key = Some([9; 32]);
    router.plane.set_peer(spec).unwrap();
    let mut bare = Bare::new(
        &Bare::socket(&underlay, "127.0.0.1:0"),
        7,
        ROUTER,
        router.address,
        Some([9; 32]),
    );
    for v6 in [false, true] {
        ask(&mut bare, 7, &host, v6);
    }
}

#[test]
fn a_bare_end_is_dialled_and_takes_what_waited() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7]);
    let socket = Bare::socket(&underlay, "127.0.0.1:0");
    router
        .plane
        .set_peer(router.peer(7, 7, Some(socket.local_addr().unwrap())))
        .unwrap();
    let mut bare = Bare::new(&socket, 7, ROUTER, router.address, None);
    let from = host.udp(false);
    for number in 0..5 {
        from.send_to(&[number], (inner(7, false), 4000)).unwrap();
    }
    for number in 0..5 {
        let packet = bare.packet("a waiting packet", |packet| packet[9] == 17);
        assert_eq!(payload_of(&packet), [number], "in order");
    }
}

#[test]
fn replies_leave_from_the_address_that_was_dialled() {
    let underlay = Namespace::new().unwrap();
    let router = Router::start_at(&underlay, ROUTER, 1, "0.0.0.0:0".parse().unwrap());
    let (host, tun) = host(1);
    router.tun(1, PortClass::Member, tun);
    set_routes(&router, &host, &[7]);
    router.plane.set_peer(router.peer(7, 7, None)).unwrap();
    // Any address of 127/8 is local; by itself the system would answer from 127.0.0.1.
    let dialled = SocketAddr::new(IpAddr::from([127, 9, 8, 7]), router.address.port());
    let mut bare = Bare::new(
        &Bare::socket(&underlay, "127.0.0.1:0"),
        7,
        ROUTER,
        dialled,
        None,
    );
    ask(&mut bare, 7, &host, false);
    let status = router.plane.port_status(PortId(7)).unwrap();
    assert_eq!(status.endpoint.unwrap().local, Some(dialled.ip()));
}

#[test]
fn an_ipv6_underlay_carries_both_families() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "[::1]:0");
    set_routes(&router, &host, &[7]);
    router.plane.set_peer(router.peer(7, 7, None)).unwrap();
    let mut bare = Bare::new(
        &Bare::socket(&underlay, "[::1]:0"),
        7,
        ROUTER,
        router.address,
        None,
    );
    for v6 in [false, true] {
        ask(&mut bare, 7, &host, v6);
    }
}

#[test]
fn datagrams_of_two_sessions_in_one_buffer_are_told_apart() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7, 8]);
    let socket = Bare::socket(&underlay, "127.0.0.1:0");
    let mut ends = [7, 8].map(|key| {
        router
            .plane
            .set_peer(router.peer(u32::from(key), key, None))
            .unwrap();
        Bare::new(&socket, key, ROUTER, router.address, None)
    });
    for (end, key) in ends.iter_mut().zip([7, 8]) {
        ask(end, key, &host, false);
        assert!(end.has_session());
    }
    // One train, alternating between the two sessions, of one sender and one length.
    let receiver = host.udp(false);
    let to = receiver.local_addr().unwrap();
    let mut train = Vec::new();
    let mut segment = 0;
    for number in 0..20u8 {
        let index = usize::from(number % 2);
        let from = SocketAddr::new(inner(7 + number % 2, false), 4000);
        let message = ends[index]
            .seal(&udp_packet(from, to, &[number; 32], 64))
            .unwrap();
        segment = message.len();
        train.extend(message);
    }
    setsockopt(&*socket, sockopt::UdpGsoSegment, &(segment as i32)).unwrap();
    socket.send_to(&train, router.address).unwrap();
    let mut seen = [Vec::new(), Vec::new()];
    let mut buffer = [0; 64];
    eventually("all of both", || {
        while let Ok((32, from)) = receiver.recv_from(&mut buffer) {
            seen[usize::from(buffer[0] % 2)].push((from.ip(), buffer[0]));
        }
        seen[0].len() + seen[1].len() == 20
    });
    for (index, key) in [7, 8].into_iter().enumerate() {
        let expected: Vec<_> = (0..10)
            .map(|n| (inner(key, false), 2 * n + index as u8))
            .collect();
        assert_eq!(seen[index], expected);
    }
}

#[test]
fn a_source_that_another_peer_owns_is_forged() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7, 8]);
    for key in [7, 8] {
        router
            .plane
            .set_peer(router.peer(key, key as u8, None))
            .unwrap();
    }
    let mut bare = Bare::new(
        &Bare::socket(&underlay, "127.0.0.1:0"),
        7,
        ROUTER,
        router.address,
        None,
    );
    ask(&mut bare, 7, &host, false);
    let receiver = host.udp(false);
    let to = receiver.local_addr().unwrap();
    bare.send(&udp_packet(
        SocketAddr::new(inner(8, false), 4000),
        to,
        b"forged",
        64,
    ));
    let link_local = "169.254.1.1:4000".parse().unwrap();
    bare.send(&udp_packet(link_local, to, b"noise", 64));
    let drops = [
        (DropReason::LinkLocalNoise, 1),
        (DropReason::ForgedSource, 1),
    ];
    eventually("both drops", || {
        router.plane.port_status(PortId(7)).unwrap().drops == drops
    });
    assert!(receiver.recv_from(&mut [0; 64]).is_err());
}

#[test]
fn a_probe_reaches_a_peer_and_wakes_its_session() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7]);
    let socket = Bare::socket(&underlay, "127.0.0.1:0");
    router
        .plane
        .set_peer(router.peer(7, 7, Some(socket.local_addr().unwrap())))
        .unwrap();
    let mut bare = Bare::new(&socket, 7, ROUTER, router.address, None);
    let own = SocketAddr::new(own_v4(ROUTER).into(), 1);
    let probe = udp_packet(own, SocketAddr::new(inner(7, false), 2), b"probe", 64);
    assert!(router.plane.send(PortId(7), &probe));
    assert_eq!(bare.packet("the probe", |packet| packet[9] == 17), probe);
    assert!(!router.plane.send(PortId(99), &probe), "no such port");
    assert!(!router.plane.send(PortId(7), b"no packet"));
}

#[test]
fn persistent_keepalives_dial_and_go_on_without_traffic() {
    let underlay = Namespace::new().unwrap();
    let (router, _host) = router(&underlay, "127.0.0.1:0");
    let socket = Bare::socket(&underlay, "127.0.0.1:0");
    let mut spec = router.peer(7, 7, Some(socket.local_addr().unwrap()));
    spec.persistent_keepalive = Some(1);
    router.plane.set_peer(spec.clone()).unwrap();
    let mut bare = Bare::new(&socket, 7, ROUTER, router.address, None);
    let mut keepalives = 0;
    let mut datagram = [0; 256];
    eventually("two keepalives", || {
        if let Ok((len, _)) = socket.recv_from(&mut datagram) {
            keepalives += usize::from(datagram[0] == 4 && len == 32);
            bare.take(&datagram[..len]);
        }
        keepalives >= 2
    });
    // Changing it needs no new session.
    spec.persistent_keepalive = None;
    spec.endpoint = Some(Endpoint {
        remote: socket.local_addr().unwrap(),
        local: None,
    });
    router.plane.set_peer(spec).unwrap();
    assert!(router.established(7));
}

#[test]
fn one_key_is_one_peer_and_one_port_is_one_key() {
    let underlay = Namespace::new().unwrap();
    let (router, _host) = router(&underlay, "127.0.0.1:0");
    router.plane.set_peer(router.peer(7, 7, None)).unwrap();
    assert!(
        router.plane.set_peer(router.peer(8, 7, None)).is_err(),
        "key taken"
    );
    assert!(
        router.plane.set_peer(router.peer(7, 8, None)).is_err(),
        "another key"
    );
    assert!(
        router.plane.set_peer(router.peer(1, 9, None)).is_err(),
        "a TUN"
    );
    assert_eq!(
        router.plane.port_status(PortId(7)).unwrap().public_key,
        Some(public_key(7))
    );
    assert!(router.plane.remove_port(PortId(7)));
    router.plane.set_peer(router.peer(8, 7, None)).unwrap();
}

#[test]
fn a_packet_that_runs_out_of_hops_is_answered_from_the_own_address() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7]);
    router.plane.set_peer(router.peer(7, 7, None)).unwrap();
    let mut bare = Bare::new(
        &Bare::socket(&underlay, "127.0.0.1:0"),
        7,
        ROUTER,
        router.address,
        None,
    );
    ask(&mut bare, 7, &host, false);
    let from = SocketAddr::new(inner(7, false), 4000);
    let dying = udp_packet(from, SocketAddr::new(host.v4.into(), 9), b"last hop", 1);
    bare.send(&dying);
    let error = bare.packet("time exceeded", |packet| packet[9] == 1);
    assert_eq!((error[20], error[21]), (11, 0));
    assert_eq!(error[12..16], own_v4(ROUTER).octets());
    assert_eq!(error[28..], dying, "quotes the packet as it came");
    let nowhere = udp_packet(from, "10.77.0.1:9".parse().unwrap(), b"nowhere", 64);
    bare.send(&nowhere);
    let error = bare.packet("net unreachable", |packet| {
        packet[9] == 1 && packet[20] == 3
    });
    assert_eq!(error[21], 0);
    assert_eq!(router.dropped(DropReason::NoRoute), 1);
}

#[test]
fn a_removed_device_is_reported_and_its_successor_carries_on() {
    let underlay = Namespace::new().unwrap();
    let (router, host) = router(&underlay, "127.0.0.1:0");
    set_routes(&router, &host, &[7]);
    router.plane.set_peer(router.peer(7, 7, None)).unwrap();
    let mut bare = Bare::new(
        &Bare::socket(&underlay, "127.0.0.1:0"),
        7,
        ROUTER,
        router.address,
        None,
    );
    ask(&mut bare, 7, &host, false);
    block_on(async {
        let netlink = vl3_net::Netlink::open_in(&host.namespace).unwrap();
        netlink.delete_link(&host.interface).await.unwrap();
    });
    router.event("the failure", |event| {
        matches!(
            event,
            vl3_dataplane::Event::TunFailed {
                port: PortId(1),
                ..
            }
        )
        .then_some(())
    });
    let failed = || router.plane.port_status(PortId(1)).map(|port| port.failed);
    assert_eq!(failed(), Some(true));
    let (descriptor, _) = host
        .namespace
        .run(|| vl3_net::tun::create(&host.interface, false))
        .unwrap();
    host.configure();
    router.tun(1, PortClass::Member, descriptor);
    assert_eq!(failed(), Some(false));
    ask(&mut bare, 7, &host, false);
}
