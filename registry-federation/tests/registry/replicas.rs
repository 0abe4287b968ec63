//! Several replicas of one domain's registry over one store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use prost::Message;
use registry_federation::Config;
use registry_federation::store::{
    Candidate, Claim, Followed, Shared, SharedMemory, Store, StoreError,
};
use tokio::sync::{mpsc, watch};
use tonic::Code;
use tonic::metadata::MetadataValue;
use vl3_core::ids::{DomainName, Generation};
use vl3_core::registry::Endpoint;
use vl3_proto::objects::encode_endpoint;

use crate::world::{Events, Registry, World, event, eventually};

const FIRST: &str = "vl3/registry/east-1";
const SECOND: &str = "vl3/registry/east-2";

/// A domain with two replicas, the first of which is active.
struct Pair {
    store: SharedMemory,
    first: Registry,
    second: Registry,
}

async fn pair(world: &World) -> Pair {
    let store = SharedMemory::default();
    let first = world.replica("east", FIRST, store.replica()).await;
    let second = world.replica("east", SECOND, store.replica()).await;
    assert_eq!(store.active().as_deref(), Some("east-1"));
    Pair {
        store,
        first,
        second,
    }
}

fn plain(name: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        services: vec!["web".to_owned()],
        url: "tcp://192.0.2.9:1".to_owned(),
        ..Endpoint::default()
    }
}

/// What a watch comes to, from the events that are there by the time `last` was told.
async fn fold(events: &mut Events, last: &str) -> BTreeMap<String, u32> {
    let mut seen = BTreeMap::new();
    loop {
        let (name, deleted) = event(events).await;
        if deleted {
            seen.remove(&name);
        } else {
            *seen.entry(name.clone()).or_default() += 1;
        }
        if name == last {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_follows_has_calls_carried_out_by_the_active_one_and_shows_them_at_once() {
    let mut world = World::new(&["east"]);
    let pair = pair(&world).await;
    let router = world.router("east", &pair.second).await;
    let granted = router.acquire(&world.acquire("east", 1)).await.unwrap();
    assert_eq!(granted.lease.generation, Generation(1));
    assert_eq!(router.renew(&granted.lease).await.unwrap(), granted);
    // With a token for the replica that was asked.
    router.register(&world.endpoint("east", 1)).await.unwrap();
    assert_eq!(router.find("red").await, ["red-east"]);
    for number in 0..50 {
        let name = format!("plain-{number}");
        router.register(&plain(&name)).await.unwrap();
        assert!(router.find("web").await.contains(&name), "{name}");
    }
    router.unregister(&plain("plain-7")).await.unwrap();
    assert_eq!(router.find("web").await.len(), 49);
    let chain = world.edit(|document| document.policy.stale_limit_seconds = 5);
    assert!(router.publish(&chain).await.accepted);
    let again = router.publish(&chain).await;
    assert!(again.accepted && again.reason.contains("already"));
    // Who calls is who it is: another identity's endpoint stays.
    let stranger = world.client("east", "workload/b", &pair.second).await;
    let refused = stranger.unregister(&plain("plain-8")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("workload/b"), "{refused}");
    let first = world.router("east", &pair.first).await;
    assert_eq!(first.find("web").await, router.find("web").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_active_replica_dies_watches_at_another_one_go_on_without_gap_or_duplicate() {
    let world = World::new(&["east"]);
    let pair = pair(&world).await;
    let router = world.router("east", &pair.second).await;
    let granted = router.acquire(&world.acquire("east", 1)).await.unwrap();
    router.register(&plain("before")).await.unwrap();
    let mut events = router.watch("web").await;
    assert_eq!(event(&mut events).await, ("before".to_owned(), false));
    router.register(&plain("early")).await.unwrap();
    pair.first.kill();
    // Reads do not wait for anybody.
    assert_eq!(router.find("web").await, ["before", "early"]);
    pair.store.lapse();
    eventually("the second takes over", || async {
        router.register(&plain("late")).await.is_ok()
    })
    .await;
    router.unregister(&plain("before")).await.unwrap();
    router.register(&plain("last")).await.unwrap();
    let seen = fold(&mut events, "last").await;
    let once = ["early", "last", "late"].map(|name| (name.to_owned(), 1));
    assert_eq!(seen, BTreeMap::from(once));
    assert_eq!(router.find("web").await, ["early", "last", "late"]);
    // The same lease, and no other round.
    assert_eq!(router.renew(&granted.lease).await.unwrap(), granted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_place_was_taken_steps_back_and_keeps_nothing_that_was_not_written() {
    let world = World::new(&["east"]);
    let pair = pair(&world).await;
    let first = world.router("east", &pair.first).await;
    first.register(&plain("before")).await.unwrap();
    let mut events = first.watch("web").await;
    assert_eq!(event(&mut events).await, ("before".to_owned(), false));
    // It is cut off and does not know; what it is asked now it must not promise.
    pair.store.lapse();
    let refused = first.register(&plain("lost")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let ended = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    let ended = ended.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    eventually("it follows", || async {
        first.find("web").await == ["before"]
    })
    .await;
    assert_eq!(pair.store.active().as_deref(), Some("east-2"));
    let second = world.router("east", &pair.second).await;
    second.register(&plain("after")).await.unwrap();
    let mut events = first.watch("web").await;
    fold(&mut events, "after").await;
    assert_eq!(first.find("web").await, ["after", "before"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_nothing_is_promised_and_everything_is_found() {
    let world = World::new(&["east"]);
    let pair = pair(&world).await;
    let clients = [
        world.router("east", &pair.first).await,
        world.router("east", &pair.second).await,
    ];
    clients[0].register(&plain("before")).await.unwrap();
    eventually("both show it", || async {
        clients[1].find("web").await == ["before"]
    })
    .await;
    pair.store.pause();
    let paused = Instant::now();
    let not_ready =
        || async { !pair.first.ctx.readiness.is_ready() && !pair.second.ctx.readiness.is_ready() };
    eventually("neither is ready", not_ready).await;
    assert!(paused.elapsed() < Duration::from_secs(2));
    for client in &clients {
        let refused = client.register(&plain("refused")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(client.find("web").await, ["before"]);
    }
    // One that waits when the store comes back is carried out.
    let endpoint = plain("waits");
    let waits = clients[1].register(&endpoint);
    let (waits, ()) = tokio::join!(waits, async { pair.store.resume() });
    waits.unwrap();
    let ready =
        || async { pair.first.ctx.readiness.is_ready() && pair.second.ctx.readiness.is_ready() };
    eventually("both are ready", ready).await;
    assert_eq!(clients[1].find("web").await, ["before", "waits"]);
    assert_eq!(pair.store.active().as_deref(), Some("east-1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_away_for_longer_than_endpoints_live_ends_none_of_them() {
    const LIFETIME: Duration = Duration::from_secs(2);
    let world = World::new(&["east"]);
    let store = SharedMemory::default();
    let edit = |config: &mut Config| config.endpoint_lifetime = LIFETIME;
    let replica = world.replica_with("east", FIRST, store.replica(), edit);
    let replica = replica.await;
    let client = world.router("east", &replica).await;
    client.register(&plain("living")).await.unwrap();
    let mut events = client.watch("web").await;
    assert_eq!(event(&mut events).await, ("living".to_owned(), false));
    store.pause();
    let paused = Instant::now();
    eventually("nobody could say that it lives", || async {
        paused.elapsed() > 2 * LIFETIME
    })
    .await;
    assert_eq!(client.find("web").await, ["living"]);
    store.resume();
    client.register(&plain("living")).await.unwrap();
    client.register(&plain("last")).await.unwrap();
    // Its end was told to nobody.
    assert_eq!(event(&mut events).await, ("last".to_owned(), false));
    assert_eq!(client.find("web").await, ["last", "living"]);
    // Who says nothing now is gone in time.
    eventually("the end of both", || async {
        client.find("web").await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_changed_by_hand_is_read_again_and_written_on() {
    let world = World::new(&["east"]);
    let store = SharedMemory::default();
    let replica = world.replica("east", FIRST, store.replica()).await;
    let client = world.router("east", &replica).await;
    for round in 0..3 {
        client.register(&plain("kept")).await.unwrap();
        assert!(store.touch("endpoint/kept").unwrap(), "round {round}");
        let refused = client.unregister(&plain("kept")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        // Nobody else is there to take the claim.
        eventually("it goes on", || async {
            client.register(&plain("after")).await.is_ok()
        })
        .await;
        assert_eq!(client.find("web").await, ["after", "kept"]);
    }
}

/// A store whose word about the claim comes from the test, and which is read when that says so.
#[derive(Debug)]
struct Scripted {
    inner: Arc<dyn Shared>,
    /// What the store itself says.
    real: Mutex<Option<watch::Receiver<Claim>>>,
    claim: watch::Sender<Claim>,
    readers: AtomicUsize,
    open: watch::Sender<bool>,
}

impl Scripted {
    fn new(store: &SharedMemory) -> Arc<Self> {
        Arc::new(Self {
            inner: store.replica(),
            real: Mutex::default(),
            claim: watch::Sender::new(Claim::Unknown),
            readers: AtomicUsize::new(0),
            open: watch::Sender::new(false),
        })
    }

    fn real(&self) -> Claim {
        let real = self.real.lock().expect("no panic before");
        real.as_ref().expect("a campaign").borrow().clone()
    }

    async fn eventually_read(&self, times: usize) {
        eventually("the store is read", || async {
            self.readers.load(Ordering::SeqCst) == times
        })
        .await;
    }
}

impl Shared for Scripted {
    fn follow(&self) -> mpsc::Receiver<Followed> {
        self.inner.follow()
    }

    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Claim> {
        *self.real.lock().expect("no panic before") = Some(self.inner.campaign(candidate));
        self.claim.subscribe()
    }

    fn writer(&self, term: u64) -> Result<Box<dyn Store>, StoreError> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.subscribe();
        let opened = open.wait_for(|open| *open);
        tokio::runtime::Handle::current()
            .block_on(opened)
            .map_err(|error| StoreError::Read(error.to_string()))?;
        self.inner.writer(term)
    }

    fn written(&self) -> u64 {
        self.inner.written()
    }

    fn release(&self) {
        self.inner.release();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_claim_went_while_it_read_the_store_follows() {
    let world = World::new(&["east"]);
    let store = SharedMemory::default();
    let scripted = Scripted::new(&store);
    let shared = Arc::clone(&scripted) as Arc<dyn Shared>;
    let replica = world.replica("east", FIRST, shared).await;
    let ours = scripted.real();
    assert!(matches!(ours, Claim::Active { .. }), "{ours:?}");
    scripted.claim.send_replace(ours.clone());
    scripted.eventually_read(1).await;
    let other = Candidate {
        id: 2,
        name: "east-2".to_owned(),
        address: "tcp://192.0.2.2:5002".to_owned(),
    };
    scripted.claim.send_replace(Claim::Other {
        candidate: other,
        term: 99,
    });
    let role = |role: &str| {
        let line = format!("registry_replica_role{{role=\"{role}\"}} 1");
        replica.metrics.encode().contains(&line)
    };
    eventually("it knows of the other one", || async { role("following") }).await;
    scripted.open.send_replace(true);
    eventually("it has read what it may not write", || async {
        let late = "registry_replica_takeovers_late_total 1";
        replica.metrics.encode().contains(late)
    })
    .await;
    assert!(role("following"));
    // The claim is ours after all: it is read again.
    scripted.claim.send_replace(ours);
    scripted.eventually_read(2).await;
    let client = world.router("east", &replica).await;
    client.register(&plain("after")).await.unwrap();
    assert!(role("active"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_hands_over_at_once() {
    let world = World::new(&["east"]);
    let pair = pair(&world).await;
    let router = world.router("east", &pair.second).await;
    router.register(&plain("before")).await.unwrap();
    pair.first.stop().await;
    assert_eq!(pair.store.active().as_deref(), Some("east-2"));
    router.register(&plain("after")).await.unwrap();
    assert_eq!(router.find("web").await, ["after", "before"]);
}

/// As one replica tells another for whom it speaks.
#[derive(Clone, PartialEq, Message)]
struct Caller {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    own: bool,
    #[prost(bytes = "vec", tag = "4")]
    certificate: Vec<u8>,
    #[prost(uint64, tag = "5")]
    not_after: u64,
}

/// Registers as that router, by word of `path` of `domain` alone.
async fn forged(
    world: &World,
    domain: &str,
    path: &str,
    to: &Registry,
) -> Result<(), tonic::Status> {
    let caller = Caller {
        id: "spiffe://east.test/vl3/router/red-east".to_owned(),
        own: true,
        certificate: vec![1],
        not_after: u64::MAX / 2_000_000_000,
    };
    let connection = world
        .dial(domain, path, to)
        .await
        .map_err(|error| tonic::Status::unauthenticated(error.to_string()))?;
    let mut request = tonic::Request::new(encode_endpoint(&world.endpoint("east", 1)));
    request.metadata_mut().insert_bin(
        "vl3-caller-bin",
        MetadataValue::from_bytes(&caller.encode_to_vec()),
    );
    let mut client =
        vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient::new(
            connection.plain(),
        );
    client.register(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_a_replica_of_the_own_domain_speaks_for_another_caller() {
    let mut world = World::new(&["east", "west"]);
    // What a network's admin calls a registry is no replica for that.
    world.edit(|document| {
        let east = document.members.get_mut(&DomainName::new("east").unwrap());
        let patterns = &mut east.unwrap().roles.registry;
        patterns.push("spiffe://east.test/workload/*".to_owned());
    });
    let pair = pair(&world).await;
    let sole = world.registry("west").await;
    for registry in [&pair.first, &pair.second] {
        for (domain, path) in [
            ("east", "workload/a"),
            ("east", "vl3/dns/red-east"),
            ("west", "vl3/registry/west"),
            ("west", "vl3/router/red-west"),
        ] {
            let refused = forged(&world, domain, path, registry).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{path}: {refused}");
            let who = format!("spiffe://{domain}.test/{path}");
            assert!(refused.message().contains(&who), "{refused}");
        }
    }
    // A registry that has no replicas believes nobody.
    let refused = forged(&world, "west", "vl3/registry/west-2", &sole)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Whom it is for: a replica of the own domain.
    forged(&world, "east", SECOND, &pair.first).await.unwrap();
    let router = world.router("east", &pair.second).await;
    eventually("it is there", || async {
        router.find("red").await == ["red-east"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_domain_that_reaches_any_replica_syncs_with_the_active_one() {
    let mut world = World::new(&["east", "west"]);
    let pair = pair(&world).await;
    let west = world.registry("west").await;
    let contact = pair.second.contact();
    let chain = world.edit(|document| {
        let east = DomainName::new("east").unwrap();
        document.members.get_mut(&east).unwrap().contacts = vec![contact];
    });
    for (domain, registry) in [("west", &west), ("east", &pair.second)] {
        let client = world.client(domain, "workload/admin", registry).await;
        assert!(client.publish(&chain).await.accepted);
    }
    let in_west = world.router("west", &west).await;
    in_west.register(&world.endpoint("west", 1)).await.unwrap();
    let first = world.router("east", &pair.first).await;
    let second = world.router("east", &pair.second).await;
    first.register(&world.endpoint("east", 1)).await.unwrap();
    for client in [&first, &second] {
        eventually("every replica knows of west", || async {
            client.find("red").await == ["red-east", "red-west@west"]
        })
        .await;
    }
    eventually("west knows of east", || async {
        in_west.find("red").await == ["red-west", "red-east@east"]
    })
    .await;
    // The stream moves with the active one.
    pair.first.stop().await;
    second.register(&world.endpoint("east", 2)).await.unwrap();
    in_west.register(&world.endpoint("west", 2)).await.unwrap();
    eventually("west hears of what came later", || async {
        let mut events = in_west.watch("red").await;
        let found = events.next().await.unwrap().unwrap();
        let _own = found.network_service_endpoint;
        let found = events.next().await.unwrap().unwrap();
        let endpoint = found.network_service_endpoint.unwrap();
        let labels = &endpoint.network_service_labels["red"].labels;
        labels["vl3/gen"] == "2"
    })
    .await;
}
