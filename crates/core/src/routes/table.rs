//! From accepted routes to the data plane's table: of equal prefixes one line, the best.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::forward::Route;
use crate::router::RouterId;

/// A route that several routers may offer.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub route: Route,
    pub router: &'a RouterId,
    pub preference: u32,
    /// The link carries traffic as far as known.
    pub up: bool,
}

/// What is our own (own addresses, workloads) wins; then links that carry traffic; then the
/// better preference; then the lower router name, so that every router decides alike.
pub fn table<'a>(
    own: impl IntoIterator<Item = Route>,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
) -> Vec<Route> {
    let mut best: BTreeMap<IpNet, (Rank<'a>, Route)> = BTreeMap::new();
    for candidate in candidates {
        let rank = (!candidate.up, candidate.preference, candidate.router);
        let prefix = candidate.route.prefix;
        if best.get(&prefix).is_none_or(|(held, _)| rank < *held) {
            best.insert(prefix, (rank, candidate.route));
        }
    }
    let mut table: BTreeMap<IpNet, Route> = best
        .into_iter()
        .map(|(prefix, (_, route))| (prefix, route))
        .collect();
    for route in own {
        table.insert(route.prefix, route);
    }
    table.into_values().collect()
}

type Rank<'a> = (bool, u32, &'a RouterId);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::{DomainIndex, PortClass, PortId};

    fn route(prefix: &str, port: u32) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            port: PortId(port),
            class: PortClass::Remote(DomainIndex(0)),
            mtu: 1420,
        }
    }

    fn router(name: &str) -> RouterId {
        RouterId {
            name: name.parse().unwrap(),
            domain: "west".parse().unwrap(),
        }
    }

    #[test]
    fn the_live_link_wins_then_the_preference_then_the_lower_name() {
        let (a, b) = (router("red-west-1"), router("red-west-2"));
        let candidate = |router, port, preference, up| Candidate {
            route: route("10.0.0.0/24", port),
            router,
            preference,
            up,
        };
        let pick = |candidates: Vec<Candidate<'_>>| table([], candidates)[0].port;
        assert_eq!(
            pick(vec![candidate(&a, 1, 0, false), candidate(&b, 2, 1, true)]),
            PortId(2)
        );
        assert_eq!(
            pick(vec![candidate(&a, 1, 1, true), candidate(&b, 2, 0, true)]),
            PortId(2)
        );
        assert_eq!(
            pick(vec![candidate(&b, 2, 0, true), candidate(&a, 1, 0, true)]),
            PortId(1)
        );
    }

    #[test]
    fn an_own_route_wins_over_every_announced_one() {
        let a = router("red-west-1");
        let announced = Candidate {
            route: route("10.0.0.1/32", 1),
            router: &a,
            preference: 0,
            up: true,
        };
        let table = table([route("10.0.0.1/32", 9)], [announced]);
        assert_eq!(
            table.iter().map(|route| route.port).collect::<Vec<_>>(),
            [PortId(9)]
        );
    }
}
