//! Routers that come and go, states that are wrong, the end.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType as T;
use vl3_runtime::config::{Flags, load_from};

use crate::client::{addresses, ask, exchange, query};
use crate::stage::{MEMBER, Stage, chain, eventually, eventually_true};
use crate::upstream::{honest, knows_nothing, silent};

const WEST: &[&str] = &["172.16.4.9"];

#[tokio::test]
async fn local_names_are_served_while_the_router_is_away_and_everything_after_it_returned() {
    let mut stage = Stage::new(vec![honest(WEST), silent()]).await;
    assert_eq!(
        addresses(&ask(&stage, "db.west.red.test.", T::A).await),
        WEST
    );
    stage.kill_router().await;
    assert_eq!(
        addresses(&ask(&stage, "web.red.test.", T::A).await),
        ["172.16.0.5"]
    );
    stage.change(|state| state.names.clear());
    stage.start_router().await;
    eventually_true("the state of the new router is followed", || async {
        ask(&stage, "web.east.red.test.", T::A)
            .await
            .metadata
            .response_code
            == ResponseCode::NXDomain
    })
    .await;
    eventually_true("other domains are asked by new sockets", || async {
        addresses(&ask(&stage, "db.west.red.test.", T::A).await) == WEST
    })
    .await;
}

#[tokio::test]
async fn a_wrong_state_is_refused_and_the_one_before_stands() {
    let stage = Stage::new(vec![knows_nothing(), knows_nothing()]).await;
    stage.change(|state| {
        state.names[0].name = "two.labels".to_owned();
    });
    stage.change(|state| {
        state.names.clear();
        state.servers[0].addresses = vec!["not an address".to_owned()];
    });
    assert_eq!(
        addresses(&ask(&stage, "web.red.test.", T::A).await),
        ["172.16.0.5"]
    );
    stage.change(|state| {
        state.servers.clear();
    });
    eventually_true("a right one is taken", || async {
        ask(&stage, "web.east.red.test.", T::A)
            .await
            .metadata
            .response_code
            == ResponseCode::NXDomain
    })
    .await;
}

#[tokio::test]
async fn a_domain_without_a_router_is_known_and_missing() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    stage.change(|state| {
        state.servers[0].router.clear();
        state.servers[0].addresses.clear();
        state.names.clear();
    });
    eventually_true("the state is taken", || async {
        ask(&stage, "web.east.red.test.", T::A)
            .await
            .metadata
            .response_code
            == ResponseCode::NXDomain
    })
    .await;
    assert_eq!(
        ask(&stage, "db.west.red.test.", T::A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
}

#[tokio::test]
async fn another_networks_state_is_never_believed() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    let mut other = vl3_proto::document::encode_chain(&chain());
    other.links[0].document.push(0);
    stage.change(|state| {
        state.document = Some(other);
        state.names.clear();
    });
    assert_eq!(
        addresses(&ask(&stage, "web.red.test.", T::A).await),
        ["172.16.0.5"]
    );
}

#[tokio::test]
async fn questions_in_flight_are_answered_before_the_end() {
    let mut stage = Stage::new(vec![silent(), silent()]).await;
    let asked = query("db.west.red.test.", T::A).to_vec().unwrap();
    let address = stage.address();
    let waiting = tokio::spawn(async move { exchange(address, MEMBER, &asked).await });
    eventually("the question is in flight", || {
        stage.upstreams[0].count() > 0
    })
    .await;
    stage.ctx.shutdown.cancel();
    let reply = Message::from_vec(&waiting.await.unwrap().expect("a reply")).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    stage.server.take().unwrap().await.unwrap().unwrap();
}

#[tokio::test]
async fn r7_1_metrics_carry_no_names_and_no_clients() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    ask(&stage, "secret.west.red.test.", T::A).await;
    let text = stage.metrics();
    assert!(
        text.contains("vl3_dns_requests_total{proto=\"udp\",type=\"A\"} "),
        "{text}"
    );
    assert!(
        text.contains("rcode=\"NXDOMAIN\",decision=\"merged\"} 1"),
        "{text}"
    );
    assert!(!text.contains("secret") && !text.contains(MEMBER), "{text}");
}

#[test]
fn every_mistake_of_a_configuration_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dns.toml");
    let text = r#"
        name = "red"
        router = "unix:///x"
        listen = ["127.0.0.1", "[::1]:53"]
        shared_names = "all"
        query_log = 1.5
        colour = "blue"
        [identity]
        dir = "/identity"
        [network]
        uid = "xyz"
        [upstreams]
        port = 0
        sockets = 1000
        direct = "maybe"
        [[upstream]]
        name = "a b"
        addresses = ["192.0.2.1"]
        class = "far"
        suffixes = ["a..b"]
        [[policy]]
        suffix = "x"
        policy = "best"
        [[service]]
        name = "a.b"
        namespace = "demo"
        ports = ["http=0"]
        workloads = []
        [[service]]
        name = "shop"
        namespace = "demo"
        workloads = ["web"]
        [[service]]
        name = "Shop"
        namespace = "demo"
        workloads = ["web"]
        [[service]]
        name = "bank"
        namespace = "demo"
        workloads = ["a b"]
        [cache]
        bytes = 1
        [limits]
        connections = 0
        connections_per_client = -1
    "#;
    std::fs::write(&file, text).unwrap();
    let flags = Flags {
        config: Some(file),
        ..Flags::default()
    };
    let invalid = load_from::<dns_fanout::Config>(&flags, [])
        .unwrap_err()
        .to_string();
    let keys = [
        "router",
        "listen[0]",
        "shared_names",
        "query_log",
        "colour",
        "network.uid",
        "upstreams.port",
        "upstreams.sockets",
        "upstreams.direct",
        "upstream[0].name",
        "upstream[0].addresses[0]",
        "upstream[0].class",
        "upstream[0].suffixes[0]",
        "policy[0].policy",
        "service[0].name",
        "service[0].ports[0]",
        "service[0].workloads",
        "service[2].name",
        "service[3].workloads[0]",
        "cache.bytes",
        "limits.connections",
        "limits.connections_per_client",
    ];
    for key in keys {
        assert!(
            invalid.contains(&format!("\n  {key} ")),
            "{key}:\n{invalid}"
        );
    }
    assert!(invalid.starts_with("22 mistakes"), "{invalid}");
}
