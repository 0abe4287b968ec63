//! The NSM registry over real gRPC.

use std::time::Duration;

use crate::world::{World, event, query};
use registry_federation::store::{Memory, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use vl3_core::registry::Endpoint;
use vl3_proto::registry::network_service_registry_client::NetworkServiceRegistryClient;
use vl3_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceQuery,
};
use vl3_runtime::grpc::{registry_path, set_registry_path};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_registered_watched_refreshed_and_unregistered() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let workload = world.client("east", "workload/a", &registry).await;
    let mut events = workload.watch("red").await;

    let endpoint = world.endpoint("east", 1);
    let first = router.register(&endpoint).await.unwrap();
    assert_eq!(event(&mut events).await, ("red-east".to_owned(), false));
    assert!(first.expiration_time.is_some() && first.initial_registration_time.is_some());
    assert_eq!(first.path_ids[0], "spiffe://east.test/vl3/router/red-east");

    // A refresh keeps the time of the first registration and tells nobody.
    let again = router.register(&endpoint).await.unwrap();
    assert_eq!(
        again.initial_registration_time,
        first.initial_registration_time
    );
    assert_eq!(workload.find("red").await, ["red-east"]);
    assert_eq!(workload.find("blue").await, [""; 0]);

    // Nobody else may take or remove the name.
    let stranger = world.client("east", "vl3/router/other", &registry).await;
    assert_eq!(
        stranger.register(&endpoint).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        stranger.unregister(&endpoint).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    router.unregister(&endpoint).await.unwrap();
    router.unregister(&endpoint).await.unwrap();
    assert_eq!(event(&mut events).await, ("red-east".to_owned(), true));
    drop(events);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_not_refreshed_expires() {
    let world = World::new(&["east"]);
    let edit = |config: &mut registry_federation::Config| {
        config.endpoint_lifetime = Duration::from_secs(1)
    };
    let registry = world
        .registry_with("east", Box::new(Memory::default()) as Box<dyn Store>, edit)
        .await;
    let router = world.router("east", &registry).await;
    let mut events = router.watch("red").await;
    router.register(&world.endpoint("east", 1)).await.unwrap();
    assert_eq!(event(&mut events).await, ("red-east".to_owned(), false));
    assert_eq!(event(&mut events).await, ("red-east".to_owned(), true));
    assert_eq!(router.find("red").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_offer_services_of_their_own_but_no_router_of_a_network() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let workload = world.client("east", "workload/a", &registry).await;
    let own = Endpoint {
        name: "icmp-1".to_owned(),
        services: vec!["icmp".to_owned()],
        url: "tcp://192.0.2.7:5000".to_owned(),
        ..Endpoint::default()
    };
    workload.register(&own).await.unwrap();
    assert_eq!(workload.find("icmp").await, ["icmp-1"]);

    let refused = workload
        .register(&world.endpoint("east", 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let unmarked = Endpoint {
        labels: Default::default(),
        ..world.endpoint("east", 1)
    };
    assert_eq!(
        workload.register(&unmarked).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let foreign = Endpoint {
        name: "x@west".to_owned(),
        ..own
    };
    let refused = workload.register(&foreign).await.unwrap_err();
    assert!(
        refused.message().contains("network_service_endpoint.name"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_networks_themselves_are_found_as_services() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let mut client = NetworkServiceRegistryClient::new(router.connection.nsm());
    let find = |watch| NetworkServiceQuery {
        network_service: Some(NetworkService {
            name: "red".to_owned(),
            ..Default::default()
        }),
        watch,
    };
    let found = client
        .find(find(false))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.network_service.unwrap().payload, "IP");
    let service = NetworkService {
        name: "red".to_owned(),
        payload: "IP".to_owned(),
        ..Default::default()
    };
    let registered = client.register(service).await.unwrap().into_inner();
    assert_eq!(
        registered.path_ids[0],
        "spiffe://east.test/vl3/router/red-east"
    );
    let mut watch = client.find(find(true)).await.unwrap().into_inner();
    assert_eq!(
        watch
            .message()
            .await
            .unwrap()
            .unwrap()
            .network_service
            .unwrap()
            .name,
        "red"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_path_goes_back_in_the_headers_when_it_came() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let endpoint = vl3_proto::objects::encode_endpoint(&world.endpoint("east", 1));
    let without = router.endpoints().register(endpoint.clone()).await.unwrap();
    assert!(registry_path(without.metadata()).is_none());

    let mut request = tonic::Request::new(endpoint.clone());
    set_registry_path(request.metadata_mut(), r#"{"Index":0,"PathSegments":null}"#);
    let with = router.endpoints().register(request).await.unwrap();
    let path = registry_path(with.metadata()).unwrap();
    let path = nsm_chain::registry_path::RegistryPath::parse(&path).unwrap();
    assert_eq!((path.index, path.path_segments.len()), (0, 2));

    let mut request = tonic::Request::new(endpoint);
    set_registry_path(request.metadata_mut(), r#"{"Index":3,"PathSegments":[]}"#);
    router.endpoints().register(request).await.unwrap();
    let mut request = tonic::Request::new(Default::default());
    set_registry_path(request.metadata_mut(), "{");
    let refused = router.endpoints().register(request).await.unwrap_err();
    assert!(refused.message().contains("path"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_by_name_and_harms_nobody() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let mut raw = tokio::net::TcpStream::connect(registry.contact())
        .await
        .unwrap();
    raw.write_all(&[0xff; 4096]).await.unwrap();
    let mut answer = Vec::new();
    // The server hangs up, with an alert or without.
    let _hung_up = raw.read_to_end(&mut answer).await;

    let missing = NetworkServiceEndpointQuery {
        network_service_endpoint: None,
        watch: false,
    };
    let refused = router.endpoints().find(missing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("network_service_endpoint"),
        "{refused}"
    );
    let refused = router
        .endpoints()
        .register(NetworkServiceEndpoint::default())
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("network_service_endpoint.name"),
        "{refused}"
    );
    let mut half = world.endpoint("east", 1);
    half.labels.get_mut("red").unwrap().remove("vl3/gen");
    let refused = router.register(&half).await.unwrap_err();
    assert!(
        refused.message().contains("network_service_labels"),
        "{refused}"
    );
    let mut big = world.endpoint("east", 1);
    big.labels
        .get_mut("red")
        .unwrap()
        .insert("x".to_owned(), "y".repeat(20_000));
    assert!(
        router
            .register(&big)
            .await
            .unwrap_err()
            .message()
            .contains("16384")
    );
    assert_eq!(
        router
            .endpoints()
            .find(query("", false))
            .await
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap(),
        None
    );
}
