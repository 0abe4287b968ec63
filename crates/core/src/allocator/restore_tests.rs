//! A restore from a backup of any age: no running router loses its prefix, nothing is leased
//! twice.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::prelude::*;

use super::space::overlap;
use super::tests::{Bench, acquire, router};
use super::{Acquire, Allocator, Config, Lease, LeaseRecord, Refusal};
use crate::document::fixture::domain;
use crate::ids::{Generation, InstanceId};

pub(super) const ROUTERS: u8 = 6;

/// One router as it sees itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Router {
    /// What it remembers; may have ended without its knowledge.
    pub(super) held: Option<Lease>,
    instance: u8,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Asks with what it remembers, for a prefix of that length.
    Acquire(u8, u8),
    /// Loses its memory and asks.
    NewLife(u8, u8),
    Release(u8),
    /// An operator ends its lease; it does not hear of it.
    End(u8),
    Exclude(u8),
    Include(u8),
}

/// A world before and after its restore.
pub(super) struct World {
    pub(super) bench: Bench,
    pub(super) routers: BTreeMap<u8, Router>,
}

fn range(number: u8) -> IpNet {
    format!("10.80.{}.0/25", 4 + number % 4).parse().unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            bench: Bench::new(),
            routers: (0..ROUTERS)
                .map(|number| (number, Router::default()))
                .collect(),
        }
    }

    pub(super) fn ask(&mut self, number: u8, len: u8) -> Result<Lease, Refusal> {
        let known = &self.routers[&number];
        let wanted = Acquire {
            held: known.held.clone(),
            instance: InstanceId([known.instance; 16]),
            prefix_len4: Some(len),
            ..acquire(number, 0)
        };
        let granted = self.bench.acquire(&wanted, number)?;
        self.routers.get_mut(&number).unwrap().held = Some(granted.clone());
        Ok(granted)
    }

    pub(super) fn step(&mut self, step: &Step) {
        match *step {
            // Refused: exhausted or in collision, which changes nothing.
            Step::Acquire(number, len) => drop(self.ask(number, len)),
            Step::NewLife(number, len) => {
                let known = self.routers.get_mut(&number).unwrap();
                known.instance += 1;
                known.held = None;
                drop(self.ask(number, len));
            }
            Step::Release(number) => {
                if let Some(held) = self.routers[&number].held.clone()
                    && self.bench.release(&held, number).is_ok()
                {
                    self.routers.get_mut(&number).unwrap().held = None;
                }
            }
            Step::End(number) => {
                let records = self.bench.allocator.end(&router(number));
                self.bench.commit(records);
            }
            Step::Exclude(number) => {
                if let Ok(records) = self.bench.allocator.exclude(range(number)) {
                    self.bench.commit(records);
                }
            }
            Step::Include(number) => {
                let records = self.bench.allocator.include(range(number));
                self.bench.commit(records);
            }
        }
    }

    /// Those whose lease lives and who know it.
    pub(super) fn running(&self) -> BTreeMap<u8, Lease> {
        let live = |number: u8| {
            let lease = self.bench.allocator.lease(&router(number))?;
            let held = self.routers[&number].held.as_ref();
            (held == Some(lease)).then(|| (number, lease.clone()))
        };
        (0..ROUTERS).filter_map(live).collect()
    }

    /// As the registry finds itself: the first `kept` records, and the mark.
    pub(super) fn restore(&mut self, kept: usize) {
        let mut journal = self.bench.journal.clone();
        journal.truncate(kept);
        let uid = self.bench.document.uid;
        self.bench.allocator = Allocator::new(uid, domain("east"), Config::default());
        self.bench.journal.clear();
        self.bench.commit(journal);
        self.bench
            .commit(vec![LeaseRecord::Restored { floor: None }]);
    }

    /// As the machine of the core does it: renew, and acquire when that is not known.
    pub(super) fn comes_back(&mut self, number: u8, renews: bool) -> Result<(), Refusal> {
        let held = self.routers[&number].held.clone();
        if let Some(held) = held.filter(|_| renews) {
            match self.bench.renew(&held, number) {
                Err(Refusal::AcquireAgain { .. }) => {}
                other => return other,
            }
        }
        let len = self.routers[&number]
            .held
            .as_ref()
            .and_then(|held| held.prefix4)
            .map_or(24, |prefix| prefix.prefix_len());
        self.ask(number, len).map(drop)
    }

    pub(super) fn apart(&self) -> Result<(), TestCaseError> {
        let leases: Vec<_> = self.bench.allocator.leases().collect();
        for (at, lease) in leases.iter().enumerate() {
            for other in &leases[at + 1..] {
                let twice = lease
                    .prefixes()
                    .any(|range| other.prefixes().any(|prefix| overlap(&range, &prefix)));
                prop_assert!(!twice, "{lease:?} and {other:?}");
            }
        }
        Ok(())
    }
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let number = 0..ROUTERS;
    prop_oneof![
        6 => (number.clone(), 23_u8..27).prop_map(|(number, len)| Step::Acquire(number, len)),
        2 => (number.clone(), 23_u8..27).prop_map(|(number, len)| Step::NewLife(number, len)),
        3 => number.clone().prop_map(Step::Release),
        3 => number.clone().prop_map(Step::End),
        1 => number.clone().prop_map(Step::Exclude),
        1 => number.prop_map(Step::Include),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_running_router_loses_its_prefix_to_a_backup(
        steps in prop::collection::vec(step(), 1..60),
        kept in any::<prop::sample::Index>(),
        order in Just((0..ROUTERS).collect::<Vec<_>>()).prop_shuffle(),
        renews in prop::collection::vec(any::<bool>(), usize::from(ROUTERS)),
        restarted in any::<bool>(),
        newcomers in 0_u8..4,
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.apart()?;
        let running = world.running();
        let kept = kept.index(world.bench.journal.len() + 1);
        world.restore(kept);
        for (at, number) in order.iter().enumerate() {
            if restarted && at == order.len() / 2 {
                // A rewrite and a restart in the period.
                let snapshot = world.bench.allocator.snapshot();
                let uid = world.bench.document.uid;
                world.bench.allocator = Allocator::new(uid, domain("east"), Config::default());
                world.bench.commit(snapshot);
            }
            let newcomer = world.bench.acquire(&acquire(ROUTERS + 1, 1), ROUTERS + 1);
            prop_assert!(matches!(newcomer, Err(Refusal::ReadoptOnly { .. })), "{newcomer:?}");
            let back = world.comes_back(*number, renews[usize::from(*number)]);
            if running.contains_key(number) {
                // Whoever does not run any more may be refused.
                prop_assert!(back.is_ok(), "{number}: {back:?} {running:?}");
            }
            world.apart()?;
        }
        // What was displaced by somebody who came later comes back too, and gets nothing of it.
        for number in &order {
            drop(world.comes_back(*number, true));
        }
        world.bench.now = world.bench.allocator.readopts_until().unwrap();
        world.bench.commit(vec![LeaseRecord::Readopted]);
        for number in 0..newcomers {
            drop(world.bench.acquire(&acquire(ROUTERS + 1 + number, 1), ROUTERS + 1 + number));
            world.apart()?;
        }
        for (number, lease) in &running {
            let held = world.bench.allocator.lease(&router(*number));
            let same = held.is_some_and(|held| {
                (held.prefix4, held.prefix6) == (lease.prefix4, lease.prefix6)
                    && held.generation >= lease.generation
            });
            prop_assert!(same, "{lease:?} became {held:?}");
            prop_assert!(world.bench.renew(&world.routers[number].held.clone().unwrap(), *number).is_ok());
        }
    }
}

#[test]
fn a_lease_that_ended_before_the_backup_is_not_taken_back() {
    let mut world = World::new();
    let first = world.ask(1, 24).unwrap();
    world.step(&Step::End(1));
    let kept = world.bench.journal.len();
    let second = world.ask(2, 24).unwrap();
    assert_eq!(first.prefix4, second.prefix4);
    world.restore(kept);
    assert!(matches!(world.ask(1, 24), Err(Refusal::ReadoptOnly { .. })));
    assert_eq!(world.ask(2, 24).unwrap(), second);
    assert_eq!(second.generation, Generation(2));
}

#[test]
fn a_later_lease_takes_the_place_of_the_one_in_the_backup() {
    let mut world = World::new();
    let first = world.ask(1, 24).unwrap();
    let kept = world.bench.journal.len();
    world.step(&Step::End(1));
    let second = world.ask(2, 24).unwrap();
    assert_eq!(first.prefix4, second.prefix4);
    world.restore(kept);
    world.bench.renew(&first, 1).unwrap();
    assert_eq!(world.ask(2, 24).unwrap(), second);
    assert!(matches!(
        world.bench.renew(&first, 1),
        Err(Refusal::AcquireAgain { .. })
    ));
    assert!(matches!(world.ask(1, 24), Err(Refusal::ReadoptOnly { .. })));
}
