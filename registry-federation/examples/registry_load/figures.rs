//! Latencies as figures.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

/// How long each call took, over how long a time.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    nanos: Vec<u64>,
    /// Answers that were not what they had to be, and refusals.
    pub(crate) wrong: u64,
    /// The first of those, for people.
    pub(crate) first_wrong: Option<String>,
}

impl Latencies {
    pub(crate) fn add(&mut self, took: Duration) {
        self.nanos
            .push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn wrong(&mut self, what: impl Into<String>) {
        self.wrong += 1;
        self.first_wrong.get_or_insert_with(|| what.into());
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.nanos.extend(other.nanos);
        self.wrong += other.wrong;
        if self.first_wrong.is_none() {
            self.first_wrong = other.first_wrong;
        }
    }

    /// An error with fewer right answers than `least`, of which there must be one.
    pub(crate) fn summary(mut self, elapsed: Duration, least: usize) -> anyhow::Result<Value> {
        let (right, least) = (self.nanos.len(), least.max(1));
        ensure!(
            right >= least,
            "{right} right answers, at least {least} are expected; {} wrong, the first: {}",
            self.wrong,
            self.first_wrong.as_deref().unwrap_or("none")
        );
        self.nanos.sort_unstable();
        let count = u32::try_from(right).unwrap_or(u32::MAX);
        Ok(json!({
            "operations": count,
            "elapsed_s": elapsed.as_secs_f64(),
            "per_second": f64::from(count) / elapsed.as_secs_f64().max(1e-9),
            "p50_ms": self.percentile(50)?,
            "p99_ms": self.percentile(99)?,
            "max_ms": self.percentile(100)?,
            "wrong": self.wrong,
            "first_wrong": self.first_wrong,
        }))
    }

    /// Nearest rank, in milliseconds; the times are sorted.
    fn percentile(&self, percent: usize) -> anyhow::Result<f64> {
        let rank = (self.nanos.len() * percent).div_ceil(100).max(1);
        let nanos = self.nanos.get(rank - 1).context("no time was taken")?;
        Ok(Duration::from_nanos(*nanos).as_secs_f64() * 1e3)
    }
}
