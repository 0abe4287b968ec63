//! One seed, or very many, with a state file to go on from.

use core::fmt::Write as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context as _;

use super::answers::Answer;
use super::faults::{Fault, Tally};
use super::world::World;
use crate::broken::Broken;

/// Every so many seeds a run is played twice, and both traces must be the same.
const TWICE_EVERY: u64 = 20;
/// Seeds after which the state is written and the progress told.
const BLOCK: u64 = 500;
/// Seeds from which on every fault must have been injected.
const ALL_FAULTS_FROM: u64 = 200;

/// What one run left behind.
#[derive(Debug)]
pub struct Played {
    pub seed: u64,
    pub broken: Option<Broken>,
    pub hash: u64,
    pub events: u64,
    pub lines: Vec<String>,
    pub tally: Tally,
}

pub fn play(seed: u64, keep_trace: bool) -> Played {
    let mut world = World::new(seed, keep_trace);
    let broken = world.play().err();
    Played {
        seed,
        broken,
        hash: world.trace.hash(),
        events: world.trace.events(),
        lines: world.trace.lines().to_vec(),
        tally: world.tally,
    }
}

/// Sums over the seeds `first..next`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub first: u64,
    pub next: u64,
    pub events: u64,
    pub tally: Tally,
    pub failures: BTreeMap<u64, Broken>,
}

/// What to play.
#[derive(Debug)]
pub struct Plan<'a> {
    pub first: u64,
    pub seeds: u64,
    pub failures_max: u64,
    pub threads: usize,
    /// Where the progress is kept, and whether to go on from there.
    pub state: Option<&'a Path>,
    pub resume: bool,
}

/// Plays block after block; `tell` hears the progress after each.
pub fn play_many(plan: &Plan<'_>, mut tell: impl FnMut(&str)) -> anyhow::Result<Summary> {
    let mut summary = Summary {
        first: plan.first,
        next: plan.first,
        ..Summary::default()
    };
    let origin = plan.state.map(|_| Origin::of_this_program()).transpose()?;
    if let Some((state, origin)) = plan.state.zip(origin.as_ref())
        && plan.resume
        && state.exists()
    {
        summary = Summary::read(state, origin)?;
        tell(&format!("goes on at seed {}", summary.next));
    }
    let (begun, begun_at) = (Instant::now(), summary.next);
    let end = summary.first.saturating_add(plan.seeds);
    while summary.next < end && (summary.failures.len() as u64) < plan.failures_max.max(1) {
        let block = BLOCK.min(end - summary.next);
        summary.play(block, plan.threads);
        if let Some((state, origin)) = plan.state.zip(origin.as_ref()) {
            summary.write(state, origin)?;
        }
        let rate = (summary.next - begun_at) as f64 / begun.elapsed().as_secs_f64().max(0.001);
        let left = (end - summary.next) as f64 / rate.max(0.001);
        tell(&format!(
            "seed {} of {end}, {rate:.1} seeds/s, {:.0} min {:.0} s left, {} failures",
            summary.next,
            (left / 60.0).floor(),
            left % 60.0,
            summary.failures.len()
        ));
    }
    Ok(summary)
}

/// Whose seeds a state file counts: those of another build say nothing about this one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    profile: &'static str,
    /// A digest of the program.
    build: String,
}

impl Origin {
    fn of_this_program() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("where this program is")?;
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let digest = bytes
            .chunks(8)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                (hash ^ u64::from_le_bytes(word))
                    .wrapping_mul(0x0100_0000_01b3)
                    .rotate_left(29)
            });
        Ok(Self {
            profile: "federation",
            build: format!("{}-{digest:016x}", env!("CARGO_PKG_VERSION")),
        })
    }
}

impl Summary {
    pub const fn seeds(&self) -> u64 {
        self.next - self.first
    }

    /// Faults and refusals that many seeds should have met and none did.
    pub fn missing(&self) -> Vec<String> {
        if self.seeds() < ALL_FAULTS_FROM {
            return Vec::new();
        }
        let faults = Fault::ALL.into_iter();
        let faults = faults.filter(|fault| self.tally.of(*fault).0 == 0);
        // No limit is reached here, and no request is wrong in itself.
        let may_miss = [Answer::Limit, Answer::Invalid];
        let answers = Answer::ALL.into_iter();
        let answers = answers
            .filter(|answer| self.tally.of_met(*answer).0 == 0 && !may_miss.contains(answer));
        let answers = answers.map(|answer| format!("{answer:?}"));
        faults
            .map(|fault| format!("{fault:?}"))
            .chain(answers)
            .collect()
    }

    fn play(&mut self, block: u64, threads: usize) {
        let end = self.next + block;
        let next = AtomicU64::new(self.next);
        let shared = Mutex::new(&mut *self);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end {
                            return;
                        }
                        let played = play_checked(seed);
                        if let Ok(mut summary) = shared.lock() {
                            summary.add(played);
                        }
                    }
                });
            }
        });
        self.next = end;
    }

    fn add(&mut self, played: Played) {
        self.events += played.events;
        self.tally.add_all(&played.tally);
        if let Some(broken) = played.broken {
            self.failures.insert(played.seed, broken);
        }
    }

    fn write(&self, path: &Path, origin: &Origin) -> anyhow::Result<()> {
        let mut text = format!(
            "profile {}\nbuild {}\nfirst {}\nnext {}\nevents {}\n",
            origin.profile, origin.build, self.first, self.next, self.events
        );
        for fault in Fault::ALL {
            let (times, seeds) = self.tally.of(fault);
            writeln!(text, "fault {fault:?} {times} {seeds}")?;
        }
        for answer in Answer::ALL {
            let (times, seeds) = self.tally.of_met(answer);
            writeln!(text, "answer {answer:?} {times} {seeds}")?;
        }
        for (seed, broken) in &self.failures {
            let what = broken.what.replace('\n', " ");
            writeln!(text, "failure {seed} {} {what}", broken.invariant)?;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        let new = path.with_extension("new");
        std::fs::write(&new, text).with_context(|| new.display().to_string())?;
        std::fs::rename(&new, path).with_context(|| path.display().to_string())
    }

    fn read(path: &Path, origin: &Origin) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut summary = Self::default();
        let mut lines = text.lines();
        for (what, own) in [("profile", origin.profile), ("build", &origin.build)] {
            let said = lines.next().and_then(|line| line.split_once(' '));
            let said = said.filter(|(key, _)| *key == what).map(|(_, said)| said);
            anyhow::ensure!(
                said == Some(own),
                "{}: {what} {} played these seeds, this is {own}; start anew without --resume",
                path.display(),
                said.unwrap_or("unknown")
            );
        }
        for line in lines {
            let wrong = || format!("{}: {line:?} is not understood", path.display());
            summary.take(line).with_context(wrong)?;
        }
        Ok(summary)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let (key, rest) = line.split_once(' ')?;
        match key {
            "first" => self.first = rest.parse().ok()?,
            "next" => self.next = rest.parse().ok()?,
            "events" => self.events = rest.parse().ok()?,
            "fault" => {
                let mut words = rest.split(' ');
                let fault = Fault::parse(words.next()?)?;
                let times = words.next()?.parse().ok()?;
                self.tally.add(fault, times, words.next()?.parse().ok()?);
            }
            "answer" => {
                let mut words = rest.split(' ');
                let answer = Answer::parse(words.next()?)?;
                let times = words.next()?.parse().ok()?;
                self.tally
                    .add_met(answer, times, words.next()?.parse().ok()?);
            }
            "failure" => {
                let mut words = rest.splitn(3, ' ');
                let seed = words.next()?.parse().ok()?;
                let invariant = words.next()?.parse().ok()?;
                let broken = Broken::new(invariant, words.next()?);
                self.failures.insert(seed, broken);
            }
            _ => return None,
        }
        Some(())
    }
}

fn play_checked(seed: u64) -> Played {
    let mut played = play(seed, false);
    if played.broken.is_none() && seed.is_multiple_of(TWICE_EVERY) {
        let again = play(seed, false);
        if again.hash != played.hash {
            played.broken = Some(Broken::new(10, "the same seed gave another trace"));
        }
    }
    played
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_ends_like_one_that_was_not_interrupted() {
        let folder = std::env::temp_dir().join(format!("vl3-sim-{}", std::process::id()));
        let state = folder.join("federation.state");
        fn plan(seeds: u64, state: Option<&Path>, resume: bool) -> Plan<'_> {
            Plan {
                first: 3,
                seeds,
                failures_max: 1,
                threads: 1,
                state,
                resume,
            }
        }
        let whole = play_many(&plan(3, None, false), |_| {}).expect("no state is kept");
        play_many(&plan(1, Some(&state), false), |_| {}).expect("the state is written");
        let resumed = play_many(&plan(3, Some(&state), true), |_| {}).expect("it goes on");
        assert_eq!(resumed, whole);
        for (line, other) in [("profile", "profile scale"), ("build", "build 0.0.1-00")] {
            let text = std::fs::read_to_string(&state).expect("it was written");
            let changed: Vec<_> = text
                .lines()
                .map(|of| if of.starts_with(line) { other } else { of })
                .collect();
            let changed_state = folder.join(line);
            std::fs::write(&changed_state, changed.join("\n")).expect("the folder is ours");
            let error = play_many(&plan(3, Some(&changed_state), true), |_| {})
                .expect_err("another program's seeds count for nothing");
            assert!(error.to_string().contains(other), "{error}");
        }
        std::fs::remove_dir_all(folder).expect("the folder is ours");
    }
}
