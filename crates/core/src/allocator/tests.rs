use ipnet::IpNet;
use proptest::prelude::*;

use super::space::overlap;
use super::{Acquire, Allocator, Config, Lease, LeaseRecord, Refusal};
use crate::document::fixture::{document, domain, id};
use crate::document::{Document, Member};
use crate::ids::{Generation, InstanceId, RouterName, SpiffeId};
use crate::time::Mono;

/// One domain's allocator, and the journal that it leaves.
pub(super) struct Bench {
    pub(super) document: Document,
    pub(super) allocator: Allocator,
    pub(super) journal: Vec<LeaseRecord>,
    pub(super) now: Mono,
}

pub(super) fn router(number: u8) -> RouterName {
    RouterName::new(&format!("red-east-{number}")).unwrap()
}

pub(super) fn holder(number: u8) -> SpiffeId {
    id("east", &format!("vl3/router/{number}"))
}

pub(super) fn acquire(number: u8, instance: u8) -> Acquire {
    Acquire {
        router: router(number),
        instance: InstanceId([instance; 16]),
        held: None,
        prefix_len4: None,
        exclusions: Vec::new(),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Bench {
    pub(super) fn new() -> Self {
        let document = document(&["east"]);
        let allocator = Allocator::new(document.uid, domain("east"), Config::default());
        Self {
            document,
            allocator,
            journal: Vec::new(),
            now: Mono::from_secs(1),
        }
    }

    pub(super) fn member(&self) -> &Member {
        &self.document.members[&domain("east")]
    }

    pub(super) fn commit(&mut self, records: Vec<LeaseRecord>) {
        for record in records {
            self.journal.push(record.clone());
            self.allocator.apply(record, self.now);
        }
    }

    pub(super) fn acquire(&mut self, acquire: &Acquire, number: u8) -> Result<Lease, Refusal> {
        let (records, granted) = self.allocator.acquire(
            acquire,
            &holder(number),
            &self.document,
            self.member(),
            self.now,
        )?;
        self.commit(records);
        self.allocator.touch(&acquire.router, self.now);
        Ok(granted.lease)
    }

    pub(super) fn renew(&mut self, lease: &Lease, number: u8) -> Result<(), Refusal> {
        self.allocator
            .renew(lease, &holder(number), self.member())?;
        self.allocator.touch(&lease.router, self.now);
        Ok(())
    }

    pub(super) fn release(&mut self, lease: &Lease, number: u8) -> Result<(), Refusal> {
        let records = self.allocator.release(lease, &holder(number))?;
        self.commit(records);
        Ok(())
    }

    pub(super) fn expire(&mut self) {
        for router in self.allocator.expired(self.now) {
            let records = self.allocator.end(&router);
            self.commit(records);
        }
    }

    pub(super) fn replayed(&self) -> Allocator {
        let mut replayed = Allocator::new(self.document.uid, domain("east"), Config::default());
        self.journal
            .iter()
            .for_each(|record| replayed.apply(record.clone(), self.now));
        replayed
    }
}

/// The last generation is the last one for ever: whoever presented it would end all fencing.
#[test]
fn nobody_uses_generations_up_by_presenting_a_high_one() {
    let mut bench = Bench::new();
    let first = bench.acquire(&acquire(1, 1), 1).unwrap();
    let presents = |generation| Acquire {
        held: Some(Lease {
            generation: Generation(generation),
            instance: InstanceId([2; 16]),
            ..first.clone()
        }),
        ..acquire(1, 2)
    };
    for high in [u64::MAX, u64::MAX - 1, (1 << 32) + 2] {
        let refused = bench.acquire(&presents(high), 1).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("generation: {high} is not allowed, at most 4294967297 is")
        );
    }
    assert_eq!(bench.allocator.lease(&first.router), Some(&first));
    // A registry that lost its memory takes every round back that a router can have had.
    let back = bench.acquire(&presents(1 << 32), 1).unwrap();
    assert_eq!(back.generation, Generation(1 << 32));
    // A new life is another round, and fences the one before.
    let next = bench.acquire(&acquire(1, 3), 1).unwrap();
    assert_eq!(next.generation, Generation((1 << 32) + 1));
    let fenced = bench.acquire(&presents(1 << 32), 1).unwrap_err();
    assert!(matches!(fenced, Refusal::Fenced { .. }), "{fenced}");
}

#[test]
fn one_lease_covers_both_families_and_stays_with_its_instance() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    assert_eq!(lease.prefix4.map(IpNet::V4), Some(net("10.80.4.0/24")));
    assert_eq!(IpNet::V6(lease.prefix6), net("fd00:1:2:3:1::/96"));
    assert_eq!(lease.generation, Generation(1));
    assert_eq!(bench.acquire(&acquire(1, 1), 1).unwrap(), lease);
    assert_eq!(bench.journal.len(), 1, "the same again is no record");
    let addresses: Vec<_> = lease
        .addresses()
        .map(|address| address.to_string())
        .collect();
    assert_eq!(addresses, ["10.80.4.0", "fd00:1:2:3:1::"]);
}

#[test]
fn another_instance_takes_over_with_a_higher_generation_and_fences_the_old_one() {
    let mut bench = Bench::new();
    let old = bench.acquire(&acquire(1, 1), 1).unwrap();
    let new = bench.acquire(&acquire(1, 2), 1).unwrap();
    assert_eq!(
        (new.prefix4, new.prefix6, new.generation),
        (old.prefix4, old.prefix6, Generation(2))
    );
    assert!(matches!(
        bench.renew(&old, 1),
        Err(Refusal::Fenced {
            generation: Generation(2),
            ..
        })
    ));
    assert!(matches!(
        bench.release(&old, 1),
        Err(Refusal::Fenced { .. })
    ));
    let again = Acquire {
        held: Some(old),
        ..acquire(1, 1)
    };
    assert!(matches!(
        bench.acquire(&again, 1),
        Err(Refusal::Fenced { .. })
    ));
    assert!(matches!(
        bench.acquire(&acquire(1, 3), 2),
        Err(Refusal::HeldByOther { .. })
    ));
    bench.renew(&new, 1).unwrap();
}

#[test]
fn a_presented_lease_that_is_free_is_taken_back() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    let mut restored = Bench::new();
    let presented = Acquire {
        held: Some(Lease {
            generation: Generation(7),
            ..lease.clone()
        }),
        ..acquire(1, 1)
    };
    let taken_back = restored.acquire(&presented, 1).unwrap();
    assert_eq!(
        (taken_back.prefix4, taken_back.generation),
        (lease.prefix4, Generation(7))
    );
    // Somebody else presents the same: it is taken.
    let other = Acquire {
        held: Some(Lease {
            router: router(2),
            ..lease
        }),
        ..acquire(2, 2)
    };
    let other = restored.acquire(&other, 2).unwrap();
    assert_ne!(other.prefix6, lease.prefix6);
    assert_eq!(other.generation, Generation(2), "above what was presented");
    // What lies outside of the block is not taken back.
    let foreign = Lease {
        prefix6: "fd00:1:2:3:9::/96".parse().unwrap(),
        router: router(3),
        ..lease
    };
    let own = restored
        .acquire(
            &Acquire {
                held: Some(foreign),
                ..acquire(3, 3)
            },
            3,
        )
        .unwrap();
    assert!(restored.member().owns(&IpNet::V6(own.prefix6)));
}

#[test]
fn of_two_instances_of_one_round_only_the_holder_renews_and_releases() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    let other = Lease {
        instance: InstanceId([2; 16]),
        ..lease.clone()
    };
    let renewed = bench.renew(&other, 1);
    assert!(
        matches!(renewed, Err(Refusal::Fenced { .. })),
        "{renewed:?}"
    );
    let released = bench.release(&other, 1);
    assert!(
        matches!(released, Err(Refusal::Fenced { .. })),
        "{released:?}"
    );
    bench.renew(&lease, 1).unwrap();
}

#[test]
fn a_presented_lease_outside_of_the_domains_blocks_is_not_taken_back() {
    let lease = Bench::new().acquire(&acquire(1, 1), 1).unwrap();
    let outside4 = Lease {
        prefix4: Some("10.99.0.0/24".parse().unwrap()),
        ..lease.clone()
    };
    let outside6 = Lease {
        prefix6: "fd00:9::/96".parse().unwrap(),
        ..lease.clone()
    };
    for held in [outside4, outside6] {
        let presented = Acquire {
            held: Some(held),
            ..acquire(1, 1)
        };
        let given = Bench::new().acquire(&presented, 1).unwrap();
        let prefixes = (given.prefix4, given.prefix6);
        assert_eq!(prefixes, (lease.prefix4, lease.prefix6));
    }
}

#[test]
fn a_lease_outside_of_the_domains_blocks_is_not_renewed() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    let member = bench.document.members.get_mut(&domain("east")).unwrap();
    member.block4 = Some("10.99.0.0/22".parse().unwrap());
    let renewed = bench.renew(&lease, 1);
    assert!(
        matches!(&renewed, Err(Refusal::AcquireAgain { reason }) if reason.contains("outside")),
        "{renewed:?}"
    );
}

/// Simulation, mixed profile, seed 194.
#[test]
fn a_second_restore_within_the_period_ends_no_lease_that_the_first_backup_did_not_know() {
    let lease = Bench::new().acquire(&acquire(1, 1), 1).unwrap();
    let mut bench = Bench::new();
    bench.commit(vec![
        LeaseRecord::Restored { floor: None },
        // Its registration has been heard of, its lease has not.
        LeaseRecord::Floor {
            generation: lease.generation,
        },
        LeaseRecord::Restored { floor: None },
    ]);
    let presented = Acquire {
        held: Some(lease.clone()),
        ..acquire(1, 1)
    };
    assert_eq!(bench.acquire(&presented, 1), Ok(lease));
}

#[test]
fn after_a_restore_only_presented_leases_are_given() {
    let mut bench = Bench::new();
    bench.commit(vec![LeaseRecord::Restored { floor: None }]);
    assert!(matches!(
        bench.acquire(&acquire(1, 1), 1),
        Err(Refusal::ReadoptOnly { .. })
    ));
    let lease = Bench::new().acquire(&acquire(1, 1), 1).unwrap();
    bench
        .acquire(
            &Acquire {
                held: Some(lease),
                ..acquire(1, 1)
            },
            1,
        )
        .unwrap();
    assert!(matches!(
        bench.acquire(&acquire(1, 2), 1),
        Err(Refusal::ReadoptOnly { .. })
    ));
    let until = bench.now + Config::default().renew_after * 2;
    assert_eq!(bench.allocator.readopts_until(), Some(until));
    bench.now = until;
    bench.acquire(&acquire(2, 2), 2).unwrap();
}

#[test]
fn exclusions_bind_new_grants_and_a_collision_refuses_the_newcomer() {
    let mut bench = Bench::new();
    bench.document.policy.exclusions = vec![net("10.80.4.0/24")];
    let excluding = Acquire {
        exclusions: vec![net("10.80.5.7/26")],
        ..acquire(1, 1)
    };
    let lease = bench.acquire(&excluding, 1).unwrap();
    assert_eq!(lease.prefix4.map(IpNet::V4), Some(net("10.80.6.0/24")));
    let other = bench.acquire(&acquire(2, 2), 2).unwrap();
    assert_eq!(
        other.prefix4.map(IpNet::V4),
        Some(net("10.80.7.0/24")),
        "the first one's exclusion binds"
    );
    let collision = Acquire {
        exclusions: vec![net("10.80.0.0/16")],
        ..acquire(3, 3)
    };
    let refused = bench.acquire(&collision, 3).unwrap_err().to_string();
    assert!(
        refused.contains("10.80.0.0/16 overlaps 10.80.6.0/24"),
        "{refused}"
    );
    assert!(matches!(
        bench.allocator.exclude(net("10.80.7.128/25")),
        Err(Refusal::Collision { .. })
    ));
    // A later policy moves nobody.
    bench.document.policy.exclusions.push(net("10.80.6.0/24"));
    bench.renew(&lease, 1).unwrap();
    assert_eq!(bench.acquire(&excluding, 1).unwrap(), lease);
}

#[test]
fn a_full_block_and_bad_wishes_are_clear_errors() {
    let mut bench = Bench::new();
    for number in 0..4 {
        bench.acquire(&acquire(number, number), number).unwrap();
    }
    let refused = bench.acquire(&acquire(9, 9), 9).unwrap_err().to_string();
    assert!(
        refused.contains("block 10.80.4.0/22 of domain east"),
        "{refused}"
    );
    for len in [21, 31] {
        let wish = Acquire {
            prefix_len4: Some(len),
            ..acquire(9, 9)
        };
        assert!(matches!(
            bench.acquire(&wish, 9),
            Err(Refusal::Invalid {
                field: "prefix_len4",
                ..
            })
        ));
    }
}

#[test]
fn a_silent_lease_ends_and_its_name_comes_back_with_a_higher_generation() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    bench.acquire(&acquire(1, 2), 1).unwrap();
    bench.now = bench.now + Config::default().lifetime;
    bench.expire();
    assert_eq!(bench.allocator.leases().count(), 0);
    assert!(matches!(
        bench.renew(&lease, 1),
        Err(Refusal::AcquireAgain { .. })
    ));
    assert_eq!(
        bench.acquire(&acquire(1, 1), 1).unwrap().generation,
        Generation(3)
    );
}

/// What routers and operators may do, in any order.
#[derive(Clone, Debug)]
enum Step {
    Acquire {
        number: u8,
        instance: u8,
        present: bool,
        len: Option<u8>,
        exclusion: Option<u8>,
    },
    Renew(u8),
    Release(u8),
    Exclude(u8),
    Include(u8),
    Wait(u64),
    /// The process restarts from its journal.
    Restart,
    /// The journal is replaced by a snapshot of itself.
    Compact,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![Just(None), (24_u8..=30).prop_map(Some)];
    let acquire = (
        0..6_u8,
        0..3_u8,
        any::<bool>(),
        len,
        proptest::option::weighted(0.3, any::<u8>()),
    )
        .prop_map(
            |(number, instance, present, len, exclusion)| Step::Acquire {
                number,
                instance,
                present,
                len,
                exclusion,
            },
        );
    let step = prop_oneof![
        6 => acquire,
        2 => (0..6_u8).prop_map(Step::Renew),
        2 => (0..6_u8).prop_map(Step::Release),
        1 => any::<u8>().prop_map(Step::Exclude),
        1 => any::<u8>().prop_map(Step::Include),
        1 => (0..300_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::Compact),
    ];
    proptest::collection::vec(step, 1..60)
}

fn range(number: u8) -> IpNet {
    let text = format!(
        "10.80.{}.{}/28",
        4 + number % 4,
        u16::from(number) / 4 * 16 % 256
    );
    net(&text).trunc()
}

/// Takes one step; remembers per router the lease that it was told.
fn step(bench: &mut Bench, told: &mut [Option<Lease>], step: Step) {
    // Refusals are the allocator's right; the invariants are checked after each step.
    match step {
        Step::Acquire {
            number,
            instance,
            present,
            len,
            exclusion,
        } => {
            let held = told[usize::from(number)].clone().filter(|_| present);
            let exclusions = exclusion.map(range).into_iter().collect();
            let wish = Acquire {
                held,
                prefix_len4: len,
                exclusions,
                ..acquire(number, instance)
            };
            if let Ok(lease) = bench.acquire(&wish, number) {
                let before = told[usize::from(number)].replace(lease.clone());
                if let Some(before) = before {
                    assert!(
                        before.generation <= lease.generation,
                        "{before:?} then {lease:?}"
                    );
                    assert!(
                        before.generation < lease.generation || before == lease,
                        "one round, two leases: {before:?} and {lease:?}"
                    );
                }
            }
        }
        Step::Renew(number) => {
            if let Some(lease) = told[usize::from(number)].clone() {
                let _refused = bench.renew(&lease, number);
            }
        }
        Step::Release(number) => {
            if let Some(lease) = told[usize::from(number)].clone() {
                let _refused = bench.release(&lease, number);
            }
        }
        Step::Exclude(number) => {
            if let Ok(records) = bench.allocator.exclude(range(number)) {
                bench.commit(records);
            }
        }
        Step::Include(number) => {
            let records = bench.allocator.include(range(number));
            bench.commit(records);
        }
        Step::Wait(secs) => {
            bench.now = bench.now + core::time::Duration::from_secs(secs);
            bench.expire();
        }
        Step::Restart => bench.allocator = bench.replayed(),
        Step::Compact => bench.journal = bench.allocator.snapshot(),
    }
}

fn check(bench: &Bench) {
    let leases: Vec<_> = bench.allocator.leases().cloned().collect();
    for (at, lease) in leases.iter().enumerate() {
        for prefix in lease.prefixes() {
            assert_eq!(prefix, prefix.trunc(), "canonical");
            assert!(bench.member().owns(&prefix), "inside the block");
            for other in &leases[at + 1..] {
                assert!(
                    !other.prefixes().any(|other| overlap(&other, &prefix)),
                    "{lease:?} and {other:?}"
                );
            }
            for exclusion in bench.allocator.exclusions() {
                assert!(!overlap(&exclusion, &prefix), "{lease:?} in {exclusion}");
            }
        }
    }
    assert_eq!(
        bench.replayed().snapshot(),
        bench.allocator.snapshot(),
        "replay equals what runs"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariants 1, 2 and 5, whatever happens in whatever order.
    #[test]
    fn leases_never_overlap_and_replay_equals_what_runs(steps in steps()) {
        let mut bench = Bench::new();
        let mut told = vec![None; 8];
        for one in steps {
            step(&mut bench, &mut told, one);
            check(&bench);
        }
    }
}
