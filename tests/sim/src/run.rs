//! One seed, or many on all cores.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::broken::Broken;
use crate::faults::{Profile, Tally};
use crate::world::World;

/// Every so many seeds a run is played twice, and both traces must be the same.
const TWICE_EVERY: u64 = 20;

/// What one run left behind.
#[derive(Debug)]
pub struct Played {
    pub seed: u64,
    pub profile: Profile,
    pub broken: Option<Broken>,
    pub hash: u64,
    pub events: u64,
    pub delivered: u64,
    pub names: u64,
    pub tally: Tally,
    pub lines: Vec<String>,
}

/// Plays one seed.
pub fn play(seed: u64, profile: Profile, keep_trace: bool) -> Played {
    let mut world = World::new(seed, profile, keep_trace);
    let broken = world.play().err();
    Played {
        seed,
        profile: world.profile,
        broken,
        hash: world.trace.hash(),
        events: world.trace.events(),
        delivered: world.truth.delivered,
        names: world.truth.names_answered,
        lines: world.trace.lines().to_vec(),
        tally: world.tally,
    }
}

/// Sums over many runs.
#[derive(Debug, Default)]
pub struct Summary {
    pub seeds: u64,
    pub events: u64,
    pub delivered: u64,
    pub names: u64,
    pub tally: Tally,
    /// What broke, the lowest seed first, of those that were played.
    pub failures: BTreeMap<u64, (Profile, Broken)>,
}

/// Plays `count` seeds from `first`, on `threads`; stops soon after `failures_max` failures.
pub fn play_many(
    first: u64,
    count: u64,
    profile: Profile,
    failures_max: u64,
    threads: usize,
) -> Summary {
    let next = AtomicU64::new(first);
    let failures = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while failures.load(Ordering::Relaxed) < failures_max.max(1) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let mut played = play(seed, profile, false);
                    if played.broken.is_none() && seed.is_multiple_of(TWICE_EVERY) {
                        let again = play(seed, profile, false);
                        if again.hash != played.hash {
                            let what = "the same seed gave another trace".to_owned();
                            played.broken = Some(Broken {
                                invariant: 10,
                                what,
                            });
                        }
                    }
                    if played.broken.is_some() {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Ok(mut summary) = summary.lock() {
                        summary.add(played);
                    }
                }
            });
        }
    });
    summary.into_inner().unwrap_or_default()
}

impl Summary {
    fn add(&mut self, played: Played) {
        self.seeds += 1;
        self.events += played.events;
        self.delivered += played.delivered;
        self.names += played.names;
        self.tally.add(&played.tally);
        if let Some(broken) = played.broken {
            self.failures.insert(played.seed, (played.profile, broken));
        }
    }
}
