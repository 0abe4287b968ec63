//! A restore and routers that remember a prefix and nothing else: stock ones.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::restore_tests::{ROUTERS, Step, World, step};
use super::space::overlap;
use super::tests::{acquire, router};
use super::{Acquire, Lease, LeaseRecord, Refusal};
use crate::ids::{InstanceId, RouterName};

const STOCKS: core::ops::Range<u8> = ROUTERS..ROUTERS + 2;

#[derive(Clone, Debug)]
enum Did {
    Ours(Step),
    /// Asks with what it remembers.
    Asks(u8),
    /// Loses its memory and asks.
    NewLife(u8),
    /// Gives back what it has.
    Deletes(u8),
    /// An operator ends what it has; it does not hear of it.
    Ended(u8),
}

struct Stocks {
    world: World,
    remembered: BTreeMap<u8, Ipv4Net>,
}

/// Its numbered leases.
fn names(number: u8) -> impl Iterator<Item = RouterName> {
    (0..8).map(move |count| router(number * 10 + count))
}

impl Stocks {
    fn new() -> Self {
        Self {
            world: World::new(),
            remembered: BTreeMap::new(),
        }
    }

    /// The lease that it has, as it knows it.
    fn has(&self, number: u8) -> Option<&Lease> {
        let prefix = self.remembered.get(&number)?;
        let leases = names(number).filter_map(|name| self.world.bench.allocator.lease(&name));
        leases
            .into_iter()
            .find(|lease| lease.prefix4 == Some(*prefix))
    }

    /// As the registry's adapter for stock routers does it.
    fn asks(&mut self, number: u8) -> Result<Lease, Refusal> {
        let (held, bench) = (self.has(number).cloned(), &self.world.bench);
        let free = names(number).find(|name| bench.allocator.lease(name).is_none());
        let router = match &held {
            Some(held) => held.router.clone(),
            None => free.expect("a name"),
        };
        let mut wanted = Acquire {
            router,
            held,
            instance: InstanceId([number; 16]),
            ..acquire(number, 0)
        };
        if let (None, Some(prefix)) = (&wanted.held, self.remembered.get(&number)) {
            let (allocator, presented) = (&bench.allocator, IpNet::V4(*prefix));
            let (document, member) = (&bench.document, bench.member());
            wanted.held = allocator.complete(presented, &wanted, document, member, bench.now);
        }
        let granted = self.world.bench.acquire(&wanted, number)?;
        self.remembered
            .extend(granted.prefix4.map(|prefix| (number, prefix)));
        Ok(granted)
    }

    fn did(&mut self, did: &Did) {
        match did {
            Did::Ours(step) => self.world.step(step),
            // Refused: exhausted, which changes nothing.
            Did::Asks(number) => drop(self.asks(*number)),
            Did::NewLife(number) => {
                if self.world.bench.allocator.lease_count() < 7 {
                    self.remembered.remove(number);
                    drop(self.asks(*number));
                }
            }
            Did::Deletes(number) | Did::Ended(number) => {
                if let Some(lease) = self.has(*number).cloned() {
                    let records = self.world.bench.allocator.end(&lease.router);
                    self.world.bench.commit(records);
                    if matches!(did, Did::Deletes(_)) {
                        self.remembered.remove(number);
                    }
                }
            }
        }
    }

    /// Whether anybody else remembers a part of it.
    fn is_contended(&self, number: u8, prefix: Ipv4Net) -> bool {
        let ours = self
            .world
            .routers
            .values()
            .filter_map(|known| known.held.as_ref()?.prefix4);
        let stocks = self
            .remembered
            .iter()
            .filter(|(other, _)| **other != number);
        let mut others = ours.chain(stocks.map(|(_, prefix)| *prefix));
        others.any(|other| overlap(&other.into(), &prefix.into()))
    }
}

fn dids() -> impl Strategy<Value = Vec<Did>> {
    let ours = step().prop_filter("exclusions are of another test", |step| {
        !matches!(step, Step::Exclude(_) | Step::Include(_))
    });
    let did = prop_oneof![
        6 => ours.prop_map(Did::Ours),
        4 => STOCKS.prop_map(Did::Asks),
        1 => STOCKS.prop_map(Did::NewLife),
        1 => STOCKS.prop_map(Did::Deletes),
        1 => STOCKS.prop_map(Did::Ended),
    ];
    prop::collection::vec(did, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_backup_takes_no_prefix_from_running_routers_stock_ones_included(
        dids in dids(),
        kept in any::<prop::sample::Index>(),
        order in Just((0..STOCKS.end).collect::<Vec<_>>()).prop_shuffle(),
        renews in prop::collection::vec(any::<bool>(), usize::from(ROUTERS)),
        newcomers in 0_u8..4,
    ) {
        let mut stocks = Stocks::new();
        for did in &dids {
            stocks.did(did);
        }
        stocks.world.apart()?;
        let ours = stocks.world.running();
        let running = STOCKS.filter_map(|number| Some((number, stocks.has(number)?.prefix4?)));
        let running: BTreeMap<_, _> = running.collect();
        let kept = kept.index(stocks.world.bench.journal.len() + 1);
        stocks.world.restore(kept);
        for number in &order {
            if STOCKS.contains(number) {
                // Who is refused tries again without a pause.
                drop(stocks.asks_again(*number));
            } else {
                let back = stocks.world.comes_back(*number, renews[usize::from(*number)]);
                prop_assert!(back.is_ok() || !ours.contains_key(number), "{number}: {back:?}");
            }
            stocks.world.apart()?;
        }
        for number in STOCKS {
            drop(stocks.asks_again(number));
        }
        let until = stocks.world.bench.allocator.readopts_until();
        stocks.world.bench.now = until.unwrap();
        stocks.world.bench.commit(vec![LeaseRecord::Readopted]);
        for number in running.keys() {
            drop(stocks.asks_again(*number));
            stocks.world.apart()?;
        }
        for number in 0..newcomers {
            let new = acquire(100 + number, 1);
            drop(stocks.world.bench.acquire(&new, 100 + number));
            stocks.world.apart()?;
        }
        for (number, lease) in &ours {
            let held = stocks.world.bench.allocator.lease(&router(*number));
            let same = held.is_some_and(|held| (held.prefix4, held.prefix6) == (lease.prefix4, lease.prefix6));
            prop_assert!(same, "{lease:?} became {held:?}");
        }
        for (number, prefix) in &running {
            if !stocks.is_contended(*number, *prefix) {
                let has = stocks.has(*number).and_then(|lease| lease.prefix4);
                prop_assert_eq!(has, Some(*prefix));
            }
        }
    }
}

impl Stocks {
    /// Without forgetting what it runs with, whatever it is given.
    fn asks_again(&mut self, number: u8) -> Result<Lease, Refusal> {
        let before = self.remembered.get(&number).copied();
        let Some(before) = before else {
            return Err(Refusal::ReadoptOnly { seconds: 0 });
        };
        let granted = self.asks(number);
        self.remembered.insert(number, before);
        granted
    }
}

/// The backup knows it: it is not refused until the period is over.
#[test]
fn a_stock_router_of_the_backup_has_its_prefix_at_once() {
    let mut stocks = Stocks::new();
    let lease = stocks.asks(6).unwrap();
    let kept = stocks.world.bench.journal.len();
    stocks.world.restore(kept);
    assert_eq!(stocks.asks(6), Ok(lease));
}

/// The backup says that it belongs to somebody whose lease ended since.
#[test]
fn a_stock_router_takes_its_prefix_back_from_who_is_gone_and_from_nobody_else() {
    for lives in [true, false] {
        let mut stocks = Stocks::new();
        let gone = stocks.world.ask(1, 24).unwrap();
        let kept = stocks.world.bench.journal.len();
        stocks.world.step(&Step::End(1));
        let lease = stocks.asks(6).unwrap();
        assert_eq!(lease.prefix4, gone.prefix4);
        stocks.world.restore(kept);
        // Its holder may still come; until then the stock router runs with what it has.
        assert!(matches!(stocks.asks(6), Err(Refusal::ReadoptOnly { .. })));
        if lives {
            stocks.world.bench.renew(&gone, 1).unwrap();
        }
        let until = stocks.world.bench.allocator.readopts_until();
        stocks.world.bench.now = until.unwrap();
        stocks.world.bench.commit(vec![LeaseRecord::Readopted]);
        let back = stocks.asks(6).unwrap();
        assert_eq!(back.prefix4 == gone.prefix4, !lives);
        if !lives {
            assert!(back.generation > gone.generation, "the later one is above");
            assert_eq!(stocks.world.bench.allocator.lease(&gone.router), None);
        }
        stocks.world.apart().unwrap();
    }
}

/// One that the backup does not know, with a free prefix: nobody else is given it meanwhile.
#[test]
fn a_stock_router_that_the_backup_does_not_know_gives_way_to_proven_rounds_only() {
    let mut stocks = Stocks::new();
    let lease = stocks.asks(6).unwrap();
    stocks.world.restore(0);
    let back = stocks.asks(6).unwrap();
    assert_eq!(back.prefix4, lease.prefix4);
    let stale = Lease {
        router: router(1),
        instance: InstanceId([0; 16]),
        ..lease
    };
    let wanted = Acquire {
        held: Some(stale.clone()),
        ..acquire(1, 0)
    };
    let granted = stocks.world.bench.acquire(&wanted, 1).unwrap();
    assert_eq!(granted.prefix4, stale.prefix4);
    assert!(stocks.asks(6).is_err());
}
