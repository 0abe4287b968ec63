//! Prefixes of stock routers (`ipam.IPAM/ManagePrefixes`): leases like any other, through the
//! same allocator.
//!
//! A stock router names neither itself nor a network: it has a SPIFFE ID, which replicas may
//! share, and the prefix that it had before. So an identity has numbered leases, and gets the
//! one whose prefix it presents, else one that nobody uses at the moment, else a new one.

use std::collections::BTreeSet;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::api::{Effect, Peer, Refusal, Reply};
use super::machine::RegistryMachine;
use crate::allocator::Acquire;
use crate::ids::{InstanceId, NetworkUid, RouterName, SpiffeId};
use crate::machine::Outbox;
use crate::time::Now;

/// Leases of one identity.
const PER_IDENTITY_MAX: usize = 16;

/// What a stock router asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StockAcquire {
    /// What it had before; of either family.
    pub presented: Option<IpNet>,
    pub exclusions: Vec<IpNet>,
    /// Leases that other streams use at the moment.
    pub in_use: BTreeSet<RouterName>,
}

/// The numbered names of an identity's leases, and the instance that holds them all: its
/// round never ends by itself.
fn names(id: &SpiffeId) -> (Vec<RouterName>, InstanceId) {
    let digest = Sha256::digest(id.as_str().as_bytes());
    let mut instance = [0; 16];
    instance.copy_from_slice(&digest[..16]);
    let hash: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let names = (1..=PER_IDENTITY_MAX)
        .filter_map(|number| RouterName::new(&format!("stock-{hash}-{number}")).ok());
    (names.collect(), InstanceId(instance))
}

impl RegistryMachine {
    pub(super) fn acquire_stock(
        &mut self,
        uid: NetworkUid,
        stock: &StockAcquire,
        peer: &Peer,
        now: Now,
        out: &mut Outbox<Effect>,
    ) -> Result<Reply, Refusal> {
        let (network, document, member) = self.network(uid, now.wall)?;
        self.must_be_router("a prefix", peer, member)?;
        let allocator = &network.allocator;
        let (names, instance) = names(&peer.id);
        let lease = |name: &RouterName| allocator.lease(name);
        let presented = stock.presented.and_then(|presented| {
            let holds = |name: &&RouterName| {
                lease(name).is_some_and(|lease| lease.prefixes().any(|prefix| prefix == presented))
            };
            names.iter().find(holds)
        });
        let ask = |router: &RouterName| Acquire {
            router: router.clone(),
            instance,
            held: None,
            prefix_len4: None,
            exclusions: stock.exclusions.clone(),
        };
        let unused = || {
            let mut held = names.iter().filter(|name| lease(name).is_some());
            held.find(|name| !stock.in_use.contains(name))
        };
        let fresh = || names.iter().find(|name| lease(name).is_none());
        // One that nobody holds here, but the router does: it was granted before this registry's
        // memory begins, and is free.
        let remembered = || {
            let mut acquire = ask(fresh()?);
            acquire.held = allocator.complete(stock.presented?, &acquire, document, member);
            acquire.held.is_some().then_some(acquire)
        };
        let acquire = presented
            .map(ask)
            .or_else(remembered)
            .or_else(|| unused().or_else(fresh).map(ask));
        let acquire = acquire.ok_or(Refusal::Limit {
            what: "prefixes of one stock router's identity",
            limit: PER_IDENTITY_MAX,
        })?;
        let mut exclusions = stock.exclusions.clone();
        exclusions.extend(&document.policy.exclusions);
        exclusions = exclusions.iter().map(IpNet::trunc).collect();
        exclusions.sort_unstable();
        exclusions.dedup();
        match self.acquire(uid, &acquire, peer, now, out)? {
            Reply::Lease(granted) => Ok(Reply::Stock {
                granted,
                exclusions,
            }),
            other => Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, at, router, workload};
    use super::super::{Command, Config};
    use super::*;
    use crate::allocator;
    use crate::document::fixture::{chain, id};

    fn stock(name: &str) -> Peer {
        Peer::own(id("east", &format!("vl3/router/{name}")))
    }

    fn ask(bench: &Bench, presented: Option<&str>, in_use: &[&RouterName]) -> Command {
        Command::AcquireStock {
            uid: bench.chain.uid(),
            stock: StockAcquire {
                presented: presented.map(|prefix| prefix.parse().unwrap()),
                in_use: in_use.iter().map(|name| (*name).clone()).collect(),
                ..StockAcquire::default()
            },
        }
    }

    fn granted(
        bench: &mut Bench,
        peer: &Peer,
        presented: Option<&str>,
        in_use: &[&RouterName],
    ) -> allocator::Lease {
        let command = ask(bench, presented, in_use);
        match bench.call(peer, command) {
            Ok(Reply::Stock { granted, .. }) => granted.lease,
            other => panic!("no prefix: {other:?}"),
        }
    }

    fn overlap(a: &allocator::Lease, b: &allocator::Lease) -> bool {
        a.prefixes()
            .any(|a| b.prefixes().any(|b| a.contains(&b) || b.contains(&a)))
    }

    #[test]
    fn a_stock_router_keeps_its_prefix_over_reconnects_and_restarts_of_the_registry() {
        let mut bench = Bench::new();
        let first = granted(&mut bench, &stock("go"), None, &[]);
        let text = first.prefix4.unwrap().to_string();
        let written = bench.disk.len();
        for presented in [Some(text.as_str()), None, Some("10.80.99.0/24")] {
            assert_eq!(granted(&mut bench, &stock("go"), presented, &[]), first);
        }
        let both = first.prefix6.to_string();
        assert_eq!(granted(&mut bench, &stock("go"), Some(&both), &[]), first);
        assert_eq!(bench.disk.len(), written, "asking again is no record");
        bench.restart();
        assert_eq!(granted(&mut bench, &stock("go"), Some(&text), &[]), first);
    }

    #[test]
    fn replicas_of_one_identity_and_our_routers_never_share_a_prefix() {
        let mut bench = Bench::new();
        bench.call(&router(), bench.acquire(1)).unwrap();
        let ours = bench.machine.leases().next().unwrap().clone();
        let first = granted(&mut bench, &stock("go"), None, &[]);
        let second = granted(&mut bench, &stock("go"), None, &[&first.router]);
        let other = granted(&mut bench, &stock("other"), None, &[]);
        let all = [&ours, &first, &second, &other];
        for (at, one) in all.iter().enumerate() {
            for another in &all[..at] {
                assert!(!overlap(one, another), "{one:?} and {another:?}");
            }
        }
        // Somebody else's prefix is not had by presenting it.
        let text = ours.prefix4.unwrap().to_string();
        assert_eq!(
            granted(&mut bench, &stock("other"), Some(&text), &[]),
            other
        );
    }

    #[test]
    fn a_prefix_of_before_this_registrys_memory_is_taken_back_if_it_is_free() {
        let mut bench = Bench::new();
        let taken = granted(&mut bench, &stock("go"), Some("10.80.6.0/24"), &[]);
        assert_eq!(taken.prefix4.unwrap().to_string(), "10.80.6.0/24");
        for wrong in [
            "10.80.6.0/25",
            "10.80.4.0/22",
            "10.80.5.7/24",
            "10.0.0.0/24",
        ] {
            let other = granted(
                &mut bench,
                &stock(&format!("x{}", wrong.len())),
                Some(wrong),
                &[],
            );
            assert_ne!(other.prefix4.unwrap().to_string(), wrong);
            assert!(!overlap(&other, &taken));
            bench
                .call(
                    &stock(&format!("x{}", wrong.len())),
                    Command::Release { lease: other },
                )
                .unwrap();
        }
    }

    #[test]
    fn silence_ends_it_and_a_full_block_is_said() {
        let mut bench = Bench::boot(
            Config {
                allocator: allocator::Config {
                    lifetime: core::time::Duration::from_secs(1000),
                    prefix_len4: Some(23),
                    ..allocator::Config::default()
                },
                ..super::super::bench::config()
            },
            chain(&["east"]),
            Vec::new(),
        );
        let first = granted(&mut bench, &stock("a"), None, &[]);
        granted(&mut bench, &stock("b"), None, &[]);
        let command = ask(&bench, None, &[]);
        let full = bench.call(&stock("c"), command).unwrap_err();
        assert!(
            full.to_string()
                .starts_with("block 10.80.4.0/22 of domain east has no room"),
            "{full}"
        );
        bench.now = at(900);
        granted(&mut bench, &stock("b"), None, &[]);
        bench.now = at(1002);
        bench.wake();
        bench.write();
        let next = granted(&mut bench, &stock("c"), None, &[]);
        assert_eq!(next.prefix4, first.prefix4);
    }

    #[test]
    fn exclusions_are_honoured_and_answered_in_canonical_form() {
        let mut bench = Bench::new();
        let exclusions = ["10.80.5.9/24", "10.80.4.0/24", "10.80.5.0/24"];
        let command = Command::AcquireStock {
            uid: bench.chain.uid(),
            stock: StockAcquire {
                exclusions: exclusions
                    .iter()
                    .map(|range| range.parse().unwrap())
                    .collect(),
                ..StockAcquire::default()
            },
        };
        let Ok(Reply::Stock {
            granted,
            exclusions,
        }) = bench.call(&stock("go"), command)
        else {
            panic!("no prefix");
        };
        assert_eq!(granted.lease.prefix4.unwrap().to_string(), "10.80.6.0/24");
        let texts: Vec<_> = exclusions.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.80.4.0/24", "10.80.5.0/24"]);
    }

    #[test]
    fn only_routers_of_the_domain_lease_and_one_identity_does_not_take_all() {
        let mut bench = Bench::new();
        let west = Peer::vouched(id("west", "vl3/router/go"), [bench.chain.uid()].into());
        for stranger in [workload("a"), west] {
            let command = ask(&bench, None, &[]);
            let refused = bench.call(&stranger, command);
            assert!(
                matches!(refused, Err(Refusal::Denied { .. })),
                "{refused:?}"
            );
        }
        let (names, _) = names(&stock("go").id);
        let all: Vec<_> = names.iter().collect();
        let small = |prefix: usize| format!("10.80.4.{}/28", prefix * 16);
        assert_eq!(names.len(), PER_IDENTITY_MAX);
        let mut bench = Bench::boot(
            Config {
                allocator: allocator::Config {
                    prefix_len4: Some(28),
                    ..allocator::Config::default()
                },
                ..super::super::bench::config()
            },
            chain(&["east"]),
            Vec::new(),
        );
        for number in 0..PER_IDENTITY_MAX {
            let lease = granted(&mut bench, &stock("go"), None, &all[..number]);
            assert_eq!(lease.prefix4.unwrap().to_string(), small(number));
        }
        let command = ask(&bench, None, &all);
        let refused = bench.call(&stock("go"), command);
        assert!(
            matches!(refused, Err(Refusal::Limit { limit: 16, .. })),
            "{refused:?}"
        );
    }
}
