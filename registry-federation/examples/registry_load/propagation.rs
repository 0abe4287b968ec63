//! How long until every other domain's watchers see what one domain's router registered.

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
    name: String,
    deleted: bool,
    at: Instant,
}

impl Propagate {
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let uid = chain(dir)?.uid();
        let home = domain(0);
        let speaker = dial(dir, 0, "speaker").await?;
        let (sender, mut seen) = mpsc::channel(1024);
        let mut watching = Vec::new();
        for number in 1..self.domains {
            let caller = dial(dir, number, "watcher").await?;
            let wanted = NetworkServiceEndpoint {
                network_service_names: vec![NETWORK.to_owned()],
                ..NetworkServiceEndpoint::default()
            };
            let events = caller.watch(wanted).await?;
            watching.push(tokio::spawn(follow(caller, events, sender.clone())));
        }
        drop(sender);
        let mut latencies = Latencies::default();
        let watchers = usize::from(self.domains) - 1;
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
            let came = wait(&mut seen, &shown, false, watchers).await?;
            let gone_at = Instant::now();
            speaker.unregister(endpoint).await.context("unregister")?;
            let gone = wait(&mut seen, &shown, true, watchers).await?;
            if round > 0 {
                came.iter().for_each(|at| latencies.add(*at - start));
                gone.iter().for_each(|at| latencies.add(*at - gone_at));
            }
        }
        watching.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(latencies.summary(begin.elapsed()))
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
    _caller: Caller,
    mut events: tonic::Streaming<NetworkServiceEndpointResponse>,
    seen: mpsc::Sender<Seen>,
) {
    while let Ok(Some(event)) = events.message().await {
        let Some(endpoint) = event.network_service_endpoint else {
            continue;
        };
        let told = Seen {
            name: endpoint.name,
            deleted: event.deleted,
            at: Instant::now(),
        };
        if seen.send(told).await.is_err() {
            return;
        }
    }
}

/// When each watcher saw that change.
async fn wait(
    seen: &mut mpsc::Receiver<Seen>,
    name: &str,
    deleted: bool,
    watchers: usize,
) -> anyhow::Result<Vec<Instant>> {
    let mut times = Vec::new();
    let end = tokio::time::Instant::now() + LIMIT;
    while times.len() < watchers {
        match tokio::time::timeout_at(end, seen.recv()).await {
            Ok(Some(event)) if event.name == name && event.deleted == deleted => {
                times.push(event.at);
            }
            Ok(Some(_)) => {}
            Ok(None) => bail!("every watch ended"),
            Err(_) => bail!(
                "{} of {watchers} watchers saw {name} within {LIMIT:?}",
                times.len()
            ),
        }
    }
    Ok(times)
}
