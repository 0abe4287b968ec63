//! One connected UDP socket to one server: its message IDs and who waits for them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use vl3_core::Ticket;
use vl3_core::names::{Failure, Flags, Question};
use vl3_runtime::Tasks;

use super::{Born, Completion};
use crate::metrics::Metrics;
use crate::sockets::Dial;
use crate::wire::{Mismatch, encode_query, parse_reply, reply_id};

/// Commands that wait for the socket; more fail the query.
const COMMANDS_MAX: usize = 256;
/// Queries outstanding on one socket: IDs stay sparse, guesses stay hard.
const OUTSTANDING_MAX: usize = 1_024;
/// A replaced socket waits this long for its last replies.
const LINGER: Duration = Duration::from_secs(2);
/// Larger than any datagram that our EDNS size allows.
const BUFFER_OCTETS: usize = 4_096;

#[derive(Debug)]
pub(super) enum Command {
    Send {
        ticket: Ticket,
        question: Question,
        flags: Flags,
    },
    Forget(Ticket),
}

/// The pool's end. Dropping it lets the socket finish what is outstanding and close.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) born: Born,
    pub(super) queries: u32,
}

impl Slot {
    pub(super) fn open(
        server: SocketAddr,
        dial: Dial,
        tasks: &Arc<Tasks>,
        completions: mpsc::Sender<Completion>,
        metrics: Metrics,
    ) -> Self {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        tasks.spawn_detached("upstream udp", async move {
            let socket = Socket {
                outstanding: HashMap::new(),
                ids: HashMap::new(),
                completions,
                metrics,
            };
            socket.run(server, &dial, commands).await;
        });
        Self {
            commands: sender,
            born: Instant::now(),
            queries: 0,
        }
    }

    pub(super) fn send(&mut self, command: Command) -> Result<(), Failure> {
        self.queries += 1;
        self.commands
            .try_send(command)
            .map_err(|_| Failure::Network)
    }
}

struct Socket {
    outstanding: HashMap<u16, (Ticket, Question)>,
    ids: HashMap<Ticket, u16>,
    completions: mpsc::Sender<Completion>,
    metrics: Metrics,
}

impl Socket {
    async fn run(mut self, server: SocketAddr, dial: &Dial, mut commands: mpsc::Receiver<Command>) {
        let socket = match dial.udp(server).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%server, %error, "no socket to an upstream");
                commands.close();
                while let Some(command) = commands.recv().await {
                    if let Command::Send { ticket, .. } = command {
                        self.fail(ticket, Failure::Network).await;
                    }
                }
                return;
            }
        };
        let mut buffer = [0; BUFFER_OCTETS];
        let mut linger = None;
        loop {
            tokio::select! {
                command = commands.recv(), if linger.is_none() => match command {
                    Some(Command::Send { ticket, question, flags }) => {
                        self.send(&socket, ticket, question, flags).await;
                    }
                    Some(Command::Forget(ticket)) => self.forget(ticket),
                    None => linger = Some(tokio::time::Instant::now() + LINGER),
                },
                received = socket.recv(&mut buffer) => match received {
                    Ok(length) => self.received(&buffer[..length]).await,
                    // An ICMP error: it says nothing about which query, so all of them failed.
                    Err(error) => {
                        tracing::debug!(%server, %error, "an upstream's socket failed");
                        self.fail_all().await;
                    }
                },
                () = sleep_until(linger), if linger.is_some() => return self.fail_all().await,
            }
            if linger.is_some() && self.outstanding.is_empty() {
                return;
            }
        }
    }

    async fn send(&mut self, socket: &UdpSocket, ticket: Ticket, question: Question, flags: Flags) {
        let Some(id) = self.free_id() else {
            return self.fail(ticket, Failure::Network).await;
        };
        let octets = encode_query(id, &question, flags);
        if let Err(error) = socket.send(&octets).await {
            tracing::debug!(%error, "a query could not be sent");
            return self.fail(ticket, Failure::Network).await;
        }
        self.outstanding.insert(id, (ticket, question));
        self.ids.insert(ticket, id);
    }

    /// Random, not outstanding on this socket (R3.2).
    fn free_id(&self) -> Option<u16> {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            return None;
        }
        let mut random = rand::rng();
        (0..64)
            .map(|_| random.random::<u16>())
            .find(|id| !self.outstanding.contains_key(id))
    }

    async fn received(&mut self, octets: &[u8]) {
        let Some(id) = reply_id(octets) else {
            return self.metrics.mismatch(Mismatch::NoReply);
        };
        let Some((ticket, question)) = self.outstanding.get(&id) else {
            return self.metrics.mismatch(Mismatch::UnknownId);
        };
        let ticket = *ticket;
        match parse_reply(octets, question) {
            Err(mismatch) => self.metrics.mismatch(mismatch),
            Ok(Ok(reply)) => {
                self.forget(ticket);
                self.complete(Completion::Reply { ticket, reply }).await;
            }
            Ok(Err(failure)) => {
                self.forget(ticket);
                self.fail(ticket, failure).await;
            }
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        if let Some(id) = self.ids.remove(&ticket) {
            self.outstanding.remove(&id);
        }
    }

    async fn fail_all(&mut self) {
        self.ids.clear();
        let mut tickets: Vec<Ticket> = self
            .outstanding
            .drain()
            .map(|(_, (ticket, _))| ticket)
            .collect();
        tickets.sort_unstable();
        for ticket in tickets {
            self.fail(ticket, Failure::Network).await;
        }
    }

    async fn fail(&self, ticket: Ticket, failure: Failure) {
        self.complete(Completion::Failed { ticket, failure }).await;
    }

    async fn complete(&self, completion: Completion) {
        // Err: the server stopped.
        let _stopped = self.completions.send(completion).await;
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
