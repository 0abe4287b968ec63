//! One thread that owns the resolver, the sockets of clients and upstreams, and the packets: a
//! question passes no queue on its way to its answer, and a round of the loop moves many.
//!
//! ```text
//! epoll -> recvmmsg -> parse -> packets -> resolver -> queries  \
//!              \-> replies -> resolver -> answers -> packets     > sendmmsg, at the end of the round
//! ```
//!
//! Tasks (TCP, the router's state, people) tell it things by the [`Sender`].

mod asking;
mod cookies;
mod explaining;
mod inbox;
mod listening;
mod packets;
mod poll;
mod rounds;
mod status;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::Context;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use vl3_core::names::{Resolver, ResolverCounters, ResolverEffect, ResolverSettings, View};
use vl3_core::{Mono, Now, Outbox};
use vl3_net::datagrams::{ReceiveBatch, SendCall};

use crate::metrics::Metrics;
use crate::query_log::QueryLog;
use crate::serve::Responder;
use crate::slab::Slab;
use crate::switch::Others;
use crate::upstream::{Completion, Dialled, Settings, Surroundings, Upstreams};
use crate::wire::{QUERY_OCTETS_MAX, Request};
pub(crate) use cookies::CookieKeys;
use explaining::Explained;
pub(crate) use explaining::{Explain, type_of, type_text};
use inbox::Inbox;
pub(crate) use inbox::Sender;
use listening::Listening;
use packets::Packets;
pub(crate) use poll::{Poll, Token};

/// Datagrams received by one call.
const RECEIVE_BATCH: usize = 64;
/// Datagrams sent by one call.
const SEND_BATCH: usize = 64;

/// What tasks tell the engine.
#[derive(Debug)]
pub(crate) enum Command {
    /// A message over TCP.
    Ask(Asked),
    Completed(Completion),
    Dialled(Dialled),
    View(Arc<View>),
    /// Sockets of before may be dead.
    ReplaceSockets,
    /// Listens here too, from now on.
    Listen(Vec<UdpSocket>),
    /// Listens here for several views.
    Share(UdpSocket, Arc<Others>),
    /// A socket under this number that another view reads: replies may leave by it.
    Lend(u32, UdpSocket),
    /// A question that came by such a socket.
    Forwarded(Forwarded),
    /// The router's listeners: in place of those it passed before.
    Replace(Vec<UdpSocket>),
    Settings(ResolverSettings),
    Explain(Explain),
    Cookies(CookieKeys),
    /// The share of questions that are logged from now on.
    LogRate(f64),
    Status(oneshot::Sender<Value>),
    /// Ends when nothing is in flight.
    Stop,
}

/// A message over TCP and where its answer goes.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) source: IpAddr,
    pub(crate) message: Vec<u8>,
    pub(crate) responder: Responder,
}

/// A datagram that another view's engine received for this one.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// The number of the socket, see [`Command::Lend`].
    pub(crate) socket: u32,
    pub(crate) client: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) message: Vec<u8>,
}

/// Where a reply goes.
#[derive(Debug)]
enum ReplyTo {
    Udp {
        listener: u32,
        client: SocketAddr,
        /// Where the question was sent to, on sockets of every address.
        local: Option<IpAddr>,
    },
    Tcp {
        responder: Responder,
        client: IpAddr,
    },
}

impl ReplyTo {
    const fn is_udp(&self) -> bool {
        matches!(self, Self::Udp { .. })
    }

    const fn proto(&self) -> &'static str {
        if self.is_udp() { "udp" } else { "tcp" }
    }

    const fn source(&self) -> IpAddr {
        match self {
            Self::Udp { client, .. } => client.ip(),
            Self::Tcp { client, .. } => *client,
        }
    }
}

/// A question that the resolver has.
#[derive(Debug)]
struct Waiting {
    /// Tells it from others that had the same place.
    generation: u32,
    request: Request,
    reply_to: ReplyTo,
    since: Mono,
    /// What its cookie is worth (R6.5).
    cookie: cookies::Verdict,
    /// Where the answer may be stored.
    key: Option<packets::Key>,
    /// Drawn for the query log.
    log: bool,
}

#[derive(Debug)]
pub(crate) struct EngineSettings {
    pub(crate) upstreams: Settings,
    pub(crate) resolver: ResolverSettings,
    pub(crate) cookies: CookieKeys,
    /// Octets of stored packets.
    pub(crate) packets_octets_max: usize,
    pub(crate) log: QueryLog,
}

pub(crate) struct Engine {
    resolver: Resolver,
    outbox: Outbox<ResolverEffect>,
    poll: Poll,
    inbox: Inbox,
    listening: Listening,
    /// Those that the router passed.
    passed: Vec<u32>,
    upstreams: Upstreams,
    packets: Packets,
    cookies: CookieKeys,
    log: QueryLog,
    metrics: Metrics,
    asking: Slab<Waiting>,
    explained: Slab<Explained>,
    generation: u32,
    batch: ReceiveBatch,
    call: SendCall,
    done: Vec<Completion>,
    /// The time of this round.
    now: Now,
    stopping: Option<Mono>,
    seen: ResolverCounters,
    totals_due: Option<Mono>,
    able: watch::Sender<bool>,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) engine: Sender,
    pub(crate) ended: oneshot::Receiver<anyhow::Result<()>>,
    /// Whether there is somebody to answer from: own records, or an upstream that is up (R7.2).
    pub(crate) able: watch::Receiver<bool>,
}

/// Starts the thread. `around` is made with the sender that the engine is told things by.
pub(crate) fn start(
    settings: EngineSettings,
    metrics: Metrics,
    around: impl FnOnce(Sender) -> Surroundings,
) -> anyhow::Result<Running> {
    let (engine, inbox) = inbox::inbox().context("make the engine's bell")?;
    let poll = Poll::new().context("make the engine's epoll")?;
    poll.add(inbox.descriptor(), Token::Inbox)
        .context("wait for the engine's bell")?;
    let upstreams = Upstreams::new(settings.upstreams, around(engine.clone()));
    let (sender, ended) = oneshot::channel();
    let (able, is_able) = watch::channel(false);
    let run = move || {
        let mut engine = Engine {
            resolver: Resolver::with_settings(rand::random(), settings.resolver),
            outbox: Outbox::default(),
            poll,
            inbox,
            listening: Listening::default(),
            passed: Vec::new(),
            upstreams,
            packets: Packets::new(settings.packets_octets_max),
            cookies: settings.cookies,
            log: settings.log,
            metrics,
            asking: Slab::default(),
            explained: Slab::default(),
            generation: 0,
            batch: ReceiveBatch::new(RECEIVE_BATCH, QUERY_OCTETS_MAX),
            call: SendCall::new(SEND_BATCH),
            done: Vec::new(),
            now: vl3_runtime::clock::now(),
            stopping: None,
            seen: ResolverCounters::default(),
            totals_due: None,
            able,
        };
        // A panic drops the sender, which the role takes for the end that it is.
        let _nobody_waits = sender.send(engine.run());
    };
    std::thread::Builder::new()
        .name("dns engine".to_owned())
        .spawn(run)
        .context("start the engine's thread")?;
    Ok(Running {
        engine,
        ended,
        able: is_able,
    })
}
