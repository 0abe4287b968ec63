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
