//! Prefixes of stock routers (`ipam.IPAM/ManagePrefixes`): leases like any other, through the
//! same allocator.
//!
//! A stock router names neither itself nor a network: it has a SPIFFE ID, which replicas may
//! share, and the prefix that it had before. So an identity has numbered leases, and gets the
//! one whose prefix it presents, else a new one. One that no stream uses may be that of a router
//! whose stream broke and which runs on: it is given to another one of the identity only where
//! there is no room for a new one, and after a long silence.

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::api::{Effect, Peer, Refusal, Reply};
use super::machine::RegistryMachine;
use super::stock_streams::StockUse;
use crate::allocator::{self, Acquire};
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
    pub streams: StockUse,
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

/// Whether a lease is of a stock router.
pub(super) fn is_stock(router: &RouterName) -> bool {
    router.as_str().starts_with("stock-")
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
        let StockUse {
            in_use,
            kept,
            unpaired,
        } = &stock.streams;
        let lease = |name: &RouterName| allocator.lease(name);
        let ask = |router: &RouterName| Acquire {
            router: router.clone(),
            instance,
            held: None,
            prefix_len4: None,
            exclusions: stock.exclusions.clone(),
        };
        let presented = stock.presented.and_then(|presented| {
            let holds = |name: &&RouterName| {
                lease(name).is_some_and(|lease| lease.prefixes().any(|prefix| prefix == presented))
            };
            names.iter().find(holds)
        });
        let fresh = || names.iter().find(|name| lease(name).is_none());
        // One that nobody holds here, but the router does: it was granted before this registry's
        // memory begins, and is free.
        let remembered = || {
            let mut acquire = ask(fresh()?);
            let presented = stock.presented?;
            acquire.held = allocator.complete(presented, &acquire, document, member, now.mono);
            acquire.held.is_some().then_some(acquire)
        };
        let other_half = || {
            let mut halves = names.iter().filter(|name| unpaired.contains(name));
            halves.find(|name| lease(name).is_some() && !in_use.contains(name))
        };
        let silent = || {
            let mut silent = names
                .iter()
                .filter(|name| allocator.is_silent(name, now.mono));
            silent.find(|name| !in_use.contains(name))
        };
        // The first of these for which there is room.
        let known = presented.filter(|name| !kept.contains(name)).map(|name| {
            // As if it remembered all of it: after a restore that is taken back at once.
            let held = lease(name).cloned();
            Acquire { held, ..ask(name) }
        });
        let known = known.or_else(|| presented.is_none().then(remembered).flatten());
        let choices: Vec<_> = match known {
            Some(acquire) => vec![acquire],
            None => {
                let others = [other_half(), fresh(), silent()];
                others.into_iter().flatten().map(ask).collect()
            }
        };
        let mut exclusions = stock.exclusions.clone();
        exclusions.extend(&document.policy.exclusions);
        exclusions = exclusions.iter().map(IpNet::trunc).collect();
        exclusions.sort_unstable();
        exclusions.dedup();
        let mut refused = Refusal::Limit {
            what: "prefixes of one stock router's identity",
            limit: PER_IDENTITY_MAX,
        };
        for (number, acquire) in choices.iter().enumerate() {
            let known = self.networks.get(&uid);
            let is_new = known.is_none_or(|known| known.allocator.lease(&acquire.router).is_none());
            match self.acquire(uid, acquire, peer, now, out) {
                Ok(Reply::Lease(granted)) => {
                    return Ok(Reply::Stock {
                        granted,
                        exclusions,
                        is_new,
                    });
                }
                Err(full @ Refusal::Lease(allocator::Refusal::Exhausted { .. })) if number == 0 => {
                    refused = full;
                }
                Err(Refusal::Lease(allocator::Refusal::Exhausted { .. })) => {}
                other => return other,
            }
        }
        Err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, at, config, router, workload};
    use super::super::{Boot, Command, Config, check};
    use super::*;
    use crate::document::fixture::{chain, id};

    fn stock(name: &str) -> Peer {
        Peer::own(id("east", &format!("vl3/router/{name}")))
    }

    fn ask(bench: &Bench, presented: Option<&str>, in_use: &[&RouterName]) -> Command {
        Command::AcquireStock {
            uid: bench.chain.uid(),
            stock: StockAcquire {
                presented: presented.map(|prefix| prefix.parse().unwrap()),
                streams: StockUse {
                    in_use: in_use.iter().map(|name| (*name).clone()).collect(),
                    ..StockUse::default()
                },
                exclusions: Vec::new(),
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
        let again = granted(&mut bench, &stock("go"), Some(&text), &[]);
        assert_eq!(again, first);
        let both = first.prefix6.to_string();
        assert_eq!(granted(&mut bench, &stock("go"), Some(&both), &[]), first);
        assert_eq!(bench.disk.len(), written, "asking again is no record");
        bench.restart();
        assert_eq!(granted(&mut bench, &stock("go"), Some(&text), &[]), first);
    }

    /// Only its stream broke: whoever is new must not be given what it runs with.
    #[test]
    fn a_router_that_lost_its_stream_keeps_its_prefix_from_newcomers_of_its_identity() {
        let mut bench = Bench::new();
        let running = granted(&mut bench, &stock("go"), None, &[]);
        let text = running.prefix4.unwrap().to_string();
        for restarted in [false, true] {
            if restarted {
                bench.restart();
            }
            let newcomer = granted(&mut bench, &stock("go"), None, &[]);
            assert!(!overlap(&newcomer, &running), "{newcomer:?}");
            let wrong = granted(&mut bench, &stock("go"), Some("10.80.99.0/24"), &[]);
            assert!(!overlap(&wrong, &running), "{wrong:?}");
            assert_eq!(granted(&mut bench, &stock("go"), Some(&text), &[]), running);
            bench
                .call(&stock("go"), Command::Release { lease: newcomer })
                .unwrap();
            bench
                .call(&stock("go"), Command::Release { lease: wrong })
                .unwrap();
        }
    }

    /// A pod that restarts without memory again and again must not fill the block for ever.
    #[test]
    fn without_room_a_newcomer_gets_what_was_silent_for_long() {
        let mut bench = Bench::new();
        // The block has room for four.
        let all: Vec<_> = (0..4)
            .map(|_| granted(&mut bench, &stock("go"), None, &[]))
            .collect();
        let command = ask(&bench, None, &[]);
        let full = bench.call(&stock("go"), command.clone()).unwrap_err();
        assert!(
            matches!(full, Refusal::Lease(allocator::Refusal::Exhausted { .. })),
            "{full}"
        );
        bench.now = at(1000);
        for running in &all[1..] {
            let lease = running.clone();
            bench.call(&stock("go"), Command::Renew { lease }).unwrap();
        }
        assert!(bench.call(&stock("go"), command).is_err(), "not yet");
        bench.now = at(1201);
        assert_eq!(granted(&mut bench, &stock("go"), None, &[]), all[0]);
        let command = ask(&bench, None, &[]);
        assert!(bench.call(&stock("go"), command).is_err(), "of no other");
        // Nor what a stream uses, however silent.
        bench.now = at(10_000);
        let in_use: Vec<_> = all.iter().map(|lease| &lease.router).collect();
        let command = ask(&bench, None, &in_use);
        assert!(bench.call(&stock("go"), command).is_err());
    }

    /// Two that run with one prefix would take it from each other for ever.
    #[test]
    fn who_presents_a_prefix_that_was_just_taken_over_gets_another_one() {
        let mut bench = Bench::new();
        let first = granted(&mut bench, &stock("go"), None, &[]);
        let text = first.prefix4.unwrap().to_string();
        let mut command = ask(&bench, Some(&text), &[&first.router]);
        let taken_over = bench.call(&stock("go"), command.clone()).unwrap();
        assert!(
            matches!(&taken_over, Reply::Stock { granted, is_new: false, .. } if granted.lease == first)
        );
        if let Command::AcquireStock { stock, .. } = &mut command {
            stock.streams.kept = stock.streams.in_use.clone();
        }
        let other = bench.call(&stock("go"), command).unwrap();
        assert!(
            matches!(&other, Reply::Stock { granted, is_new: true, .. } if !overlap(&granted.lease, &first)),
            "{other:?}"
        );
    }

    #[test]
    fn both_families_of_a_new_router_are_of_one_lease() {
        let mut bench = Bench::new();
        let first = granted(&mut bench, &stock("go"), None, &[]);
        let mut command = ask(&bench, None, &[]);
        if let Command::AcquireStock { stock, .. } = &mut command {
            stock.streams.unpaired = [first.router.clone()].into();
        }
        let half = bench.call(&stock("go"), command).unwrap();
        assert!(
            matches!(&half, Reply::Stock { granted, is_new: false, .. } if granted.lease == first),
            "{half:?}"
        );
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
        // Somebody else's prefix is not had by presenting it; the block is full.
        let text = ours.prefix4.unwrap().to_string();
        let command = ask(&bench, Some(&text), &[]);
        let refused = bench.call(&stock("other"), command);
        assert!(
            matches!(
                refused,
                Err(Refusal::Lease(allocator::Refusal::Exhausted { .. }))
            ),
            "{refused:?}"
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
    fn a_restore_gives_stock_routers_their_prefixes_back() {
        let mut bench = Bench::new();
        let known = granted(&mut bench, &stock("known"), None, &[]);
        let backup = bench.disk.clone();
        let later = granted(&mut bench, &stock("later"), None, &[]);
        let boot = Boot {
            documents: vec![bench.chain.clone()],
            records: backup.clone(),
            restored: true,
            ..Boot::default()
        };
        bench.machine = RegistryMachine::boot(config(), boot, bench.now).unwrap();
        bench.disk = backup;
        bench.wake();
        bench.write();
        let command = ask(&bench, None, &[]);
        let refused = bench.call(&stock("new"), command);
        assert!(
            matches!(
                refused,
                Err(Refusal::Lease(allocator::Refusal::ReadoptOnly { .. }))
            ),
            "{refused:?}"
        );
        for (name, lease) in [("later", later), ("known", known)] {
            let text = lease.prefix4.unwrap().to_string();
            let back = granted(&mut bench, &stock(name), Some(&text), &[]);
            assert_eq!(back.prefix4, lease.prefix4);
        }
        let report = check(&bench.disk, None);
        assert_eq!(report.violations, []);
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
                ..config()
            },
            chain(&["east"]),
            Vec::new(),
        );
        let first = granted(&mut bench, &stock("a"), None, &[]);
        let second = granted(&mut bench, &stock("b"), None, &[]);
        let command = ask(&bench, None, &[]);
        let full = bench.call(&stock("c"), command).unwrap_err();
        assert!(
            full.to_string()
                .starts_with("block 10.80.4.0/22 of domain east has no room"),
            "{full}"
        );
        bench.now = at(900);
        let text = second.prefix4.unwrap().to_string();
        granted(&mut bench, &stock("b"), Some(&text), &[]);
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
            ..
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
                ..config()
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
