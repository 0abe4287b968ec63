//! Two replicas over a real etcd of three with mutual TLS, while etcd dies and stands still.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry_federation::Config;
use registry_federation::store::{Etcd, EtcdConfig, Shared};
use tonic::Code;
use vl3_core::registry::Endpoint;
use vl3_identity::authority::Authority;
use vl3_lab::etcd::{EtcdCluster, EtcdTls};
use vl3_runtime::clock;

use crate::world::{Client, World, eventually};

const DAY: Duration = Duration::from_secs(86_400);
const PAUSE: Duration = Duration::from_secs(10);
/// Registered while nothing can be written; whether it is there later is not promised.
const REFUSED: &str = "e999";

async fn cluster(world: &World) -> (EtcdCluster, EtcdConfig) {
    let dir = world.dir.path().join("etcd");
    std::fs::create_dir(&dir).expect("a directory");
    let cluster = EtcdCluster::new(&dir, 3).expect("an etcd");
    let authority = Authority::create("etcd.test", clock::wall()).expect("a CA");
    let mut addresses = cluster.addresses();
    // From here members reach each other, which each of them looks at.
    addresses.push(Ipv4Addr::LOCALHOST.into());
    let issued = authority.issue_at("etcd", &addresses, DAY, clock::wall());
    issued.expect("a certificate").store(&dir).expect("files");
    let tls = EtcdTls {
        ca: dir.join("bundle.pem"),
        cert: dir.join("svid.pem"),
        key: dir.join("key.pem"),
    };
    let mut cluster = cluster.with_tls(tls.clone());
    cluster.start().await.expect("a healthy etcd");
    let config = EtcdConfig {
        ca: Some(tls.ca),
        cert: Some(tls.cert),
        key: Some(tls.key),
        ..EtcdConfig::new(cluster.endpoints(), "/vl3/east/")
    };
    (cluster, config)
}

fn endpoint(name: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        services: vec!["web".to_owned()],
        url: "tcp://192.0.2.9:1".to_owned(),
        ..Endpoint::default()
    }
}

/// Tries until it is accepted, as every caller does.
async fn eventually_registered(client: &Client, names: &mut Vec<String>) {
    let name = format!("e{:03}", names.len());
    eventually("a registration is accepted", || async {
        client.register(&endpoint(&name)).await.is_ok()
    })
    .await;
    names.push(name);
}

/// What is found, but for what was refused.
async fn accepted(client: &Client) -> Vec<String> {
    let mut found = client.find("web").await;
    found.retain(|name| name != REFUSED);
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_over_an_etcd_lose_nothing_when_its_leader_dies_or_all_of_it_stands_still() {
    let world = World::new(&["east"]);
    let (mut etcd, config) = cluster(&world).await;
    let store = || -> Arc<dyn Shared> { Arc::new(Etcd::new(config.clone()).expect("a thread")) };
    let first = world.replica("east", "vl3/registry/east-1", store()).await;
    let second = world.replica("east", "vl3/registry/east-2", store()).await;
    let clients = [
        world.router("east", &first).await,
        world.router("east", &second).await,
    ];
    let mut names = Vec::new();
    for number in 0..40 {
        eventually_registered(&clients[number % 2], &mut names).await;
        // Read your writes, at whichever replica.
        assert_eq!(clients[number % 2].find("web").await, names);
    }
    let mut granted = None;
    eventually("a lease", || async {
        clients[1].acquire(&world.acquire("east", 1)).await.is_ok()
    })
    .await;
    granted.replace(clients[0].acquire(&world.acquire("east", 1)).await.unwrap());

    let leader = etcd.leader().unwrap();
    etcd.kill(leader).await.unwrap();
    for number in 0..20 {
        eventually_registered(&clients[number % 2], &mut names).await;
    }
    etcd.start_member(leader).unwrap();
    etcd.eventually_healthy().await.unwrap();

    for at in 0..3 {
        etcd.pause(at).unwrap();
    }
    let paused = Instant::now();
    eventually("neither is ready", || async {
        !first.ctx.readiness.is_ready() && !second.ctx.readiness.is_ready()
    })
    .await;
    for client in &clients {
        assert_eq!(client.find("web").await, names);
        let refused = client.register(&endpoint(REFUSED)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    }
    eventually("ten seconds", || async { paused.elapsed() >= PAUSE }).await;
    for at in 0..3 {
        etcd.resume(at).unwrap();
    }
    for number in 0..20 {
        eventually_registered(&clients[number % 2], &mut names).await;
    }
    for client in &clients {
        eventually("everything that was accepted, at each", || async {
            accepted(client).await == names
        })
        .await;
    }

    // Whoever is active goes; the other one has it all.
    first.stop().await;
    eventually_registered(&clients[1], &mut names).await;
    assert_eq!(accepted(&clients[1]).await, names);
    let granted = granted.unwrap();
    let renewed = clients[1].renew(&granted.lease).await.unwrap();
    assert_eq!(renewed.lease, granted.lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_without_quorum_for_longer_than_endpoints_live_ends_none_of_them() {
    const LIFETIME: Duration = Duration::from_secs(5);
    let world = World::new(&["east"]);
    let (mut etcd, config) = cluster(&world).await;
    let store: Arc<dyn Shared> = Arc::new(Etcd::new(config).expect("a thread"));
    let edit = |config: &mut Config| config.endpoint_lifetime = LIFETIME;
    let replica = world.replica_with("east", "vl3/registry/east-1", store, edit);
    let replica = replica.await;
    let client = world.router("east", &replica).await;
    let refresh = || async { client.register(&endpoint("living")).await.is_ok() };
    eventually("it is registered", refresh).await;
    // The leader among them: the next one gives leases, and so our claim, another life.
    let leader = etcd.leader().unwrap();
    let dead = [leader, (leader + 1) % 3];
    for at in dead {
        etcd.kill(at).await.unwrap();
    }
    let killed = Instant::now();
    eventually("nobody could say that it lives", || async {
        killed.elapsed() > 2 * LIFETIME
    })
    .await;
    assert!(!replica.ctx.readiness.is_ready());
    assert_eq!(client.find("web").await, ["living"]);
    for at in dead {
        etcd.start_member(at).unwrap();
    }
    eventually("it says so again", || async {
        // Until then, too.
        assert_eq!(client.find("web").await, ["living"]);
        refresh().await
    })
    .await;
    assert_eq!(client.find("web").await, ["living"]);
    eventually("its end, in time", || async {
        client.find("web").await.is_empty()
    })
    .await;
}
