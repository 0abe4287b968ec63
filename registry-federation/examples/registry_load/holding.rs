//! Endpoints that are kept up by refreshes, spread evenly over the interval.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::calls::{Caller, endpoint};
use crate::figures::Latencies;
use crate::rounds::callers;

#[derive(Debug, Deserialize)]
pub(crate) struct Hold {
    to: String,
    connections: u32,
    endpoints: u32,
    services: u32,
    interval_s: f64,
    seconds: f64,
    /// Created when the time of `seconds` begins: connections stand by then.
    started: std::path::PathBuf,
}

impl Hold {
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let callers = callers(dir, "workload/load", self.connections, &self.to).await?;
        std::fs::write(&self.started, "")
            .with_context(|| format!("write {}", self.started.display()))?;
        let begin = Instant::now();
        let running: Vec<_> = (0..)
            .zip(callers)
            .map(|(number, caller)| tokio::spawn(self.keep(caller, number, begin)))
            .collect();
        let mut all = Latencies::default();
        for task in running {
            all.merge(task.await.context("a caller failed")?);
        }
        // What was due in that time, less what falls on its very end.
        let due = f64::from(self.endpoints) * self.seconds / self.interval_s;
        all.summary(begin.elapsed(), (due * 0.99) as usize)
    }

    /// One caller: its endpoints one after another, at their times.
    fn keep(
        &self,
        caller: Arc<Caller>,
        first: u32,
        begin: Instant,
    ) -> impl Future<Output = Latencies> + Send + 'static {
        let own: Vec<u32> = (first..self.endpoints)
            .step_by(self.connections as usize)
            .collect();
        let count = u32::try_from(own.len()).unwrap_or(u32::MAX).max(1);
        let pace = Duration::from_secs_f64(self.interval_s) / count;
        let offset = pace * (first % self.connections.max(1)) / self.connections.max(1);
        let end = begin + Duration::from_secs_f64(self.seconds);
        let services = self.services;
        async move {
            let mut latencies = Latencies::default();
            let mut due = begin + offset;
            for number in own.into_iter().cycle() {
                if due >= end {
                    break;
                }
                tokio::time::sleep_until(due).await;
                let start = Instant::now();
                match caller.register(endpoint(number, services)).await {
                    Ok(_) => latencies.add(start.elapsed()),
                    Err(status) => latencies.wrong(status.to_string()),
                }
                due += pace;
            }
            latencies
        }
    }
}
