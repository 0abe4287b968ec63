//! How fast names come and go in a mesh of domains, and who is asked for them: figures as JSON.
//!
//! `dns_mesh DOMAINS WORKLOADS`: so many domains with so many workloads each, every one with a
//! server of its own beside a stand-in router, in one process, over real sockets on loopback.
//! Times count from the moment at which a router says what changed.
#![expect(
    clippy::unwrap_used,
    reason = "a load program fails by panicking, as the tests that share its world"
)]

#[path = "../../tests/network/levels.rs"]
mod levels;
#[path = "../../tests/network/router.rs"]
mod router;
mod watching;
#[path = "../../tests/mesh/world.rs"]
mod world;

use std::io::Write as _;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use watching::{Changes, Kind};
use world::{Client, Mesh, Node, canonical, eventually_true, found, shared, workload_address};

/// Shared names that each domain asks for: every one costs a query to each other domain.
const SHARED: usize = 20;

/// What one kind of question cost and how often it was answered wrong.
#[derive(Default)]
struct Asked {
    questions: usize,
    wrong: usize,
    /// Questions that come before the counted one and cost a query of their own.
    firsts: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let (Some(Ok(domains)), Some(Ok(workloads))) = (arguments.next(), arguments.next()) else {
        panic!("usage: dns_mesh DOMAINS WORKLOADS");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let figures = runtime.block_on(run(domains, workloads));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{figures}").unwrap();
}

async fn run(domains: usize, workloads: usize) -> Value {
    let mesh = Arc::new(Mesh::start(domains, workloads).await);
    let mut queries = Vec::new();
    for (kind, per_domain) in [
        ("canonical", workloads),
        ("cached", workloads),
        ("shared", SHARED.min(workloads)),
        ("impossible", workloads),
    ] {
        queries.push(ask_everywhere(&mesh, kind, per_domain).await);
    }
    let canonical = Changes::watch(&mesh, Kind::Canonical).await;
    let shared = Changes::watch(&mesh, Kind::Shared).await;
    json!({
        "domains": domains,
        "names": domains * workloads,
        "memory_mib": memory_mib(),
        "queries": queries,
        "canonical": canonical.to_json(),
        "shared": shared.to_json(),
    })
}

/// Every domain asks for names of others, all at the same time.
async fn ask_everywhere(mesh: &Arc<Mesh>, kind: &'static str, per_domain: usize) -> Value {
    let before: i64 = mesh.nodes.iter().map(Node::queries).sum();
    let mut all = JoinSet::new();
    for number in 0..mesh.nodes.len() {
        all.spawn(ask(Arc::clone(mesh), number, kind, per_domain));
    }
    let mut asked = Asked::default();
    while let Some(ended) = all.join_next().await {
        let one = ended.unwrap();
        asked.questions += one.questions;
        asked.wrong += one.wrong;
        asked.firsts += one.firsts;
    }
    let firsts = i64::try_from(asked.firsts).unwrap();
    // What is counted of repeats follows the queries.
    let mut last = -1;
    eventually_true("figures rest", || {
        let now: i64 = mesh.nodes.iter().map(Node::queries).sum();
        let rests = std::mem::replace(&mut last, now) == now;
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            rests
        }
    })
    .await;
    json!({
        "kind": kind,
        "questions": asked.questions,
        "queries": last - before - firsts,
        "wrong": asked.wrong,
    })
}

async fn ask(mesh: Arc<Mesh>, number: usize, kind: &str, count: usize) -> Asked {
    let client = mesh.node(number).client().await;
    let other = (number + 1) % mesh.nodes.len();
    let domain = &mesh.node(other).name;
    let mut asked = Asked::default();
    for workload in 0..count {
        let label = format!("w{other}-{workload}");
        let expected = Some(vec![workload_address(other, workload)]);
        let is_right = match kind {
            "canonical" => is_found(&client, &canonical(&label, domain), &expected).await,
            "cached" => {
                let name = canonical(&label, domain);
                asked.firsts += 1;
                is_found(&client, &name, &expected).await
                    && is_found(&client, &name, &expected).await
            }
            "shared" => is_found(&client, &shared(&label), &expected).await,
            _ => {
                let name = canonical(&label, "nowhere");
                let reply = client.ask(&name, RecordType::A).await;
                reply.metadata.response_code == ResponseCode::NXDomain
            }
        };
        asked.questions += 1;
        asked.wrong += usize::from(!is_right);
    }
    asked
}

async fn is_found(client: &Client, name: &str, expected: &Option<Vec<String>>) -> bool {
    found(&client.ask(name, RecordType::A).await) == *expected
}

/// Of the whole process: all servers, and those who ask.
fn memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
