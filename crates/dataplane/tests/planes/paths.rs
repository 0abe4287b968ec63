//! Packets through real sockets and TUNs: every kind of way.

use super::world::{Host, Router, eventually, exchange, host, routes_to, stream};
use vl3_core::forward::{DropReason, PortClass, PortId};
use vl3_dataplane::Event;
use vl3_net::Namespace;

const MIB: usize = 1 << 20;

/// Two hosts behind two routers; the first dials.
pub(crate) fn pair(workers: usize) -> (Router, Host, Router, Host) {
    let underlay = Namespace::new().expect("tests run as root");
    let (a, b) = (
        Router::start(&underlay, 1, workers),
        Router::start(&underlay, 2, workers),
    );
    let ((host_a, tun_a), (host_b, tun_b)) = (host(1), host(2));
    a.tun(1, PortClass::Member, tun_a);
    b.tun(1, PortClass::Member, tun_b);
    a.plane.set_peer(a.peer(2, 2, Some(b.address))).unwrap();
    b.plane.set_peer(b.peer(2, 1, None)).unwrap();
    let own_and_other = |own: &Host, other: &Host| {
        [
            routes_to(own, 1, PortClass::Member),
            routes_to(other, 2, PortClass::Member),
        ]
        .concat()
    };
    a.plane.set_routes(own_and_other(&host_a, &host_b));
    b.plane.set_routes(own_and_other(&host_b, &host_a));
    (a, host_a, b, host_b)
}

#[test]
fn two_routers_carry_both_families_and_learn_the_endpoint() {
    let (a, host_a, b, host_b) = pair(1);
    for v6 in [false, true] {
        exchange(&host_a.udp(v6), &host_b.udp(v6), b"hello");
    }
    b.event("the dialling router's endpoint", |event| match event {
        Event::EndpointLearned {
            port: PortId(2),
            endpoint,
        } => {
            assert_eq!(endpoint.remote, a.address);
            assert_eq!(
                endpoint.local,
                Some(b.address.ip()),
                "replies leave from the address dialled"
            );
            Some(())
        }
        _ => None,
    });
    b.event("a session", |event| {
        matches!(event, Event::Established { port: PortId(2) }).then_some(())
    });
    assert!(a.established(2) && b.established(2));
    let status = a.plane.port_status(PortId(2)).unwrap();
    assert!(
        status.sent_packets >= 2 && status.received_packets >= 2,
        "{status:?}"
    );
    assert!(
        status.last_receive.is_some()
            && status.last_send.is_some()
            && status.last_handshake.is_some()
    );
}

#[test]
fn tcp_streams_arrive_byte_for_byte_in_both_directions_and_families() {
    let (a, host_a, b, host_b) = pair(2);
    for v6 in [false, true] {
        let there = stream(&host_a, &host_b, v6, 24 * MIB);
        let back = stream(&host_b, &host_a, v6, 24 * MIB);
        println!("v6 {v6}: {:.0} and {:.0} MB/s", there / 1e6, back / 1e6);
    }
    for router in [&a, &b] {
        for reason in [
            DropReason::Malformed,
            DropReason::ForgedSource,
            DropReason::WriteFailed,
            DropReason::Unauthentic,
        ] {
            assert_eq!(router.dropped(reason), 0, "{reason:?}");
        }
    }
}

#[test]
fn hosts_on_one_router_exchange_super_packets_whole() {
    let underlay = Namespace::new().unwrap();
    let router = Router::start(&underlay, 1, 2);
    let ((host_a, tun_a), (host_b, tun_b)) = (host(1), host(2));
    router.tun(1, PortClass::Member, tun_a);
    router.tun(2, PortClass::Member, tun_b);
    let routes = [
        routes_to(&host_a, 1, PortClass::Member),
        routes_to(&host_b, 2, PortClass::Member),
    ];
    router.plane.set_routes(routes.concat());
    for v6 in [false, true] {
        exchange(&host_a.udp(v6), &host_b.udp(v6), b"hello");
        let before = router.plane.port_status(PortId(2)).unwrap();
        let rate = stream(&host_a, &host_b, v6, 64 * MIB);
        let after = router.plane.port_status(PortId(2)).unwrap();
        println!("v6 {v6}: {:.0} MB/s", rate / 1e6);
        let bytes = after.sent_bytes - before.sent_bytes;
        assert!(bytes >= 64 * MIB as u64, "{bytes}");
    }
}

#[test]
fn a_third_router_carries_transit_and_a_foreign_source_is_forged() {
    let underlay = Namespace::new().unwrap();
    let [a, b, c] = [1, 2, 3].map(|key| Router::start(&underlay, key, 1));
    let ((host_a, tun_a), (host_c, tun_c)) = (host(1), host(3));
    a.tun(1, PortClass::Member, tun_a);
    c.tun(1, PortClass::Member, tun_c);
    a.plane.set_peer(a.peer(2, 2, Some(b.address))).unwrap();
    c.plane.set_peer(c.peer(2, 2, Some(b.address))).unwrap();
    b.plane.set_peer(b.peer(1, 1, Some(a.address))).unwrap();
    b.plane.set_peer(b.peer(3, 3, Some(c.address))).unwrap();
    let set = |router: &Router, first: (&Host, u32), second: (&Host, u32)| {
        let routes = [first, second].map(|(host, port)| routes_to(host, port, PortClass::Member));
        router.plane.set_routes(routes.concat());
    };
    set(&a, (&host_a, 1), (&host_c, 2));
    set(&b, (&host_a, 1), (&host_c, 3));
    set(&c, (&host_c, 1), (&host_a, 2));
    for v6 in [false, true] {
        exchange(&host_a.udp(v6), &host_c.udp(v6), b"through the middle");
        stream(&host_a, &host_c, v6, 8 * MIB);
    }
    // The middle no longer grants the first host to its router.
    b.plane
        .set_routes(routes_to(&host_c, 3, PortClass::Member).to_vec());
    let socket = host_a.udp(false);
    eventually("a forged source", || {
        let _ = socket.send_to(b"?", (host_c.v4, 9));
        b.dropped(DropReason::ForgedSource) > 0
    });
}

#[test]
fn a_removed_peer_gets_and_brings_nothing() {
    let (a, host_a, b, host_b) = pair(1);
    let (from, to) = (host_a.udp(false), host_b.udp(false));
    exchange(&from, &to, b"before");
    assert!(b.plane.remove_port(PortId(2)));
    assert!(!b.plane.remove_port(PortId(2)), "removing is idempotent");
    assert!(b.plane.port_status(PortId(2)).is_none());
    let refused = b.dropped(DropReason::Unauthentic);
    eventually("refused datagrams", || {
        let _ = from.send_to(b"after", to.local_addr().unwrap());
        b.dropped(DropReason::Unauthentic) > refused
    });
    let mut buffer = [0; 64];
    while let Ok((len, _)) = to.recv_from(&mut buffer) {
        assert_eq!(&buffer[..len], b"before");
    }
    // It returns as a new peer, and is dialled: the other end's session is of no use here.
    let mut again = b.peer(2, 1, Some(a.address));
    again.initiate = true;
    b.plane.set_peer(again).unwrap();
    exchange(&from, &to, b"again");
}
