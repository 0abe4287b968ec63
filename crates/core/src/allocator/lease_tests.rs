//! How long a lease lives, in which round it is, and who may end it.

use core::time::Duration;

use super::tests::{Bench, acquire, router};
use super::{Acquire, Config, Lease, LeaseRecord, Refusal};
use crate::document::fixture::domain;
use crate::ids::Generation;

/// East has its IPv4 block elsewhere from now on.
fn move_block(bench: &mut Bench, block4: &str) {
    let member = bench.document.members.get_mut(&domain("east")).unwrap();
    member.block4 = Some(block4.parse().unwrap());
}

/// One router through so many lives.
fn lives(bench: &mut Bench, number: u8, instances: u8) -> Lease {
    let leases = (1..=instances).map(|instance| bench.acquire(&acquire(number, instance), number));
    leases.last().unwrap().unwrap()
}

#[test]
fn a_renewal_gives_one_lifetime_from_now() {
    let mut bench = Bench::new();
    let lifetime = Config::default().lifetime;
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    let first = bench.now + lifetime;
    assert_eq!(bench.allocator.next_expiry(), Some(first));
    bench.now = bench.now + (lifetime - Duration::from_secs(1));
    bench.renew(&lease, 1).unwrap();
    let second = bench.now + lifetime;
    bench.now = first;
    bench.expire();
    assert_eq!(bench.allocator.lease(&router(1)), Some(&lease));
    assert_eq!(bench.allocator.next_expiry(), Some(second));
    bench.now = second;
    bench.expire();
    assert_eq!(bench.allocator.lease(&router(1)), None);
}

#[test]
fn a_lease_is_renewed_and_released_by_its_holder_only() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    for refused in [bench.renew(&lease, 2), bench.release(&lease, 2)] {
        assert!(
            matches!(refused, Err(Refusal::HeldByOther { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(bench.allocator.lease(&router(1)), Some(&lease));
    bench.release(&lease, 1).unwrap();
    assert_eq!(bench.allocator.lease(&router(1)), None);
}

#[test]
fn a_lease_outside_of_the_domains_blocks_is_exchanged() {
    let mut bench = Bench::new();
    let before = bench.acquire(&acquire(1, 1), 1).unwrap();
    move_block(&mut bench, "10.80.8.0/22");
    let after = bench.acquire(&acquire(1, 1), 1).unwrap();
    assert_eq!(after.prefix4, Some("10.80.8.0/24".parse().unwrap()));
    assert!(after.generation > before.generation);
}

/// Of two leases that overlap, the one with the higher generation is the later one.
#[test]
fn other_prefixes_come_in_a_round_above_all_that_ended() {
    let mut bench = Bench::new();
    bench.acquire(&acquire(1, 1), 1).unwrap();
    let ended = lives(&mut bench, 2, 4);
    bench.release(&ended, 2).unwrap();
    move_block(&mut bench, "10.80.8.0/22");
    let moved = bench.acquire(&acquire(1, 1), 1).unwrap();
    assert!(moved.generation > ended.generation, "{moved:?}");
}

#[test]
fn who_is_given_what_another_router_left_stands_above_it() {
    let mut bench = Bench::new();
    let left = lives(&mut bench, 1, 5);
    move_block(&mut bench, "10.80.8.0/22");
    bench.acquire(&acquire(1, 5), 1).unwrap();
    move_block(&mut bench, "10.80.4.0/22");
    let given = bench.acquire(&acquire(2, 2), 2).unwrap();
    assert_eq!(given.prefix4, left.prefix4);
    assert!(given.generation > left.generation, "{given:?}");
}

#[test]
fn exclusions_that_a_holder_adds_later_bind_others() {
    let mut bench = Bench::new();
    let lease = bench.acquire(&acquire(1, 1), 1).unwrap();
    let adding = Acquire {
        exclusions: vec!["10.80.5.0/24".parse().unwrap()],
        ..acquire(1, 1)
    };
    assert_eq!(bench.acquire(&adding, 1).unwrap(), lease);
    let other = bench.acquire(&acquire(2, 2), 2).unwrap();
    assert_eq!(other.prefix4, Some("10.80.6.0/24".parse().unwrap()));
}

#[test]
fn after_a_restore_a_lease_gives_way_to_a_later_one_and_not_to_one_of_its_round() {
    let mut bench = Bench::new();
    let kept = bench.acquire(&acquire(2, 2), 2).unwrap();
    bench.commit(vec![LeaseRecord::Restored { floor: None }]);
    let presented = |generation| Acquire {
        held: Some(Lease {
            router: router(1),
            instance: acquire(1, 1).instance,
            generation,
            ..kept.clone()
        }),
        ..acquire(1, 1)
    };
    let refused = bench.acquire(&presented(kept.generation), 1);
    assert!(
        matches!(refused, Err(Refusal::ReadoptOnly { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.allocator.lease(&router(2)), Some(&kept));
    let later = Generation(kept.generation.0 + 1);
    bench.acquire(&presented(later), 1).unwrap();
    assert_eq!(bench.allocator.lease(&router(2)), None);
}
