//! Serving and dialling over loopback and unix sockets, with the health service as the callee.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use vl3_core::ids::{NetworkUid, SpiffeId};
use vl3_identity::authority::Authority;
use vl3_identity::{Source, Trust, install_crypto_provider};
use vl3_runtime::grpc::{DialError, DialUrl, Dialer, Expect, Listen, ServeOptions, Server};
use vl3_runtime::{CancellationToken, Metrics, Readiness, clock};

const NETWORK: NetworkUid = NetworkUid([7; 16]);
const TTL: Duration = Duration::from_secs(600);

/// One trust domain with a server on TCP and on a unix socket.
struct Site {
    authority: Authority,
    trust: Trust,
    source: Source,
    tcp: DialUrl,
    unix: DialUrl,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn start(trust_domain: &str) -> Self {
        install_crypto_provider();
        let authority = Authority::create(trust_domain, clock::wall()).unwrap();
        let source = Source::fixed(
            authority
                .identity("vl3/router/r", TTL, clock::wall())
                .unwrap(),
        );
        let trust = Trust::new(&source);
        let (shutdown, readiness, metrics) = (
            CancellationToken::new(),
            Readiness::default(),
            Metrics::default(),
        );
        let dir = tempfile::tempdir().unwrap();
        let listen = [
            "tcp://127.0.0.1:0".parse().unwrap(),
            Listen::Unix(dir.path().join("nsm.sock")),
        ];
        let options = ServeOptions::new(source.clone(), trust.clone(), shutdown.clone())
            .health(readiness.clone())
            .services(&["networkservice.NetworkService"])
            .metrics(&metrics);
        let server = Server::bind(&listen, options).await.unwrap();
        let urls: Vec<DialUrl> = server.addresses().iter().map(Listen::dial_url).collect();
        tokio::spawn(server.serve(tonic::service::Routes::default()));
        let [tcp, unix] = urls.try_into().unwrap();
        Self {
            authority,
            trust,
            source,
            tcp,
            unix,
            readiness,
            metrics,
            shutdown,
            _dir: dir,
        }
    }

    fn dialer(&self, path: &str) -> Dialer {
        let source = Source::fixed(self.authority.identity(path, TTL, clock::wall()).unwrap());
        let trust = Trust::new(&source);
        Dialer::new(source, trust)
    }
}

async fn check(connection: &vl3_runtime::grpc::Connection) -> Result<i32, tonic::Status> {
    let request = HealthCheckRequest {
        service: "networkservice.NetworkService".to_owned(),
    };
    let answer = HealthClient::new(connection.nsm()).check(request).await?;
    Ok(answer.into_inner().status)
}

async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not happen within 5 s");
}

#[tokio::test]
async fn both_kinds_of_socket_are_mutually_authenticated() {
    let site = Site::start("east.test").await;
    let dialer = site.dialer("workload/a");
    for url in [&site.tcp, &site.unix] {
        let connection = dialer
            .dial(url, Expect::exactly(site.source.current().id.clone()))
            .await
            .unwrap();
        assert_eq!(
            connection.peer().id.as_str(),
            "spiffe://east.test/vl3/router/r"
        );
        eventually(async || check(&connection).await.unwrap() == 1).await;
    }
}

#[tokio::test]
async fn health_follows_readiness() {
    let site = Site::start("east.test").await;
    let connection = site
        .dialer("workload/a")
        .dial(&site.tcp, Expect::anybody())
        .await
        .unwrap();
    let lease = site.readiness.item("lease");
    eventually(async || check(&connection).await.unwrap() == 2).await;
    lease.set(true);
    eventually(async || check(&connection).await.unwrap() == 1).await;
}

#[tokio::test]
async fn another_peer_than_the_expected_one_is_refused_with_both_names() {
    let site = Site::start("east.test").await;
    let expect = Expect::patterns(
        "east.test",
        vec!["spiffe://east.test/vl3/registry/*".to_owned()],
    );
    let error = site
        .dialer("workload/a")
        .dial(&site.tcp, expect)
        .await
        .unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }));
    let text = error.to_string();
    assert!(
        text.contains("vl3/registry/*") && text.contains("vl3/router/r"),
        "{text}"
    );
}

#[tokio::test]
async fn a_foreign_trust_domain_counts_only_while_a_document_vouches_for_it() {
    let (east, west) = (
        Site::start("east.test").await,
        Site::start("west.test").await,
    );
    let dialer = Dialer::new(west.source.clone(), west.trust.clone());
    let bundle = |site: &Site| {
        BTreeMap::from([(
            site.authority.trust_domain().to_owned(),
            site.authority.bundle().unwrap(),
        )])
    };
    west.trust.set_network(NETWORK, bundle(&east));
    let strangers = async || match dialer.dial(&east.tcp, Expect::anybody()).await {
        Ok(connection) => check(&connection).await.is_err(),
        Err(_) => true,
    };
    assert!(strangers().await, "east knows no west yet");

    east.trust.set_network(NETWORK, bundle(&west));
    let connection = dialer
        .dial(
            &east.tcp,
            Expect::trust_domain("east.test").trusted_in(NETWORK),
        )
        .await
        .unwrap();
    eventually(async || check(&connection).await.is_ok()).await;
    assert!(connection.peer().trusted_in(&NETWORK));
    assert!(!connection.peer().trusted_in(&NetworkUid([8; 16])));

    east.trust.remove_network(&NETWORK);
    eventually(async || check(&connection).await.is_err()).await;
}

#[tokio::test]
async fn a_document_adds_no_root_to_the_own_trust_domain() {
    let site = Site::start("east.test").await;
    let false_east = Authority::create("east.test", clock::wall()).unwrap();
    site.trust.set_network(
        NETWORK,
        BTreeMap::from([("east.test".to_owned(), false_east.bundle().unwrap())]),
    );
    let impostor = Source::fixed(
        false_east
            .identity("vl3/registry/r", TTL, clock::wall())
            .unwrap(),
    );
    let chain = impostor.current().chain.clone();
    assert!(
        site.trust
            .verify(&chain, rustls_pki_types::UnixTime::now())
            .is_err()
    );
}

#[tokio::test]
async fn garbage_is_counted_and_harms_nobody() {
    let site = Site::start("east.test").await;
    let DialUrl::Tcp { host, port } = &site.tcp else {
        panic!("a TCP address")
    };
    for _ in 0..20 {
        let mut stream = tokio::net::TcpStream::connect((host.as_str(), *port))
            .await
            .unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        // An alert or a reset, as the kernel likes.
        let _either = stream.read_to_end(&mut rest).await;
    }
    eventually(async || {
        site.metrics
            .encode()
            .contains("vl3_grpc_connections_refused_total{reason=\"tls\"} 20")
    })
    .await;
    let connection = site
        .dialer("workload/a")
        .dial(&site.unix, Expect::anybody())
        .await
        .unwrap();
    assert!(check(&connection).await.is_ok());
}

#[tokio::test]
async fn shutdown_ends_the_server_and_removes_its_socket() {
    let site = Site::start("east.test").await;
    let DialUrl::Unix(path) = site.unix.clone() else {
        panic!("a unix socket")
    };
    site.shutdown.cancel();
    eventually(async || !path.exists()).await;
}

#[tokio::test]
async fn expectations_can_ask_for_one_id() {
    let site = Site::start("east.test").await;
    let other = SpiffeId::new("spiffe://east.test/vl3/router/other").unwrap();
    assert!(
        site.dialer("workload/a")
            .dial(&site.tcp, Expect::exactly(other))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_cut_at_the_drain_limit() {
    let site = Site::start("east.test").await;
    let connection = site
        .dialer("workload/a")
        .dial(&site.tcp, Expect::anybody())
        .await
        .unwrap();
    let mut stream = HealthClient::new(connection.nsm())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().expect("the first state");
    site.shutdown.cancel();
    // The drain limit is 3 s.
    let ended = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(Duration::from_secs(8), ended)
        .await
        .expect("the server lets go of its connections");
}

#[tokio::test]
async fn calls_that_are_refused_before_a_service_sees_them_are_counted() {
    let site = Site::start("east.test").await;
    let connection = site
        .dialer("workload/a")
        .dial(&site.tcp, Expect::anybody())
        .await
        .unwrap();
    let request = HealthCheckRequest {
        service: "no.such.Service".to_owned(),
    };
    let mut client = HealthClient::new(connection.nsm());
    client.check(request).await.unwrap_err();
    let counted = "vl3_grpc_calls_refused_total{code=\"not_found\"} 1";
    assert!(site.metrics.encode().contains(counted));
}
