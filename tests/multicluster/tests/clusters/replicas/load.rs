//! What registries are asked while their store and they themselves die: registrations and
//! leases, and what came of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio::time::Interval;
use tonic::Code;
use vl3_core::allocator::{Acquire, Granted};
use vl3_core::ids::{InstanceId, NetworkUid, RouterName};
use vl3_core::registry::Endpoint;
use vl3_identity::{Source, Trust};
use vl3_multicluster::{Country, eventually};
use vl3_proto::lease::{decode_granted, encode_acquire};
use vl3_proto::objects::encode_endpoint;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient as Endpoints;
use vl3_proto::registry::{NetworkServiceEndpoint, NetworkServiceEndpointQuery};
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_runtime::CancellationToken;
use vl3_runtime::grpc::{Connection, Dialer, Expect};

use super::watchers::Watcher;

const SERVICE: &str = "load";
/// Each 5 times a second: 200 registrations a second, also where one takes 200 ms.
pub(super) const REGISTRANTS: u16 = 40;
const REGISTRANT_PACE: Duration = Duration::from_millis(200);
/// Every so many registrations one of a registrant's is taken back, some turns old.
const TAKEN_BACK: u64 = 2;
const LEASE_PACE: Duration = Duration::from_millis(200);
const LEASES: usize = 3;
/// No call may take longer, whatever dies.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Until everybody shows what was accepted, once nothing more is asked.
const SHOWN_MAX: Duration = Duration::from_secs(30);

/// Names and URLs.
pub(super) type Seen = BTreeMap<String, String>;

/// A client of several replicas, which goes to the next one where one fails.
pub(super) struct Caller {
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

    pub(super) async fn connection(&mut self) -> Option<Connection> {
        if self.connection.is_none() {
            let socket = &self.sockets[self.replica()];
            let url = format!("unix://{}", socket.display()).parse().ok()?;
            self.connection = self.dialer.dial(&url, Expect::anybody()).await.ok();
        }
        if self.connection.is_none() {
            self.at += 1;
        }
        self.connection.clone()
    }

    /// Which replica is asked.
    pub(super) fn replica(&self) -> usize {
        self.at % self.sockets.len()
    }

    /// The next try goes to another replica.
    pub(super) fn move_on(&mut self) {
        self.connection = None;
        self.at += 1;
    }

    /// The next try goes to another replica; an error where it would not help.
    fn failed(&mut self, status: &tonic::Status) -> anyhow::Result<()> {
        self.move_on();
        // A connection that breaks in the middle of a call is Unknown or Cancelled.
        let again = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        );
        anyhow::ensure!(again, "refused: {status}");
        Ok(())
    }
}

/// What registrants were told.
#[derive(Default)]
struct Told {
    /// Whoever registers holds it for reading: who holds it for writing sees nothing in doubt.
    gate: RwLock<()>,
    /// Registrations that were accepted.
    accepted: AtomicU64,
    /// What was accepted and not taken back.
    endpoints: Mutex<Seen>,
    /// What was asked for again after a call without an answer: it may be told again.
    again: Mutex<BTreeSet<String>>,
}

impl Told {
    fn endpoints(&self) -> MutexGuard<'_, Seen> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that asks, until it is stopped.
pub(super) struct Load {
    stop: CancellationToken,
    told: Arc<Told>,
    registrants: Vec<JoinHandle<anyhow::Result<()>>>,
    leases: JoinHandle<anyhow::Result<Vec<Granted>>>,
    pub(super) watchers: Vec<Watcher>,
    finder: PathBuf,
    sockets: Vec<PathBuf>,
}

impl Load {
    pub(super) fn start(
        country: &Country,
        domain: &str,
        sockets: &[PathBuf],
    ) -> anyhow::Result<Self> {
        let (stop, told) = (CancellationToken::new(), Arc::new(Told::default()));
        let caller = |role: &str, name: &str, at: usize| {
            let identity = country.issue(domain, role, name, "24h")?;
            Caller::new(&identity, sockets, at)
        };
        let mut registrants = Vec::new();
        for number in 0..REGISTRANTS {
            let caller = caller("client", &format!("load-{number}"), number.into())?;
            let (stop, told) = (stop.clone(), Arc::clone(&told));
            registrants.push(tokio::spawn(async move {
                register(caller, number, &stop, &told).await
            }));
        }
        let uid = country.network("red")?.uid.parse();
        let uid: NetworkUid = uid.map_err(|_| anyhow::anyhow!("no uid"))?;
        let (leasing, stopping) = (caller("router", "red-load", 0)?, stop.clone());
        let leases = tokio::spawn(async move { lease(leasing, uid, &stopping).await });
        let mut load = Self {
            stop,
            told,
            registrants,
            leases,
            watchers: Vec::new(),
            finder: country.issue(domain, "client", "finder", "24h")?,
            sockets: sockets.to_vec(),
        };
        load.add_watchers(country, domain)?;
        Ok(load)
    }

    /// One more watcher that starts at each replica and knows them all.
    pub(super) fn add_watchers(&mut self, country: &Country, domain: &str) -> anyhow::Result<()> {
        for at in 0..self.sockets.len() {
            let name = format!("watch-{}", self.watchers.len());
            let identity = country.issue(domain, "client", &name, "24h")?;
            let caller = Caller::new(&identity, &self.sockets, at)?;
            self.watchers.push(Watcher::start(name, caller));
        }
        Ok(())
    }

    /// Registrations that were accepted so far.
    pub(super) fn accepted(&self) -> u64 {
        self.told.accepted.load(Ordering::Relaxed)
    }

    /// Nothing is asked any more but by watchers; what was leased last.
    pub(super) async fn stop(&mut self) -> anyhow::Result<Vec<Granted>> {
        self.stop.cancel();
        for registrant in self.registrants.drain(..) {
            registrant.await??;
        }
        (&mut self.leases).await?
    }

    /// Holds the registrants, and compares what these replicas and every watcher show with all
    /// that was accepted up to now; how much that is.
    pub(super) async fn compare(&self, replicas: &[usize]) -> anyhow::Result<usize> {
        let held = tokio::time::timeout(ANSWER_MAX, self.told.gate.write()).await;
        let _held = held.context("registrations under way without an answer")?;
        let accepted = self.told.endpoints().clone();
        let again = self.told.again().clone();
        for at in replicas {
            let shown = eventually("a replica shows what was accepted", SHOWN_MAX, || async {
                Ok(self.found(*at).await? == accepted)
            });
            if let Err(error) = shown.await {
                let found = self.found(*at).await?;
                let wrong = difference(&accepted, &found);
                anyhow::bail!("{error:#}: replica {at}: {wrong}");
            }
        }
        for watcher in &self.watchers {
            let complete = eventually("a watcher saw what was accepted", SHOWN_MAX, || async {
                Ok(watcher.view() == accepted)
            });
            let complete = complete.await.with_context(|| {
                let wrong = difference(&accepted, &watcher.view());
                format!("{}: {wrong}", watcher.name)
            });
            watcher.faultless(&again)?;
            complete?;
        }
        Ok(accepted.len())
    }

    /// What is found at replica `at`.
    async fn found(&self, at: usize) -> anyhow::Result<Seen> {
        let mut finder = Caller::new(&self.finder, &self.sockets, at)?;
        let connection = finder.connection().await.context("not reached")?;
        let mut stream = Endpoints::new(connection.nsm())
            .find(query(false))
            .await?
            .into_inner();
        let mut found = Seen::new();
        while let Some(message) = stream.message().await? {
            let endpoint = message.network_service_endpoint.unwrap_or_default();
            let before = found.insert(endpoint.name.clone(), endpoint.url);
            anyhow::ensure!(before.is_none(), "{} is found twice", endpoint.name);
        }
        Ok(found)
    }
}

/// Some of what is in one of them only, for people.
fn difference(accepted: &Seen, shown: &Seen) -> String {
    let only = |all: &Seen, other: &Seen| {
        let differ = all
            .iter()
            .filter(|(name, url)| other.get(*name) != Some(url));
        let names: Vec<_> = differ.map(|(name, _)| name.clone()).collect();
        format!(
            "{} ({})",
            names.len(),
            names[..names.len().min(5)].join(" ")
        )
    };
    format!(
        "of {} accepted {} are not shown, shown and not accepted: {}",
        accepted.len(),
        only(accepted, shown),
        only(shown, accepted)
    )
}

pub(super) fn query(watch: bool) -> NetworkServiceEndpointQuery {
    NetworkServiceEndpointQuery {
        network_service_endpoint: Some(NetworkServiceEndpoint {
            network_service_names: vec![SERVICE.to_owned()],
            ..NetworkServiceEndpoint::default()
        }),
        watch,
    }
}

/// Each registration has a name that is never used again, and is tried until it is accepted;
/// some are taken back, likewise.
async fn register(
    mut caller: Caller,
    number: u16,
    stop: &CancellationToken,
    told: &Told,
) -> anyhow::Result<()> {
    let mut pace = tokio::time::interval(REGISTRANT_PACE);
    let endpoint = |count: u64| Endpoint {
        name: format!("load-{number}-{count}"),
        services: vec![SERVICE.to_owned()],
        url: format!("tcp://192.0.2.1:{}", 1 + count % 60_000),
        ..Endpoint::default()
    };
    for count in 0.. {
        pace.tick().await;
        let open = match told.gate.try_read() {
            Ok(open) => open,
            Err(_) => {
                let open = told.gate.read().await;
                // What was held back is not made up for.
                pace.reset();
                open
            }
        };
        if stop.is_cancelled() {
            break;
        }
        let wanted = endpoint(count);
        until_accepted(&mut caller, &mut pace, &wanted, told, false).await?;
        told.accepted.fetch_add(1, Ordering::Relaxed);
        told.endpoints().insert(wanted.name, wanted.url);
        if count % TAKEN_BACK == 1 && count > 4 {
            let old = endpoint(count - 4);
            until_accepted(&mut caller, &mut pace, &old, told, true).await?;
            told.endpoints().remove(&old.name);
        }
        drop(open);
    }
    Ok(())
}

/// Registers or takes back, at whichever replica says yes.
async fn until_accepted(
    caller: &mut Caller,
    pace: &mut Interval,
    endpoint: &Endpoint,
    told: &Told,
    back: bool,
) -> anyhow::Result<()> {
    loop {
        if let Some(connection) = caller.connection().await {
            let mut client = Endpoints::new(connection.nsm());
            let request = encode_endpoint(endpoint);
            let answer = async {
                if back {
                    let done = client.unregister(request).await;
                    return done.map(|_| endpoint.name.clone());
                }
                let registered = client.register(request).await;
                registered.map(|registered| registered.into_inner().name)
            };
            let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
            match answer.context("a registration without an answer")? {
                Ok(name) => {
                    let (wanted, what) = (&endpoint.name, "accepted under another name");
                    anyhow::ensure!(name == *wanted, "{wanted}: {what}, {name}");
                    return Ok(());
                }
                Err(status) => {
                    caller.failed(&status)?;
                    told.again().insert(endpoint.name.clone());
                }
            }
        }
        pace.tick().await;
    }
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
