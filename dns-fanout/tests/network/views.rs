//! Several views in one process (R1.1): chosen by the address that is asked and by the client's,
//! each with upstreams, stored answers, clients and policies of its own.

use std::net::SocketAddr;
use std::path::Path;

use dns_fanout::{Config, ViewConfig};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType as T;
use serde_json::{Value, json};
use vl3_runtime::config::{Flags, load_from};

use crate::client::{addresses, connect, exchange, query, read_frame, with_edns, write_frame};
use crate::stage::{Stage, eventually, eventually_true};
use crate::standalone::{Alone, File, configured, free_address};
use crate::upstream::{Upstream, honest, silent};

const RED: &str = "127.0.9.1";
const BLUE: &str = "127.0.8.1";
const BETWEEN: &str = "127.0.7.1";

fn view(name: &str, upstream: &Upstream, clients: &str) -> ViewConfig {
    let upstreams = vec![configured(name, upstream, &[])];
    let mut config = Config::standalone(Vec::new(), upstreams);
    config.clients = clients.split(' ').map(|net| net.parse().unwrap()).collect();
    ViewConfig {
        name: name.to_owned(),
        config,
    }
}

/// Views red and blue on one address, chosen by who asks.
fn by_client(up: &[Upstream]) -> Config {
    let mut config = Config::standalone(Vec::new(), Vec::new());
    config.views = vec![
        view("red", &up[0], "127.0.9.0/24 127.0.6.0/23"),
        view("blue", &up[1], "127.0.8.0/24 127.0.7.0/24"),
    ];
    config
}

async fn two() -> Vec<Upstream> {
    Upstream::several(vec![honest(&["192.0.2.1"]), honest(&["192.0.2.2"])]).await
}

async fn ask(server: SocketAddr, from: &str, name: &str) -> Message {
    let octets = with_edns(query(name, T::A), 1232).to_vec().unwrap();
    let reply = exchange(server, from, &octets).await.expect("a reply");
    Message::from_vec(&reply).unwrap()
}

/// Questions about `db`, without what looks for health and loops.
fn asked_for_db(upstream: &Upstream) -> usize {
    let all = upstream.all();
    let name = |message: &Message| message.queries[0].name().to_lowercase().to_string();
    let is_it = |asked: &&crate::upstream::Asked| name(&asked.message).starts_with("db.");
    all.iter().filter(is_it).count()
}

#[tokio::test]
async fn r1_1_views_on_one_address_answer_their_own_clients_stored_or_not() {
    let up = two().await;
    let alone = Alone::start(by_client(&up), None).await;
    // Stored after the first, as a packet after the second; in turn, so that each could give the
    // other what it stored.
    for _ in 0..5 {
        for (from, address) in [(RED, "192.0.2.1"), (BLUE, "192.0.2.2")] {
            let reply = ask(alone.address, from, "db.corp.test.").await;
            assert_eq!(addresses(&reply), [address]);
        }
    }
    assert_eq!((asked_for_db(&up[0]), asked_for_db(&up[1])), (1, 1));
    for (from, address) in [(RED, "192.0.2.1"), (BLUE, "192.0.2.2")] {
        let mut stream = connect(alone.address, from).await;
        write_frame(&mut stream, &query("db.corp.test.", T::A).to_vec().unwrap()).await;
        let reply = read_frame(&mut stream).await.expect("a reply");
        assert_eq!(addresses(&reply), [address], "over TCP");
    }
    let stranger = ask(alone.address, "127.0.5.1", "db.corp.test.").await;
    assert_eq!(stranger.metadata.response_code, ResponseCode::Refused);
    // The longest prefix decides.
    let other = ask(alone.address, BETWEEN, "db.corp.test.").await;
    assert_eq!(addresses(&other), ["192.0.2.2"]);
}

#[tokio::test]
async fn r1_1_views_on_addresses_of_their_own_do_not_look_at_who_asks() {
    let up = two().await;
    let own = free_address();
    let mut config = by_client(&up);
    config.views[1].config.listen = vec![own];
    config.views[1].config.clients = vec!["127.0.0.0/8".parse().unwrap()];
    let alone = Alone::start(config, None).await;
    for from in [RED, BLUE] {
        for _ in 0..3 {
            let reply = ask(own, from, "db.corp.test.").await;
            assert_eq!(addresses(&reply), ["192.0.2.2"]);
        }
    }
    let reply = ask(alone.address, RED, "db.corp.test.").await;
    assert_eq!(addresses(&reply), ["192.0.2.1"]);
    let reply = ask(alone.address, BLUE, "db.corp.test.").await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

/// The network of a router, and beside it what hosts of the domain see.
#[tokio::test]
async fn r1_1_a_network_and_another_view_share_a_process_and_nothing_else() {
    let up = Upstream::elsewhere(honest(&["192.0.2.1"])).await;
    let own = free_address();
    let mut hosts = view("hosts", &up, "127.0.0.0/8");
    hosts.config.listen = vec![own];
    let stage = Stage::with(vec![honest(&["172.16.4.9"]), silent()], |config| {
        config.views = vec![hosts];
    })
    .await;
    for _ in 0..3 {
        let member = ask(stage.address(), crate::stage::MEMBER, "db.west.red.test.").await;
        assert_eq!(addresses(&member), ["172.16.4.9"]);
        let host = ask(own, RED, "db.west.red.test.").await;
        assert_eq!(addresses(&host), ["192.0.2.1"]);
    }
    let local = ask(own, RED, "web.red.test.").await;
    assert_eq!(local.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn r7_3_and_r3_9_commands_name_their_view() {
    let up = two().await;
    let alone = Alone::start(by_client(&up), None).await;
    let explain = |view| json!({ "name": "db.corp.test", "view": view });
    for (view, address) in [("red", "192.0.2.1"), ("blue", "192.0.2.2")] {
        let explained = alone.command("explain", explain(view)).await.unwrap();
        assert_eq!(explained["answer"]["records"][0]["data"], address, "{view}");
        let list = json!({ "view": view });
        let list = alone.command("upstream-list", list).await.unwrap();
        assert_eq!(list["upstreams"][0]["name"], view);
    }
    for (command, arguments) in [
        ("explain", json!({ "name": "db.corp.test" })),
        ("upstream-list", json!({ "view": "green" })),
    ] {
        let error = alone.command(command, arguments).await.unwrap_err();
        assert!(
            error.contains("view") && error.contains("red, blue"),
            "{error}"
        );
    }
    let gone = json!({ "name": "red", "view": "red" });
    alone.command("upstream-remove", gone).await.unwrap();
    let reply = ask(alone.address, RED, "db.corp.test.").await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let reply = ask(alone.address, BLUE, "db.corp.test.").await;
    assert_eq!(addresses(&reply), ["192.0.2.2"], "the other view's stays");
    let address = up[1].address.to_string();
    let added = json!({ "name": "new", "addresses": [address], "view": "red" });
    alone.command("upstream-add", added).await.unwrap();
    let reply = ask(alone.address, RED, "db.corp.test.").await;
    assert!(reply.metadata.response_code == ResponseCode::NoError);
}

#[tokio::test]
async fn r7_2_a_process_is_ready_while_each_view_can_answer() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"]), silent()]).await;
    let alone = Alone::start(by_client(&up), None).await;
    let octets = query("db.corp.test.", T::A).to_vec().unwrap();
    let asked = exchange(alone.address, BLUE, &octets)
        .await
        .expect("a reply");
    assert_eq!(asked[3] & 0x0f, 2, "SERVFAIL");
    eventually("blue has nobody to ask", || !alone.ctx.readiness.is_ready()).await;
    assert_eq!(
        alone.ctx.readiness.waiting_for(),
        ["an upstream of view blue"]
    );
    let reply = ask(alone.address, RED, "db.corp.test.").await;
    assert_eq!(addresses(&reply), ["192.0.2.1"], "red answers on");
}

#[tokio::test]
async fn r7_1_figures_of_each_view_have_its_name() {
    let up = two().await;
    let alone = Alone::start(by_client(&up), None).await;
    for (from, count) in [(RED, 2), (BLUE, 3)] {
        for _ in 0..count {
            ask(alone.address, from, "db.corp.test.").await;
        }
    }
    let server = |view: &str| {
        format!(
            "server=\"dns://{}\",zone=\".\",view=\"{view}\"",
            alone.address
        )
    };
    let lines = [
        format!(
            "coredns_dns_responses_total{{{},rcode=\"NOERROR\"}} 2",
            server("red")
        ),
        format!(
            "coredns_dns_responses_total{{{},rcode=\"NOERROR\"}} 3",
            server("blue")
        ),
        "vl3_dns_requests_total{view=\"red\",proto=\"udp\",type=\"A\"} 2".to_owned(),
        "vl3_dns_requests_total{view=\"blue\",proto=\"udp\",type=\"A\"} 3".to_owned(),
    ];
    eventually("figures follow replies", || {
        let text = alone.ctx.metrics.encode();
        lines.iter().all(|line| text.contains(line.as_str()))
    })
    .await;
    let text = alone.ctx.metrics.encode();
    let types = text.matches("# TYPE coredns_dns_requests counter").count();
    assert_eq!(types, 1, "{text}");
}

#[tokio::test]
async fn r7_4_all_views_are_read_again_or_none() {
    let up = two().await;
    let good = by_client(&up);
    let (mut file, reload) = File::of(&good);
    let alone = Alone::start(good.clone(), Some(reload)).await;
    let list = async |view: &str| -> Value {
        let list = alone.command("upstream-list", json!({ "view": view }));
        list.await.unwrap()["upstreams"][0]["name"].clone()
    };
    let change = |change: &dyn Fn(&mut Config)| {
        let mut config = good.clone();
        config.listen = vec![alone.address];
        change(&mut config);
        config
    };
    let renamed = configured("other", &up[0], &[]);
    // Red would be right, blue lists one upstream twice.
    file.change(change(&|config| {
        config.views[0].config.upstreams = vec![renamed.clone()];
        config.views[1].config.upstreams = vec![renamed.clone(), renamed.clone()];
    }))
    .await;
    assert_eq!(
        (list("red").await, list("blue").await),
        (json!("red"), json!("blue"))
    );
    file.change(change(&|config| {
        for view in &mut config.views {
            view.config.upstreams = vec![renamed.clone()];
        }
    }))
    .await;
    eventually_true("both are new", || async {
        list("red").await == "other" && list("blue").await == "other"
    })
    .await;
}

#[test]
fn every_mistake_of_the_views_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dns.toml");
    let text = r#"
        state_dir = ""
        listen = ["127.0.0.1:5300"]
        [[view]]
        name = "red"
        clients = ["192.0.2.0/24"]
        cookie_keys = "/keys"
        [[view.upstream]]
        name = "a b"
        addresses = ["192.0.2.1:53"]
        [[view]]
        name = "red"
        clients = ["192.0.2.0/24"]
        [view.limits]
        connections = 5
        [[view.upstream]]
        name = "b"
        addresses = ["192.0.2.1:53"]
        [[view]]
        name = "default"
        clients = ["here"]
    "#;
    std::fs::write(&file, text).unwrap();
    let flags = Flags {
        config: Some(file),
        ..Flags::default()
    };
    let invalid = load_from::<Config>(&flags, []).unwrap_err().to_string();
    for key in [
        "view[0].cookie_keys",
        "view[0].upstream[0].name",
        "view[1].name",
        "view[1].clients",
        "view[1].limits.connections",
        "view[2].name",
        "view[2].clients[0]",
        "view[2].router",
    ] {
        assert!(
            invalid.contains(&format!("\n  {key} ")),
            "{key}:\n{invalid}"
        );
    }
}

#[test]
fn the_example_with_views_is_a_configuration() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/dns-views.toml");
    let flags = Flags {
        config: Some(file),
        ..Flags::default()
    };
    let config = load_from::<Config>(&flags, []).unwrap().config;
    assert_eq!(config.views.len(), 2);
    assert!(config.upstreams.is_empty() && config.router.is_none());
}
