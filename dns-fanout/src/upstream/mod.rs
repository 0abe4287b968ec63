//! Queries to other servers: who carries them, and giving them up. Owned by the engine's thread;
//! UDP sockets are in its epoll, TCP connections are tasks.

mod pool;
mod socket;
mod tcp;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::runtime::Handle;
use vl3_core::names::{Failure, Flags, LoopMark, Query, Question, Reply, Transport};
use vl3_core::{Mono, Ticket};
use vl3_net::datagrams::{ReceiveBatch, SendCall};
use vl3_runtime::Tasks;

use crate::engine::{Command, Poll, Sender, Token};
use crate::metrics::{Metrics, ToFigures};
use crate::slab::Slab;
use crate::sockets::Dials;
use crate::wire::Encoded;
use pool::Pool;
use socket::{Socket, Waiting};

/// A replaced socket waits this long for its last replies.
const LINGER: Duration = Duration::from_secs(2);

/// What comes back.
#[derive(Debug)]
pub(crate) enum Completion {
    Reply { ticket: Ticket, reply: Reply },
    Failed { ticket: Ticket, failure: Failure },
}

/// A socket that was asked for, for one that is being opened.
#[derive(Debug)]
pub(crate) struct Dialled {
    socket: u32,
    number: u64,
    outcome: std::io::Result<UdpSocket>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) sockets: usize,
}

/// Everything that upstreams need of their surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) dials: Dials,
    pub(crate) tasks: Arc<Tasks>,
    /// Tasks run here: the engine's thread has no runtime of its own.
    pub(crate) runtime: Handle,
    pub(crate) engine: Sender,
    pub(crate) metrics: Metrics,
}

/// Owns the sockets to all servers. Never waits: what is full fails the query.
pub(crate) struct Upstreams {
    settings: Settings,
    around: Surroundings,
    random: StdRng,
    servers: HashMap<SocketAddr, Server>,
    sockets: Slab<Socket>,
    /// Counts sockets: tells one that took the number of another.
    opened: u64,
    /// Sockets with queries that are not sent.
    unsent: Vec<u32>,
    /// Replaced sockets that wait for their last replies.
    retired: Vec<u32>,
    carriers: HashMap<Ticket, Carrier, BuildHasherDefault<OwnNumbers>>,
    /// The last query, as the other upstreams of the fan-out are mostly asked the same.
    last: Option<Same>,
    round: u64,
}

/// What there is towards one server.
struct Server {
    pool: Pool,
    tcp: Option<tcp::Handle>,
    figures: Arc<ToFigures>,
}

struct Same {
    question: Arc<Question>,
    flags: Flags,
    mixed_case: bool,
    mark: Option<LoopMark>,
    encoded: Arc<Encoded>,
}

impl Same {
    fn is_for(&self, query: &Query) -> bool {
        // A fan-out shares its question; another of the same name may spell it differently.
        Arc::ptr_eq(&self.question, &query.question)
            && self.flags == query.flags
            && self.mixed_case == query.mixed_case
            && self.mark == query.mark
    }
}

#[derive(Clone, Copy, Debug)]
enum Carrier {
    Udp {
        socket: u32,
        id: u16,
    },
    /// The socket is being opened.
    Opening {
        socket: u32,
    },
    Tcp,
}

impl Upstreams {
    pub(crate) fn new(settings: Settings, around: Surroundings) -> Self {
        Self {
            settings,
            around,
            random: rand::make_rng(),
            servers: HashMap::new(),
            sockets: Slab::default(),
            opened: 0,
            unsent: Vec::new(),
            retired: Vec::new(),
            carriers: HashMap::default(),
            last: None,
            round: 0,
        }
    }

    /// Starts a query; `Err` when nothing can carry it.
    pub(crate) fn send(&mut self, query: &Query, now: Mono, poll: &Poll) -> Result<(), Failure> {
        let encoded = self.encode(query);
        match query.transport {
            Transport::Udp => self.send_udp(query, encoded, now, poll),
            Transport::Tcp => self.send_tcp(query, encoded),
        }
    }

    fn encode(&mut self, query: &Query) -> Arc<Encoded> {
        if let Some(last) = &self.last
            && last.is_for(query)
        {
            return Arc::clone(&last.encoded);
        }
        let encoded = Encoded::new(
            &query.question,
            query.flags,
            query.mixed_case,
            query.mark.as_ref(),
            &mut self.random,
        );
        let encoded = Arc::new(encoded);
        self.last = Some(Same {
            question: Arc::clone(&query.question),
            flags: query.flags,
            mixed_case: query.mixed_case,
            mark: query.mark,
            encoded: Arc::clone(&encoded),
        });
        encoded
    }

    fn send_udp(
        &mut self,
        query: &Query,
        encoded: Arc<Encoded>,
        now: Mono,
        poll: &Poll,
    ) -> Result<(), Failure> {
        let before = match query.after.and_then(|ticket| self.carriers.get(&ticket)) {
            Some(Carrier::Udp { socket, .. } | Carrier::Opening { socket }) => Some(*socket),
            Some(Carrier::Tcp) | None => None,
        };
        let (round, size) = (self.round, self.settings.sockets);
        let server = server(&mut self.servers, query, size, &self.around.metrics);
        server.figures.asked(Transport::Udp);
        let place = server.pool.draw(before, round, &mut self.random);
        let pool = &server.pool;
        let fresh = pool.get(place).filter(|at| {
            self.sockets
                .get(*at)
                .is_some_and(|socket| !socket.is_worn(now))
        });
        let at = match fresh {
            Some(at) => at,
            None => self.open(query, place, now, poll)?,
        };
        let socket = self.sockets.get_mut(at).ok_or(Failure::Local)?;
        let waiting = Waiting {
            ticket: query.ticket,
            question: Arc::clone(&query.question),
            encoded,
            sent: now,
        };
        let carrier = if socket.is_open() {
            if socket.unsent() == 0 {
                self.unsent.push(at);
            }
            let id = socket.queue(waiting, &mut self.random)?;
            Carrier::Udp { socket: at, id }
        } else {
            socket.hold(waiting)?;
            Carrier::Opening { socket: at }
        };
        self.carriers.insert(query.ticket, carrier);
        Ok(())
    }

    /// A socket in that place of the pool; the one before waits for its last replies.
    fn open(
        &mut self,
        query: &Query,
        place: usize,
        now: Mono,
        poll: &Poll,
    ) -> Result<u32, Failure> {
        let server = query.server;
        let dial = self.around.dials.to(&query.upstream).clone();
        self.opened += 1;
        let number = self.opened;
        let known = self.servers.get_mut(&server).ok_or(Failure::Local)?;
        let figures = Arc::clone(&known.figures);
        let opening = Socket::opening(server, number, now, figures);
        let at = self.sockets.insert(opening);
        if let Some(worn) = known.pool.put(place, at) {
            self.retire(worn, now);
        }
        match dial.udp_now(server) {
            Some(Ok(opened)) => {
                self.adopt(at, opened, poll);
                Ok(at)
            }
            Some(Err(error)) => {
                tracing::debug!(%server, %error, "no socket to an upstream");
                self.close(at, poll);
                Err(Failure::Local)
            }
            None => {
                let engine = self.around.engine.clone();
                let _in_runtime = self.around.runtime.enter();
                self.around
                    .tasks
                    .spawn_detached("upstream dial", async move {
                        let outcome = dial.udp(server).await;
                        let dialled = Dialled {
                            socket: at,
                            number,
                            outcome,
                        };
                        // Err: the server stopped.
                        let _stopped = engine.send(Command::Dialled(dialled)).await;
                    });
                Ok(at)
            }
        }
    }

    fn adopt(&mut self, at: u32, opened: UdpSocket, poll: &Poll) {
        let Some(socket) = self.sockets.get_mut(at) else {
            return;
        };
        if let Err(error) = poll.add(&opened, Token::Upstream(at)) {
            tracing::warn!(%error, "a socket to an upstream cannot be waited for");
        }
        socket.opened(opened);
    }

    /// The router passed a socket, or said no: what waits for it goes on or fails.
    pub(crate) fn dialled(&mut self, dialled: Dialled, poll: &Poll, done: &mut Vec<Completion>) {
        let Dialled {
            socket: at,
            number,
            outcome,
        } = dialled;
        let Some(socket) = self
            .sockets
            .get_mut(at)
            .filter(|socket| socket.number == number)
        else {
            return;
        };
        let held = socket.take_held();
        match outcome {
            Ok(opened) => self.adopt(at, opened, poll),
            Err(error) => {
                tracing::debug!(server = %socket.server, %error, "no socket to an upstream");
                self.close(at, poll);
            }
        }
        for waiting in held {
            let ticket = waiting.ticket;
            let socket = self.sockets.get_mut(at);
            let queued = socket.ok_or(Failure::Local).and_then(|socket| {
                if socket.unsent() == 0 {
                    self.unsent.push(at);
                }
                socket.queue(waiting, &mut self.random)
            });
            match queued {
                Ok(id) => drop(
                    self.carriers
                        .insert(ticket, Carrier::Udp { socket: at, id }),
                ),
                Err(failure) => done.push(Completion::Failed { ticket, failure }),
            }
        }
    }

    fn send_tcp(&mut self, query: &Query, encoded: Arc<Encoded>) -> Result<(), Failure> {
        let around = &self.around;
        let size = self.settings.sockets;
        let server = server(&mut self.servers, query, size, &around.metrics);
        server.figures.asked(Transport::Tcp);
        server.tcp.take_if(|handle| handle.is_closed());
        let figures = &server.figures;
        let handle = server.tcp.get_or_insert_with(|| {
            tcp::start(
                query.server,
                around.dials.to(&query.upstream),
                figures,
                around,
            )
        });
        handle.ask(tcp::Asked {
            ticket: query.ticket,
            question: Arc::clone(&query.question),
            encoded,
        })?;
        self.carriers.insert(query.ticket, Carrier::Tcp);
        Ok(())
    }

    /// Nobody waits for this query any more.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        match self.carriers.remove(&ticket) {
            Some(Carrier::Udp { socket, id }) => {
                if let Some(socket) = self.sockets.get_mut(socket) {
                    socket.forget(id, ticket);
                }
            }
            Some(Carrier::Opening { socket }) => {
                if let Some(socket) = self.sockets.get_mut(socket) {
                    socket.forget_held(ticket);
                }
            }
            // Its task drops it with the deadline.
            Some(Carrier::Tcp) | None => {}
        }
    }

    /// A query ended by itself.
    pub(crate) fn completed(&mut self, ticket: Ticket) {
        self.carriers.remove(&ticket);
    }

    /// Takes what arrived at one socket.
    pub(crate) fn receive(
        &mut self,
        at: u32,
        now: Mono,
        batch: &mut ReceiveBatch,
        done: &mut Vec<Completion>,
    ) {
        if let Some(socket) = self.sockets.get_mut(at) {
            socket.receive(now, batch, done, &self.around.metrics);
        }
    }

    /// Sends what was queued in this round.
    pub(crate) fn flush(&mut self, call: &mut SendCall, done: &mut Vec<Completion>) {
        self.round += 1;
        for at in self.unsent.drain(..) {
            if let Some(socket) = self.sockets.get_mut(at) {
                socket.flush(call, done);
            }
        }
    }

    /// Closes sockets to servers that are asked no more (R3.9).
    pub(crate) fn keep_only(&mut self, servers: &BTreeSet<SocketAddr>, now: Mono) {
        let gone: Vec<SocketAddr> = self
            .servers
            .keys()
            .filter(|server| !servers.contains(server))
            .copied()
            .collect();
        self.drop_servers(&gone, now);
    }

    /// The router made new sockets possible; the old ones may be bound in a dead namespace.
    pub(crate) fn replace_sockets(&mut self, now: Mono) {
        let all: Vec<SocketAddr> = self.servers.keys().copied().collect();
        self.drop_servers(&all, now);
    }

    fn drop_servers(&mut self, servers: &[SocketAddr], now: Mono) {
        for server in servers {
            let sockets: Vec<u32> = self
                .servers
                .remove(server)
                .map_or_else(Vec::new, |server| server.pool.all().collect());
            sockets.into_iter().for_each(|at| self.retire(at, now));
        }
    }

    fn retire(&mut self, at: u32, now: Mono) {
        if let Some(socket) = self.sockets.get_mut(at) {
            socket.retired_until = Some(now + LINGER);
            self.retired.push(at);
        }
    }

    /// Closes replaced sockets that got their last reply, or waited long enough.
    pub(crate) fn close_retired(&mut self, now: Mono, poll: &Poll, done: &mut Vec<Completion>) {
        if self.retired.is_empty() {
            return;
        }
        let (ended, waiting): (Vec<u32>, Vec<u32>) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|at| {
                self.sockets
                    .get(*at)
                    .is_none_or(|socket| socket.has_ended(now))
            });
        self.retired = waiting;
        for at in ended {
            if let Some(socket) = self.sockets.get_mut(at) {
                socket.fail_all(done);
            }
            self.close(at, poll);
        }
    }

    /// When [`Self::close_retired`] has something to do at the latest.
    pub(crate) fn next_close(&self) -> Option<Mono> {
        self.retired
            .iter()
            .filter_map(|at| self.sockets.get(*at)?.retired_until)
            .min()
    }

    fn close(&mut self, at: u32, poll: &Poll) {
        if let Some(mut socket) = self.sockets.remove(at) {
            socket.take_open().inspect(|open| poll.remove(open));
        }
    }

    pub(crate) fn sockets(&self) -> usize {
        self.sockets.len()
    }
}

/// What there is towards the server of a query; as many as the view has.
fn server<'a>(
    servers: &'a mut HashMap<SocketAddr, Server>,
    query: &Query,
    size: usize,
    metrics: &Metrics,
) -> &'a mut Server {
    servers.entry(query.server).or_insert_with(|| Server {
        pool: Pool::new(size),
        tcp: None,
        figures: metrics.to(query.upstream.label()),
    })
}

/// A hash for numbers that nobody outside chooses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnNumbers(u64);

impl Hasher for OwnNumbers {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        for octet in octets {
            self.write_u64(u64::from(*octet));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing: the table looks at the high bits, too.
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
