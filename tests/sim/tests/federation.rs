//! A few seeds of registries alone on every test run; `cargo xtask sim --profile federation`
//! plays very many.

use vl3_sim::federation::run::{Plan, play, play_many};
use vl3_sim::federation::scale::{FAULTS, Size, World};

#[test]
fn registries_keep_every_invariant_whatever_happens_between_them() {
    let plan = Plan {
        first: 50_000,
        seeds: 60,
        failures_max: 1,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        state: None,
        resume: false,
    };
    let summary = play_many(&plan, |_| {}).expect("no state is kept");
    if let Some((seed, broken)) = summary.failures.first_key_value() {
        panic!("seed {seed} {broken}\ncargo xtask sim --seed {seed} --profile federation");
    }
    assert_eq!(summary.seeds(), 60);
    assert!(summary.events > 60 * 500, "nothing happened: {summary:?}");
}

#[test]
fn the_same_seed_of_registries_gives_the_same_trace() {
    let (first, second) = (play(7, true), play(7, true));
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.lines, second.lines);
    assert_ne!(first.hash, play(8, true).hash);
}

/// Two domains that one version removed went on with each other: both were away when it came,
/// and met those who hold it in another network only.
#[test]
fn who_is_removed_while_away_hears_of_it_in_another_network() {
    let played = play(203, false);
    assert!(played.broken.is_none(), "{:?}", played.broken);
}

/// An operator ended a lease, and the registry crashed between its disk and its reply: the prefix
/// is free all the same.
#[test]
fn a_lease_that_ended_without_a_reply_is_free() {
    let played = play(22_499, false);
    assert!(played.broken.is_none(), "{:?}", played.broken);
}

/// The world of `--profile scale`, small: everybody hears of every change in time, in order,
/// whatever was lost before.
#[test]
fn every_change_is_everywhere_soon_after_the_last_fault() {
    let size = Size {
        domains: 12,
        endpoints: 40,
        observers: 3,
        minutes: 12,
        ..Size::default()
    };
    let report = match World::new(size).play(|_| {}) {
        Ok(report) => report,
        Err(broken) => panic!("{broken}"),
    };
    assert!(
        report.changes > 12 * 40 && report.messages > 11 * report.changes / 2,
        "{report}"
    );
    assert_eq!(report.faults.len(), FAULTS.len(), "{report}");
    assert!(
        report.removals_heard > 0 && report.caught_up > 0,
        "{report}"
    );
    assert!(report.latest_after_faults > core::time::Duration::ZERO);
}

#[test]
fn a_run_in_which_too_little_happened_is_no_clean_one() {
    let size = |endpoints, minutes| Size {
        domains: 3,
        endpoints,
        observers: 1,
        minutes,
        ..Size::default()
    };
    let quiet = [
        (1000, 1, "a domain grew to 300 endpoints of 1000"),
        (40, 4, "never injected in 4 minutes"),
    ];
    for (endpoints, minutes, what) in quiet {
        let broken = World::new(size(endpoints, minutes)).play(|_| {}).err();
        let said = broken.map(|broken| broken.what);
        assert!(
            said.as_ref().is_some_and(|said| said.contains(what)),
            "{said:?}"
        );
    }
}

#[test]
fn a_process_that_takes_more_than_it_may_is_found() {
    let size = Size {
        domains: 2,
        endpoints: 10,
        observers: 1,
        minutes: 2,
        rss_max_mib: 1,
        ..Size::default()
    };
    let broken = World::new(size).play(|_| {}).err();
    let said = broken.map(|broken| broken.what);
    assert!(
        said.as_ref()
            .is_some_and(|said| said.contains("MiB resident")),
        "{said:?}"
    );
}
