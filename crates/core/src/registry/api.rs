//! What goes into a registry's machine and what comes out.

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::matching::{EndpointQuery, ServiceQuery};
use super::object::{Endpoint, Service};
use super::record::{Claim, Record};
use super::shown::Shown;
use super::stock::StockAcquire;
use crate::allocator::{self, Acquire, Granted, Lease};
use crate::document::Chain;
use crate::federation::{self, StreamId, SyncMessage};
use crate::ids::{DomainName, NetworkUid, RouterName, SpiffeId, WorkloadName};
use crate::machine::Ticket;
use crate::time::Wall;

/// Chosen by the shell, answered once by [`Effect::Reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Chosen by the shell; lives until [`Input::Unwatch`] or [`Effect::EndWatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatcherId(pub u64);

/// Who calls: the TLS peer, why it is trusted, and what the call's path claims (which counts
/// only behind a listed intermediary).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: SpiffeId,
    /// The networks whose documents vouch for the certificate. An identity of another trust
    /// domain counts in these alone.
    pub vouched: BTreeSet<NetworkUid>,
    /// Who called it, and so on back, by the tokens of the call's path: the nearest first. Each
    /// is known by the word of the one before it, who alone could verify the token.
    pub claimed: Vec<SpiffeId>,
}

impl Peer {
    /// An identity of the own trust domain.
    pub const fn own(id: SpiffeId) -> Self {
        Self {
            id,
            vouched: BTreeSet::new(),
            claimed: Vec::new(),
        }
    }

    /// An identity for which these networks' documents vouch.
    pub const fn vouched(id: SpiffeId, vouched: BTreeSet<NetworkUid>) -> Self {
        Self {
            id,
            vouched,
            claimed: Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Input {
    Call {
        call: CallId,
        peer: Peer,
        command: Command,
    },
    Watch {
        watcher: WatcherId,
        peer: Peer,
        query: Query,
    },
    /// The watcher took what was delivered, and there is a rest of its snapshot.
    WatchRest {
        watcher: WatcherId,
    },
    Unwatch {
        watcher: WatcherId,
    },
    /// The append of that ticket is on disk.
    Appended {
        ticket: Ticket,
    },
    AppendFailed {
        ticket: Ticket,
        reason: String,
    },
    /// A sync stream stands: dialled by us (the stream of [`Effect::Dial`]) or accepted.
    SyncOpened {
        stream: StreamId,
        peer: Peer,
    },
    SyncReceived {
        stream: StreamId,
        message: SyncMessage,
    },
    /// Ended, broke, or could not be dialled.
    SyncClosed {
        stream: StreamId,
        reason: String,
    },
    /// What the active replica wrote, in the order of the store.
    Followed {
        records: Vec<Record>,
    },
    /// The whole content of the store: the first one, or after a gap.
    Reload {
        records: Vec<Record>,
    },
    /// This replica is the active one from now on; the whole content of the store, which
    /// nobody else changes any more.
    Promoted {
        records: Vec<Record>,
    },
    /// The store does not say any more that this replica is the active one, and another one may
    /// be: nothing is accepted and nothing ends until [`Input::Confirmed`].
    Unconfirmed,
    /// The store says so again, for the same promotion. Nothing where it never ceased to.
    Confirmed,
    /// This replica is no longer the active one. The machine is of no use afterwards.
    Deposed {
        reason: String,
    },
}

#[derive(Clone, Debug)]
pub enum Command {
    Acquire {
        uid: NetworkUid,
        acquire: Acquire,
    },
    /// A stock router's, by `ManagePrefixes`.
    AcquireStock {
        uid: NetworkUid,
        stock: StockAcquire,
    },
    Renew {
        lease: Lease,
    },
    Release {
        lease: Lease,
    },
    /// An operator ends a lease.
    EndLease {
        uid: NetworkUid,
        router: RouterName,
    },
    /// An operator excludes a range, or takes that back.
    Exclude {
        uid: NetworkUid,
        range: ipnet::IpNet,
        excluded: bool,
    },
    RegisterService {
        service: Service,
    },
    UnregisterService {
        name: String,
    },
    /// `lifetime`: what the caller asks for and its token allows; None = the default.
    RegisterEndpoint {
        endpoint: Endpoint,
        lifetime: Option<Duration>,
    },
    UnregisterEndpoint {
        name: String,
    },
    FindServices {
        query: ServiceQuery,
    },
    /// One page; `after`: the place where the one before ended.
    FindEndpoints {
        query: EndpointQuery,
        after: Option<Place>,
    },
    ClaimName {
        uid: NetworkUid,
        claim: Claim,
    },
    ReleaseName {
        uid: NetworkUid,
        name: WorkloadName,
        workload: SpiffeId,
    },
    Publish {
        chain: Chain,
    },
}

impl Command {
    /// Whether a replica that follows can answer it.
    pub(super) const fn only_reads(&self) -> bool {
        matches!(self, Self::FindServices { .. } | Self::FindEndpoints { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    Services(ServiceQuery),
    Endpoints(EndpointQuery),
    /// The document of one network, and every newer version.
    Document(NetworkUid),
}

/// The answer to a command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Lease(Granted),
    /// Beside the lease what must not be used: asked for, or the network's.
    Stock {
        granted: Granted,
        exclusions: Vec<ipnet::IpNet>,
        /// Nobody had that lease before.
        is_new: bool,
    },
    Done,
    Service(Service),
    Endpoint(FoundEndpoint),
    Services(Vec<Service>),
    Endpoints(Page),
    /// None: granted; else who holds the name.
    Name {
        held_by: Option<SpiffeId>,
    },
    Published {
        version: u64,
        accepted: bool,
        reason: String,
    },
}

/// An endpoint as a Find shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundEndpoint {
    pub shown: Shown,
    pub expires: Wall,
}

/// A bounded part of what a Find shows. Each page is of its own moment: what changes between
/// two of them is seen as it is when its page is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub found: Vec<FoundEndpoint>,
    /// Where the rest begins; a page may show nothing and have one.
    pub next: Option<Place>,
}

/// A place in the order of everything that can be found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Own(Arc<str>),
    Remote(Arc<DomainName>, Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Service { service: Service, deleted: bool },
    Endpoint { found: FoundEndpoint, deleted: bool },
    Document(Chain),
}

impl WatchEvent {
    /// Bytes that it may keep in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Service { service, .. } => service.size(),
            Self::Endpoint { found, .. } => found.shown.bytes(),
            // Every copy of a chain shares its bytes with the store.
            Self::Document(_) => 0,
        }
    }
}

/// Why a call was refused. Sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{field}: {value:?} is not allowed, {allowed}")]
    Invalid {
        field: &'static str,
        value: String,
        allowed: String,
    },
    #[error("{what} is not allowed for {peer}: {reason}")]
    Denied {
        what: &'static str,
        peer: SpiffeId,
        reason: String,
    },
    #[error("uid: network {uid} is not served here")]
    UnknownNetwork { uid: NetworkUid },
    #[error(transparent)]
    Lease(#[from] allocator::Refusal),
    #[error("{what}: at most {limit} are allowed")]
    Limit { what: &'static str, limit: usize },
    #[error("try again later: {reason}")]
    Unavailable { reason: String },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep these durably, all or none: journal records in this order, objects by their key;
    /// then [`Input::Appended`].
    Append {
        ticket: Ticket,
        records: Vec<Record>,
    },
    /// As [`Effect::Append`], and in the same step `journal` takes the place of every journal
    /// record, those of `records` included. Objects are not concerned.
    Rewrite {
        ticket: Ticket,
        records: Vec<Record>,
        journal: Vec<Record>,
    },
    Reply {
        call: CallId,
        result: Result<Reply, Refusal>,
    },
    /// In order. The shell buffers a bounded number per watcher and cuts one that is slower.
    Deliver {
        watcher: WatcherId,
        events: Vec<WatchEvent>,
        /// The snapshot has more: [`Input::WatchRest`] once the watcher took this.
        rest: bool,
    },
    EndWatch {
        watcher: WatcherId,
        refusal: Refusal,
    },
    /// Open a sync stream to the first contact that answers; the peer must be the registry
    /// of that domain.
    Dial {
        stream: StreamId,
        domain: DomainName,
        contacts: Vec<String>,
    },
    Send {
        stream: StreamId,
        messages: Vec<SyncMessage>,
    },
    CloseStream {
        stream: StreamId,
        reason: String,
    },
    /// The newest document of a network changed: trust bundles, files, contacts.
    DocumentChanged {
        chain: Chain,
    },
    /// Something an operator must see.
    Alarm(Alarm),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    #[error(
        "network {uid}: version {version} of the document exists with two contents, the other came from {from}"
    )]
    DocumentConflict {
        uid: NetworkUid,
        version: u64,
        from: String,
    },
    #[error(
        "network {uid}: the new document excludes {exclusion}, which overlaps {range} leased to {router}; the lease stays"
    )]
    ExclusionOverLease {
        uid: NetworkUid,
        exclusion: ipnet::IpNet,
        range: ipnet::IpNet,
        router: RouterName,
    },
    /// Told once, as long as it is so.
    #[error(
        "networks {counts} and {ignored} contradict each other: {what}; only {counts}, which the configuration names first, is believed"
    )]
    Contradiction {
        counts: NetworkUid,
        ignored: NetworkUid,
        what: String,
    },
    #[error("domain {domain}: {name} is not believed: {reason}")]
    NotBelieved {
        domain: DomainName,
        name: String,
        reason: String,
    },
    /// Told once, until a whole snapshot of the domain fits again.
    #[error("domain {domain}: at most {limit} {what} are kept, others are not taken")]
    DomainLimited {
        domain: DomainName,
        what: &'static str,
        limit: usize,
    },
    #[error("domain {domain}: at most {limit} changes per second are taken, its stream ends")]
    DomainTooFast { domain: DomainName, limit: u32 },
    #[error("the journal failed, nothing more is promised: {reason}")]
    JournalFailed { reason: String },
}

/// Limits and durations.
#[derive(Clone, Debug)]
pub struct Config {
    /// The own domain.
    pub domain: DomainName,
    /// The registry's own identity; its trust domain is the domain's.
    pub identity: SpiffeId,
    /// Randomness of this start: says to other registries that a new snapshot begins.
    pub epoch: [u8; 16],
    /// Seed for jitter.
    pub seed: u64,
    pub allocator: allocator::Config,
    pub federation: federation::Config,
    /// Lifetime of an endpoint that asks for none, and the longest (nsm-wire 4.3).
    pub endpoint_lifetime: Duration,
    /// How long a name is held after a claim. Claims are no records when they change nothing.
    pub name_lifetime: Duration,
    pub endpoints_max: usize,
    pub services_max: usize,
    /// Endpoints, and services, of one owner: nobody takes all the room. An intermediary that
    /// the document lists registers for others and does not own what it brings.
    pub per_owner_max: usize,
    /// An endpoint, a service or the query of a watch.
    pub object_bytes_max: usize,
    pub names_max: usize,
    pub watchers_max: usize,
    /// Watches of one identity, or of one other trust domain: nobody takes all the room. All
    /// others together have three quarters of `watchers_max`.
    pub watchers_per_identity_max: usize,
    /// Endpoints on one page of a Find, or of a watch's snapshot.
    pub page_found_max: usize,
    /// Bytes of them, one endpoint aside.
    pub page_bytes_max: usize,
    /// Endpoints looked at for one page.
    pub page_looked_at_max: usize,
    /// Replies that wait for the disk; beyond that calls are refused at once.
    pub held_max: usize,
    /// Events and sync messages that wait for the disk; beyond that likewise.
    pub held_messages_max: usize,
    /// What records that wait for the disk may cost in memory; beyond half of it streams of
    /// other domains end, and open again when there is room.
    pub pending_bytes_max: usize,
    /// Journal records after which the journal is rewritten as a snapshot. Objects do not count.
    pub rewrite_after: usize,
}

impl Config {
    pub fn new(domain: DomainName, identity: SpiffeId, epoch: [u8; 16], seed: u64) -> Self {
        Self {
            domain,
            identity,
            epoch,
            seed,
            allocator: allocator::Config::default(),
            federation: federation::Config::default(),
            endpoint_lifetime: Duration::from_secs(60),
            name_lifetime: Duration::from_secs(180),
            endpoints_max: 16_384,
            services_max: 4096,
            per_owner_max: 1024,
            object_bytes_max: 16 * 1024,
            names_max: 65_536,
            watchers_max: 16_384,
            watchers_per_identity_max: 4096,
            page_found_max: 256,
            page_bytes_max: 256 * 1024,
            page_looked_at_max: 4096,
            held_max: 16_384,
            held_messages_max: 1_048_576,
            pending_bytes_max: 128 * 1024 * 1024,
            rewrite_after: 20_000,
        }
    }
}
