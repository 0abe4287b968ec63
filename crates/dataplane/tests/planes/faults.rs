//! Narrow ways, garbage, and order.

use std::net::UdpSocket;

use vl3_core::forward::{DropReason, PortClass, PortId};

use super::paths::pair;
use super::world::{PATIENCE, eventually, exchange, routes_to, stream};

const MIB: usize = 1 << 20;

#[test]
fn streams_fit_themselves_to_a_narrower_way() {
    let (a, host_a, b, host_b) = pair(1);
    let narrow = |router: &super::world::Router, own, other| {
        let mut routes = [
            routes_to(own, 1, PortClass::Member),
            routes_to(other, 2, PortClass::Member),
        ]
        .concat();
        for route in routes.iter_mut().filter(|route| route.port == PortId(2)) {
            route.mtu = 1300;
        }
        router.plane.set_routes(routes);
    };
    narrow(&a, &host_a, &host_b);
    narrow(&b, &host_b, &host_a);
    for v6 in [false, true] {
        stream(&host_a, &host_b, v6, 2 * MIB);
    }
    assert!(a.dropped(DropReason::TooBig) > 0, "the sender was told");
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let (a, host_a, b, host_b) = pair(2);
    exchange(&host_a.udp(false), &host_b.udp(false), b"before");
    let stranger: UdpSocket = b.underlay.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let refused = || b.dropped(DropReason::Unauthentic) + b.dropped(DropReason::Malformed);
    let before = refused();
    let mut seed = 1u64;
    let mut sent = 0;
    for length in (0..1500).step_by(7).chain([32, 64, 92, 148, 65_000]) {
        for kind in 0..6u8 {
            let mut bytes: Vec<u8> = (0..length)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 56) as u8
                })
                .collect();
            if let Some(head) = bytes.first_chunk_mut::<4>() {
                *head = [kind, 0, 0, 0];
            }
            // The receiver index of a live session.
            if kind == 4 && length >= 8 {
                bytes[4..8].copy_from_slice(&[1, 1, 1, 0]);
            }
            stranger.send_to(&bytes, b.address).unwrap();
            sent += 1;
        }
    }
    eventually("all of it counted", || refused() - before >= sent);
    exchange(&host_a.udp(false), &host_b.udp(false), b"after");
    assert!(b.established(2) && a.established(2));
    let endpoint = b.plane.port_status(PortId(2)).unwrap().endpoint.unwrap();
    assert_eq!(endpoint.remote, a.address, "garbage moves no endpoint");
}

#[test]
fn a_flow_stays_in_order_under_one_two_and_four_workers() {
    for workers in [1, 2, 4] {
        let (_a, host_a, b, host_b) = pair(workers);
        let (from, to) = (host_a.udp(false), host_b.udp(false));
        exchange(&from, &to, b"up");
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        let target = to.local_addr().unwrap();
        let mut buffer = [0; 256];
        let mut next = 0u32;
        // Windows keep every queue on the way short: nothing may be lost.
        for window in 0..200u32 {
            for number in window * 50..(window + 1) * 50 {
                let mut packet = [0; 200];
                packet[..4].copy_from_slice(&number.to_be_bytes());
                from.send_to(&packet, target).unwrap();
            }
            while next < (window + 1) * 50 {
                let (len, _) = to.recv_from(&mut buffer).expect("nothing is lost");
                if len != 200 {
                    continue;
                }
                let number = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                assert_eq!(number, next, "with {workers} workers");
                next += 1;
            }
        }
        assert_eq!(b.dropped(DropReason::Unauthentic), 0);
        let status = b.plane.port_status(PortId(1)).unwrap();
        assert!(status.sent_packets >= 10_000, "{status:?}");
    }
}
