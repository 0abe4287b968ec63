//! Registries of several domains over real gRPC.

use std::time::Duration;

use crate::world::{Registry, World, event, eventually, query};
use tonic::Code;
use vl3_core::ids::DomainName;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::vl3::network::v1::WatchRequest;
use vl3_proto::vl3::network::v1::network_client::NetworkClient;

/// Tells every registry where the others are: with a version that is published to the first
/// alone where they know each other, to each where not.
async fn introduce(world: &mut World, registries: &[(&'static str, &Registry)]) {
    let contacts: Vec<_> = registries
        .iter()
        .map(|(domain, registry)| (*domain, registry.contact()))
        .collect();
    let chain = world.edit(|document| {
        for (domain, contact) in contacts {
            document
                .members
                .get_mut(&DomainName::new(domain).expect("test set-up"))
                .expect("test set-up")
                .contacts = vec![contact];
        }
    });
    for (domain, registry) in registries {
        let client = world.client(domain, "workload/admin", registry).await;
        assert!(client.publish(&chain).await.accepted);
    }
}

/// With TLS 1.3 a client learns of its refusal by its first call.
async fn is_refused(world: &World, domain: &str, registry: &Registry) -> bool {
    let Ok(connection) = world.dial(domain, "vl3/router/stranger", registry).await else {
        return true;
    };
    NetworkServiceEndpointRegistryClient::new(connection.nsm())
        .find(query("red", false))
        .await
        .is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_domain_offers_is_found_in_the_other_under_its_name_there() {
    let mut world = World::new(&["east", "west"]);
    let (east, west) = (world.registry("east").await, world.registry("west").await);
    introduce(&mut world, &[("east", &east), ("west", &west)]).await;
    let (in_east, in_west) = (
        world.router("east", &east).await,
        world.router("west", &west).await,
    );
    let mut events = in_east.watch("red").await;
    in_west.register(&world.endpoint("west", 1)).await.unwrap();
    assert_eq!(
        event(&mut events).await,
        ("red-west@west".to_owned(), false)
    );
    in_east.register(&world.endpoint("east", 1)).await.unwrap();
    assert_eq!(event(&mut events).await, ("red-east".to_owned(), false));
    eventually("west finds east", || async {
        in_west.find("red").await == ["red-west", "red-east@east"]
    })
    .await;

    // A workload finds the other domain's router only when it asks for it.
    let workload = world.client("east", "workload/a", &east).await;
    assert_eq!(workload.find("red").await, ["red-east"]);
    assert_eq!(workload.find("red@west").await, ["red-west@west"]);

    in_west
        .unregister(&world.endpoint("west", 1))
        .await
        .unwrap();
    assert_eq!(event(&mut events).await, ("red-west@west".to_owned(), true));

    // A dead domain's entries stay for their grace; what changed meanwhile comes afterwards.
    in_west.register(&world.endpoint("west", 2)).await.unwrap();
    assert_eq!(
        event(&mut events).await,
        ("red-west@west".to_owned(), false)
    );
    west.stop().await;
    assert_eq!(in_east.find("red").await, ["red-east", "red-west@west"]);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_published_to_one_registry_reaches_all_and_a_revoked_domain_is_gone() {
    let mut world = World::new(&["east", "west"]);
    let (east, west) = (world.registry("east").await, world.registry("west").await);
    introduce(&mut world, &[("east", &east), ("west", &west)]).await;
    let (in_east, in_west) = (
        world.router("east", &east).await,
        world.router("west", &west).await,
    );
    in_west.register(&world.endpoint("west", 1)).await.unwrap();
    eventually("the two are connected", || async {
        in_east.find("red").await == ["red-west@west"]
    })
    .await;

    let mut documents = NetworkClient::new(in_west.connection.plain());
    let uid = world.uid().0.to_vec();
    let mut watch = documents
        .watch(WatchRequest { uid })
        .await
        .unwrap()
        .into_inner();
    let versions = |chain: &vl3_proto::vl3::network::v1::DocumentChain| {
        vl3_proto::document::decode_chain(chain)
            .unwrap()
            .document()
            .version
    };
    assert_eq!(versions(&watch.message().await.unwrap().unwrap()), 2);
    let chain = world.edit(|document| document.policy.stale_limit_seconds = 5);
    assert!(in_east.publish(&chain).await.accepted);
    assert_eq!(versions(&watch.message().await.unwrap().unwrap()), 3);
    let again = in_east.publish(&chain).await;
    assert!(again.accepted && again.reason.contains("already"));

    let mut events = in_east.watch("red").await;
    assert_eq!(
        event(&mut events).await,
        ("red-west@west".to_owned(), false)
    );
    let west_name = DomainName::new("west").unwrap();
    let chain = world.edit(|document| document.members.get_mut(&west_name).unwrap().revoked = true);
    assert!(in_east.publish(&chain).await.accepted);
    assert_eq!(event(&mut events).await, ("red-west@west".to_owned(), true));
    let told = tokio::time::timeout(Duration::from_secs(10), watch.message());
    let ended = told.await.expect("west is told").unwrap_err();
    assert!(ended.message().contains("no live member"), "{ended}");
    assert!(
        is_refused(&world, "west", &east).await,
        "a revoked domain is not trusted"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_members_get_what_they_are_granted() {
    let world = World::new(&["east", "west"]);
    let stranger = World::new(&["mars"]);
    let east = world.registry("east").await;
    assert!(is_refused(&stranger, "mars", &east).await);

    // A member of the network sees its endpoints and its document, and may change neither.
    world
        .router("east", &east)
        .await
        .register(&world.endpoint("east", 1))
        .await
        .unwrap();
    let member = world.router("west", &east).await;
    assert_eq!(member.find("red").await, ["red-east"]);
    let refused = member
        .register(&world.endpoint("west", 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let mut documents = NetworkClient::new(member.connection.plain());
    let mut watch = documents
        .watch(WatchRequest {
            uid: world.uid().0.to_vec(),
        })
        .await
        .unwrap()
        .into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let mut other = documents
        .watch(WatchRequest { uid: vec![7; 16] })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        other.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert!(
        documents
            .watch(WatchRequest { uid: vec![7] })
            .await
            .unwrap_err()
            .message()
            .contains("uid")
    );
}
