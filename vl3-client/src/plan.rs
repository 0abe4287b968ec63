//! What the host's network must look like for the networks that are joined: a pure function
//! from their answers to addresses, routes and rules.
//!
//! The first network's routes go to the main table. A network whose prefixes of one family
//! overlap an earlier one's gets a table of its own for that family, chosen by its source
//! addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use vl3_net::{Route, Rule, TABLE_MAIN};

/// One network's answer as far as the host's network is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) interface: String,
    pub(crate) mtu: u16,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<IpNet>,
    /// Every route of this network in this table, collision or not.
    pub(crate) table: Option<u32>,
    /// Table for a family that collides.
    pub(crate) spare_table: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Interface and MTU.
    pub(crate) links: BTreeSet<(String, u16)>,
    pub(crate) addresses: BTreeSet<(String, IpNet)>,
    pub(crate) routes: BTreeSet<PlannedRoute>,
    pub(crate) rules: BTreeSet<PlannedRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlannedRoute {
    pub(crate) table: u32,
    pub(crate) destination: IpNet,
    pub(crate) interface: String,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlannedRule {
    pub(crate) source: IpNet,
    pub(crate) table: u32,
}

impl PlannedRoute {
    pub(crate) fn to_route(&self) -> Route {
        let route = Route::to(self.destination)
            .dev(&self.interface)
            .table(self.table)
            .mtu(u32::from(self.mtu));
        match self.source {
            Some(source) => route.source(source),
            None => route,
        }
    }
}

impl PlannedRule {
    pub(crate) const fn to_rule(self) -> Rule {
        // One number names table and priority: rules of different networks never tie.
        Rule {
            source: self.source,
            table: self.table,
            priority: self.table,
        }
    }
}

/// `joined` in the order of the configuration.
pub(crate) fn plan<'a>(joined: impl IntoIterator<Item = &'a Joined>) -> Plan {
    let mut plan = Plan::default();
    let mut in_main: Vec<IpNet> = Vec::new();
    for network in joined {
        plan.links.insert((network.interface.clone(), network.mtu));
        for address in &network.addresses {
            plan.addresses
                .insert((network.interface.clone(), IpNet::from(*address)));
        }
        for v6 in [false, true] {
            plan_family(network, v6, &mut in_main, &mut plan);
        }
    }
    plan
}

fn plan_family(network: &Joined, v6: bool, in_main: &mut Vec<IpNet>, plan: &mut Plan) {
    let table = table_of(network, v6, in_main);
    let source = network
        .addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv6() == v6);
    let own = network.addresses.iter().copied().map(IpNet::from);
    if table == TABLE_MAIN {
        in_main.extend(
            network
                .routes
                .iter()
                .copied()
                .chain(own)
                .filter(|prefix| is_v6(prefix) == v6),
        );
    } else {
        plan.rules.extend(
            own.filter(|address| is_v6(address) == v6)
                .map(|source| PlannedRule { source, table }),
        );
    }
    for destination in network.routes.iter().filter(|prefix| is_v6(prefix) == v6) {
        plan.routes.insert(PlannedRoute {
            table,
            destination: *destination,
            interface: network.interface.clone(),
            source,
            mtu: network.mtu,
        });
    }
}

/// Where a network's routes of one family go.
fn table_of(network: &Joined, v6: bool, in_main: &[IpNet]) -> u32 {
    if let Some(table) = network.table {
        return table;
    }
    let collides = network
        .routes
        .iter()
        .copied()
        .chain(network.addresses.iter().copied().map(IpNet::from))
        .filter(|prefix| is_v6(prefix) == v6)
        .any(|prefix| in_main.iter().any(|taken| overlap(taken, &prefix)));
    if collides {
        network.spare_table
    } else {
        TABLE_MAIN
    }
}

/// Whether this network's resolver can be used at its address: an address that the main table
/// leads elsewhere cannot.
pub(crate) fn reachable_by_default(network: &Joined, address: IpAddr, plan: &Plan) -> bool {
    plan.routes
        .iter()
        .filter(|route| route.table == TABLE_MAIN && route.destination.contains(&address))
        .max_by_key(|route| route.destination.prefix_len())
        .is_some_and(|route| route.interface == network.interface)
}

const fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(interface: &str, addresses: &[&str], routes: &[&str], spare_table: u32) -> Joined {
        Joined {
            interface: interface.to_owned(),
            mtu: 1400,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            routes: routes.iter().map(|text| text.parse().unwrap()).collect(),
            table: None,
            spare_table,
        }
    }

    fn red() -> Joined {
        joined(
            "vl3-red",
            &["10.60.0.5", "fd01::5"],
            &["10.60.0.0/16", "fd01::/64"],
            20_000,
        )
    }

    fn blue() -> Joined {
        joined(
            "vl3-blue",
            &["10.60.0.6", "fd02::6"],
            &["10.60.0.0/16", "fd02::/64"],
            20_001,
        )
    }

    #[test]
    fn the_first_network_has_the_main_table() {
        let plan = plan([&red()]);
        assert!(plan.rules.is_empty());
        assert!(plan.routes.iter().all(|route| route.table == TABLE_MAIN));
        assert_eq!(plan.routes.len(), 2);
        assert!(
            plan.addresses
                .contains(&("vl3-red".to_owned(), "fd01::5/128".parse().unwrap()))
        );
    }

    #[test]
    fn an_overlapping_family_gets_its_own_table_and_the_other_stays_in_main() {
        let plan = plan([&red(), &blue()]);
        let table = |destination: &str, interface: &str| {
            plan.routes
                .iter()
                .find(|route| {
                    route.destination == destination.parse().unwrap()
                        && route.interface == interface
                })
                .map(|route| route.table)
        };
        assert_eq!(table("10.60.0.0/16", "vl3-red"), Some(TABLE_MAIN));
        assert_eq!(table("10.60.0.0/16", "vl3-blue"), Some(20_001));
        assert_eq!(table("fd02::/64", "vl3-blue"), Some(TABLE_MAIN));
        let rules: Vec<_> = plan.rules.iter().copied().collect();
        assert_eq!(
            rules,
            [PlannedRule {
                source: "10.60.0.6/32".parse().unwrap(),
                table: 20_001
            }]
        );
    }

    #[test]
    fn a_part_of_a_range_is_an_overlap_too() {
        let part = joined("b", &["10.60.4.1"], &["10.60.4.0/24"], 7);
        assert_eq!(plan([&red(), &part]).rules.len(), 1);
        let apart = joined("b", &["10.61.4.1"], &["10.61.4.0/24"], 7);
        assert!(plan([&red(), &apart]).rules.is_empty());
    }

    #[test]
    fn a_configured_table_is_used_without_collision() {
        let mut network = red();
        network.table = Some(99);
        let plan = plan([&network]);
        assert!(plan.routes.iter().all(|route| route.table == 99));
        assert_eq!(plan.rules.len(), 2);
    }

    #[test]
    fn a_colliding_resolver_is_reachable_at_its_ipv6_address_only() {
        let (red, blue) = (red(), blue());
        let plan = plan([&red, &blue]);
        let at = |address: &str| address.parse().unwrap();
        assert!(reachable_by_default(&red, at("10.60.0.1"), &plan));
        assert!(!reachable_by_default(&blue, at("10.60.0.1"), &plan));
        assert!(reachable_by_default(&blue, at("fd02::1"), &plan));
    }

    #[test]
    fn the_same_answers_give_the_same_plan() {
        assert_eq!(plan([&red(), &blue()]), plan([&red(), &blue()]));
    }
}
