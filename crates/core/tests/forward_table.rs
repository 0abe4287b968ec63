//! The compiled table and the packet order against naive references.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use vl3_core::fib::Fib;
use vl3_core::forward::{
    DomainIndex, DropReason, Hop, PortClass, PortId, Route, Table, Verdict, forward, may_go,
};

/// Scans all routes; of equal prefixes the first.
struct Scan(Vec<Route>);

impl Table for Scan {
    fn lookup(&self, address: IpAddr) -> Option<Hop> {
        let mut best: Option<&Route> = None;
        for route in &self.0 {
            let longer =
                best.is_none_or(|held| route.prefix.prefix_len() > held.prefix.prefix_len());
            if route.prefix.contains(&address) && longer {
                best = Some(route);
            }
        }
        best.map(|route| Hop {
            port: route.port,
            class: route.class,
            mtu: route.mtu,
        })
    }
}

fn class() -> impl Strategy<Value = PortClass> {
    prop_oneof![
        Just(PortClass::Member),
        Just(PortClass::Own),
        Just(PortClass::Sibling),
        (0u16..3).prop_map(|domain| PortClass::Remote(DomainIndex(domain))),
    ]
}

/// Few distinct bits, so that prefixes nest and touch.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..4, 0u8..4, any::<u8>()).prop_map(|(b, c, d)| IpAddr::V4(Ipv4Addr::new(10, b, c, d))),
        (0u16..4, 0u16..4, any::<u16>())
            .prop_map(|(f, g, h)| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, f, g, h))),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0u8..=32, 80u8..=128).prop_map(|(address, four, six)| match address {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, four)),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, six)),
    })
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let route =
        (prefix(), 0u32..20, class(), 1280u16..1500).prop_map(|(prefix, port, class, mtu)| Route {
            prefix,
            port: PortId(port),
            class,
            mtu,
        });
    prop::collection::vec(route, 0..40)
}

fn remote(domain: u16) -> PortClass {
    PortClass::Remote(DomainIndex(domain))
}

#[test]
fn a_source_that_belongs_to_somebody_else_is_forged() {
    let held = [
        ("10.0.0.1/32", 1, PortClass::Member),
        ("10.0.0.2/32", 2, PortClass::Member),
        ("10.0.1.0/24", 3, PortClass::Sibling),
        ("10.0.4.0/24", 4, remote(0)),
        ("10.0.5.0/24", 5, remote(0)),
        ("10.0.8.0/24", 6, remote(1)),
    ];
    let routes = held.map(|(prefix, port, class)| Route {
        prefix: prefix.parse().expect("a prefix"),
        port: PortId(port),
        class,
        mtu: 1420,
    });
    let fib = Fib::compile(routes.to_vec());
    let to_member = |ingress, class, source: &str| {
        let source = source.parse().expect("an address");
        let member = IpAddr::from([10, 0, 0, 2]);
        match forward(&fib, PortId(ingress), class, source, member) {
            Verdict::Forward(_) => Ok(()),
            Verdict::Drop(reason) => Err(reason),
        }
    };
    for (ingress, class, source, why) in [
        (1, PortClass::Member, "10.0.0.1", "its own"),
        (4, remote(0), "10.0.5.1", "another router of its domain"),
        (
            3,
            PortClass::Sibling,
            "10.0.8.1",
            "the last hop of a remote packet",
        ),
        (7, PortClass::Sibling, "10.0.1.1", "another sibling's"),
    ] {
        assert_eq!(to_member(ingress, class, source), Ok(()), "{why}");
    }
    for (ingress, class, source, why) in [
        (1, PortClass::Member, "10.0.0.2", "another member's"),
        (1, PortClass::Member, "10.0.4.1", "a remote one"),
        (1, PortClass::Member, "192.0.2.1", "nobody's"),
        (4, remote(0), "10.0.8.1", "another domain's"),
        (4, remote(0), "10.0.0.1", "a member's"),
        (4, remote(0), "10.0.1.1", "a sibling's"),
        (3, PortClass::Sibling, "10.0.0.1", "a member's here"),
    ] {
        let verdict = to_member(ingress, class, source);
        assert_eq!(verdict, Err(DropReason::ForgedSource), "{why}");
    }
}

proptest! {
    #[test]
    fn compiled_table_answers_like_a_scan(
        routes in routes(),
        probes in prop::collection::vec(address(), 1..60),
    ) {
        let fib = Fib::compile(routes.clone());
        let scan = Scan(routes.clone());
        let edges = routes.iter().flat_map(|route| [route.prefix.network(), route.prefix.broadcast()]);
        for probe in probes.into_iter().chain(edges) {
            prop_assert_eq!(fib.lookup(probe), scan.lookup(probe), "{}", probe);
        }
    }

    #[test]
    fn forwarded_packets_obey_order_and_never_return(
        routes in routes(), ingress in 0u32..20, from in class(), source in address(), destination in address(),
    ) {
        let fib = Fib::compile(routes);
        match forward(&fib, PortId(ingress), from, source, destination) {
            Verdict::Forward(hop) => {
                prop_assert!(may_go(from, hop.class));
                prop_assert_ne!(hop.port, PortId(ingress));
                prop_assert_eq!(Some(hop), fib.lookup(destination));
                let owner = fib.lookup(source).expect("a source without owner is forged");
                if matches!(from, PortClass::Member | PortClass::Own) {
                    prop_assert_eq!(owner.port, PortId(ingress));
                }
            }
            Verdict::Drop(reason) => prop_assert_ne!(reason, DropReason::Malformed),
        }
    }
}
