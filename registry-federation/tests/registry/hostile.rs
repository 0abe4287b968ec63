//! What strangers, liars and sleepers may not do, over real gRPC.

use std::time::Duration;

use crate::world::{World, eventually, icmp, query};
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use vl3_core::registry::Claim;
use vl3_identity::token;
use vl3_proto::lease::encode_claim;
use vl3_proto::objects::encode_endpoint;
use vl3_proto::registry::network_service_registry_client::NetworkServiceRegistryClient;
use vl3_proto::registry::{Match, NetworkService, NetworkServiceQuery};
use vl3_proto::vl3::registry::v1::names_client::NamesClient;
use vl3_runtime::clock;
use vl3_runtime::grpc::{Expect, TOKEN, TOKEN_EXPIRES};

fn service(name: &str) -> NetworkService {
    NetworkService {
        name: name.to_owned(),
        payload: "IP".to_owned(),
        ..NetworkService::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_cannot_be_there_before_the_router() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let mallory = world.client("east", "workload/mallory", &registry).await;
    for name in ["red", "red-east", "red-east-2"] {
        let refused = mallory.register(&icmp(name)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(
            refused
                .message()
                .starts_with("network_service_endpoint.name"),
            "{refused}"
        );
    }
    let mut services = NetworkServiceRegistryClient::new(mallory.connection.nsm());
    let refused = services.register(service("red")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(
        refused.message().starts_with("network_service.name"),
        "{refused}"
    );
    let router = world.router("east", &registry).await;
    router.register(&world.endpoint("east", 1)).await.unwrap();
    let mut services = NetworkServiceRegistryClient::new(router.connection.nsm());
    services.register(service("red")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_ends_with_its_token_whatever_the_header_beside_it_says() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let source = world.source("east", "workload/a");
    let connection = world
        .dialer_of(source.clone())
        .dial(&registry.listen.dial_url(), Expect::anybody())
        .await
        .unwrap();
    let now = clock::wall();
    let own = "spiffe://east.test/vl3/registry/east".parse().unwrap();
    let life = Duration::from_secs(5);
    let (text, end) = token::issue(&source.current(), Some(&own), life, now).unwrap();
    let later = token::format_rfc3339(now + Duration::from_secs(3600));
    let mut request = Request::new(encode_endpoint(&icmp("icmp-1")));
    let headers = request.metadata_mut();
    headers.insert(TOKEN, MetadataValue::try_from(text).unwrap());
    headers.insert(TOKEN_EXPIRES, MetadataValue::try_from(later).unwrap());
    let mut endpoints = vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient::new(connection.plain());
    let registered = endpoints.register(request).await.unwrap().into_inner();
    let expires = registered.expiration_time.unwrap().seconds;
    assert!(
        expires <= i64::try_from(end.unix_secs()).unwrap(),
        "{expires} is after the token's end {end:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_told_as_they_were_and_removed_by_their_owner_alone() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let owner = world.client("east", "workload/a", &registry).await;
    let stranger = world.client("east", "workload/b", &registry).await;
    let mut owned = NetworkServiceRegistryClient::new(owner.connection.nsm());
    let mut strange = NetworkServiceRegistryClient::new(stranger.connection.nsm());
    let by_payload = NetworkServiceQuery {
        network_service: Some(NetworkService {
            payload: "ETHERNET".to_owned(),
            ..NetworkService::default()
        }),
        watch: true,
    };
    let mut watch = strange.find(by_payload).await.unwrap().into_inner();
    let ethernet = NetworkService {
        payload: "ETHERNET".to_owned(),
        ..service("icmp")
    };
    owned.register(ethernet.clone()).await.unwrap();
    for refused in [
        strange.unregister(ethernet.clone()).await.map(drop),
        strange.register(service("icmp")).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
    owned.unregister(ethernet.clone()).await.unwrap();
    owned.unregister(ethernet).await.unwrap();
    for deleted in [false, true] {
        let event = watch.message().await.unwrap().unwrap();
        let told = event.network_service.unwrap();
        assert_eq!(
            (told.name.as_str(), told.payload.as_str(), event.deleted),
            ("icmp", "ETHERNET", deleted)
        );
    }

    // Garbage is refused by its field.
    let missing = NetworkServiceQuery {
        network_service: None,
        watch: true,
    };
    let refused = owned.find(missing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("network_service"), "{refused}");
    let refused = owned.register(service("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("network_service.name"),
        "{refused}"
    );
    let huge = NetworkService {
        matches: vec![Match::default(); 10_000],
        ..service("huge")
    };
    let refused = owned.register(huge.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("16384"), "{refused}");
    let huge = NetworkServiceQuery {
        network_service: Some(huge),
        watch: true,
    };
    let mut refused = owned.find(huge).await.unwrap().into_inner();
    assert_eq!(
        refused.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

/// A sibling's addresses are the sibling's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_claims_names_for_its_own_lease_only() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let router = world.router("east", &registry).await;
    let sibling = world.client("east", "vl3/router/other", &registry).await;
    router.acquire(&world.acquire("east", 1)).await.unwrap();
    let mut acquire = world.acquire("east", 2);
    acquire.router = "red-east-2".parse().unwrap();
    let theirs = sibling.acquire(&acquire).await.unwrap().lease;
    let foreign = theirs.prefix4.unwrap().hosts().nth(3).unwrap();
    let claim = Claim {
        name: "web".parse().unwrap(),
        workload: "spiffe://east.test/workload/a".parse().unwrap(),
        addresses: vec![foreign.into()],
        router: "red-east".parse().unwrap(),
    };
    let mut names = NamesClient::new(router.connection.plain());
    let refused = names
        .claim(encode_claim(world.uid(), &claim))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(
        refused.message().contains("addresses") && refused.message().contains("red-east"),
        "{refused}"
    );
}

/// It is cut when its queue is full; everybody else is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_stops_reading_delays_nobody() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let workload = world.client("east", "workload/a", &registry).await;
    let asleep = world.client("east", "workload/b", &registry).await;
    let mut unread = asleep.watch("").await;
    let mut read = workload.watch("").await;
    let reader = tokio::spawn(async move {
        let mut seen = 0;
        while let Some(event) = read.next().await {
            if event.is_ok_and(|event| event.deleted) {
                return seen;
            }
            seen += 1;
        }
        0
    });
    // Each change is an event of about 8 KiB.
    let mut endpoint = icmp("icmp-1");
    let text = "x".repeat(8 * 1024);
    endpoint
        .labels
        .insert("icmp".to_owned(), [("text".to_owned(), text)].into());
    const CHANGES: usize = 1500;
    for number in 0..CHANGES {
        endpoint.url = format!("tcp://192.0.2.7:{number}");
        let registered = tokio::time::timeout(Duration::from_secs(5), workload.register(&endpoint));
        registered.await.expect("an answer within 5 s").unwrap();
    }
    workload.unregister(&endpoint).await.unwrap();
    assert_eq!(reader.await.unwrap(), CHANGES);
    assert!(registry.metrics.encode().contains("watches_cut_total 1"));
    // What was queued is still there to read, then the stream ends.
    let mut late = 0;
    while let Some(event) = unread.next().await {
        event.unwrap();
        late += 1;
    }
    assert!(late < CHANGES, "{late}");
    let open = || async { registry.metrics.encode().contains("registry_watches 0") };
    drop(unread);
    eventually("every watch is forgotten", open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_is_counted_and_leaves_nothing() {
    let world = World::new(&["east"]);
    let registry = world.registry("east").await;
    let samples: [&[u8]; 5] = [
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        // A TLS record that promises more than comes.
        &[0x16, 0x03, 0x01, 0x40, 0x00, 0x01],
        &[],
    ];
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        for sample in samples {
            let mut raw = tokio::net::TcpStream::connect(registry.contact())
                .await
                .unwrap();
            // Err: hung up already.
            let _sent = raw.write_all(sample).await;
            let _ended = raw.shutdown().await;
            let mut answer = Vec::new();
            let _hung_up = raw.read_to_end(&mut answer).await;
        }
    }
    let counted = || async {
        let text = registry.metrics.encode();
        let refused = text
            .lines()
            .filter(|line| line.starts_with("vl3_grpc_connections_refused_total"));
        let counts = refused.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        counts.sum::<usize>() == ROUNDS * samples.len()
    };
    eventually("each is counted", counted).await;
    let text = registry.metrics.encode();
    assert!(text.contains("grpc_connections_open 0"), "{text}");
    let router = world.router("east", &registry).await;
    router.register(&world.endpoint("east", 1)).await.unwrap();
    let found = router.endpoints().find(query("red", false)).await.unwrap();
    assert_eq!(found.into_inner().count().await, 1);
}
