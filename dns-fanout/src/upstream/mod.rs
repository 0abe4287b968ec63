//! Queries to other servers: who carries them, and giving them up.

mod socket;
mod tcp;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use vl3_core::Ticket;
use vl3_core::names::{Failure, Query, Question, Reply, Transport};
use vl3_runtime::Tasks;

use crate::metrics::Metrics;
use crate::sockets::Dial;
use socket::{Command, Slot};

/// A socket is replaced after so many queries or so long (R3.2).
const QUERIES_MAX: u32 = 10_000;
const AGE_MAX: Duration = Duration::from_secs(60);
/// TCP queries at one time; more fail at once.
const TCP_MAX: usize = 64;

/// What comes back.
#[derive(Debug)]
pub(crate) enum Completion {
    Reply { ticket: Ticket, reply: Reply },
    Failed { ticket: Ticket, failure: Failure },
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) sockets: usize,
}

/// Owns the sockets to all servers. Never waits: a queue that is full fails the query.
pub(crate) struct Upstreams {
    settings: Settings,
    dial: Dial,
    tasks: Arc<Tasks>,
    completions: mpsc::Sender<Completion>,
    metrics: Metrics,
    pools: HashMap<SocketAddr, Vec<Option<Slot>>>,
    carriers: HashMap<Ticket, Carrier>,
    tcp: Arc<Semaphore>,
}

enum Carrier {
    Udp { server: SocketAddr, slot: usize },
    Tcp(AbortHandle),
}

impl Upstreams {
    pub(crate) fn new(
        settings: Settings,
        dial: Dial,
        tasks: Arc<Tasks>,
        completions: mpsc::Sender<Completion>,
        metrics: Metrics,
    ) -> Self {
        Self {
            settings,
            dial,
            tasks,
            completions,
            metrics,
            pools: HashMap::new(),
            carriers: HashMap::new(),
            tcp: Arc::new(Semaphore::new(TCP_MAX)),
        }
    }

    /// Starts a query; `Err` when nothing can carry it.
    pub(crate) fn send(&mut self, query: &Query) -> Result<(), Failure> {
        self.metrics.query(query);
        match query.transport {
            Transport::Udp => self.send_udp(query),
            Transport::Tcp => self.send_tcp(query),
        }
    }

    /// Nobody waits for this query any more.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        match self.carriers.remove(&ticket) {
            Some(Carrier::Udp { server, slot }) => {
                let slot = self
                    .pools
                    .get(&server)
                    .and_then(|pool| pool.get(slot)?.as_ref());
                if let Some(slot) = slot {
                    // Full: the entry stays until its reply, or until the socket is replaced.
                    let _full = slot.commands.try_send(Command::Forget(ticket));
                }
            }
            Some(Carrier::Tcp(task)) => task.abort(),
            None => {}
        }
    }

    /// A query ended by itself.
    pub(crate) fn completed(&mut self, ticket: Ticket) {
        self.carriers.remove(&ticket);
    }

    /// Closes sockets to servers that are asked no more (R3.9).
    pub(crate) fn keep_only(&mut self, servers: &BTreeSet<SocketAddr>) {
        self.pools.retain(|server, _| servers.contains(server));
    }

    /// The router made new sockets possible; the old ones may be bound in a dead namespace.
    pub(crate) fn replace_sockets(&mut self) {
        self.pools.clear();
    }

    pub(crate) fn sockets(&self) -> usize {
        self.pools.values().flatten().flatten().count()
    }

    fn send_udp(&mut self, query: &Query) -> Result<(), Failure> {
        let pool = self.pools.entry(query.server).or_default();
        if pool.is_empty() {
            pool.resize_with(self.settings.sockets, || None);
        }
        let before = match query.after.and_then(|ticket| self.carriers.get(&ticket)) {
            Some(Carrier::Udp { server, slot }) if *server == query.server => Some(*slot),
            _ => None,
        };
        let at = other_than(before, pool.len());
        let entry = pool.get_mut(at).ok_or(Failure::Network)?;
        let fresh = entry.take().filter(|slot| !slot.is_worn());
        let mut slot = fresh.unwrap_or_else(|| {
            Slot::open(
                query.server,
                self.dial.clone(),
                &self.tasks,
                self.completions.clone(),
                self.metrics.clone(),
            )
        });
        let sent = slot.send(Command::Send {
            ticket: query.ticket,
            question: Question::clone(&query.question),
            flags: query.flags,
        });
        *entry = Some(slot);
        sent?;
        self.carriers.insert(
            query.ticket,
            Carrier::Udp {
                server: query.server,
                slot: at,
            },
        );
        Ok(())
    }

    fn send_tcp(&mut self, query: &Query) -> Result<(), Failure> {
        let permit = Arc::clone(&self.tcp)
            .try_acquire_owned()
            .map_err(|_| Failure::Network)?;
        let server = query.server;
        let (dial, completions, query) =
            (self.dial.clone(), self.completions.clone(), query.clone());
        let ticket = query.ticket;
        let task = self.tasks.spawn_detached("upstream tcp", async move {
            let completion = match tcp::ask(&dial, server, &query).await {
                Ok(reply) => Completion::Reply { ticket, reply },
                Err(failure) => Completion::Failed { ticket, failure },
            };
            drop(permit);
            // Err: the server stopped.
            let _stopped = completions.send(completion).await;
        });
        self.carriers.insert(ticket, Carrier::Tcp(task));
        Ok(())
    }
}

impl Slot {
    fn is_worn(&self) -> bool {
        self.queries >= QUERIES_MAX || self.born.elapsed() >= AGE_MAX || self.commands.is_closed()
    }
}

/// Uniform over the sockets, leaving out the one that the try before went by (R3.6).
fn other_than(before: Option<usize>, sockets: usize) -> usize {
    let mut random = rand::rng();
    match before {
        Some(before) if sockets > 1 => (before + random.random_range(1..sockets)) % sockets,
        _ => random.random_range(0..sockets.max(1)),
    }
}

/// When a socket was opened.
pub(crate) type Born = Instant;
