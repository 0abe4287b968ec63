//! Leases and names over real gRPC, across restarts.

use crate::world::World;
use tonic::Code;
use vl3_core::ids::{Generation, RouterName};
use vl3_core::registry::Claim;
use vl3_proto::lease::{encode_claim, encode_release, encode_release_name};
use vl3_proto::vl3::ipam::v1::AcquireRequest;
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_proto::vl3::registry::v1::names_client::NamesClient;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_survives_restart_crash_and_another_instance() {
    let world = World::new(&["east"]);
    let file = world.dir.path().join("state.redb");
    let registry = world.registry_on_disk("east", &file).await;
    let router = world.router("east", &registry).await;
    let granted = router.acquire(&world.acquire("east", 1)).await.unwrap();
    let lease = granted.lease.clone();
    assert_eq!(
        (lease.generation, lease.prefix4.unwrap().to_string()),
        (Generation(1), "10.80.4.0/24".to_owned())
    );
    assert_eq!(router.renew(&lease).await.unwrap().lease, lease);
    assert_eq!(
        router
            .acquire(&world.acquire("east", 1))
            .await
            .unwrap()
            .lease,
        lease
    );

    // What is on disk at this moment is what a crash leaves.
    let crashed = world.dir.path().join("crashed.redb");
    std::fs::copy(&file, &crashed).unwrap();
    registry.stop().await;
    for file in [&file, &crashed] {
        let registry = world.registry_on_disk("east", file).await;
        let router = world.router("east", &registry).await;
        assert_eq!(
            router.renew(&lease).await.unwrap().lease,
            lease,
            "{}",
            file.display()
        );
        registry.stop().await;
    }

    // Another instance under the same name takes over; the old one is fenced.
    let registry = world.registry_on_disk("east", &file).await;
    let router = world.router("east", &registry).await;
    let taken = router
        .acquire(&world.acquire("east", 2))
        .await
        .unwrap()
        .lease;
    assert_eq!(
        (taken.generation, taken.prefix4, taken.prefix6),
        (Generation(2), lease.prefix4, lease.prefix6)
    );
    assert_eq!(
        router.renew(&lease).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let mut ipam = IpamClient::new(router.connection.plain());
    assert_eq!(
        ipam.release(encode_release(&lease))
            .await
            .unwrap_err()
            .code(),
        Code::FailedPrecondition
    );
    ipam.release(encode_release(&taken)).await.unwrap();
    ipam.release(encode_release(&taken)).await.unwrap();
    assert_eq!(
        router.renew(&taken).await.unwrap_err().code(),
        Code::NotFound
    );
    // The name starts above everything that was.
    assert!(
        router
            .acquire(&world.acquire("east", 3))
            .await
            .unwrap()
            .lease
            .generation
            > taken.generation
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_routers_of_the_domain_lease_and_errors_name_the_field() {
    let world = World::new(&["east", "west"]);
    let registry = world.registry("east").await;
    let workload = world.client("east", "workload/a", &registry).await;
    let refused = workload
        .acquire(&world.acquire("east", 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let west = world.router("west", &registry).await;
    assert_eq!(
        west.acquire(&world.acquire("east", 1))
            .await
            .unwrap_err()
            .code(),
        Code::PermissionDenied
    );

    let router = world.router("east", &registry).await;
    router.acquire(&world.acquire("east", 1)).await.unwrap();
    let other = world.client("east", "vl3/router/other", &registry).await;
    let refused = other.acquire(&world.acquire("east", 2)).await.unwrap_err();
    assert!(refused.message().contains("is held by"), "{refused}");

    let mut ipam = IpamClient::new(router.connection.plain());
    let refused = ipam.acquire(AcquireRequest::default()).await.unwrap_err();
    assert!(refused.message().contains("version"), "{refused}");
    let request = AcquireRequest {
        version: 1,
        uid: vec![1; 16],
        ..Default::default()
    };
    assert!(
        ipam.acquire(request)
            .await
            .unwrap_err()
            .message()
            .contains("router")
    );
    let mut sibling = world.acquire("east", 4);
    sibling.router = RouterName::new("red-east-2").unwrap();
    sibling.exclusions = vec!["10.80.0.0/20".parse().unwrap()];
    let collision = other.acquire(&sibling).await.unwrap_err();
    for range in ["10.80.0.0/20", "10.80.4.0/24"] {
        assert!(collision.message().contains(range), "{collision}");
    }
    sibling.exclusions.clear();
    sibling.prefix_len4 = Some(31);
    assert!(
        other
            .acquire(&sibling)
            .await
            .unwrap_err()
            .message()
            .contains("prefix_len4")
    );
}

/// DNS rule R1.10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_belongs_to_the_first_workload_that_took_it() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let claim = |workload: &str, address: &str| {
        let claim = Claim {
            name: "web".parse().unwrap(),
            workload: format!("spiffe://east.test/workload/{workload}")
                .parse()
                .unwrap(),
            addresses: vec![address.parse().unwrap()],
            router: RouterName::new("red-east").unwrap(),
        };
        encode_claim(world.uid(), &claim)
    };
    let mut names = NamesClient::new(router.connection.plain());
    let early = names.claim(claim("a", "10.80.4.9")).await.unwrap_err();
    assert_eq!(
        early.code(),
        Code::NotFound,
        "a name needs a lease: {early}"
    );
    router.acquire(&world.acquire("east", 1)).await.unwrap();
    assert!(
        names
            .claim(claim("a", "10.80.4.9"))
            .await
            .unwrap()
            .into_inner()
            .granted
    );
    assert!(
        names
            .claim(claim("a", "10.80.4.10"))
            .await
            .unwrap()
            .into_inner()
            .granted
    );
    let held = names
        .claim(claim("b", "10.80.4.11"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (held.granted, held.held_by.as_str()),
        (false, "spiffe://east.test/workload/a")
    );
    let foreign = names.claim(claim("a", "10.80.99.1")).await.unwrap_err();
    assert!(foreign.message().contains("addresses"), "{foreign}");

    let release = |workload: &str| {
        let workload = format!("spiffe://east.test/workload/{workload}")
            .parse()
            .unwrap();
        encode_release_name(world.uid(), &"web".parse().unwrap(), &workload)
    };
    names.release(release("b")).await.unwrap();
    assert!(
        !names
            .claim(claim("b", "10.80.4.11"))
            .await
            .unwrap()
            .into_inner()
            .granted
    );
    names.release(release("a")).await.unwrap();
    assert!(
        names
            .claim(claim("b", "10.80.4.11"))
            .await
            .unwrap()
            .into_inner()
            .granted
    );
}
