//! `ipam.IPAM/ManagePrefixes` for stock routers, over real gRPC.

use std::path::Path;
use std::time::Duration;

use registry_federation::store::{Redb, SharedMemory};
use registry_federation::{Config, Family, PrefixesConfig};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use vl3_proto::ipam::ipam_client::IpamClient;
use vl3_proto::ipam::{PrefixRequest, PrefixResponse, Type};
use vl3_runtime::grpc::Expect;

use crate::world::{Registry, World};

/// One stream of one stock router.
struct Stream {
    requests: mpsc::Sender<PrefixRequest>,
    answers: tonic::Streaming<PrefixResponse>,
}

impl Stream {
    async fn open(world: &World, id: &str, registry: &Registry, port: usize) -> Self {
        let url = registry.prefix_ports[port].dial_url();
        let dialer = world.dialer("east", id);
        let connection = dialer.dial(&url, Expect::anybody()).await.expect("a port");
        let (requests, outgoing) = mpsc::channel(4);
        // As stock does: TLS alone, no tokens.
        let mut client = IpamClient::new(connection.plain());
        let answers = client.manage_prefixes(ReceiverStream::new(outgoing)).await;
        Self {
            requests,
            answers: answers.expect("a stream").into_inner(),
        }
    }

    async fn send(&self, r#type: Type, prefix: &str, exclude: &[&str]) {
        let request = PrefixRequest {
            r#type: r#type.into(),
            prefix: prefix.to_owned(),
            exclude_prefixes: exclude.iter().map(|range| (*range).to_owned()).collect(),
        };
        self.requests.send(request).await.expect("an open stream");
    }

    async fn answer(&mut self) -> Result<PrefixResponse, tonic::Status> {
        let answer = tokio::time::timeout(Duration::from_secs(20), self.answers.message());
        let answer = answer.await.expect("an answer within 20 s")?;
        Ok(answer.expect("an answer and no end"))
    }

    async fn allocate(&mut self, prefix: &str) -> String {
        self.send(Type::Allocate, prefix, &[]).await;
        self.answer().await.expect("a prefix").prefix
    }

    async fn refused(mut self, r#type: Type, prefix: &str, exclude: &[&str]) -> tonic::Status {
        self.send(r#type, prefix, exclude).await;
        self.answer().await.expect_err("refused")
    }
}

/// A port for each family.
fn ports(world: &World, config: &mut Config) {
    let port = |family| PrefixesConfig {
        network: world.uid(),
        family,
        listen: vec!["tcp://127.0.0.1:0".parse().expect("an address")],
    };
    config.prefixes = vec![port(Family::Ipv4), port(Family::Ipv6)];
    config.prefix_len4 = Some(24);
}

async fn registry(world: &World, file: &Path) -> Registry {
    let store = Redb::open(file).expect("a store");
    world
        .registry_with("east", Box::new(store), |config| ports(world, config))
        .await
}

const GO: &str = "vl3/router/go";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_router_has_the_same_prefix_of_both_families_after_every_reconnect() {
    let world = World::new(&["east", "west"]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("registry.redb");
    let first = registry(&world, &file).await;
    let mut v4 = Stream::open(&world, GO, &first, 0).await;
    let mut v6 = Stream::open(&world, GO, &first, 1).await;
    let (prefix4, prefix6) = (v4.allocate("").await, v6.allocate("").await);
    assert_eq!(prefix4, "10.80.4.0/24");
    assert!(
        prefix6.starts_with("fd00:1:2:3:1:") && prefix6.ends_with("/96"),
        "{prefix6}"
    );
    // A reconnect whose former stream nobody has noticed yet: the former one ends.
    let mut again = Stream::open(&world, GO, &first, 0).await;
    assert_eq!(again.allocate(&prefix4).await, prefix4);
    let ended = v4.answer().await.expect_err("taken over");
    assert_eq!(ended.code(), Code::Aborted, "{ended}");
    // A replica with the same identity is another router.
    let mut replica = Stream::open(&world, GO, &first, 0).await;
    assert_eq!(replica.allocate("").await, "10.80.5.0/24");
    // So is ours.
    let ours = world.router("east", &first).await;
    let granted = ours
        .acquire(&world.acquire("east", 1))
        .await
        .expect("a lease");
    assert_eq!(
        granted.lease.prefix4.expect("IPv4").to_string(),
        "10.80.6.0/24"
    );
    drop((again, v6, replica));
    first.stop().await;
    let second = registry(&world, &file).await;
    let mut again = Stream::open(&world, GO, &second, 0).await;
    assert_eq!(again.allocate(&prefix4).await, prefix4);
    let mut v6 = Stream::open(&world, GO, &second, 1).await;
    assert_eq!(v6.allocate(&prefix6).await, prefix6, "of the same lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exclusions_deletion_and_exhaustion_are_answered() {
    let mut world = World::new(&["east"]);
    world.edit(|document| {
        document.policy.exclusions = vec!["10.80.7.128/25".parse().expect("a range")];
    });
    let dir = tempfile::tempdir().expect("a directory");
    let registry = registry(&world, &dir.path().join("registry.redb")).await;
    let mut one = Stream::open(&world, GO, &registry, 0).await;
    one.send(Type::Allocate, "", &["10.80.4.77/24", "10.80.4.0/24"])
        .await;
    let answer = one.answer().await.expect("a prefix");
    assert_eq!(answer.prefix, "10.80.5.0/24");
    assert_eq!(answer.exclude_prefixes, ["10.80.4.0/24", "10.80.7.128/25"]);
    let mut two = Stream::open(&world, "vl3/router/two", &registry, 0).await;
    assert_eq!(two.allocate("").await, "10.80.6.0/24");
    // .4 is excluded by a router that holds a lease, .7 by the document.
    let three = Stream::open(&world, "vl3/router/three", &registry, 0).await;
    let full = three.refused(Type::Allocate, "", &[]).await;
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(
        full.message().starts_with(
            "block 10.80.4.0/22 of domain east has no room for another prefix of length 24"
        ),
        "{full}"
    );
    let collision = Stream::open(&world, "vl3/router/three", &registry, 0).await;
    let collision = collision
        .refused(Type::Allocate, "", &["10.80.6.0/25"])
        .await;
    assert!(
        collision
            .message()
            .contains("10.80.6.0/25 overlaps 10.80.6.0/24"),
        "{collision}"
    );
    // A stream's end frees nothing, its word does.
    drop(two);
    let three = Stream::open(&world, "vl3/router/three", &registry, 0).await;
    assert_eq!(
        three.refused(Type::Allocate, "", &[]).await.code(),
        Code::ResourceExhausted
    );
    one.send(Type::Delete, "10.80.5.0/24", &[]).await;
    // No answer to that, by the protocol: the next one comes after it.
    assert_eq!(one.allocate("10.80.5.0/24").await, "10.80.5.0/24");
    one.send(Type::Delete, "10.80.5.0/24", &[]).await;
    one.send(Type::Undefined, "", &[]).await;
    assert_eq!(
        one.answer().await.expect_err("undefined").code(),
        Code::InvalidArgument
    );
    let mut three = Stream::open(&world, "vl3/router/three", &registry, 0).await;
    assert_eq!(three.allocate("").await, "10.80.4.0/24");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_malformed_requests_are_refused_by_name() {
    let world = World::new(&["east"]);
    let dir = tempfile::tempdir().expect("a directory");
    let registry = registry(&world, &dir.path().join("registry.redb")).await;
    let stranger = Stream::open(&world, "workload/a", &registry, 0).await;
    let refused = stranger.refused(Type::Allocate, "", &[]).await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused
            .message()
            .contains("spiffe://east.test/vl3/router/*"),
        "{refused}"
    );
    for (port, kind, prefix, exclude, part) in [
        (0, Type::Allocate, "fd00::/96", "", "prefix: \"fd00::/96\""),
        (1, Type::Allocate, "10.80.4.0/24", "", "an IPv6 prefix is"),
        (0, Type::Delete, "x", "", "prefix: \"x\""),
        (
            0,
            Type::Allocate,
            "",
            "10.0.0.0/33",
            "exclude_prefixes: \"10.0.0.0/33\"",
        ),
        (0, Type::Undefined, "", "", "type: 0 is not allowed"),
    ] {
        let exclude: Vec<_> = Some(exclude)
            .filter(|range| !range.is_empty())
            .into_iter()
            .collect();
        let stream = Stream::open(&world, GO, &registry, port).await;
        let refused = stream.refused(kind, prefix, &exclude).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(part), "{part}: {refused}");
    }
}

/// Two replicas with ports, the first of which is active.
async fn pair(world: &World, store: &SharedMemory) -> [Registry; 2] {
    let replica = async |name: &str| {
        let path = format!("vl3/registry/{name}");
        let edit = |config: &mut Config| ports(world, config);
        world
            .replica_with("east", &path, store.replica(), edit)
            .await
    };
    [replica("east-1").await, replica("east-2").await]
}

/// The answer of a replica that a router asks for a prefix it had.
async fn asked(world: &World, id: &str, registry: &Registry, prefix: &str) -> Result<String, Code> {
    let mut stream = Stream::open(world, id, registry, 0).await;
    stream.send(Type::Allocate, prefix, &[]).await;
    let answer = stream.answer().await;
    answer
        .map(|answer| answer.prefix)
        .map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_gives_no_prefix_and_so_nobody_has_one_of_two() {
    let world = World::new(&["east"]);
    let store = SharedMemory::default();
    let [first, second] = pair(&world, &store).await;
    let mut at_first = Stream::open(&world, GO, &first, 0).await;
    let prefix = at_first.allocate("").await;
    store.cut_off();
    assert_eq!(store.active().as_deref(), Some("east-2"));
    // At the other one the router gives it back, and another router gets it.
    let mut at_second = Stream::open(&world, GO, &second, 0).await;
    assert_eq!(at_second.allocate(&prefix).await, prefix);
    at_second.send(Type::Delete, &prefix, &[]).await;
    at_second.send(Type::Undefined, "", &[]).await;
    at_second.answer().await.expect_err("the end of the stream");
    let another = asked(&world, "vl3/router/two", &second, "").await;
    assert_eq!(another.as_deref(), Ok(prefix.as_str()));
    // Its successor comes to the one that knows the lease still, and needs no write for it.
    let successor = asked(&world, GO, &first, &prefix).await;
    assert_eq!(successor, Err(Code::Unavailable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_follows_says_which_one_gives_prefixes() {
    let world = World::new(&["east"]);
    let store = SharedMemory::default();
    let [first, second] = pair(&world, &store).await;
    let mut at_first = Stream::open(&world, GO, &first, 0).await;
    let prefix = at_first.allocate("").await;
    let mut at_second = Stream::open(&world, GO, &second, 0).await;
    at_second.send(Type::Allocate, &prefix, &[]).await;
    let refused = at_second.answer().await.expect_err("it follows");
    assert_eq!(refused.code(), Code::Unavailable);
    let active = format!("east-1 at {} is the active one", first.listen);
    assert!(refused.message().contains(&active), "{refused}");
    // Taken over, it gives what the other one gave.
    first.stop().await;
    let after = asked(&world, GO, &second, &prefix).await;
    assert_eq!(after, Ok(prefix));
}

/// A new pod of the same identity must not be given what another one runs with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_router_whose_stream_broke_finds_its_prefix_again() {
    let world = World::new(&["east"]);
    let dir = tempfile::tempdir().expect("a directory");
    let registry = registry(&world, &dir.path().join("registry.redb")).await;
    let mut running = Stream::open(&world, GO, &registry, 0).await;
    let prefix = running.allocate("").await;
    drop(running);
    let mut new = Stream::open(&world, GO, &registry, 0).await;
    let other = new.allocate("").await;
    assert_ne!(other, prefix);
    let mut back = Stream::open(&world, GO, &registry, 0).await;
    assert_eq!(back.allocate(&prefix).await, prefix);
    assert_eq!(new.allocate(&other).await, other, "it was not ended");
}

/// However it came to that: each of them would end the other for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_run_with_one_prefix_do_not_take_it_from_each_other_for_ever() {
    let world = World::new(&["east"]);
    let dir = tempfile::tempdir().expect("a directory");
    let registry = registry(&world, &dir.path().join("registry.redb")).await;
    let mut one = Stream::open(&world, GO, &registry, 0).await;
    let prefix = one.allocate("").await;
    let mut two = Stream::open(&world, GO, &registry, 0).await;
    assert_eq!(two.allocate(&prefix).await, prefix);
    let ended = one.answer().await.expect_err("taken over");
    assert_eq!(ended.code(), Code::Aborted, "{ended}");
    // Stock comes back at once, and is alive.
    let mut one = Stream::open(&world, GO, &registry, 0).await;
    let another = one.allocate(&prefix).await;
    assert_ne!(another, prefix);
    assert_eq!(two.allocate(&prefix).await, prefix, "it was not ended");
    assert_eq!(one.allocate(&another).await, another, "nor was this one");
}
