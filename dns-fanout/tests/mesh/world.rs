//! Many domains, each with a server of its own beside a stand-in router, that ask each other over
//! real sockets on loopback.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid};
use vl3_identity::Source;
use vl3_identity::authority::Authority;
use vl3_proto::document::{encode_chain, sign};
use vl3_proto::vl3::router::v1::{
    ClientClass, ClientRange, DomainServer, LocalName, ResolverState,
};
use vl3_runtime::{Common, RoleContext, clock};

pub(crate) use crate::levels::eventually_true;
use crate::router::{Router, listeners};

const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(5);
const ZONE: &str = "red.test";
/// Domains that the addresses below have room for.
const DOMAINS_MAX: usize = 200;
/// Descriptors per pair of domains: one server asks another one by so many sockets.
const SOCKETS: usize = 2;

/// One domain: its server, its router, and a workload that asks.
pub(crate) struct Node {
    pub(crate) name: String,
    number: usize,
    state: watch::Sender<ResolverState>,
    pub(crate) ctx: RoleContext,
    pub(crate) server: JoinHandle<anyhow::Result<()>>,
    address: SocketAddr,
    _router: Router,
}

pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
    _dir: TempDir,
}

/// Asks one server from one socket, one question at a time.
pub(crate) struct Client(UdpSocket);

impl Mesh {
    /// So many domains, each with so many workloads `w<domain>-<number>`, up and answering.
    pub(crate) async fn start(domains: usize, workloads: usize) -> Self {
        assert!(domains <= DOMAINS_MAX && workloads <= 900, "no addresses");
        let needed = domains * domains * SOCKETS + domains * 40;
        let allowed = open_files_max();
        assert!(
            allowed >= needed,
            "{needed} open files are needed, {allowed} allowed: run `ulimit -n {needed}` first"
        );
        vl3_identity::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let authorities: Vec<Authority> = (0..domains)
            .map(|number| Authority::create(&trust_domain(number), clock::wall()).unwrap())
            .collect();
        let chain = chain(&authorities);
        // Free on the first address a moment ago, and nobody else uses the others.
        let first = listeners(SocketAddr::new(own(0), 0)).unwrap().0;
        let mut nodes = Vec::new();
        for (number, authority) in authorities.iter().enumerate() {
            let address = SocketAddr::new(own(number), first.port());
            let state = state(&chain, number, domains, workloads);
            let dir = dir.path().join(domain(number));
            nodes.push(Node::start(number, authority, &chain, state, address, &dir).await);
        }
        for node in &nodes {
            let own = format!("w{}-0.{ZONE}.", node.number);
            let client = node.client().await;
            eventually_true("the server answers", || async {
                let reply = client.try_ask(&own, RecordType::A).await;
                reply.is_some_and(|reply| found(&reply).is_some())
            })
            .await;
        }
        Self { nodes, _dir: dir }
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.nodes[number % self.nodes.len()]
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ctx.shutdown.cancel();
        self.server.abort();
    }
}

impl Node {
    async fn start(
        number: usize,
        authority: &Authority,
        chain: &Chain,
        mut state: ResolverState,
        address: SocketAddr,
        dir: &Path,
    ) -> Self {
        let identity = |role: &str| {
            let path = format!("vl3/{role}/red-{}", domain(number));
            Source::fixed(authority.identity(&path, DAY, clock::wall()).unwrap())
        };
        let ticket = vec![7; 16];
        state.fd_ticket.clone_from(&ticket);
        let state = watch::Sender::new(state);
        let run_dir = dir.join("router");
        let states = state.subscribe();
        let router = Router::start(
            &run_dir,
            identity("router"),
            states,
            address,
            ticket.clone(),
        )
        .await;
        let ctx = RoleContext::new(
            Common::in_dir("dns", &domain(number), &dir.join("dns")),
            identity("dns"),
        );
        let config = dns_fanout::Config {
            router: Some(run_dir),
            uid: Some(chain.uid()),
            clients: Vec::new(),
            upstream_port: address.port(),
            upstream_sockets: SOCKETS,
            queries_per_second_max: 0,
            in_flight_max: 0,
            ..dns_fanout::Config::standalone(Vec::new(), Vec::new())
        };
        let server = tokio::spawn(dns_fanout::run(config, ctx.clone(), None));
        Self {
            name: domain(number),
            number,
            state,
            ctx,
            server,
            address,
            _router: router,
        }
    }

    /// A workload of this domain.
    pub(crate) async fn client(&self) -> Client {
        let source = Ipv4Addr::new(127, 12, octet(self.number), 1);
        let socket = UdpSocket::bind((source, 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        Client(socket)
    }

    /// The router says that a workload came: its name and address.
    pub(crate) fn attach(&self, label: &str) -> String {
        let address = workload_address(self.number, 950);
        let name = LocalName {
            name: label.to_owned(),
            addresses: vec![address.clone()],
        };
        self.change(|state| state.names.push(name));
        address
    }

    /// The router says that it went.
    pub(crate) fn close(&self, label: &str) {
        self.change(|state| state.names.retain(|name| name.name != label));
    }

    fn change(&self, change: impl FnOnce(&mut ResolverState)) {
        self.state.send_modify(|state| {
            state.sequence += 1;
            change(state);
        });
    }

    /// Questions that this server asked others for its clients: without those that were sent again
    /// because a reply was overdue, and without looks at their health.
    pub(crate) fn queries(&self) -> i64 {
        let text = self.ctx.metrics.encode();
        let sum = |prefix: &str| -> i64 {
            let values = text.lines().filter_map(|line| line.strip_prefix(prefix));
            values
                .filter_map(|rest| rest.rsplit(' ').next()?.parse::<i64>().ok())
                .sum()
        };
        sum("vl3_dns_queries_total{")
            - sum("vl3_dns_repeated_total ")
            - sum("vl3_dns_probes_total ")
    }
}

impl Client {
    pub(crate) async fn ask(&self, name: &str, rtype: RecordType) -> Message {
        self.try_ask(name, rtype).await.expect("an answer in time")
    }

    async fn try_ask(&self, name: &str, rtype: RecordType) -> Option<Message> {
        let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
        // Err: nobody listens yet, said of an earlier datagram.
        self.0.send(&message.to_vec().unwrap()).await.ok()?;
        let mut buffer = [0; 2048];
        loop {
            let received = tokio::time::timeout(PATIENCE, self.0.recv(&mut buffer)).await;
            let length = received.ok()?.ok()?;
            let reply = Message::from_vec(&buffer[..length]).unwrap();
            if reply.metadata.id == message.metadata.id {
                return Some(reply);
            }
        }
    }
}

/// Addresses of an answer; `None` when there are none.
pub(crate) fn found(reply: &Message) -> Option<Vec<String>> {
    let addresses: Vec<String> = reply
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .map(|address| address.to_string())
        .collect();
    (!addresses.is_empty()).then_some(addresses)
}

/// `<label>.<domain>.<zone>`.
pub(crate) fn canonical(label: &str, domain: &str) -> String {
    format!("{label}.{domain}.{ZONE}.")
}

/// `<label>.<zone>`.
pub(crate) fn shared(label: &str) -> String {
    format!("{label}.{ZONE}.")
}

pub(crate) fn domain(number: usize) -> String {
    format!("d{number:03}")
}

/// Of the workload with that number.
pub(crate) fn workload_address(domain: usize, number: usize) -> String {
    let block = u8::try_from(domain % 64 * 4).unwrap();
    let (third, fourth) = ((number + 10) / 250, (number + 10) % 250);
    let second = 16 + u8::try_from(domain / 64).unwrap();
    format!(
        "172.{second}.{}.{}",
        block + u8::try_from(third).unwrap(),
        fourth + 1
    )
}

fn trust_domain(number: usize) -> String {
    format!("{}.test", domain(number))
}

fn octet(number: usize) -> u8 {
    u8::try_from(number + 1).unwrap()
}

/// Where the router's own address would be: listeners and sockets of the server are bound here.
fn own(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 11, 0, octet(number)))
}

/// Of this process.
fn open_files_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(usize::MAX)
}

fn chain(authorities: &[Authority]) -> Chain {
    let secret = AdminSecret::from_bytes(&[9; 32]);
    let admin_keys = BTreeSet::from([secret.public()]);
    let nonce = vec![3; 16];
    let members = authorities.iter().enumerate().map(|(number, authority)| {
        let first: Ipv4Addr = workload_address(number, 0).parse().unwrap();
        let [a, b, c, _] = first.octets();
        Member {
            domain: DomainName::new(&domain(number)).unwrap(),
            bundle: authority.bundle_pem().into_bytes(),
            roles: RoleIds::defaults(&trust_domain(number)),
            trust_domain: trust_domain(number),
            contacts: vec!["198.51.100.1:5002".to_owned()],
            block4: Some(format!("{a}.{b}.{c}.0/22").parse().unwrap()),
            block6: format!("fd77:0:0:0:{:x}::/80", number + 1).parse().unwrap(),
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
        zone: ZONE.to_owned(),
        pool6: "fd77::/64".parse().unwrap(),
        pool4: Some("172.16.0.0/12".parse().unwrap()),
        admin_keys,
        members: members
            .map(|member| (member.domain.clone(), member))
            .collect(),
        policy: Policy::default(),
    };
    Chain::verify(vec![sign(document, &[&secret])]).unwrap()
}

fn state(chain: &Chain, number: usize, domains: usize, workloads: usize) -> ResolverState {
    let others = (0..domains).filter(|other| *other != number);
    let client = |prefix: String, class: ClientClass| ClientRange {
        prefix,
        class: class.into(),
    };
    ResolverState {
        sequence: 1,
        document: Some(encode_chain(chain)),
        domain: domain(number),
        names: (0..workloads)
            .map(|workload| LocalName {
                name: format!("w{number}-{workload}"),
                addresses: vec![workload_address(number, workload)],
            })
            .collect(),
        servers: others
            .map(|other| DomainServer {
                domain: domain(other),
                router: format!("red-{}", domain(other)),
                addresses: vec![own(other).to_string()],
                sibling: false,
            })
            .collect(),
        clients: vec![
            client(
                format!("127.12.{}.0/24", octet(number)),
                ClientClass::Member,
            ),
            client("127.11.0.0/16".to_owned(), ClientClass::Remote),
        ],
        own_addresses: vec![own(number).to_string()],
        fd_ticket: Vec::new(),
    }
}
