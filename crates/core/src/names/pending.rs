//! One upstream within one fan-out: its tries and what is outstanding.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::Arc;

use super::resolution::{Asked, Query, ResolutionEffect};
use super::{Transport, Upstream, Vote};
use crate::machine::{Outbox, Ticket, TicketCounter};
use crate::time::{Mono, Now};

/// Tries by the upstream's own transport: one and its repetition; a TCP try may follow (R3.8: at
/// most 3).
const TRIES_MAX: u8 = 2;
/// A stock router's first SERVFAIL costs one more (R2.13).
const STOCK_TRIES_MAX: u8 = 3;

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) upstream: Arc<Upstream>,
    /// The wait before the repetition, by this upstream's round-trip time.
    try_limit: Duration,
    mixed_case: bool,
    tries: u8,
    /// SERVFAILs of a stock router: its misses, or clashes of message IDs (R2.13).
    pub(super) misses: u8,
    outstanding: Vec<Sent>,
    last: Option<Ticket>,
    pub(super) repeat_at: Option<Mono>,
    /// What a cut UDP reply said, should TCP fail (R3.1).
    pub(super) cut: Option<Vote>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) ticket: Ticket,
    pub(super) server: SocketAddr,
    pub(super) at: Mono,
    pub(super) transport: Transport,
    pub(super) mixed_case: bool,
}

impl Pending {
    pub(super) const fn new(
        upstream: Arc<Upstream>,
        try_limit: Duration,
        mixed_case: bool,
    ) -> Self {
        Self {
            upstream,
            try_limit,
            mixed_case,
            tries: 0,
            misses: 0,
            outstanding: Vec::new(),
            last: None,
            repeat_at: None,
            cut: None,
        }
    }

    pub(super) fn may_try(&self) -> bool {
        let tries_max = if self.upstream.stock.is_some() {
            STOCK_TRIES_MAX
        } else {
            TRIES_MAX
        };
        self.cut.is_none() && self.tries < tries_max
    }

    pub(super) const fn is_silent(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// When the first of the queries still outstanding left.
    pub(super) fn waiting_since(&self) -> Option<Mono> {
        self.outstanding.iter().map(|sent| sent.at).min()
    }

    pub(super) const fn plain_case(&mut self) {
        self.mixed_case = false;
    }

    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Sent> {
        let at = self
            .outstanding
            .iter()
            .position(|sent| sent.ticket == ticket)?;
        Some(self.outstanding.swap_remove(at))
    }

    /// The next try; tries go through the server's addresses in turn.
    pub(super) fn ask(
        &mut self,
        asked: &Asked,
        tickets: &mut TicketCounter,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let turn = usize::from(self.tries).checked_rem(self.upstream.servers.len());
        let server = turn
            .and_then(|turn| self.upstream.servers.get(turn))
            .copied();
        let Some(server) = server else {
            self.repeat_at = None;
            return;
        };
        self.tries += 1;
        let transport = self.upstream.transport;
        let repeats = self.tries < TRIES_MAX && transport == Transport::Udp;
        self.repeat_at = repeats.then(|| now.mono + self.try_limit);
        self.send(transport, server, asked, tickets, now, out);
    }

    /// The same question by TCP, to the server that cut its reply (R3.1).
    pub(super) fn ask_whole(
        &mut self,
        server: SocketAddr,
        asked: &Asked,
        tickets: &mut TicketCounter,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        self.repeat_at = None;
        self.send(Transport::Tcp, server, asked, tickets, now, out);
    }

    fn send(
        &mut self,
        transport: Transport,
        server: SocketAddr,
        asked: &Asked,
        tickets: &mut TicketCounter,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let ticket = tickets.issue();
        let mixed_case = self.mixed_case && transport == Transport::Udp;
        self.outstanding.push(Sent {
            ticket,
            server,
            at: now.mono,
            transport,
            mixed_case,
        });
        let mut flags = asked.flags;
        flags.recursion_desired = self.upstream.recursion_desired();
        out.push(ResolutionEffect::Query(Query {
            ticket,
            upstream: Arc::clone(&self.upstream),
            server,
            transport,
            after: self.last.replace(ticket),
            question: Arc::clone(&asked.question),
            flags,
            mixed_case,
            mark: asked.mark_for(&self.upstream),
            probe: false,
        }));
    }

    pub(super) fn forget(&self, out: &mut Outbox<ResolutionEffect>) {
        for sent in &self.outstanding {
            out.push(ResolutionEffect::Forget(sent.ticket));
        }
    }
}
