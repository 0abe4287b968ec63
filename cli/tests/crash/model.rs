//! What the clients of the registry were told, and what they asked when it died.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;
use tonic::Code;
use vl3_core::allocator::{Acquire, Lease};
use vl3_core::ids::{InstanceId, NetworkUid, RouterName, SpiffeId, WorkloadName};
use vl3_core::registry::{Claim, Endpoint};
use vl3_identity::Source;
use vl3_proto::lease::{
    decode_granted, encode_acquire, encode_claim, encode_release, encode_release_name, encode_renew,
};
use vl3_proto::objects::encode_endpoint;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_proto::vl3::registry::v1::names_client::NamesClient;
use vl3_runtime::grpc::Connection;

use crate::world::World;

const ROUTERS: u8 = 4;
const OBJECTS: u8 = 8;

/// What one operation is about, for the table.
type Counts = BTreeMap<&'static str, u64>;

/// One router and what it was told.
#[derive(Clone, Debug)]
struct Router {
    name: RouterName,
    number: u8,
    uid: NetworkUid,
    instance: u8,
    lease: Option<Lease>,
    /// URL by endpoint.
    endpoints: BTreeMap<String, String>,
    names: BTreeSet<String>,
    /// Asked and not answered.
    doubt: Option<Asked>,
    counts: Counts,
    step: u64,
}

#[derive(Clone, Debug)]
enum Asked {
    Acquire {
        instance: u8,
    },
    Release,
    Register {
        endpoint: String,
        url: String,
    },
    Unregister {
        endpoint: String,
    },
    Claim {
        name: String,
    },
    ReleaseName {
        name: String,
    },
    /// Changes nothing.
    Renew,
}

pub(crate) struct Load {
    routers: Vec<(Source, Router)>,
    running: Vec<JoinHandle<Router>>,
    /// Of the process that is asked now: before, no error is the end.
    killed: Arc<AtomicBool>,
    rng: StdRng,
}

impl Load {
    pub(crate) fn new(world: &World, seed: u64) -> Self {
        let router = |number: u8| {
            let name = format!("red-east-{number}");
            let router = Router {
                name: RouterName::new(&name).expect("a name"),
                number,
                uid: world.chain.uid(),
                instance: 1,
                lease: None,
                endpoints: BTreeMap::new(),
                names: BTreeSet::new(),
                doubt: None,
                counts: Counts::new(),
                step: 0,
            };
            (world.source(&name), router)
        };
        Self {
            routers: (1..=ROUTERS).map(router).collect(),
            running: Vec::new(),
            killed: Arc::default(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Every router asks one thing after the other; returns at the end of the life.
    pub(crate) async fn run(&mut self, world: &World, life: Duration) {
        self.killed = Arc::default();
        for (source, router) in &self.routers {
            let connection = world.dial(source).await.expect("a connection");
            let (seed, killed) = (self.rng.random(), Arc::clone(&self.killed));
            let asking = router.clone().ask_on(connection, seed, killed);
            self.running.push(tokio::spawn(asking));
        }
        eventually_over(life).await;
    }

    /// The kill follows.
    pub(crate) fn dies_now(&self) {
        self.killed.store(true, Ordering::SeqCst);
    }

    /// After the kill: what each was told last.
    pub(crate) async fn settle(&mut self) {
        for (task, (_, router)) in self.running.drain(..).zip(&mut self.routers) {
            *router = task.await.expect("a router's task");
        }
    }

    /// Everything acknowledged is there, nothing else but what was in doubt.
    pub(crate) fn compare(&mut self, status: &Value) -> Result<(), String> {
        for (_, router) in &mut self.routers {
            router.compare(status)?;
        }
        Ok(())
    }

    fn counts(&self) -> Counts {
        let mut all = Counts::new();
        for (_, router) in &self.routers {
            for (what, count) in &router.counts {
                *all.entry(what).or_default() += count;
            }
        }
        all
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        let counts = self.counts();
        let done = counts.iter().filter(|(what, _)| **what != IN_DOUBT);
        done.map(|(_, count)| count).sum()
    }

    pub(crate) fn told(&self) -> String {
        let doubts = self.counts().get(IN_DOUBT).copied().unwrap_or_default();
        format!(
            "{} operations acknowledged, {doubts} cut off, none lost",
            self.acknowledged()
        )
    }

    pub(crate) fn table(&self) -> String {
        let rows = self.counts();
        let rows = rows
            .iter()
            .map(|(what, count)| format!("  {what:<22} {count:>8}\n"));
        rows.collect()
    }
}

const IN_DOUBT: &str = "cut off by the kill";

pub(crate) async fn eventually_over(life: Duration) {
    tokio::time::sleep(life).await;
}

impl Router {
    async fn ask_on(mut self, connection: Connection, seed: u64, killed: Arc<AtomicBool>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        loop {
            let asked = self.choose(&mut rng);
            self.doubt = Some(asked.clone());
            match self.ask(&connection, &asked).await {
                Ok(()) => self.doubt = None,
                // The registry died.
                Err(status) if killed.load(Ordering::SeqCst) && is_the_end(&status) => {
                    *self.counts.entry(IN_DOUBT).or_default() += 1;
                    return self;
                }
                Err(status) => panic!("{} {asked:?}: {status:?}", self.name),
            }
        }
    }

    fn choose(&mut self, rng: &mut StdRng) -> Asked {
        self.step += 1;
        if self.lease.is_none() {
            return Asked::Acquire {
                instance: self.instance,
            };
        }
        let object = rng.random_range(0..OBJECTS);
        let endpoint = format!("svc-{}-{object}", self.number);
        let name = format!("w-{}-{object}", self.number);
        match rng.random_range(0..100) {
            0..5 => Asked::Acquire {
                instance: self.instance.wrapping_add(1).max(1),
            },
            5..8 => Asked::Release,
            8..40 => Asked::Register {
                endpoint,
                url: format!("tcp://192.0.2.{}:{}", self.number, 1 + self.step % 60_000),
            },
            // As it is: a refresh.
            40..50 => match self.endpoints.get(&endpoint).cloned() {
                Some(url) => Asked::Register { endpoint, url },
                None => Asked::Renew,
            },
            50..62 => Asked::Unregister { endpoint },
            62..80 => Asked::Claim { name },
            80..90 => Asked::ReleaseName { name },
            _ => Asked::Renew,
        }
    }

    async fn ask(&mut self, connection: &Connection, asked: &Asked) -> Result<(), tonic::Status> {
        let mut ipam = IpamClient::new(connection.plain());
        let mut names = NamesClient::new(connection.plain());
        let mut endpoints = NetworkServiceEndpointRegistryClient::new(connection.nsm());
        let held = || self.lease.clone().expect("a lease");
        let what = match asked {
            Asked::Acquire { instance } => {
                let acquire = Acquire {
                    router: self.name.clone(),
                    instance: InstanceId([*instance; 16]),
                    held: None,
                    prefix_len4: Some(26),
                    exclusions: Vec::new(),
                };
                let granted = ipam.acquire(encode_acquire(self.uid, &acquire)).await?;
                let granted = decode_granted(granted.get_ref()).expect("a lease");
                self.instance = *instance;
                self.lease = Some(granted.lease);
                "Acquire"
            }
            Asked::Renew => {
                let granted = ipam.renew(encode_renew(&held())).await?;
                let granted = decode_granted(granted.get_ref()).expect("a lease");
                assert_eq!(Some(granted.lease), self.lease);
                "Renew"
            }
            Asked::Release => {
                ipam.release(encode_release(&held())).await?;
                self.lease = None;
                // They live as long as the lease.
                self.names.clear();
                "Release"
            }
            Asked::Register { endpoint, url } => {
                let wanted = Endpoint {
                    name: endpoint.clone(),
                    services: vec!["svc".to_owned()],
                    url: url.clone(),
                    ..Endpoint::default()
                };
                endpoints.register(encode_endpoint(&wanted)).await?;
                let before = self.endpoints.insert(endpoint.clone(), url.clone());
                if before.as_ref() == Some(url) {
                    "Register (refresh)"
                } else {
                    "Register"
                }
            }
            Asked::Unregister { endpoint } => {
                let wanted = Endpoint {
                    name: endpoint.clone(),
                    ..Endpoint::default()
                };
                endpoints.unregister(encode_endpoint(&wanted)).await?;
                self.endpoints.remove(endpoint);
                "Unregister"
            }
            Asked::Claim { name } => {
                let claim = Claim {
                    name: WorkloadName::new(name).expect("a name"),
                    workload: workload(name),
                    addresses: Vec::new(),
                    router: self.name.clone(),
                };
                names.claim(encode_claim(self.uid, &claim)).await?;
                self.names.insert(name.clone());
                "Claim"
            }
            Asked::ReleaseName { name } => {
                let label = WorkloadName::new(name).expect("a name");
                let request = encode_release_name(self.uid, &label, &workload(name));
                names.release(request).await?;
                self.names.remove(name);
                "Release of a name"
            }
        };
        *self.counts.entry(what).or_default() += 1;
        Ok(())
    }

    /// Takes over what was in doubt as the registry says it, and compares the rest.
    fn compare(&mut self, status: &Value) -> Result<(), String> {
        let rows = |list: &str| status[list].as_array().cloned().unwrap_or_default();
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let lease = rows("leases")
            .into_iter()
            .find(|row| row["router"] == self.name.as_str());
        let prefix = format!("svc-{}-", self.number);
        let endpoints: BTreeMap<_, _> = rows("endpoints")
            .iter()
            .filter(|row| text(row, "name").starts_with(&prefix))
            .map(|row| (text(row, "name"), text(row, "url")))
            .collect();
        let names = rows("names");
        let names = names
            .iter()
            .filter(|row| row["router"] == self.name.as_str());
        let names: BTreeSet<_> = names.map(|row| text(row, "name")).collect();

        match self.doubt.take() {
            Some(Asked::Acquire { instance }) => {
                let shown = lease.as_ref().map(|row| text(row, "instance"));
                let asked = InstanceId([instance; 16]).to_string();
                if shown.as_ref() == Some(&asked) {
                    self.instance = instance;
                    self.lease = lease.as_ref().map(|row| self.lease_of(row, instance));
                }
            }
            Some(Asked::Release) if lease.is_none() => {
                self.lease = None;
                self.names.clear();
            }
            Some(Asked::Register { endpoint, url }) if endpoints.get(&endpoint) == Some(&url) => {
                self.endpoints.insert(endpoint, url);
            }
            Some(Asked::Unregister { endpoint }) if !endpoints.contains_key(&endpoint) => {
                self.endpoints.remove(&endpoint);
            }
            Some(Asked::Claim { name }) if names.contains(&name) => {
                self.names.insert(name);
            }
            Some(Asked::ReleaseName { name }) if !names.contains(&name) => {
                self.names.remove(&name);
            }
            Some(_) | None => {}
        }
        let held = lease.as_ref().map(|row| self.lease_of(row, self.instance));
        let same = |what: &str, ours: String, theirs: String| {
            if ours == theirs {
                return Ok(());
            }
            Err(format!(
                "{} of {}: told {ours}, kept {theirs}",
                what, self.name
            ))
        };
        same("lease", format!("{:?}", self.lease), format!("{held:?}"))?;
        let shown = lease.map(|row| text(&row, "instance"));
        let told = self.lease.as_ref().map(|lease| lease.instance.to_string());
        same("instance", format!("{told:?}"), format!("{shown:?}"))?;
        same(
            "endpoints",
            format!("{:?}", self.endpoints),
            format!("{endpoints:?}"),
        )?;
        same("names", format!("{:?}", self.names), format!("{names:?}"))
    }

    fn lease_of(&self, row: &Value, instance: u8) -> Lease {
        let prefixes: Vec<_> = row["prefixes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let of = |colon: bool| prefixes.iter().find(|prefix| prefix.contains(':') == colon);
        Lease {
            uid: self.uid,
            router: self.name.clone(),
            instance: InstanceId([instance; 16]),
            generation: vl3_core::ids::Generation(row["generation"].as_u64().unwrap_or_default()),
            prefix4: of(false).map(|prefix| prefix.parse().expect("a prefix")),
            prefix6: of(true).expect("an IPv6 prefix").parse().expect("a prefix"),
        }
    }
}

fn workload(name: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://east.test/workload/{name}")).expect("an identity")
}

/// What a client sees of a registry that was killed.
fn is_the_end(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
    )
}
