//! Every workload reaches every other of its network, both families.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use vl3_lab::Host;
use vl3_lab::tools::{self, Answered};

use crate::demo::report::{self, Reachability, Report};
use crate::demo::workload::{Addresses, Workload};
use crate::demo::world::World;

/// Links come up on their own after the start.
const CONVERGE_MAX: Duration = Duration::from_secs(15);

/// Few at once: the round trips are shown.
const PARALLEL: usize = 4;

const ECHO_WAIT: Duration = Duration::from_secs(1);

/// Waits until every pair of `network` answers; then one sweep must be answered whole.
pub(in crate::demo) async fn run(
    world: &World,
    report: &mut Report,
    network: &str,
) -> anyhow::Result<String> {
    let members = world.members(network);
    let pairs = pairs(network, &members);
    let waited = converge(&pairs).await;
    let sweeps = stream::iter(pairs.iter().map(Pair::sweep));
    let rows: Vec<Reachability> = sweeps.buffered(PARALLEL).collect().await;
    let dead: Vec<String> = rows
        .iter()
        .filter(|row| row.ipv4_ms.is_none() || row.ipv6_ms.is_none())
        .map(|row| format!("{}->{}", row.from, row.to))
        .collect();
    let count = rows.len();
    report.reachability.extend(rows);
    if !dead.is_empty() {
        bail!(
            "{} of {count} ordered pairs do not reach each other: {}",
            dead.len(),
            dead.join(" ")
        );
    }
    Ok(format!(
        "{count} ordered pairs of {} workloads, IPv4 and IPv6; all links {:.1} s after the last attachment",
        members.len(),
        waited.as_secs_f64()
    ))
}

/// Whether every pair of some workloads answers once, within `limit`.
pub(in crate::demo) async fn all_answer(
    network: &str,
    members: &[&Workload],
    limit: Duration,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let pairs = pairs(network, members);
    let answers = join_all(pairs.iter().map(|pair| pair.first_answers(limit))).await;
    let dead: Vec<String> = pairs
        .iter()
        .zip(&answers)
        .filter(|(_, answered)| !**answered)
        .map(|(pair, _)| format!("{}->{}", pair.from, pair.to))
        .collect();
    if !dead.is_empty() {
        bail!("no answer within {limit:?}: {}", dead.join(" "));
    }
    Ok(started.elapsed())
}

struct Pair {
    network: String,
    from: &'static str,
    to: &'static str,
    host: Host,
    source: Addresses,
    target: Addresses,
}

fn pairs(network: &str, members: &[&Workload]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for from in members {
        for to in members.iter().filter(|to| to.name() != from.name()) {
            if let (Some(source), Some(target)) = (from.in_network(network), to.in_network(network))
            {
                pairs.push(Pair {
                    network: network.to_owned(),
                    from: from.name(),
                    to: to.name(),
                    host: from.host.clone(),
                    source,
                    target,
                });
            }
        }
    }
    pairs
}

/// Until all answer, at most [`CONVERGE_MAX`]; the sweep then says which do not.
async fn converge(pairs: &[Pair]) -> Duration {
    let started = Instant::now();
    join_all(pairs.iter().map(|pair| pair.first_answers(CONVERGE_MAX))).await;
    started.elapsed()
}

impl Pair {
    async fn first_answers(&self, limit: Duration) -> bool {
        for (source, target) in self.source.both().into_iter().zip(self.target.both()) {
            let answered = tools::echo_until(&self.host, Some(source), target, limit).await;
            if !matches!(answered, Ok(Some(_))) {
                return false;
            }
        }
        true
    }

    async fn sweep(&self) -> Reachability {
        Reachability {
            network: self.network.clone(),
            from: self.from.to_owned(),
            to: self.to.to_owned(),
            ipv4_ms: self
                .round_trip(self.source.v4.into(), self.target.v4.into())
                .await,
            ipv6_ms: self
                .round_trip(self.source.v6.into(), self.target.v6.into())
                .await,
        }
    }

    async fn round_trip(&self, source: IpAddr, target: IpAddr) -> Option<f64> {
        match tools::echo(&self.host, Some(source), target, ECHO_WAIT).await {
            Ok(Answered::After(time)) => Some(report::as_millis(time)),
            _ => None,
        }
    }
}
