//! One test's world: domain east with its registry, one router, whoever asks it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid, PublicKey, SpiffeId};
use vl3_core::router::{Limits, Times};
use vl3_identity::authority::Authority;
use vl3_identity::{Source, Trust, token};
use vl3_proto::WireguardParameters;
use vl3_proto::connection::{Connection, Path, PathSegment};
use vl3_proto::document::{sign, write_armoured};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::networkservice::network_service_client::NetworkServiceClient;
use vl3_runtime::grpc::{self, DialUrl, Dialer, Expect, Listen, NsmChannel, ServeOptions, Server};
use vl3_runtime::{CancellationToken, Common, RoleContext, clock};

use crate::registry::Registry;

const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    dir: TempDir,
    authority: Authority,
    pub(crate) registry: Registry,
    pub(crate) document: watch::Sender<Chain>,
    pub(crate) ctx: RoleContext,
    router: Option<JoinHandle<anyhow::Result<()>>>,
    shutdown: CancellationToken,
}

impl Stage {
    /// A router that has its lease and is registered.
    pub(crate) async fn new() -> Self {
        vl3_identity::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("east.test", clock::wall()).unwrap();
        let (document, versions) = watch::channel(chain(&authority, 1, "registry/*"));
        let registry = Registry::new(versions);
        let shutdown = CancellationToken::new();
        let source = source(&authority, "vl3/registry/east");
        let options = ServeOptions::new(source.clone(), Trust::new(&source), shutdown.clone());
        let listen = [Listen::Unix(dir.path().join("registry.sock"))];
        let server = Server::bind(&listen, options).await.unwrap();
        tokio::spawn(server.serve(registry.services()));
        let ctx = context(&dir, &authority);
        let mut stage = Self {
            dir,
            authority,
            registry,
            document,
            ctx,
            router: None,
            shutdown,
        };
        stage.start().await;
        stage
    }

    /// The router, once more where it has ended.
    pub(crate) async fn start(&mut self) {
        self.ctx = context(&self.dir, &self.authority);
        let file = self.dir.path().join("red.doc");
        let first = chain(&self.authority, 1, "registry/*");
        std::fs::write(&file, write_armoured(&first)).unwrap();
        let config = vl3_router::Config {
            prefix_servers: Vec::new(),
            domain: DomainName::new("east").unwrap(),
            router: None,
            document: file,
            uid: first.uid(),
            registry: DialUrl::Unix(self.dir.path().join("registry.sock")),
            listen: vec!["tcp://127.0.0.1:0".parse().unwrap()],
            udp_listen: free_port(),
            advertise: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            exclusions: Vec::new(),
            prefix_len4: 0,
            mtu: 1420,
            workers: 1,
            token_lifetime: TOKEN_LIFE,
            limits: Limits::default(),
            times: Times {
                silent_after: Duration::from_secs(1),
                ..Times::default()
            },
        };
        self.router = Some(tokio::spawn(vl3_router::run(config, self.ctx.clone())));
        let registered = || self.registry.told().endpoint.is_some();
        if !eventually(registered).await {
            let ended = self.router.take().filter(|router| router.is_finished());
            match ended {
                Some(router) => panic!("the router ended: {:?}", router.await),
                None => panic!("the router does not register"),
            }
        }
    }

    /// Waits for the router's end, which something else has begun.
    pub(crate) async fn ended(&mut self) {
        let router = self.router.take().expect("a router runs");
        router.await.unwrap().unwrap();
    }

    pub(crate) fn url(&self) -> DialUrl {
        let endpoint = self.registry.told().endpoint.clone();
        endpoint.expect("registered").url.parse().unwrap()
    }

    /// As this identity, with tokens of that life.
    pub(crate) async fn dial(&self, path: &str, life: Duration) -> grpc::Connection {
        let source = source(&self.authority, path);
        let dialer = Dialer::new(source.clone(), Trust::new(&source)).token_lifetime(life);
        let router = SpiffeId::new("spiffe://east.test/vl3/router/red-east").unwrap();
        dialer
            .dial(&self.url(), Expect::exactly(router))
            .await
            .unwrap()
    }

    pub(crate) async fn client(&self, path: &str) -> NetworkServiceClient<NsmChannel> {
        NetworkServiceClient::new(self.dial(path, TOKEN_LIFE).await.nsm())
    }

    /// A token of that identity for another.
    pub(crate) fn token(&self, path: &str, audience: &str) -> String {
        let maker = self.authority.identity(path, DAY, clock::wall()).unwrap();
        let audience = SpiffeId::new(&format!("spiffe://east.test/{audience}")).unwrap();
        let issued = token::issue(&maker, Some(&audience), TOKEN_LIFE, clock::wall());
        issued.unwrap().0
    }

    /// Version `version`, in which the domain's registry is `spiffe://east.test/vl3/<registry>`.
    pub(crate) fn publish(&self, version: u64, registry: &str) {
        let chain = chain(&self.authority, version, registry);
        self.document.send_replace(chain);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ctx.shutdown.cancel();
        self.shutdown.cancel();
    }
}

fn context(dir: &TempDir, authority: &Authority) -> RoleContext {
    let common = Common::in_dir("router", "red-east", dir.path());
    std::fs::create_dir_all(&common.run_dir).unwrap();
    if let Some(state_dir) = &common.state_dir {
        std::fs::create_dir_all(state_dir).unwrap();
    }
    RoleContext::new(common, source(authority, "vl3/router/red-east"))
}

fn source(authority: &Authority, path: &str) -> Source {
    Source::fixed(authority.identity(path, DAY, clock::wall()).unwrap())
}

fn free_port() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

/// Network red of east alone, whose node manager is `nsm/*`.
fn chain(authority: &Authority, version: u64, registry: &str) -> Chain {
    let secret = AdminSecret::from_bytes(&[9; 32]);
    let admin_keys = BTreeSet::from([secret.public()]);
    let nonce = vec![3; 16];
    let east = |registry: &str| Member {
        domain: DomainName::new("east").unwrap(),
        bundle: authority.bundle_pem().into_bytes(),
        roles: RoleIds {
            registry: vec![format!("spiffe://east.test/vl3/{registry}")],
            intermediary: vec!["spiffe://east.test/nsm/*".to_owned()],
            ..RoleIds::defaults("east.test")
        },
        trust_domain: "east.test".to_owned(),
        contacts: Vec::new(),
        block4: Some("172.16.0.0/22".parse().unwrap()),
        block6: "fd77:0:0:0:1::/80".parse().unwrap(),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    };
    let document = |version, registry: &str| Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce: nonce.clone(),
        version,
        name: NetworkName::new("red").unwrap(),
        zone: "red.test".to_owned(),
        pool6: "fd77::/64".parse().unwrap(),
        pool4: Some("172.16.0.0/16".parse().unwrap()),
        admin_keys: admin_keys.clone(),
        members: [(DomainName::new("east").unwrap(), east(registry))].into(),
        policy: Policy::default(),
    };
    let mut links = vec![sign(document(1, "registry/*"), &[&secret])];
    if version > 1 {
        links.push(sign(document(version, registry), &[&secret]));
    }
    Chain::verify(links).unwrap()
}

/// A first Request for WIREGUARD as a stock client writes it: its own segment, no context.
pub(crate) fn first(name: &str, key: u8) -> NetworkServiceRequest {
    let id = format!("{name}-0");
    NetworkServiceRequest {
        connection: Some(Connection {
            id: id.clone(),
            network_service: "red".to_owned(),
            path: Some(Path {
                index: 0,
                path_segments: vec![segment(name, &id)],
            }),
            ..Connection::default()
        }),
        mechanism_preferences: vec![
            WireguardParameters {
                src_public_key: Some(PublicKey([key; 32])),
                ..WireguardParameters::default()
            }
            .into_mechanism(),
        ],
    }
}

pub(crate) fn segment(name: &str, id: &str) -> PathSegment {
    PathSegment {
        name: name.to_owned(),
        id: id.to_owned(),
        ..PathSegment::default()
    }
}

/// The same Request, changed.
pub(crate) fn changed(
    mut request: NetworkServiceRequest,
    change: impl FnOnce(&mut Connection),
) -> NetworkServiceRequest {
    change(request.connection.get_or_insert_default());
    request
}

/// A refresh: what was answered goes back, changed.
pub(crate) fn again(
    answer: &Connection,
    change: impl FnOnce(&mut Connection),
) -> NetworkServiceRequest {
    let request = NetworkServiceRequest {
        connection: Some(answer.clone()),
        ..NetworkServiceRequest::default()
    };
    changed(request, change)
}

pub(crate) fn addresses(answer: &Connection) -> Vec<String> {
    let context = answer.context.clone().unwrap_or_default();
    context.ip_context.unwrap_or_default().src_ip_addrs
}

/// That it was refused like this, with that in its text.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err("refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}

/// Waits for a level, at most 20 s; false when it never came.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    for _ in 0..2_000 {
        if holds() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}
