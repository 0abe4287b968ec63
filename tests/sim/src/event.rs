//! What can happen at one moment of virtual time.

use core::fmt;
use std::net::{IpAddr, SocketAddr};

use vl3_core::federation::{StreamId as SyncStream, SyncMessage};
use vl3_core::ids::PublicKey;
use vl3_core::machine::Ticket;
use vl3_core::names::{Question, Reply};
use vl3_core::registry::{self, Command, Query};
use vl3_core::router::{
    self, ConnectionId, DialEvent, DialId, FdSession, RoutesMessage, RoutesOpen,
};

/// One process. The number is that of the process, not of its role: two instances of one
/// router name are two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Registry(usize),
    Router(usize),
    /// The DNS server beside that router.
    Dns(usize),
    Workload(usize),
    /// A person with the command line, at a domain.
    Operator(usize),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(index) => write!(f, "registry-{index}"),
            Self::Router(index) => write!(f, "router-{index}"),
            Self::Dns(index) => write!(f, "dns-{index}"),
            Self::Workload(index) => write!(f, "workload-{index}"),
            Self::Operator(index) => write!(f, "operator-{index}"),
        }
    }
}

/// A process between two crashes: what was meant for an earlier life reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    pub node: Node,
    pub count: u32,
}

#[derive(Clone, Debug)]
pub enum Event {
    Packet {
        to: Node,
        wire: Wire,
        packet: Packet,
    },
    CallArrives {
        call: u64,
        from: Life,
        to: Node,
        body: CallBody,
    },
    Replied {
        call: u64,
        body: ReplyBody,
    },
    PipeOpens {
        pipe: u64,
    },
    PipeReady {
        pipe: u64,
        answer: Option<RoutesOpen>,
    },
    PipeFails {
        pipe: u64,
    },
    PipeData {
        pipe: u64,
        side: usize,
        body: PipeBody,
    },
    PipeCloses {
        pipe: u64,
        side: usize,
    },
    /// The oldest append of this disk is done.
    /// A watcher took a page of its snapshot.
    WatchRest {
        to: Life,
        watcher: registry::WatcherId,
    },
    Synced {
        to: Life,
        ticket: Ticket,
    },
    /// Something that happens inside one router's process.
    Local {
        to: Life,
        input: Box<router::Input>,
    },
    Chore {
        to: Life,
        chore: Chore,
    },
    /// A name server gives up one query.
    QueryEnds {
        to: Life,
        id: u64,
    },
    Direct(Direction),
}

/// What shells do by themselves, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chore {
    OpenWatch {
        document: bool,
    },
    Register,
    OpenMonitor {
        dial: DialId,
    },
    /// A workload's next step: attach, refresh, keep alive.
    Live,
    KeepAlive,
}

/// What the director of the run does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    StormBegins,
    StormEnds,
    Strike,
    Heal {
        a: usize,
        b: usize,
    },
    Start(Node),
    LateJoin,
    Traffic,
    /// The settled state is examined: all pairs are tried.
    TryAll,
    Examine,
    CloseAll,
    ExamineEmpty,
}

/// How a packet reaches a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Sealed for `to_key` by who has `from_key`.
    Peer {
        from_key: PublicKey,
        to_key: PublicKey,
        source: SocketAddr,
    },
    Tun {
        session: FdSession,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Handshake,
    HandshakeAnswer,
    KeepAlive,
    Data(Data),
}

/// One inner packet and the truth about it, which no router sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub id: u64,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub payload: Payload,
    pub network: usize,
    pub forged: bool,
    /// Router processes crossed.
    pub crossed: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Echo,
    EchoAnswer,
    Question(Question),
    Answer(Box<Reply>),
}

#[derive(Clone, Debug)]
pub enum CallBody {
    Registry(Box<Command>),
    Request(Box<router::Request>),
    Close { connection: ConnectionId },
}

#[derive(Clone, Debug)]
pub enum ReplyBody {
    Registry(Result<registry::Reply, registry::Refusal>),
    Router(Box<Result<router::Answer, router::Refusal>>),
    /// Nobody listens, or nobody answered in time.
    Nothing,
}

/// What a caller does with the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaits {
    Lease(Ticket),
    Name(Ticket),
    Registered,
    Dialled {
        ticket: Ticket,
        dial: DialId,
        to: Node,
    },
    Attached,
    Nothing,
}

/// What a stream between two processes is for. The opener is side 0.
#[derive(Clone, Debug)]
pub enum PipeKind {
    Sync {
        stream: SyncStream,
    },
    Watch {
        query: Query,
    },
    Routes {
        dial: DialId,
        open: RoutesOpen,
    },
    Monitor {
        dial: DialId,
        connection: ConnectionId,
    },
}

#[derive(Clone, Debug)]
pub enum PipeBody {
    Sync(SyncMessage),
    Watch(Vec<registry::WatchEvent>),
    Routes(RoutesMessage),
    Monitor(DialEvent),
}

/// A stream. Ordered in each direction, until it breaks.
#[derive(Clone, Debug)]
pub struct Pipe {
    pub kind: PipeKind,
    pub ends: [Life; 2],
    /// When the last message of each direction arrives: the next one not earlier.
    pub last: [vl3_core::Mono; 2],
}
