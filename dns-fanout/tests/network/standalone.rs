//! The server without a router: configured upstreams, commands, a configuration read again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dns_fanout::{Config, Reload};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType as T;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use vl3_core::names::{Name, Policy, Upstream as Configured};
use vl3_identity::Source;
use vl3_identity::authority::Authority;
use vl3_runtime::config::{Flags, Loaded, load_from};
use vl3_runtime::{Common, RoleContext, clock};

use crate::client::{addresses, exchange_within, query, with_edns};
use crate::stage::{eventually, eventually_true};
use crate::upstream::{Behaviour, Sent, Upstream, honest, octets, silent, with_addresses};

pub(crate) const CLIENT: &str = "127.0.9.1";
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Alone {
    pub(crate) address: SocketAddr,
    pub(crate) ctx: RoleContext,
    server: JoinHandle<anyhow::Result<()>>,
    _dir: TempDir,
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.ctx.shutdown.cancel();
        self.server.abort();
    }
}

impl Alone {
    pub(crate) async fn new(upstreams: Vec<Configured>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::standalone(Vec::new(), upstreams);
        change(&mut config);
        Self::start(config, None).await
    }

    pub(crate) async fn start(mut config: Config, reload: Option<Reload>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = config.listen.first().copied();
        let address = listen.unwrap_or_else(free_address);
        config.listen = vec![address];
        let ctx = context(dir.path());
        let server = tokio::spawn(dns_fanout::run(config, ctx.clone(), reload));
        eventually("the server is ready", || {
            assert!(!server.is_finished(), "it ended");
            ctx.readiness.is_ready() && ctx.readiness.waiting_for().is_empty() && is_bound(address)
        })
        .await;
        Self {
            address,
            ctx,
            server,
            _dir: dir,
        }
    }

    pub(crate) async fn ask(&self, name: &str, rtype: T) -> Message {
        let octets = with_edns(query(name, rtype), 1232).to_vec().unwrap();
        let reply = exchange_within(self.address, CLIENT, &octets, PATIENCE).await;
        Message::from_vec(&reply.expect("a reply")).unwrap()
    }

    /// The value of one line of the metrics text; 0 when it is not there.
    pub(crate) fn figure(&self, line: &str) -> u64 {
        let text = self.ctx.metrics.encode();
        let mut values = text.lines().filter_map(|text| text.strip_prefix(line));
        values
            .find_map(|value| value.trim().parse().ok())
            .unwrap_or(0)
    }

    pub(crate) async fn command(&self, name: &str, arguments: Value) -> Result<Value, String> {
        self.ctx.command(name, arguments).await.expect("a command")
    }
}

/// A configuration file that is changed while the server runs; what it says is set apart from it.
pub(crate) struct File {
    says: Arc<Mutex<Config>>,
    reads: Arc<AtomicUsize>,
    changes: usize,
    dir: TempDir,
}

impl File {
    pub(crate) fn of(config: &Config) -> (Self, Reload) {
        let says = Arc::new(Mutex::new(config.clone()));
        let reads = Arc::new(AtomicUsize::new(0));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dns.toml");
        std::fs::write(&file, "").unwrap();
        let (read, counted) = (Arc::clone(&says), Arc::clone(&reads));
        let reload = Reload {
            file: Some(file),
            read: Arc::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(read.lock().unwrap().clone())
            }),
        };
        let file = Self {
            says,
            reads,
            changes: 0,
            dir,
        };
        (file, reload)
    }

    /// Waits until it is read again; what comes of it may take a moment longer.
    pub(crate) async fn change(&mut self, config: Config) {
        *self.says.lock().unwrap() = config;
        self.changes += 1;
        // Another size: another file.
        let text = "#".repeat(self.changes);
        std::fs::write(self.dir.path().join("dns.toml"), text).unwrap();
        eventually("it is read again", || {
            self.reads.load(Ordering::Relaxed) >= self.changes
        })
        .await;
    }
}

fn context(dir: &Path) -> RoleContext {
    vl3_identity::install_crypto_provider();
    let authority = Authority::create("nobody.test", clock::wall()).unwrap();
    let identity = authority
        .identity("unneeded", Duration::from_secs(3_600), clock::wall())
        .unwrap();
    RoleContext::new(Common::in_dir("dns", "alone", dir), Source::fixed(identity))
}

/// Free for both transports a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let host: IpAddr = "127.0.9.53".parse().unwrap();
    for _ in 0..50 {
        let tcp = std::net::TcpListener::bind((host, 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        if std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free for both");
}

fn is_bound(address: SocketAddr) -> bool {
    std::net::UdpSocket::bind(address).is_err()
}

pub(crate) fn configured(name: &str, upstream: &Upstream, suffixes: &[&str]) -> Configured {
    let mut configured = Configured::outside(name, vec![upstream.address]);
    configured.allow_private = true;
    configured.suffixes = suffixes
        .iter()
        .map(|suffix| Name::parse(suffix).unwrap())
        .collect();
    configured
}

#[tokio::test]
async fn r1_3_the_longest_suffix_decides_who_is_asked() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"]), honest(&["192.0.2.2"])]).await;
    let alone = Alone::new(
        vec![
            configured("all", &up[0], &[]),
            configured("corp", &up[1], &["corp.test"]),
        ],
        |_| {},
    )
    .await;
    assert_eq!(
        addresses(&alone.ask("db.other.test.", T::A).await),
        ["192.0.2.1"]
    );
    assert_eq!(
        addresses(&alone.ask("db.Corp.test.", T::A).await),
        ["192.0.2.2"]
    );
    let of = |upstream: &Upstream, part: &str| {
        let all = upstream.all();
        all.iter()
            .filter(|asked| {
                asked.message.queries[0]
                    .name()
                    .to_lowercase()
                    .to_string()
                    .contains(part)
            })
            .count()
    };
    assert_eq!((of(&up[0], "db.corp"), of(&up[1], "db.other")), (0, 0));
    assert!(
        up[0].all()[0].message.metadata.recursion_desired,
        "resolvers are asked to recurse"
    );
}

#[tokio::test]
async fn r3_9_upstreams_come_and_go_by_command_while_the_server_runs() {
    let up = Upstream::several(vec![silent(), honest(&["192.0.2.2"])]).await;
    let alone = Alone::new(vec![configured("first", &up[0], &["never.test"])], |_| {}).await;
    let refused = alone.ask("db.corp.test.", T::A).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);

    let address = up[1].address.to_string();
    let added = json!({ "name": "second", "addresses": [address], "suffixes": ["corp.test"] });
    let list = alone.command("upstream-add", added.clone()).await.unwrap();
    assert_eq!(list["upstreams"][1]["name"], "second");
    assert_eq!(list["upstreams"][1]["from"], "command");
    assert_eq!(
        addresses(&alone.ask("db.corp.test.", T::A).await),
        ["192.0.2.2"]
    );

    let twice = alone.command("upstream-add", added).await.unwrap_err();
    assert!(
        twice.contains("second") && twice.contains("twice"),
        "{twice}"
    );
    let own = json!({ "name": "own", "addresses": [alone.address.to_string()] });
    let own = alone.command("upstream-add", own).await.unwrap_err();
    assert!(own.contains("own listener"), "R4.4: {own}");
    let bad = json!({ "name": "a b", "addresses": ["nowhere"], "class": "far" });
    let bad = alone.command("upstream-add", bad).await.unwrap_err();
    for part in ["name", "addresses", "class"] {
        assert!(bad.contains(part), "all at once: {bad}");
    }

    let gone = json!({ "name": "second" });
    alone
        .command("upstream-remove", gone.clone())
        .await
        .unwrap();
    let refused = alone.ask("db.corp.test.", T::A).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert!(alone.command("upstream-remove", gone).await.is_err());
}

#[tokio::test]
async fn r7_4_a_bad_configuration_leaves_the_one_before_in_force() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"]), honest(&["192.0.2.2"])]).await;
    let good = Config::standalone(
        Vec::new(),
        vec![configured("first", &up[0], &["corp.test"])],
    );
    let (mut file, reload) = File::of(&good);
    let alone = Alone::start(good.clone(), Some(reload)).await;
    assert_eq!(
        addresses(&alone.ask("db.corp.test.", T::A).await),
        ["192.0.2.1"]
    );

    let with = |upstreams: Vec<Configured>| {
        let mut config = good.clone();
        config.listen = vec![alone.address];
        config.upstreams = upstreams;
        config
    };
    let other = configured("other", &up[1], &["corp.test"]);
    file.change(with(vec![other.clone(), other.clone()])).await;
    let list = alone.command("upstream-list", Value::Null).await.unwrap();
    assert_eq!(
        list["upstreams"][0]["name"], "first",
        "not even a part of it"
    );
    file.change(with(vec![other])).await;
    eventually_true("the new list is in force", || async {
        let list = alone.command("upstream-list", Value::Null).await.unwrap();
        list["upstreams"][0]["name"] == "other"
    })
    .await;
    assert_eq!(
        addresses(&alone.ask("db.corp.test.", T::A).await),
        ["192.0.2.2"]
    );
}

#[tokio::test]
async fn r3_3_names_go_out_in_mixed_case_and_come_back_as_the_client_spelled_them() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"])]).await;
    let alone = Alone::new(vec![configured("all", &up[0], &[])], |_| {}).await;
    let name = "db.a-name-with-many-letters.test.";
    let reply = alone.ask(name, T::A).await;
    assert_eq!(reply.queries[0].name().to_ascii(), name);
    let all = up[0].all();
    let sent = all
        .iter()
        .map(|asked| asked.message.queries[0].name().to_ascii());
    let sent: Vec<String> = sent.filter(|sent| sent.to_lowercase() == name).collect();
    assert!(
        !sent.is_empty() && sent.iter().all(|sent| sent != name),
        "{sent:?}"
    );
}

/// A server that answers in lower case: what anybody could have sent is fetched anew.
#[tokio::test]
async fn r3_3_a_server_that_turns_letters_is_asked_all_the_same() {
    let turns: Behaviour = Box::new(|asked| {
        let mut reply = octets(&with_addresses(asked, &["192.0.2.1"]));
        let name = asked.message.queries[0].name().len();
        reply[12..12 + name].make_ascii_lowercase();
        vec![Sent::Reply(reply)]
    });
    let up = Upstream::several(vec![turns]).await;
    let alone = Alone::new(vec![configured("all", &up[0], &[])], |_| {}).await;
    for _ in 0..3 {
        let reply = alone.ask("db.a-name-with-many-letters.test.", T::A).await;
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
    }
}

/// Questions about `db`, without what health and loop probes ask.
fn asked_for_db(upstream: &Upstream) -> usize {
    let all = upstream.all();
    let name = |message: &Message| message.queries[0].name().to_lowercase().to_string();
    all.iter()
        .filter(|asked| name(&asked.message).starts_with("db."))
        .count()
}

#[tokio::test]
async fn r5_1_stored_answers_are_given_to_each_as_it_asked() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"])]).await;
    let alone = Alone::new(vec![configured("all", &up[0], &[])], |_| {}).await;
    for spelled in [
        "db.corp.test.",
        "DB.corp.test.",
        "dB.Corp.Test.",
        "db.corp.TEST.",
    ] {
        let reply = alone.ask(spelled, T::A).await;
        assert_eq!(reply.queries[0].name().to_ascii(), spelled);
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
        assert!(reply.answers[0].ttl <= 60);
        assert!(reply.edns.is_some());
    }
    assert_eq!(asked_for_db(&up[0]), 1);
    let plain = query("db.corp.test.", T::A).to_vec().unwrap();
    let reply = exchange_within(alone.address, CLIENT, &plain, PATIENCE).await;
    assert!(Message::from_vec(&reply.unwrap()).unwrap().edns.is_none());
    // What the cache knew of an upstream goes with it (R3.9).
    alone
        .command("upstream-remove", json!({ "name": "all" }))
        .await
        .unwrap();
    let gone = alone.ask("db.corp.test.", T::A).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn r2_7_stored_unions_turn_from_reply_to_reply() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"]), honest(&["192.0.2.2"])]).await;
    let both = vec![configured("a", &up[0], &[]), configured("b", &up[1], &[])];
    let alone = Alone::new(both, |config| {
        config.policies = vec![(Name::root(), Policy::Union)];
    })
    .await;
    let mut first = BTreeSet::new();
    for _ in 0..8 {
        let all = addresses(&alone.ask("db.corp.test.", T::A).await);
        assert_eq!(all.len(), 2);
        first.insert(all[0].clone());
    }
    assert_eq!(first.len(), 2, "each stands first in some replies");
    assert_eq!((asked_for_db(&up[0]), asked_for_db(&up[1])), (1, 1));
}

#[tokio::test]
async fn r7_3_one_question_is_explained_on_demand() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"])]).await;
    let alone = Alone::new(vec![configured("all", &up[0], &["corp.test"])], |_| {}).await;
    let explained = alone
        .command("explain", json!({ "name": "db.corp.test", "type": "a" }))
        .await
        .unwrap();
    let steps: Vec<&str> = explained["steps"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|step| step["step"].as_str())
        .collect();
    for step in ["planned", "asked", "said", "answered"] {
        assert!(steps.contains(&step), "{step}: {explained}");
    }
    assert_eq!(explained["answer"]["rcode"], "NOERROR");
    assert_eq!(explained["answer"]["records"][0]["data"], "192.0.2.1");
    let nobody = alone
        .command("explain", json!({ "name": "db.other.test" }))
        .await
        .unwrap();
    assert_eq!(nobody["answer"]["rcode"], "REFUSED");
    for (bad, part) in [
        (json!({ "name": "a..b" }), "name"),
        (json!({ "name": "a", "type": "nope" }), "type"),
        (json!({ "name": "a", "from": "here" }), "from"),
        (json!({ "name": "a", "view": "other" }), "view"),
    ] {
        let error = alone.command("explain", bad).await.unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn r6_6_who_is_not_on_the_list_is_refused() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"])]).await;
    let alone = Alone::new(vec![configured("all", &up[0], &[])], |config| {
        config.clients = vec!["127.0.8.0/24".parse().unwrap()];
    })
    .await;
    let reply = alone.ask("db.corp.test.", T::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let octets = query("db.corp.test.", T::A).to_vec().unwrap();
    let reply = exchange_within(alone.address, "127.0.8.1", &octets, PATIENCE).await;
    assert_eq!(reply.expect("a reply")[3] & 0x0f, 0);
}

#[tokio::test]
async fn r7_1_metrics_have_the_names_that_dashboards_know() {
    let up = Upstream::several(vec![honest(&["192.0.2.1"])]).await;
    let alone = Alone::new(vec![configured("all", &up[0], &[])], |_| {}).await;
    alone.ask("db.corp.test.", T::A).await;
    let server = format!("server=\"dns://{}\",zone=\".\",view=\"\"", alone.address);
    let lines = [
        format!("coredns_dns_requests_total{{{server},proto=\"udp\",family=\"1\",type=\"A\"}} 1"),
        format!("coredns_dns_responses_total{{{server},rcode=\"NOERROR\"}} 1"),
        format!("coredns_dns_request_duration_seconds_count{{{server}}} 1"),
        format!("coredns_dns_request_size_bytes_count{{{server}}} 1"),
        format!("coredns_dns_response_size_bytes_count{{{server}}} 1"),
        "coredns_fanout_request_count_total{to=\"all\"} ".to_owned(),
        "coredns_fanout_response_rcode_count_total{to=\"all\",rcode=\"NOERROR\"} ".to_owned(),
        "coredns_fanout_request_duration_seconds_count{to=\"all\"} ".to_owned(),
    ];
    eventually("figures follow replies", || {
        let text = alone.ctx.metrics.encode();
        lines.iter().all(|line| text.contains(line.as_str()))
    })
    .await;
}

#[test]
fn the_example_is_a_configuration_without_router_and_identity() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/dns-standalone.toml");
    let flags = Flags {
        config: Some(file),
        ..Flags::default()
    };
    let Loaded { config, .. } = load_from::<Config>(&flags, []).unwrap();
    assert_eq!(config.upstreams.len(), 3);
    assert!(config.router.is_none() && config.policies.len() == 1);
}

#[test]
fn without_router_and_upstreams_both_are_named() {
    let invalid = load_from::<Config>(&Flags::default(), []).unwrap_err();
    let text = invalid.to_string();
    assert!(
        text.contains("router is missing") && text.contains("listen is missing"),
        "{text}"
    );
    assert!(!text.contains("identity"), "{text}");
}
