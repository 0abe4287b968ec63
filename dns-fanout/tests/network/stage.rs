//! One test's world: a router, the server under test, other domains' servers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid};
use vl3_identity::Source;
use vl3_identity::authority::Authority;
use vl3_proto::document::{encode_chain, sign};
use vl3_proto::vl3::network::v1::DocumentChain;
use vl3_proto::vl3::router::v1::{
    ClientClass, ClientRange, DomainServer, LocalName, ResolverState,
};
use vl3_runtime::{Common, RoleContext, clock};

use crate::client::{exchange_within, query};
pub(crate) use crate::levels::eventually_true;
use crate::router::{Router, listeners};
use crate::upstream::{Behaviour, Upstream};

pub(crate) const MEMBER: &str = "127.0.2.1";
pub(crate) const REMOTE: &str = "127.0.3.1";
pub(crate) const SIBLING: &str = "127.0.4.1";
/// Stages so far: each has an own address, so that tests side by side never share a port.
static STAGES: AtomicU8 = AtomicU8::new(1);
const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Stage {
    pub(crate) dir: TempDir,
    pub(crate) state: watch::Sender<ResolverState>,
    pub(crate) ctx: RoleContext,
    pub(crate) server: Option<JoinHandle<anyhow::Result<()>>>,
    pub(crate) upstreams: Vec<Upstream>,
    authority: Authority,
    router: Option<Router>,
    /// Where the router's own address would be: the server's listeners and sockets are bound
    /// here. The first router chooses the port, later ones keep it.
    own: SocketAddr,
}

impl Stage {
    /// A network of east (the server's own), west and north, whose servers behave as given.
    pub(crate) async fn new(behaviours: Vec<Behaviour>) -> Self {
        Self::with(behaviours, |_| {}).await
    }

    pub(crate) async fn with(
        behaviours: Vec<Behaviour>,
        change: impl FnOnce(&mut dns_fanout::Config),
    ) -> Self {
        vl3_identity::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("east.test", clock::wall()).unwrap();
        let upstreams = Upstream::several(behaviours).await;
        let chain = chain();
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let own = IpAddr::V4(Ipv4Addr::new(127, 1, 0, number));
        let own = listeners(SocketAddr::new(own, 0)).unwrap().0;
        let state = watch::Sender::new(state(encode_chain(&chain), &upstreams, own.ip()));
        let mut stage = Self {
            dir,
            state,
            ctx: context(&authority, Path::new("/nonexistent")),
            server: None,
            upstreams,
            authority,
            router: None,
            own,
        };
        stage.ctx = context(&stage.authority, &stage.dir.path().join("dns"));
        stage.start_router().await;
        let mut config = dns_fanout::Config {
            router: Some(stage.dir.path().join("router")),
            uid: Some(chain.uid()),
            clients: Vec::new(),
            upstream_port: stage
                .upstreams
                .first()
                .map_or(53, |upstream| upstream.address.port()),
            upstream_sockets: 4,
            connections_max: 20,
            connections_per_client_max: 5,
            ..dns_fanout::Config::standalone(Vec::new(), Vec::new())
        };
        change(&mut config);
        stage.server = Some(tokio::spawn(dns_fanout::run(
            config,
            stage.ctx.clone(),
            None,
        )));
        let address = stage.address();
        let asked = query("web.red.test.", RecordType::A).to_vec().unwrap();
        eventually_true("the server answers", || async {
            let reply = exchange_within(address, MEMBER, &asked, Duration::from_millis(500)).await;
            reply.is_some_and(|octets| octets[3] & 0x0f == 0)
        })
        .await;
        eventually("it says so", || stage.ctx.readiness.is_ready()).await;
        stage
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.own
    }

    pub(crate) async fn start_router(&mut self) {
        let run_dir = self.dir.path().join("router");
        let identity = self
            .authority
            .identity("vl3/router/red-east", DAY, clock::wall())
            .unwrap();
        // Each life of the router hands out tickets of its own.
        let ticket = vec![STAGES.fetch_add(1, Ordering::Relaxed); 16];
        self.change(|state| state.fd_ticket.clone_from(&ticket));
        let source = Source::fixed(identity);
        let states = self.state.subscribe();
        self.router = Some(Router::start(&run_dir, source, states, self.own, ticket).await);
    }

    /// As a kill: both sockets end, nothing else is said.
    pub(crate) async fn kill_router(&mut self) {
        let mut router = self.router.take().expect("a router runs");
        router.stop.cancel();
        for task in router.tasks.drain(..) {
            task.await.unwrap();
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut ResolverState)) {
        self.state.send_modify(|state| {
            state.sequence += 1;
            change(state);
        });
    }

    pub(crate) fn metrics(&self) -> String {
        self.ctx.metrics.encode()
    }

    /// Waits until a line of the metrics text has a value: figures follow replies.
    pub(crate) async fn counts(&self, line: &str, value: u64) {
        eventually(&format!("{line} {value}"), || self.figure(line) == value).await;
    }

    /// The value of one line of the metrics text; 0 when it is not there.
    pub(crate) fn figure(&self, line: &str) -> u64 {
        self.metrics()
            .lines()
            .find_map(|text| text.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ctx.shutdown.cancel();
    }
}

/// Waits for a level, at most ten seconds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn context(authority: &Authority, dir: &Path) -> RoleContext {
    let identity = authority
        .identity("vl3/dns/red-east", DAY, clock::wall())
        .unwrap();
    RoleContext::new(
        Common::in_dir("dns", "red-east", dir),
        Source::fixed(identity),
    )
}

pub(crate) fn chain() -> Chain {
    let secret = AdminSecret::from_bytes(&[9; 32]);
    let admin_keys = BTreeSet::from([secret.public()]);
    let nonce = vec![3; 16];
    let members = [
        ("east", "172.16.0.0/22", 1),
        ("west", "172.16.4.0/22", 2),
        ("north", "172.16.8.0/22", 3),
    ];
    let members = members.map(|(name, block4, number)| {
        let trust_domain = format!("{name}.test");
        let authority = Authority::create(&trust_domain, clock::wall()).unwrap();
        Member {
            domain: DomainName::new(name).unwrap(),
            bundle: authority.bundle_pem().into_bytes(),
            roles: RoleIds::defaults(&trust_domain),
            trust_domain,
            contacts: vec!["198.51.100.1:5002".to_owned()],
            block4: Some(block4.parse().unwrap()),
            block6: format!("fd77:0:0:0:{number}::/80").parse().unwrap(),
            generation: Generation(1),
            not_after: None,
            revoked: false,
            dials_only: false,
        }
    });
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: NetworkName::new("red").unwrap(),
        zone: "red.test".to_owned(),
        pool6: "fd77::/64".parse().unwrap(),
        pool4: Some("172.16.0.0/16".parse().unwrap()),
        admin_keys,
        members: members
            .into_iter()
            .map(|member| (member.domain.clone(), member))
            .collect(),
        policy: Policy::default(),
    };
    Chain::verify(vec![sign(document, &[&secret])]).unwrap()
}

fn state(document: DocumentChain, upstreams: &[Upstream], own: IpAddr) -> ResolverState {
    let texts = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let server = |(domain, upstream): (&str, &Upstream)| DomainServer {
        domain: domain.to_owned(),
        router: format!("red-{domain}"),
        addresses: vec![upstream.address.ip().to_string()],
        sibling: false,
    };
    let client = |prefix: &str, class: ClientClass| ClientRange {
        prefix: prefix.to_owned(),
        class: class.into(),
    };
    ResolverState {
        sequence: 1,
        document: Some(document),
        domain: "east".to_owned(),
        names: vec![LocalName {
            name: "web".to_owned(),
            addresses: texts(&["172.16.0.5", "fd77::1:0:0:5"]),
        }],
        servers: ["west", "north"]
            .into_iter()
            .zip(upstreams)
            .map(server)
            .collect(),
        clients: vec![
            client("127.0.2.0/24", ClientClass::Member),
            client("127.0.3.0/24", ClientClass::Remote),
            client("127.0.4.0/24", ClientClass::Sibling),
        ],
        own_addresses: vec![own.to_string()],
        fd_ticket: Vec::new(),
    }
}
