//! One connected UDP socket to one server: its message IDs and who waits for them.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, RngExt};
use vl3_core::names::{Failure, Question};
use vl3_core::{Mono, Ticket};
use vl3_net::datagrams::{Outgoing, ReceiveBatch, SendCall};

use super::{Completion, OwnNumbers};
use crate::metrics::{Metrics, ToFigures};
use crate::wire::{Encoded, Mismatch, Spelling, echoes, parse_reply, reply_id};

/// A socket is replaced after so many queries or so long (R3.2).
const QUERIES_MAX: u32 = 10_000;
const AGE_MAX: Duration = Duration::from_secs(60);
/// Queries outstanding on one socket: IDs stay sparse, guesses stay hard.
const OUTSTANDING_MAX: usize = 1_024;
/// IDs of queries that were given up, whose replies may still come; of more the oldest is forgotten.
const LATE_MAX: usize = 128;
/// Queries that wait while the socket is being opened; more fail.
const HELD_MAX: usize = 256;

/// A refusal that an earlier query met is the server's (ECONNREFUSED, EHOSTUNREACH); else this
/// host has no room.
fn send_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Failure::Local,
        _ => Failure::Network,
    }
}

/// One query that waits for its reply.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) question: Arc<Question>,
    pub(super) encoded: Arc<Encoded>,
    pub(super) sent: Mono,
}

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) server: SocketAddr,
    /// Of all sockets ever.
    pub(super) number: u64,
    pub(super) retired_until: Option<Mono>,
    figures: Arc<ToFigures>,
    open: Option<UdpSocket>,
    born: Mono,
    queries: u32,
    held: Vec<Waiting>,
    outstanding: HashMap<u16, Waiting, BuildHasherDefault<OwnNumbers>>,
    late: VecDeque<u16>,
    outgoing: Outgoing,
    /// Of what is in `outgoing`.
    outgoing_ids: Vec<u16>,
}

impl Socket {
    pub(super) fn opening(
        server: SocketAddr,
        number: u64,
        now: Mono,
        figures: Arc<ToFigures>,
    ) -> Self {
        Self {
            server,
            number,
            retired_until: None,
            figures,
            open: None,
            born: now,
            queries: 0,
            held: Vec::new(),
            outstanding: HashMap::default(),
            late: VecDeque::new(),
            outgoing: Outgoing::default(),
            outgoing_ids: Vec::new(),
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn opened(&mut self, socket: UdpSocket) {
        self.open = Some(socket);
    }

    pub(super) fn take_open(&mut self) -> Option<UdpSocket> {
        self.open.take()
    }

    pub(super) fn is_worn(&self, now: Mono) -> bool {
        self.queries >= QUERIES_MAX || now.saturating_since(self.born) >= AGE_MAX
    }

    /// Whether a replaced socket may close.
    pub(super) fn has_ended(&self, now: Mono) -> bool {
        let nobody_waits = self.outstanding.is_empty() && self.held.is_empty();
        nobody_waits || self.retired_until.is_none_or(|until| until <= now)
    }

    /// Keeps a query until the socket is open.
    pub(super) fn hold(&mut self, waiting: Waiting) -> Result<(), Failure> {
        if self.held.len() >= HELD_MAX {
            return Err(Failure::Local);
        }
        self.held.push(waiting);
        Ok(())
    }

    pub(super) fn take_held(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.held)
    }

    pub(super) const fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Queues a query under a random ID that is not outstanding here (R3.2).
    pub(super) fn queue(
        &mut self,
        waiting: Waiting,
        random: &mut impl Rng,
    ) -> Result<u16, Failure> {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            return Err(Failure::Local);
        }
        let id = (0..64)
            .map(|_| random.random::<u16>())
            .find(|id| !self.outstanding.contains_key(id))
            .ok_or(Failure::Local)?;
        self.queries += 1;
        self.outgoing
            .write(None, None, |out| waiting.encoded.write(id, out));
        self.outgoing_ids.push(id);
        self.outstanding.insert(id, waiting);
        Ok(id)
    }

    pub(super) fn flush(&mut self, call: &mut SendCall, done: &mut Vec<Completion>) {
        let Some(socket) = &self.open else {
            return;
        };
        let (ids, outstanding) = (&self.outgoing_ids, &mut self.outstanding);
        call.send(socket, &mut self.outgoing, |index, error| {
            tracing::debug!(%error, "a query could not be sent");
            let waiting = ids.get(index).and_then(|id| outstanding.remove(id));
            if let Some(Waiting { ticket, .. }) = waiting {
                let failure = send_failure(error);
                done.push(Completion::Failed { ticket, failure });
            }
        });
        self.outgoing_ids.clear();
    }

    pub(super) fn receive(
        &mut self,
        now: Mono,
        batch: &mut ReceiveBatch,
        done: &mut Vec<Completion>,
        metrics: &Metrics,
    ) {
        let Some(socket) = &self.open else {
            return;
        };
        match batch.receive(socket) {
            Ok(_) => {
                for datagram in batch.iter() {
                    self.take(datagram.bytes, now, done, metrics);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // An ICMP error: it says nothing about which query, so all of them failed.
            Err(error) => {
                tracing::debug!(server = %self.server, %error, "an upstream's socket failed");
                self.fail_all(done);
            }
        }
    }

    fn take(&mut self, octets: &[u8], now: Mono, done: &mut Vec<Completion>, metrics: &Metrics) {
        let Some(id) = reply_id(octets) else {
            return metrics.mismatch(Mismatch::NoReply);
        };
        let Some(waiting) = self.outstanding.get(&id) else {
            let late = self.late.iter().position(|late| *late == id);
            return metrics.mismatch(match late.and_then(|at| self.late.remove(at)) {
                Some(_) => Mismatch::Late,
                None => Mismatch::UnknownId,
            });
        };
        let spelling = match echoes(octets, &waiting.encoded) {
            Ok(spelling) => spelling,
            Err(mismatch) => return metrics.mismatch(mismatch),
        };
        let Some(Waiting {
            ticket,
            question,
            encoded,
            sent,
        }) = self.outstanding.remove(&id)
        else {
            return;
        };
        let parsed = if encoded.mixed && spelling == Spelling::Other {
            Err(Failure::CaseChanged)
        } else {
            parse_reply(octets, &question)
        };
        if let Ok(reply) = &parsed {
            self.figures.said(reply.rcode, now.saturating_since(sent));
        }
        done.push(match parsed {
            Ok(reply) => Completion::Reply { ticket, reply },
            Err(failure) => Completion::Failed { ticket, failure },
        });
    }

    /// `ticket` guards against an ID that was used again.
    pub(super) fn forget(&mut self, id: u16, ticket: Ticket) {
        if self
            .outstanding
            .get(&id)
            .is_some_and(|waiting| waiting.ticket == ticket)
        {
            self.outstanding.remove(&id);
            if self.late.len() >= LATE_MAX {
                self.late.pop_front();
            }
            self.late.push_back(id);
        }
    }

    pub(super) fn forget_held(&mut self, ticket: Ticket) {
        self.held.retain(|waiting| waiting.ticket != ticket);
    }

    pub(super) fn fail_all(&mut self, done: &mut Vec<Completion>) {
        let outstanding = self.outstanding.drain().map(|(_, waiting)| waiting);
        let mut tickets: Vec<Ticket> = outstanding
            .chain(self.held.drain(..))
            .map(|waiting| waiting.ticket)
            .collect();
        tickets.sort_unstable();
        let failure = Failure::Network;
        done.extend(
            tickets
                .into_iter()
                .map(|ticket| Completion::Failed { ticket, failure }),
        );
    }
}
