//! How long until every other domain's watchers see what one domain's router registered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use vl3_proto::registry::{NetworkServiceEndpoint, NetworkServiceEndpointResponse};

use crate::calls::{Caller, router_endpoint};
use crate::figures::Latencies;
use crate::prepare::{NETWORK, REGISTRY_PORT, address, chain, domain};

/// All domains see one another within this, and every change within it.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
pub(crate) struct Propagate {
    domains: u16,
    rounds: u32,
}

/// What one watcher saw: a name came or went.
#[derive(Debug)]
struct Seen {
    watcher: u16,
    name: String,
    deleted: bool,
    at: Instant,
}

impl Propagate {
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let uid = chain(dir)?.uid();
        let home = domain(0);
        let speaker = dial(dir, 0, "speaker").await?;
        let (sender, events) = mpsc::channel(1024);
        let mut watching = Vec::new();
        for number in 1..self.domains {
            let caller = dial(dir, number, "watcher").await?;
            let wanted = NetworkServiceEndpoint {
                network_service_names: vec![NETWORK.to_owned()],
                ..NetworkServiceEndpoint::default()
            };
            let events = caller.watch(wanted).await?;
            watching.push(tokio::spawn(follow(number, caller, events, sender.clone())));
        }
        drop(sender);
        let mut latencies = Latencies::default();
        let watchers = usize::from(self.domains) - 1;
        let mut seen = Watchers {
            events,
            watchers,
            told: BTreeSet::new(),
        };
        let begin = Instant::now();
        for round in 0..=self.rounds {
            let name = format!("{NETWORK}-{home}-{round}");
            let endpoint = router_endpoint(uid, &home, &name, "tcp://192.0.2.1:5010")?;
            let shown = format!("{name}@{home}");
            let start = Instant::now();
            speaker
                .register(endpoint.clone())
                .await
                .context("register")?;
            // The first round waits until all streams stand; it is not counted.
            let came = seen.wait(&shown, false, &mut latencies).await?;
            let gone_at = Instant::now();
            speaker.unregister(endpoint).await.context("unregister")?;
            let gone = seen.wait(&shown, true, &mut latencies).await?;
            if round > 0 {
                came.iter().for_each(|at| latencies.add(*at - start));
                gone.iter().for_each(|at| latencies.add(*at - gone_at));
            }
        }
        watching.iter().for_each(tokio::task::JoinHandle::abort);
        let changes = 2 * self.rounds as usize;
        latencies.summary(begin.elapsed(), changes * watchers)
    }
}

/// As a router of that domain, which sees remote routers under the network's name.
async fn dial(dir: &Path, number: u16, who: &str) -> anyhow::Result<Caller> {
    let url = format!("tcp://{}:{REGISTRY_PORT}", address(number));
    let path = format!("vl3/router/red-{who}");
    Caller::dial(dir, number, &path, &url)
        .await
        .with_context(|| format!("dial {url}"))
}

/// The caller is kept: its connection carries the events.
async fn follow(
    watcher: u16,
    _caller: Caller,
    mut events: tonic::Streaming<NetworkServiceEndpointResponse>,
    seen: mpsc::Sender<Seen>,
) {
    while let Ok(Some(event)) = events.message().await {
        let Some(endpoint) = event.network_service_endpoint else {
            continue;
        };
        let told = Seen {
            watcher,
            name: endpoint.name,
            deleted: event.deleted,
            at: Instant::now(),
        };
        if seen.send(told).await.is_err() {
            return;
        }
    }
}

/// What all watchers say.
struct Watchers {
    events: mpsc::Receiver<Seen>,
    watchers: usize,
    /// Every change that a watcher was told, and by which.
    told: BTreeSet<(u16, String, bool)>,
}

impl Watchers {
    /// When each watcher saw that change; to be told anything twice is wrong.
    async fn wait(
        &mut self,
        name: &str,
        deleted: bool,
        latencies: &mut Latencies,
    ) -> anyhow::Result<Vec<Instant>> {
        let mut times = BTreeMap::new();
        let end = tokio::time::Instant::now() + LIMIT;
        while times.len() < self.watchers {
            let event = match tokio::time::timeout_at(end, self.events.recv()).await {
                Ok(Some(event)) => event,
                Ok(None) => bail!("every watch ended"),
                Err(_) => bail!(
                    "{} of {} watchers saw {name} within {LIMIT:?}",
                    times.len(),
                    self.watchers
                ),
            };
            let told = (event.watcher, event.name.clone(), event.deleted);
            if !self.told.insert(told) {
                latencies.wrong(format!("told twice: {event:?}"));
            } else if event.name == name && event.deleted == deleted {
                times.insert(event.watcher, event.at);
            }
        }
        Ok(times.into_values().collect())
    }
}
