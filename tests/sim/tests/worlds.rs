//! A few seeds of each kind on every test run; `cargo xtask sim` plays thousands.

use vl3_sim::faults::{Fault, Profile};
use vl3_sim::run::{play, play_many};

const SEEDS: u64 = 25;

fn keeps_every_invariant(profile: Profile) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let summary = play_many(10_000, SEEDS, profile, 1, threads);
    if let Some((seed, (_, broken))) = summary.failures.first_key_value() {
        panic!(
            "seed {seed} {broken}\ncargo xtask sim --seed {seed} --profile {}",
            profile.name()
        );
    }
    assert!(
        summary.delivered > 0 && summary.names > 0,
        "nothing happened: {summary:?}"
    );
}

#[test]
fn calm_worlds_keep_every_invariant() {
    keeps_every_invariant(Profile::Calm);
}

#[test]
fn lossy_worlds_keep_every_invariant() {
    keeps_every_invariant(Profile::Lossy);
}

#[test]
fn crashing_worlds_keep_every_invariant() {
    keeps_every_invariant(Profile::Crashes);
}

#[test]
fn hostile_worlds_keep_every_invariant() {
    keeps_every_invariant(Profile::Hostile);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (first, second) = (
        play(7, Profile::Hostile, true),
        play(7, Profile::Hostile, true),
    );
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.lines, second.lines);
    assert_ne!(first.hash, play(8, Profile::Hostile, false).hash);
}

#[test]
fn a_hostile_world_injects_what_a_calm_one_does_not() {
    let hostile = play_many(20_000, 20, Profile::Hostile, 1, 2);
    for fault in [
        Fault::Partition,
        Fault::RouterCrash,
        Fault::StaleRestore,
        Fault::ForeignPrefix,
    ] {
        assert!(hostile.tally.of(fault) > 0, "{fault:?} was never injected");
    }
    let calm = play(1, Profile::Calm, false);
    assert!(
        Fault::ALL
            .into_iter()
            .all(|fault| calm.tally.of(fault) == 0)
    );
}
