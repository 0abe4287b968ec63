//! NSM v1 rules that show on the wire only (nsm-wire 4.1, 4.3, 4.4, 5.3), and limits per caller.

use std::time::Duration;

use nsm_chain::registry_path::{RegistryPath, RegistrySegment};
use registry_federation::store::Memory;
use tonic::{Code, Request};
use vl3_core::registry::Endpoint;
use vl3_identity::token;
use vl3_proto::objects::encode_endpoint;
use vl3_proto::registry::network_service_registry_client::NetworkServiceRegistryClient;
use vl3_proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceQuery};
use vl3_runtime::clock;
use vl3_runtime::grpc::set_registry_path;

use crate::world::{Client, Registry, World, eventually, icmp, query};

/// A token of one identity, for another one's eyes.
fn token_of(world: &World, path: &str, audience: &str) -> String {
    let source = world.source("east", path);
    let audience = format!("spiffe://east.test/{audience}")
        .parse()
        .expect("an ID");
    let life = Duration::from_secs(60);
    let issued = token::issue(&source.current(), Some(&audience), life, clock::wall());
    issued.expect("a token").0
}

/// Registers with a path whose earlier segments are these tokens.
async fn register_with(
    client: &Client,
    endpoint: &Endpoint,
    earlier: &[String],
) -> Result<NetworkServiceEndpoint, tonic::Status> {
    let segments = earlier.iter().map(String::as_str).chain([""]);
    let path = RegistryPath {
        index: u32::try_from(earlier.len()).expect("a short path"),
        path_segments: segments
            .map(|token| RegistrySegment {
                token: token.to_owned(),
            })
            .collect(),
    };
    let mut request = Request::new(encode_endpoint(endpoint));
    set_registry_path(request.metadata_mut(), &path.to_header());
    let registered = client.endpoints().register(request).await;
    registered.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_first_token_wins_nothing_and_a_broken_chain_is_refused() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let owner = world.client("east", "workload/a", &registry).await;
    let mallory = world.client("east", "workload/m", &registry).await;
    owner.register(&icmp("nse")).await.expect("registered");
    // A token of the owner that mallory came by, meant for mallory: a whole chain.
    let stolen = token_of(&world, "workload/a", "workload/m");
    let refused = register_with(&mallory, &icmp("nse"), std::slice::from_ref(&stolen)).await;
    let refused = refused.expect_err("it is the owner's");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(
        refused
            .message()
            .contains("registered by spiffe://east.test/workload/a")
    );
    // Under a name of its own it is mallory's, whatever the path says: the named one cannot
    // take it away.
    register_with(&mallory, &icmp("own"), &[stolen])
        .await
        .expect("registered");
    assert!(owner.unregister(&icmp("own")).await.is_err());
    mallory.unregister(&icmp("own")).await.expect("its own");
    // A token that was meant for somebody else.
    let other = token_of(&world, "workload/a", "workload/z");
    let refused = register_with(&mallory, &icmp("own"), &[other]).await;
    let refused = refused.expect_err("not chained");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused
            .message()
            .contains("PathSegments[0].token is for [spiffe://east.test/workload/z]"),
        "{refused}"
    );
    let first = token_of(&world, "workload/a", "workload/b");
    let second = token_of(&world, "workload/c", "workload/m");
    let refused = register_with(&mallory, &icmp("own"), &[first, second]).await;
    assert!(
        refused
            .expect_err("not chained")
            .message()
            .contains("PathSegments[0]")
    );
}

/// A stock manager verifies its caller's token, and no earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_of_the_manager_writes_before_itself_counts_for_nothing() {
    let mut world = World::new(&["east"]);
    let (manager, router) = ("ns/nsm/nsmgr", "vl3/router/red-east");
    world.edit(|document| {
        let east = document.members.values_mut().next().expect("east");
        east.roles.intermediary = vec![format!("spiffe://east.test/{manager}")];
    });
    let registry = world.registry("east").await;
    let nsmgr = world.client("east", manager, &registry).await;
    let forged = token_of(&world, router, "workload/m");
    let own = token_of(&world, "workload/m", manager);
    let path = [forged, own];
    let refused = register_with(&nsmgr, &world.endpoint("east", 1), &path).await;
    let refused = refused.expect_err("mallory is no router");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    register_with(&nsmgr, &icmp("nse"), &path)
        .await
        .expect("mallory's own");
    let mallory = world.client("east", "workload/m", &registry).await;
    mallory.unregister(&icmp("nse")).await.expect("its own");
    // Whom the manager itself heard is believed.
    let path = [token_of(&world, router, manager)];
    register_with(&nsmgr, &world.endpoint("east", 1), &path)
        .await
        .expect("the router's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_without_their_message_and_times_gone_by_are_refused_by_name() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let client = world.client("east", "workload/a", &registry).await;
    client.register(&icmp("nse")).await.expect("registered");
    let mut services = NetworkServiceRegistryClient::new(client.connection.nsm());
    for watch in [false, true] {
        let empty = NetworkServiceQuery {
            network_service: None,
            watch,
        };
        let refused = services.find(empty).await.expect_err("no message");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("network_service"), "{refused}");
        let mut empty = query("", watch);
        empty.network_service_endpoint = None;
        let refused = client
            .endpoints()
            .find(empty)
            .await
            .expect_err("no message");
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let nameless = services.register(NetworkService::default()).await;
    let nameless = nameless.expect_err("no name");
    assert!(
        nameless.message().contains("network_service.name"),
        "{nameless}"
    );
    let mut past = encode_endpoint(&icmp("nse"));
    past.expiration_time = Some(prost_types::Timestamp {
        seconds: 1_000_000_000,
        nanos: 0,
    });
    let refused = client.endpoints().register(past).await.expect_err("past");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().starts_with("expiration_time"),
        "{refused}"
    );
    assert_eq!(client.find("icmp").await, ["nse"]);
}

/// A call that a stopping registry has not answered fails; one that it answered is on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_under_way_when_a_registry_stops_are_answered_or_fail_and_what_was_answered_stays() {
    let world = World::new(&["east"]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("registry.redb");
    let registry = world.registry_on_disk("east", &file).await;
    let client = world.client("east", "workload/a", &registry).await;
    let (accepted, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let mut callers = Vec::new();
    for caller in 0..8 {
        let (mut endpoints, accepted) = (client.endpoints(), accepted.clone());
        callers.push(tokio::spawn(async move {
            for number in 0.. {
                let endpoint = icmp(&format!("nse-{caller}-{number}"));
                let answer = endpoints.register(encode_endpoint(&endpoint)).await;
                match answer {
                    Ok(_) => accepted.send(endpoint.name).expect("the test goes on"),
                    Err(status) => return status,
                }
            }
            tonic::Status::ok("no end")
        }));
    }
    drop(accepted);
    let mut names = Vec::new();
    for _ in 0..50 {
        names.push(answers.recv().await.expect("an answer"));
    }
    registry.stop().await;
    for caller in callers {
        let ended = tokio::time::timeout(Duration::from_secs(20), caller).await;
        let status = ended.expect("nobody waits for ever").expect("no panic");
        // The library calls a stream that its connection took along an internal error.
        let is_cut = status.code() == Code::Internal && status.message().contains("h2");
        assert!(
            is_cut
                || matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted
                ),
            "{status:?}"
        );
    }
    while let Some(name) = answers.recv().await {
        names.push(name);
    }
    let again = world.registry_on_disk("east", &file).await;
    let found = world
        .client("east", "workload/a", &again)
        .await
        .find("icmp")
        .await;
    let lost: Vec<_> = names.iter().filter(|name| !found.contains(name)).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
}

async fn limited(world: &World, edit: impl FnOnce(&mut registry_federation::Limits)) -> Registry {
    world
        .registry_with("east", Box::new(Memory::default()), |config| {
            edit(&mut config.limits);
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_beyond_its_limits_is_told_which_and_others_are_served() {
    let world = World::new(&["east"]);
    let registry = limited(&world, |limits| {
        limits.changes_per_second = 2;
        limits.finds_per_second = 3;
        limits.objects_per_identity = 3;
    })
    .await;
    let greedy = world.client("east", "workload/greedy", &registry).await;
    let modest = world.client("east", "workload/modest", &registry).await;
    let mut told = std::collections::BTreeSet::new();
    for number in 0..12 {
        // Three objects are one more limit than four changes at once: each is met.
        if let Err(status) = greedy.register(&icmp(&format!("g-{number}"))).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            told.insert(status.message().to_owned());
        }
    }
    let told: Vec<_> = told.into_iter().collect();
    assert_eq!(
        told,
        [
            "changes per second of one caller: at most 2 are allowed",
            "endpoints of one owner: at most 3 are allowed"
        ]
    );
    let mut refused = 0;
    for _ in 0..12 {
        for watch in [false, true] {
            if let Err(status) = greedy.endpoints().find(query("icmp", watch)).await {
                assert_eq!(
                    status.message(),
                    "finds per second of one caller: at most 3 are allowed"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 10, "{refused}");
    modest.register(&icmp("m")).await.expect("room for others");
    assert!(modest.find("icmp").await.contains(&"m".to_owned()));
    let text = registry.metrics.encode();
    for limit in [
        "changes per second of one caller",
        "finds per second of one caller",
        "endpoints of one owner",
    ] {
        assert!(
            text.contains(&format!("registry_limits_met_total{{limit=\"{limit}\"}}")),
            "{limit}"
        );
    }
    // It goes on as soon as it asks no faster than allowed.
    eventually("the next second has room", || async {
        greedy.register(&icmp("g-0")).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_identity_has_its_share_of_the_connections() {
    let world = World::new(&["east"]);
    let registry = limited(&world, |limits| limits.connections_per_identity = 2).await;
    let first = world.client("east", "workload/a", &registry).await;
    let second = world.client("east", "workload/a", &registry).await;
    for client in [&first, &second] {
        assert_eq!(client.find("icmp").await, [""; 0]);
    }
    let one_more = async || match world.dial("east", "workload/a", &registry).await {
        Ok(connection) => {
            let client = Client::new(connection, world.uid());
            client.endpoints().find(query("icmp", false)).await.is_ok()
        }
        Err(_) => false,
    };
    assert!(!one_more().await);
    let text = registry.metrics.encode();
    assert!(
        text.contains("connections_refused_total{reason=\"identity_limit\"}"),
        "{text}"
    );
    let other = world.client("east", "workload/b", &registry).await;
    assert_eq!(other.find("icmp").await, [""; 0]);
    drop(first);
    eventually("a connection that ended makes room", one_more).await;
}
