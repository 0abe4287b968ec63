//! What registries are asked while their store and they themselves die: registrations, leases
//! and watches, and what came of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tonic::Code;
use vl3_core::allocator::{Acquire, Granted};
use vl3_core::ids::{InstanceId, NetworkUid, RouterName};
use vl3_core::registry::Endpoint;
use vl3_identity::{Source, Trust};
use vl3_multicluster::Country;
use vl3_proto::lease::{decode_granted, encode_acquire};
use vl3_proto::objects::encode_endpoint;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient as Endpoints;
use vl3_proto::registry::{NetworkServiceEndpoint, NetworkServiceEndpointQuery};
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_runtime::CancellationToken;
use vl3_runtime::grpc::{Connection, Dialer, Expect};

const SERVICE: &str = "load";
/// Each 5 times a second: 200 registrations a second, also where one takes 200 ms.
pub(super) const REGISTRANTS: u16 = 40;
const REGISTRANT_PACE: Duration = Duration::from_millis(200);
/// Names of one registrant, which go to another URL in turns.
const NAMES: u64 = 8;
const LEASE_PACE: Duration = Duration::from_millis(200);
/// Between two tries to open a watch.
const WATCH_PACE: Duration = Duration::from_millis(40);
const LEASES: usize = 3;
/// No call may take longer, whatever dies.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Names and URLs.
pub(super) type Seen = BTreeMap<String, String>;

/// A client of several replicas, which goes to the next one where one fails.
struct Caller {
    dialer: Dialer,
    sockets: Vec<PathBuf>,
    at: usize,
    connection: Option<Connection>,
}

impl Caller {
    fn new(identity: &Path, sockets: &[PathBuf], at: usize) -> anyhow::Result<Self> {
        let source = Source::from_dir(identity)?;
        let trust = Trust::new(&source);
        Ok(Self {
            dialer: Dialer::new(source, trust),
            sockets: sockets.to_vec(),
            at,
            connection: None,
        })
    }

    async fn connection(&mut self) -> Option<Connection> {
        if self.connection.is_none() {
            let socket = &self.sockets[self.at % self.sockets.len()];
            let url = format!("unix://{}", socket.display()).parse().ok()?;
            self.connection = self.dialer.dial(&url, Expect::anybody()).await.ok();
        }
        if self.connection.is_none() {
            self.at += 1;
        }
        self.connection.clone()
    }

    /// The next try goes to another replica; an error where it would not help.
    fn failed(&mut self, status: &tonic::Status) -> anyhow::Result<()> {
        self.connection = None;
        self.at += 1;
        // A connection that breaks in the middle of a call is Unknown or Cancelled.
        let again = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        );
        anyhow::ensure!(again, "refused: {status}");
        Ok(())
    }
}

/// Everything that asks, until it is stopped.
pub(super) struct Load {
    stop: CancellationToken,
    accepted: Arc<AtomicU64>,
    registrants: Vec<JoinHandle<anyhow::Result<Seen>>>,
    leases: JoinHandle<anyhow::Result<Vec<Granted>>>,
    watchers: Vec<(JoinHandle<()>, Arc<Mutex<Seen>>)>,
    finder: PathBuf,
    sockets: Vec<PathBuf>,
}

/// What was accepted last.
pub(super) struct Accepted {
    pub(super) endpoints: Seen,
    pub(super) leases: Vec<Granted>,
}

impl Load {
    pub(super) fn start(
        country: &Country,
        domain: &str,
        sockets: &[PathBuf],
    ) -> anyhow::Result<Self> {
        let (stop, accepted) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let caller = |role: &str, name: &str, at: usize| {
            let identity = country.issue(domain, role, name, "24h")?;
            Caller::new(&identity, sockets, at)
        };
        let mut registrants = Vec::new();
        for number in 0..REGISTRANTS {
            let caller = caller("client", &format!("load-{number}"), number.into())?;
            let (stop, accepted) = (stop.clone(), Arc::clone(&accepted));
            registrants.push(tokio::spawn(async move {
                register(caller, number, &stop, &accepted).await
            }));
        }
        let uid = country.network("red")?.uid.parse();
        let uid: NetworkUid = uid.map_err(|_| anyhow::anyhow!("no uid"))?;
        let (leasing, stopping) = (caller("router", "red-load", 0)?, stop.clone());
        let leases = tokio::spawn(async move { lease(leasing, uid, &stopping).await });
        let mut watchers = Vec::new();
        for at in 0..sockets.len() {
            let identity = country.issue(domain, "client", &format!("watch-{at}"), "24h")?;
            let watcher = Caller::new(&identity, &sockets[at..=at], 0)?;
            let seen = Arc::new(Mutex::new(Seen::new()));
            let folded = Arc::clone(&seen);
            watchers.push((tokio::spawn(watch(watcher, folded)), seen));
        }
        Ok(Self {
            stop,
            accepted,
            registrants,
            leases,
            watchers,
            finder: country.issue(domain, "client", "finder", "24h")?,
            sockets: sockets.to_vec(),
        })
    }

    /// Registrations that were accepted so far.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Nothing is asked any more but by watchers.
    pub(super) async fn stop(&mut self) -> anyhow::Result<Accepted> {
        self.stop.cancel();
        let mut endpoints = Seen::new();
        for registrant in self.registrants.drain(..) {
            endpoints.extend(registrant.await??);
        }
        let leases = (&mut self.leases).await??;
        Ok(Accepted { endpoints, leases })
    }

    /// What every watcher makes of its events.
    pub(super) fn folded(&self) -> Vec<Seen> {
        let seen =
            |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.watchers
            .iter()
            .map(|(_, folded)| seen(folded))
            .collect()
    }

    /// What is found at replica `at`.
    pub(super) async fn found(&self, at: usize) -> anyhow::Result<Seen> {
        let mut finder = Caller::new(&self.finder, &self.sockets, at)?;
        let connection = finder.connection().await.context("not reached")?;
        let mut stream = Endpoints::new(connection.nsm())
            .find(query(false))
            .await?
            .into_inner();
        let mut found = Seen::new();
        while let Some(message) = stream.message().await? {
            let endpoint = message.network_service_endpoint.unwrap_or_default();
            found.insert(endpoint.name, endpoint.url);
        }
        Ok(found)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (watcher, _) in &self.watchers {
            watcher.abort();
        }
    }
}

fn query(watch: bool) -> NetworkServiceEndpointQuery {
    NetworkServiceEndpointQuery {
        network_service_endpoint: Some(NetworkServiceEndpoint {
            network_service_names: vec![SERVICE.to_owned()],
            ..NetworkServiceEndpoint::default()
        }),
        watch,
    }
}

/// Each name in turn goes to another URL, which is tried until it is accepted.
async fn register(
    mut caller: Caller,
    number: u16,
    stop: &CancellationToken,
    accepted: &AtomicU64,
) -> anyhow::Result<Seen> {
    let mut pace = tokio::time::interval(REGISTRANT_PACE);
    let mut last = Seen::new();
    for count in 0.. {
        let endpoint = Endpoint {
            name: format!("load-{number}-{}", count % NAMES),
            services: vec![SERVICE.to_owned()],
            url: format!("tcp://192.0.2.1:{}", 1 + count % 60_000),
            ..Endpoint::default()
        };
        loop {
            pace.tick().await;
            let Some(connection) = caller.connection().await else {
                continue;
            };
            let mut client = Endpoints::new(connection.nsm());
            let answer = client.register(encode_endpoint(&endpoint));
            let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
            match answer.context("a registration without an answer")? {
                Ok(_) => break,
                Err(status) => caller.failed(&status)?,
            }
        }
        accepted.fetch_add(1, Ordering::Relaxed);
        last.insert(endpoint.name, endpoint.url);
        if stop.is_cancelled() {
            break;
        }
    }
    Ok(last)
}

/// Leases again and again with another instance: rounds only grow, prefixes stay.
async fn lease(
    mut caller: Caller,
    uid: NetworkUid,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Granted>> {
    let mut pace = tokio::time::interval(LEASE_PACE);
    let mut last: Vec<Option<Granted>> = vec![None; LEASES];
    let mut instance = 0_u128;
    while !(stop.is_cancelled() && last.iter().all(Option::is_some)) {
        for (at, last) in last.iter_mut().enumerate() {
            pace.tick().await;
            instance += 1;
            let acquire = Acquire {
                router: RouterName::new(&format!("red-load-{at}"))?,
                instance: InstanceId(instance.to_be_bytes()),
                held: None,
                prefix_len4: Some(28),
                exclusions: Vec::new(),
            };
            let Some(connection) = caller.connection().await else {
                continue;
            };
            let mut client = IpamClient::new(connection.plain());
            let answer = client.acquire(encode_acquire(uid, &acquire));
            let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
            let granted = match answer.context("a lease without an answer")? {
                Ok(answer) => decode_granted(answer.get_ref())?,
                Err(status) => {
                    caller.failed(&status)?;
                    continue;
                }
            };
            if let Some(before) = last {
                anyhow::ensure!(
                    granted.lease.generation > before.lease.generation
                        && granted.lease.prefix4 == before.lease.prefix4
                        && granted.lease.prefix6 == before.lease.prefix6,
                    "{before:?}, then {granted:?}"
                );
            }
            *last = Some(granted);
        }
    }
    Ok(last.into_iter().flatten().collect())
}

/// Opens its watch again whenever it ends; a snapshot comes first, so that it starts anew.
async fn watch(mut caller: Caller, folded: Arc<Mutex<Seen>>) {
    let lock = || folded.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pace = tokio::time::interval(WATCH_PACE);
    loop {
        pace.tick().await;
        let Some(connection) = caller.connection().await else {
            continue;
        };
        let opened = Endpoints::new(connection.nsm()).find(query(true)).await;
        let Ok(stream) = opened else {
            caller.connection = None;
            continue;
        };
        let mut stream = stream.into_inner();
        lock().clear();
        while let Ok(Some(message)) = stream.message().await {
            let endpoint = message.network_service_endpoint.unwrap_or_default();
            if message.deleted {
                lock().remove(&endpoint.name);
            } else {
                lock().insert(endpoint.name, endpoint.url);
            }
        }
        caller.connection = None;
    }
}
