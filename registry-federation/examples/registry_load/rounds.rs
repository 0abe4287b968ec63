//! Calls one after another on several connections, each timed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use vl3_core::allocator::Acquire;
use vl3_core::ids::{InstanceId, RouterName};
use vl3_proto::lease::encode_acquire;
use vl3_proto::registry::NetworkServiceEndpoint;
use vl3_proto::vl3::ipam::v1::ReleaseRequest;
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;

use crate::calls::{Caller, endpoint, names_of_service, service};
use crate::figures::Latencies;
use crate::prepare::{NETWORK, chain, domain};

/// Of calls that are repeated for a time: fewer have no 99th percentile.
const REPEATED_MIN: usize = 100;

#[derive(Debug, Deserialize)]
pub(crate) struct Register {
    to: String,
    connections: u32,
    endpoints: u32,
    services: u32,
}

impl Register {
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let callers = callers(dir, "workload/load", self.connections, &self.to).await?;
        let (connections, services, endpoints) = (self.connections, self.services, self.endpoints);
        timed(
            callers,
            endpoints as usize,
            move |caller, number| async move {
                let mut latencies = Latencies::default();
                for number in (number..endpoints).step_by(connections as usize) {
                    let start = Instant::now();
                    match caller.register(endpoint(number, services)).await {
                        Ok(_) => latencies.add(start.elapsed()),
                        Err(status) => latencies.wrong(status.to_string()),
                    }
                }
                latencies
            },
        )
        .await
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Find {
    to: String,
    connections: u32,
    services: u32,
    /// Endpoints that each service has.
    expected: u32,
    seconds: f64,
    /// Finds one remote endpoint `NAME-I@DOMAIN` by its name instead, of so many.
    remote: Option<Remote>,
}

#[derive(Clone, Debug, Deserialize)]
struct Remote {
    domains: u16,
    endpoints: u32,
}

impl Find {
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let path = match self.remote {
            None => "workload/load",
            Some(_) => "vl3/router/red-find",
        };
        let callers = callers(dir, path, self.connections, &self.to).await?;
        let (services, expected) = (self.services.max(1), self.expected);
        let remote = self.remote.clone();
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        timed(callers, REPEATED_MIN, move |caller, number| {
            let remote = remote.clone();
            async move {
                let mut latencies = Latencies::default();
                // A walk over all of them that does not follow the order of registration.
                let mut at = number.wrapping_mul(7919);
                while Instant::now() < end {
                    at = at.wrapping_add(7919);
                    let wanted = match &remote {
                        None => NetworkServiceEndpoint {
                            network_service_names: vec![service(at % services)],
                            ..NetworkServiceEndpoint::default()
                        },
                        Some(remote) => NetworkServiceEndpoint {
                            name: remote.name(at),
                            ..NetworkServiceEndpoint::default()
                        },
                    };
                    let names = match &remote {
                        None => names_of_service(at % services, services, expected),
                        Some(_) => vec![wanted.name.clone()],
                    };
                    let start = Instant::now();
                    let found = caller.find(wanted).await;
                    let took = start.elapsed();
                    match found {
                        Ok(found) if found == names => latencies.add(took),
                        Ok(found) => latencies.wrong(format!("{found:?} found, not {names:?}")),
                        Err(status) => latencies.wrong(status.to_string()),
                    }
                }
                latencies
            }
        })
        .await
    }
}

impl Remote {
    fn name(&self, at: u32) -> String {
        let number = 1 + u16::try_from(at % u32::from(self.domains.max(2) - 1)).unwrap_or(0);
        let domain = domain(number);
        format!(
            "{NETWORK}-{domain}-{}@{domain}",
            at / 7 % self.endpoints.max(1)
        )
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Lease {
    to: String,
    connections: u32,
    seconds: f64,
}

impl Lease {
    /// The time of an operation is that of the Acquire.
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let uid = chain(dir)?.uid();
        let callers = callers(dir, "vl3/router/red-load", self.connections, &self.to).await?;
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        timed(callers, REPEATED_MIN, move |caller, number| async move {
            let mut latencies = Latencies::default();
            let mut ipam = IpamClient::new(caller.connection.plain());
            let Ok(router) = RouterName::new(&format!("red-load-{number}")) else {
                latencies.wrong("router name");
                return latencies;
            };
            let acquire = Acquire {
                router,
                instance: InstanceId([7; 16]),
                held: None,
                prefix_len4: Some(30),
                exclusions: Vec::new(),
            };
            while Instant::now() < end {
                let start = Instant::now();
                match ipam.acquire(encode_acquire(uid, &acquire)).await {
                    Ok(granted) => {
                        latencies.add(start.elapsed());
                        let release = ReleaseRequest {
                            version: 1,
                            lease: granted.into_inner().lease,
                        };
                        if let Err(status) = ipam.release(release).await {
                            latencies.wrong(status.to_string());
                        }
                    }
                    Err(status) => latencies.wrong(status.to_string()),
                }
            }
            latencies
        })
        .await
    }
}

/// Callers of the first domain, each with an identity of its own.
pub(crate) async fn callers(
    dir: &Path,
    path: &str,
    count: u32,
    to: &str,
) -> anyhow::Result<Vec<Arc<Caller>>> {
    let mut callers = Vec::new();
    for number in 0..count {
        let caller = Caller::dial(dir, 0, &format!("{path}-{number}"), to)
            .await
            .with_context(|| format!("dial {to}"))?;
        callers.push(Arc::new(caller));
    }
    Ok(callers)
}

/// Runs the work of every caller at once, from a common start; an error with fewer right answers
/// than `least`.
async fn timed<F>(
    callers: Vec<Arc<Caller>>,
    least: usize,
    work: impl Fn(Arc<Caller>, u32) -> F,
) -> anyhow::Result<Value>
where
    F: Future<Output = Latencies> + Send + 'static,
{
    let start = Instant::now();
    let running: Vec<_> = (0..)
        .zip(callers)
        .map(|(number, caller)| tokio::spawn(work(caller, number)))
        .collect();
    let mut all = Latencies::default();
    for task in running {
        all.merge(task.await.context("a caller failed")?);
    }
    all.summary(start.elapsed(), least)
}
