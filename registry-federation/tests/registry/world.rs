//! Domains with identities of their own and registries on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use registry_federation::store::{Kept, Memory, Redb, Shared, Store, StoreConfig};
use registry_federation::{Config, Limits, NetworkConfig, Running, start};
use tempfile::TempDir;
use vl3_core::allocator::{Acquire, Granted, Lease};
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, InstanceId, NetworkName, NetworkUid, RouterName};
use vl3_core::registry::{Endpoint, Marks};
use vl3_identity::authority::Authority;
use vl3_identity::{Identity, Source};
use vl3_proto::document::{encode_chain, sign};
use vl3_proto::lease::{decode_granted, encode_acquire, encode_renew};
use vl3_proto::objects::encode_endpoint;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::registry::{
    NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
};
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_proto::vl3::network::v1::PublishReply;
use vl3_proto::vl3::network::v1::network_client::NetworkClient;
use vl3_runtime::config::Common;
use vl3_runtime::grpc::{Connection, DialError, Dialer, Expect, Listen};
use vl3_runtime::{CancellationToken, Metrics, RoleContext, clock};

const HOUR: Duration = Duration::from_secs(3600);

/// One network, its admin, and the CAs of its domains.
pub(crate) struct World {
    pub(crate) admin: AdminSecret,
    pub(crate) authorities: BTreeMap<&'static str, Authority>,
    pub(crate) chain: Chain,
    pub(crate) dir: TempDir,
}

/// A registry that serves.
pub(crate) struct Registry {
    pub(crate) listen: Listen,
    pub(crate) prefix_ports: Vec<Listen>,
    pub(crate) metrics: Metrics,
    pub(crate) ctx: RoleContext,
    shutdown: CancellationToken,
    running: Running,
}

/// An endpoint of the service `icmp`.
pub(crate) fn icmp(name: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        services: vec!["icmp".to_owned()],
        url: "tcp://192.0.2.7:5000".to_owned(),
        ..Endpoint::default()
    }
}

/// The number of a domain decides its blocks.
pub(crate) fn member(domain: &str, number: u16, bundle: String) -> Member {
    Member {
        domain: DomainName::new(domain).expect("test set-up"),
        trust_domain: format!("{domain}.test"),
        bundle: bundle.into_bytes(),
        roles: RoleIds::defaults(&format!("{domain}.test")),
        contacts: Vec::new(),
        block4: Some(
            format!("10.80.{}.0/22", number * 4)
                .parse()
                .expect("test set-up"),
        ),
        block6: format!("fd00:1:2:3:{number}::/80")
            .parse()
            .expect("test set-up"),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    }
}

impl World {
    pub(crate) fn new(domains: &[&'static str]) -> Self {
        vl3_identity::install_crypto_provider();
        let admin = AdminSecret::from_bytes(&[1; 32]);
        let admin_keys = BTreeSet::from([admin.public()]);
        let nonce = vec![9; 32];
        let mut authorities = BTreeMap::new();
        let mut members = BTreeMap::new();
        for (number, domain) in (1..).zip(domains) {
            let authority =
                Authority::create(&format!("{domain}.test"), clock::wall()).expect("test set-up");
            let member = member(domain, number, authority.bundle_pem());
            members.insert(member.domain.clone(), member);
            authorities.insert(*domain, authority);
        }
        let document = Document {
            uid: NetworkUid::derive(&nonce, &admin_keys),
            nonce,
            version: 1,
            name: NetworkName::new("red").expect("test set-up"),
            zone: "red.vl3".to_owned(),
            pool6: "fd00:1:2:3::/64".parse().expect("test set-up"),
            pool4: Some("10.80.0.0/16".parse().expect("test set-up")),
            admin_keys,
            members,
            policy: Policy::default(),
        };
        let chain = Chain::verify(vec![sign(document, &[&admin])]).expect("test set-up");
        Self {
            admin,
            authorities,
            chain,
            dir: tempfile::tempdir().expect("test set-up"),
        }
    }

    pub(crate) fn uid(&self) -> NetworkUid {
        self.chain.uid()
    }

    /// The next version, with an edit.
    pub(crate) fn edit(&mut self, edit: impl FnOnce(&mut Document)) -> Chain {
        let mut document = Document::clone(self.chain.document());
        document.version += 1;
        edit(&mut document);
        self.chain = self
            .chain
            .extend(sign(document, &[&self.admin]))
            .expect("test set-up");
        self.chain.clone()
    }

    pub(crate) fn source(&self, domain: &str, path: &str) -> Source {
        Source::fixed(
            self.authorities[domain]
                .identity(path, HOUR, clock::wall())
                .expect("test set-up"),
        )
    }

    /// Writes a new certificate with a new key into an identity directory, as `vl3 identity issue`
    /// and a SPIFFE agent do.
    pub(crate) fn issue(&self, domain: &str, path: &str, dir: &Path) -> Identity {
        let issued = self.authorities[domain]
            .issue(path, HOUR, clock::wall())
            .expect("test set-up");
        issued.store(dir).expect("test set-up");
        let identity = Identity::from_pem(
            issued.svid.as_bytes(),
            issued.key.as_bytes(),
            issued.bundle.as_bytes(),
        );
        identity.expect("test set-up")
    }

    /// A registry with its state in memory.
    pub(crate) async fn registry(&self, domain: &'static str) -> Registry {
        let store: Box<dyn Store> = Box::new(Memory::default());
        self.registry_with(domain, store, |_| {}).await
    }

    pub(crate) async fn registry_on_disk(&self, domain: &'static str, file: &Path) -> Registry {
        let store: Box<dyn Store> = Box::new(Redb::open(file).expect("test set-up"));
        self.registry_with(domain, store, |_| {}).await
    }

    /// One of several replicas that share a store; `path` is its identity.
    pub(crate) async fn replica(
        &self,
        domain: &'static str,
        path: &str,
        store: Arc<dyn Shared>,
    ) -> Registry {
        self.replica_with(domain, path, store, |_| {}).await
    }

    pub(crate) async fn replica_with(
        &self,
        domain: &'static str,
        path: &str,
        store: Arc<dyn Shared>,
        edit: impl FnOnce(&mut Config),
    ) -> Registry {
        let source = self.source(domain, path);
        let named = path.rsplit('/').next().expect("test set-up");
        self.registry_named(source, domain, named, store, edit)
            .await
    }

    pub(crate) async fn registry_with(
        &self,
        domain: &'static str,
        store: impl Into<Kept>,
        edit: impl FnOnce(&mut Config),
    ) -> Registry {
        let source = self.source(domain, &format!("vl3/registry/{domain}"));
        self.registry_as(source, domain, store, edit).await
    }

    pub(crate) async fn registry_as(
        &self,
        source: Source,
        domain: &'static str,
        store: impl Into<Kept>,
        edit: impl FnOnce(&mut Config),
    ) -> Registry {
        self.registry_named(source, domain, domain, store, edit)
            .await
    }

    async fn registry_named(
        &self,
        source: Source,
        domain: &'static str,
        name: &str,
        store: impl Into<Kept>,
        edit: impl FnOnce(&mut Config),
    ) -> Registry {
        let common = Common::in_dir("registry", name, &self.dir.path().join(name));
        let ctx = RoleContext::new(common, source);
        let mut config = Config {
            domain: DomainName::new(domain).expect("test set-up"),
            listen: vec!["tcp://127.0.0.1:0".parse().expect("test set-up")],
            advertise: None,
            replicas: Vec::new(),
            networks: vec![NetworkConfig {
                document: "test".into(),
                chain: self.chain.clone(),
            }],
            prefixes: Vec::new(),
            endpoint_lifetime: Duration::from_secs(60),
            lease_lifetime: Duration::from_secs(3600),
            renew_after: Duration::from_secs(60),
            prefix_len4: None,
            stale_grace: Duration::from_secs(600),
            journal_records: 20_000,
            limits: Limits::default(),
            store: StoreConfig::default(),
            restored: false,
        };
        edit(&mut config);
        let (shutdown, metrics) = (ctx.shutdown.clone(), ctx.metrics.clone());
        let running = start(config, ctx.clone(), store)
            .await
            .expect("test set-up");
        let listen = running.addresses[0].clone();
        let prefix_ports = running.prefix_addresses.clone();
        Registry {
            listen,
            prefix_ports,
            metrics,
            ctx,
            shutdown,
            running,
        }
    }

    pub(crate) fn dialer(&self, domain: &str, path: &str) -> Dialer {
        self.dialer_of(self.source(domain, path))
    }

    pub(crate) fn dialer_of(&self, source: Source) -> Dialer {
        let trust = vl3_identity::Trust::new(&source);
        trust
            .set_document(self.chain.document(), clock::wall())
            .expect("test set-up");
        Dialer::new(source, trust)
    }

    pub(crate) async fn dial(
        &self,
        domain: &str,
        path: &str,
        to: &Registry,
    ) -> Result<Connection, DialError> {
        self.dialer(domain, path)
            .dial(&to.listen.dial_url(), Expect::anybody())
            .await
    }

    pub(crate) async fn client(&self, domain: &str, path: &str, to: &Registry) -> Client {
        Client {
            connection: self.dial(domain, path, to).await.expect("test set-up"),
            uid: self.uid(),
        }
    }

    /// As the router of that domain.
    pub(crate) async fn router(&self, domain: &str, to: &Registry) -> Client {
        self.client(domain, &format!("vl3/router/red-{domain}"), to)
            .await
    }

    pub(crate) fn acquire(&self, domain: &str, instance: u8) -> Acquire {
        Acquire {
            router: RouterName::new(&format!("red-{domain}")).expect("test set-up"),
            instance: InstanceId([instance; 16]),
            held: None,
            prefix_len4: None,
            exclusions: Vec::new(),
        }
    }

    /// The endpoint of that domain's router.
    pub(crate) fn endpoint(&self, domain: &str, generation: u64) -> Endpoint {
        let name = format!("red-{domain}");
        let marks = Marks {
            service: "red".to_owned(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid: self.uid(),
            domain: DomainName::new(domain).expect("test set-up"),
            name: name.clone(),
            generation: Generation(generation),
            dials_only: false,
            udp: None,
        };
        Endpoint {
            name,
            services: vec!["red".to_owned()],
            labels: BTreeMap::from([("red".to_owned(), marks.labels())]),
            url: "tcp://192.0.2.1:5010".to_owned(),
            registered: None,
            path_ids: Vec::new(),
        }
    }
}

impl Registry {
    /// As on SIGTERM.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.running.wait().await.expect("test set-up");
    }

    /// Sooner than it may give anything up.
    pub(crate) fn kill(self) {
        self.running.kill();
    }

    /// `host:port`, as a document's contact.
    pub(crate) fn contact(&self) -> String {
        self.listen
            .to_string()
            .trim_start_matches("tcp://")
            .to_owned()
    }
}

/// One identity's view of one registry.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    uid: NetworkUid,
}

pub(crate) type Events = tonic::Streaming<NetworkServiceEndpointResponse>;

impl Client {
    pub(crate) fn new(connection: Connection, uid: NetworkUid) -> Self {
        Self { connection, uid }
    }

    pub(crate) fn endpoints(
        &self,
    ) -> NetworkServiceEndpointRegistryClient<vl3_runtime::grpc::NsmChannel> {
        NetworkServiceEndpointRegistryClient::new(self.connection.nsm())
    }

    pub(crate) async fn register(
        &self,
        endpoint: &Endpoint,
    ) -> Result<NetworkServiceEndpoint, tonic::Status> {
        self.endpoints()
            .register(encode_endpoint(endpoint))
            .await
            .map(tonic::Response::into_inner)
    }

    pub(crate) async fn unregister(&self, endpoint: &Endpoint) -> Result<(), tonic::Status> {
        self.endpoints()
            .unregister(encode_endpoint(endpoint))
            .await
            .map(|_| ())
    }

    pub(crate) async fn find(&self, service: &str) -> Vec<String> {
        let stream = self
            .endpoints()
            .find(query(service, false))
            .await
            .expect("test set-up")
            .into_inner();
        let found = stream.map(|found| {
            found
                .expect("test set-up")
                .network_service_endpoint
                .expect("test set-up")
                .name
        });
        found.collect().await
    }

    pub(crate) async fn watch(&self, service: &str) -> Events {
        self.endpoints()
            .find(query(service, true))
            .await
            .expect("test set-up")
            .into_inner()
    }

    pub(crate) async fn acquire(&self, acquire: &Acquire) -> Result<Granted, tonic::Status> {
        let request = encode_acquire(self.uid, acquire);
        let reply = IpamClient::new(self.connection.plain())
            .acquire(request)
            .await?;
        Ok(decode_granted(reply.get_ref()).expect("test set-up"))
    }

    pub(crate) async fn renew(&self, lease: &Lease) -> Result<Granted, tonic::Status> {
        let reply = IpamClient::new(self.connection.plain())
            .renew(encode_renew(lease))
            .await?;
        Ok(decode_granted(reply.get_ref()).expect("test set-up"))
    }

    pub(crate) async fn publish(&self, chain: &Chain) -> PublishReply {
        let mut client = NetworkClient::new(self.connection.plain());
        client
            .publish(encode_chain(chain))
            .await
            .expect("test set-up")
            .into_inner()
    }
}

pub(crate) fn query(service: &str, watch: bool) -> NetworkServiceEndpointQuery {
    let network_service_names = if service.is_empty() {
        Vec::new()
    } else {
        vec![service.to_owned()]
    };
    let endpoint = NetworkServiceEndpoint {
        network_service_names,
        ..Default::default()
    };
    NetworkServiceEndpointQuery {
        network_service_endpoint: Some(endpoint),
        watch,
    }
}

/// The next event: name and whether it is gone.
pub(crate) async fn event(events: &mut Events) -> (String, bool) {
    let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    let event = event
        .expect("an event within 20 s")
        .expect("test set-up")
        .expect("test set-up");
    (
        event.network_service_endpoint.expect("test set-up").name,
        event.deleted,
    )
}

/// Waits for a level.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    for _ in 0..200 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within 20 s: {what}");
}
