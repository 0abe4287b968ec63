//! What goes into the router's machine and what comes out of it. No protobuf, no descriptor:
//! the shell translates.

use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::allocator::Lease;
use crate::document::Document;
use crate::forward::{PortClass, PortId, Route};
use crate::ids::{
    DomainName, Generation, InstanceId, InvalidName, NetworkUid, PublicKey, RouterName, SpiffeId,
    WorkloadName,
};
use crate::machine::Ticket;
use crate::router::call::{Answer, Refusal, Request};
use crate::router::state::Record;
use crate::time::Mono;

/// Names a call that waits for an answer; chosen by the shell, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Names one routes stream, opened by either side; chosen by the shell, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Names one client of `fd.sock`; chosen by the shell, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdSession(pub u64);

/// Names one NSM connection that this router opens as a client; chosen by the machine, never
/// reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// An NSM connection's id in this router's own path segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(String);

impl ConnectionId {
    pub fn new(value: &str) -> Result<Self, InvalidName> {
        if (1..=256).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(value.to_owned()))
        } else {
            let value = value.chars().take(64).collect();
            Err(InvalidName {
                what: "connection id",
                value,
                allowed: "1 to 256 printable ASCII characters",
            })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A router of the network, wherever it is. Ordered by name first: the lower one dials.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId {
    pub name: RouterName,
    pub domain: DomainName,
}

impl fmt::Debug for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.domain)
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.domain)
    }
}

/// A WireGuard peer's place, with the local address at which it reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub remote: SocketAddr,
    pub local: Option<IpAddr>,
}

/// What one side says about itself in its first message of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version_min: u32,
    pub version_max: u32,
    pub uid: NetworkUid,
    pub domain: DomainName,
    /// Router name or workload name.
    pub name: String,
    pub instance: InstanceId,
    /// Of the speaker's lease; 0 for a workload.
    pub generation: Generation,
    pub dials_only: bool,
    pub role: HelloRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HelloRole {
    Router,
    Workload,
}

/// The protocol versions that this code speaks (Hello, routes stream).
pub const VERSION: u32 = 1;

/// One router as the registry shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    pub router: RouterId,
    pub uid: NetworkUid,
    pub generation: Generation,
    pub dials_only: bool,
    /// Of its gRPC server.
    pub address: SocketAddr,
}

/// The registry's watch. Every (re-)opening starts a new epoch; what it does not show again
/// within a grace is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Opened,
    Found(Discovered),
    Gone(RouterId),
    /// Everybody whom the registry knew when it was asked has been found by now.
    Complete,
    /// The stream ended: until it is open again nobody is gone by not being shown.
    Lost,
}

/// A Request that this router sends, first or refresh, over the connection named `dial`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    pub dial: DialId,
    pub router: RouterId,
    pub address: SocketAddr,
    /// The document's word on who must answer: an ID that is a router of this domain.
    pub trust_domain: String,
    pub hello: Hello,
    pub public_key: PublicKey,
    /// Our own UDP port, for the mechanism's `src_port`.
    pub udp_port: u16,
    pub mtu: u16,
    /// Our overlay addresses and prefixes, for the contexts of the Request.
    pub addresses: Vec<IpNet>,
    /// False: first Request of this `dial`. True: refresh with the path last returned.
    pub refresh: bool,
}

/// The answer to a [`Dial`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialAnswer {
    /// SPIFFE ID of the TLS server.
    pub peer: SpiffeId,
    pub hello: Hello,
    pub public_key: PublicKey,
    pub endpoint: Endpoint,
    pub mtu: u16,
    /// Until the first token of the answered path ends.
    pub expires_in: Duration,
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// No answer: try again.
    #[error("{0}")]
    Unreachable(String),
    /// An answer that says no: try again, slowly.
    #[error("{0}")]
    Refused(String),
}

/// What the monitor of a dialled connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialEvent {
    /// The stream is open and has shown the connection.
    Up,
    /// The stream broke, or says DOWN.
    Down,
    /// The other side has closed the connection.
    Deleted,
    /// Send the Request again now.
    RefreshRequested,
}

/// First message of a routes stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutesOpen {
    pub uid: NetworkUid,
    pub router: RouterId,
    pub instance: InstanceId,
    pub generation: Generation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutesMessage {
    Announce {
        sequence: u64,
        prefix: IpNet,
        preference: u32,
        mtu: u16,
    },
    Withdraw {
        sequence: u64,
        prefix: IpNet,
    },
    End {
        sequence: u64,
    },
    KeepAlive {
        sequence: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutesEvent {
    /// Both opens are exchanged. `dialled`: this side opened the stream.
    Started {
        peer: SpiffeId,
        open: RoutesOpen,
        dialled: bool,
    },
    Message(RoutesMessage),
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FdEvent {
    /// A descriptor came with this ticket; the shell holds it until told.
    Attach { secret: [u8; 16] },
    /// The router's copy of the descriptor is asked for.
    Reattach { secret: [u8; 16] },
    /// The client's end of the socket is closed.
    Closed,
}

/// What a `fd.sock` request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdGrant {
    Attached,
    /// Pass the descriptor of this port.
    Reattached {
        port: PortId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAnswer {
    pub lease: Lease,
    pub renew_after: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseFailure {
    /// A higher generation or another instance holds the name.
    #[error("fenced: {0}")]
    Fenced(String),
    /// Refused for another reason (block full, exclusions): try again slowly.
    #[error("refused: {0}")]
    Refused(String),
    #[error("unreachable: {0}")]
    Unreachable(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameAnswer {
    Granted,
    Held {
        by: String,
    },
    /// The registry gave no verdict: try again.
    Unreachable,
}

/// One port as the data plane sees it, in the machine's own monotonic time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSample {
    pub port: PortId,
    /// The last authentic packet of any kind.
    pub last_receive: Option<Mono>,
    /// The last data packet sent, keepalives not counted.
    pub last_send: Option<Mono>,
    /// Peers only: where packets to it go.
    pub endpoint: Option<Endpoint>,
    /// Its descriptor ended by itself.
    pub failed: bool,
}

/// What the router asks the data plane to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    pub port: PortId,
    pub class: PortClass,
    pub public_key: PublicKey,
    /// Unset: learnt from the first authentic handshake.
    pub endpoint: Option<Endpoint>,
    pub persistent_keepalive: Option<u16>,
    /// Start a handshake at once.
    pub initiate: bool,
}

/// What the router wants registered, kept up by the shell (refresh, retry) until changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub router: RouterId,
    pub uid: NetworkUid,
    pub generation: Generation,
    pub dials_only: bool,
}

/// What the DNS server of this router needs; replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolverView {
    pub names: BTreeMap<WorkloadName, Vec<IpAddr>>,
    pub servers: Vec<DomainServer>,
    pub clients: Vec<(IpNet, ClientClass)>,
    pub own_addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainServer {
    pub domain: DomainName,
    pub router: Option<RouterName>,
    /// Overlay addresses; empty = the domain is known, nobody is live.
    pub addresses: Vec<IpAddr>,
    pub sibling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientClass {
    Member,
    Sibling,
    Remote,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// Once, first: re-installs what is stored, starts the timers.
    Start,
    /// A verified document and its bytes as received. Ignored unless newer.
    Document {
        document: Box<Document>,
        bytes: Vec<u8>,
    },
    Request {
        call: CallId,
        request: Box<Request>,
    },
    Close {
        call: CallId,
        connection: ConnectionId,
        peer: SpiffeId,
    },
    Watch(WatchEvent),
    Dialled {
        ticket: Ticket,
        result: Result<Box<DialAnswer>, DialFailure>,
    },
    Dial {
        dial: DialId,
        event: DialEvent,
    },
    Routes {
        stream: StreamId,
        event: RoutesEvent,
    },
    /// A stream asked for by [`Effect::OpenRoutes`] did not come about.
    RoutesFailed {
        dial: DialId,
        reason: String,
    },
    Fd {
        session: FdSession,
        event: FdEvent,
    },
    Installed {
        ticket: Ticket,
        result: Result<(), String>,
    },
    Appended {
        ticket: Ticket,
        result: Result<(), String>,
    },
    Lease {
        ticket: Ticket,
        result: Result<LeaseAnswer, LeaseFailure>,
    },
    Name {
        ticket: Ticket,
        answer: NameAnswer,
    },
    /// The answer to [`Effect::ReadPorts`].
    Ports(Vec<PortSample>),
    EndpointLearned {
        port: PortId,
        endpoint: Endpoint,
    },
    /// A descriptor ended by itself.
    PortFailed {
        port: PortId,
    },
    /// An operator takes this router out for good: gives back names, lease, registration.
    Leave {
        call: CallId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make these durable, in order; answered by `Appended`. At most one is outstanding.
    Append {
        ticket: Ticket,
        records: Vec<Record>,
    },
    /// Answered by `Installed`.
    SetPeer {
        ticket: Ticket,
        peer: PeerSpec,
    },
    /// The descriptor that `session` brought becomes this port. Answered by `Installed`.
    SetTun {
        ticket: Ticket,
        session: FdSession,
        port: PortId,
        class: PortClass,
        mtu: u16,
    },
    RemovePort {
        port: PortId,
    },
    /// The whole table, swapped at once.
    SetRoutes {
        routes: Vec<Route>,
    },
    /// The own addresses changed (they belong on the own port). Answered by `Installed`; at
    /// most one is outstanding.
    SetOwnAddresses {
        ticket: Ticket,
        addresses: Vec<IpNet>,
        mtu: u16,
    },
    Answer {
        call: CallId,
        result: Result<Answer, Refusal>,
    },
    /// A served connection ended other than by its owner's Close: monitors say DELETE.
    ConnectionClosed {
        connection: ConnectionId,
        reason: &'static str,
    },
    /// Answered by `Dialled`.
    Dial {
        ticket: Ticket,
        dial: Box<Dial>,
    },
    /// Close the connection towards the other router; no answer.
    CloseDial {
        dial: DialId,
    },
    /// Open the routes stream of a dialled link; answered by `Routes::Started` or `RoutesFailed`.
    OpenRoutes {
        dial: DialId,
        open: RoutesOpen,
    },
    SendRoutes {
        stream: StreamId,
        messages: Vec<RoutesMessage>,
    },
    CloseRoutes {
        stream: StreamId,
        reason: &'static str,
    },
    AnswerFd {
        session: FdSession,
        result: Result<FdGrant, String>,
    },
    /// Answered by `Lease`.
    AcquireLease {
        ticket: Ticket,
        held: Option<Lease>,
        prefix_len4: u8,
        exclusions: Vec<IpNet>,
    },
    RenewLease {
        ticket: Ticket,
        lease: Lease,
    },
    /// No answer is awaited.
    ReleaseLease {
        lease: Lease,
    },
    /// Answered by `Name`.
    ClaimName {
        ticket: Ticket,
        name: WorkloadName,
        workload: SpiffeId,
        addresses: Vec<IpAddr>,
    },
    /// No answer is awaited; the claim's own life ends it otherwise.
    ReleaseName {
        name: WorkloadName,
        workload: SpiffeId,
    },
    /// Keep this registered, from now on.
    Register {
        registration: Registration,
    },
    /// Keep it registered no longer, and take it away.
    Unregister,
    /// Keep it registered no longer; what stands there is a newer life's.
    CedeRegistration,
    /// One echo request inside the tunnel.
    Probe {
        port: PortId,
        source: IpAddr,
        destination: IpAddr,
    },
    /// Answered by `Ports`.
    ReadPorts,
    Publish {
        view: Box<ResolverView>,
    },
}
