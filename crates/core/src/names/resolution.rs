//! One question's fan-out: asks every owner, repeats, falls back to TCP, merges.

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Answer, Ask, Failure, Flags, Policy, Question, Reply, Upstream, View, Vote, Voter, classify,
    merge,
};
use crate::ids::DomainName;
use crate::machine::{Machine, Outbox, Ticket, TicketCounter};
use crate::time::{Mono, Now};

/// A question is answered within this time, whoever is silent (R3.6).
pub const DEADLINE: Duration = Duration::from_millis(1500);
/// UDP tries per upstream: one and its retransmission; a TCP try may follow (R3.8: at most 3).
const UDP_TRIES_MAX: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
}

/// One query to send. The shell answers each with [`ResolutionInput::Reply`] or
/// [`ResolutionInput::Failed`]; silence is the machine's own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub ticket: Ticket,
    pub domain: DomainName,
    pub server: IpAddr,
    pub transport: Transport,
    /// The try before this one: a retransmission leaves by another socket (R3.6).
    pub after: Option<Ticket>,
    pub question: Question,
    /// DO and CD travel on; RD never does (R4.1).
    pub flags: Flags,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolutionInput {
    /// Starts; sent once, first.
    Ask,
    Reply {
        ticket: Ticket,
        reply: Reply,
    },
    Failed {
        ticket: Ticket,
        failure: Failure,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolutionEffect {
    Query(Query),
    /// Nobody waits for this query any more: the shell frees its message ID.
    Forget(Ticket),
    /// A UDP reply came after this time.
    Measured {
        server: IpAddr,
        rtt: Duration,
    },
    /// The one answer; nothing follows it.
    Answer(Answer),
}

/// One fan-out. Lives from `Ask` to `Answer`.
///
/// Per upstream: `UDP -> (no reply in its time) UDP again -> reply`, and from a cut reply
/// `-> TCP -> reply, or the cut reply when TCP fails`. The vote is final with a reply, with a
/// failure of the last try, or at the deadline.
#[derive(Debug)]
pub struct Resolution {
    view: Arc<View>,
    asked: Asked,
    policy: Policy,
    votes: BTreeMap<Voter, Vote>,
    pending: BTreeMap<Voter, Pending>,
    tickets: TicketCounter,
    rotation: u64,
    deadline: Option<Mono>,
    answered: bool,
}

/// What every query of one fan-out asks.
#[derive(Clone, Debug)]
struct Asked {
    question: Question,
    flags: Flags,
}

#[derive(Debug)]
struct Pending {
    upstream: Upstream,
    /// The wait before the retransmission, by this upstream's round-trip time.
    try_limit: Duration,
    udp_tries: u8,
    outstanding: BTreeMap<Ticket, Sent>,
    last: Option<Ticket>,
    retransmit_at: Option<Mono>,
    /// What a cut UDP reply said, should TCP fail (R3.1).
    cut: Option<Vote>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    server: IpAddr,
    at: Mono,
    transport: Transport,
}

impl Resolution {
    /// `try_limit` gives the wait per server address, `rotation` turns a union.
    pub fn new(
        view: Arc<View>,
        question: Question,
        flags: Flags,
        ask: Ask,
        rotation: u64,
        try_limit: impl Fn(IpAddr) -> Duration,
    ) -> Self {
        let pending = ask
            .upstreams
            .into_iter()
            .map(|upstream| {
                let limit = upstream
                    .addresses
                    .first()
                    .map_or(super::rtt::TRY_MAX, |first| try_limit(*first));
                (upstream.voter(), Pending::new(upstream, limit))
            })
            .collect();
        Self {
            view,
            asked: Asked { question, flags },
            policy: ask.policy,
            votes: ask.votes,
            pending,
            tickets: TicketCounter::default(),
            rotation,
            deadline: None,
            answered: false,
        }
    }

    pub const fn question(&self) -> &Question {
        &self.asked.question
    }

    pub const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Votes that are in, for explaining an answer.
    pub const fn votes(&self) -> &BTreeMap<Voter, Vote> {
        &self.votes
    }

    /// Continues another counter: fan-outs whose tickets meet share one.
    pub(super) fn set_tickets(&mut self, tickets: TicketCounter) {
        self.tickets = tickets;
    }

    /// The counter after this machine's last ticket.
    pub fn tickets(&self) -> TicketCounter {
        self.tickets.clone()
    }

    fn start(&mut self, now: Now, out: &mut Outbox<ResolutionEffect>) {
        self.deadline = Some(now.mono + DEADLINE);
        for pending in self.pending.values_mut() {
            pending.ask_udp(&self.asked, &mut self.tickets, now, out);
        }
        self.settle(out);
    }

    fn on_reply(
        &mut self,
        ticket: Ticket,
        reply: &Reply,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let Some((voter, sent)) = self.take(ticket) else {
            return;
        };
        if sent.transport == Transport::Udp {
            let rtt = now.mono.saturating_since(sent.at);
            out.push(ResolutionEffect::Measured {
                server: sent.server,
                rtt,
            });
        }
        let Some(pending) = self.pending.get_mut(&voter) else {
            return;
        };
        let vote = classify(&self.view, &self.asked.question, &pending.upstream, reply);
        if reply.truncated && sent.transport == Transport::Udp {
            if pending.cut.is_none() {
                pending.cut = Some(vote);
                pending.retransmit_at = None;
                pending.ask(
                    Transport::Tcp,
                    sent.server,
                    &self.asked,
                    &mut self.tickets,
                    now,
                    out,
                );
            }
            return;
        }
        self.vote(voter, vote, out);
    }

    fn on_failure(
        &mut self,
        ticket: Ticket,
        failure: Failure,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let Some((voter, sent)) = self.take(ticket) else {
            return;
        };
        let Some(pending) = self.pending.get_mut(&voter) else {
            return;
        };
        if sent.transport == Transport::Udp
            && pending.cut.is_none()
            && pending.udp_tries < UDP_TRIES_MAX
        {
            pending.ask_udp(&self.asked, &mut self.tickets, now, out);
            return;
        }
        let tcp_failed = sent.transport == Transport::Tcp;
        if let Some(cut) = pending.cut.take_if(|_| tcp_failed) {
            self.vote(voter, cut, out);
        } else if pending.outstanding.is_empty() {
            self.vote(voter, Vote::Failed(failure), out);
        }
    }

    fn take(&mut self, ticket: Ticket) -> Option<(Voter, Sent)> {
        self.pending.iter_mut().find_map(|(voter, pending)| {
            pending
                .outstanding
                .remove(&ticket)
                .map(|sent| (voter.clone(), sent))
        })
    }

    /// One upstream's last word.
    fn vote(&mut self, voter: Voter, vote: Vote, out: &mut Outbox<ResolutionEffect>) {
        if let Some(pending) = self.pending.remove(&voter) {
            forget(&pending, out);
        }
        self.votes.insert(voter, vote);
        self.settle(out);
    }

    /// Answers as soon as no further vote can be waited for: a positive under first-positive
    /// (R2.3), else every vote (R2.6: what arrives first decides nothing else).
    fn settle(&mut self, out: &mut Outbox<ResolutionEffect>) {
        let has_positive = self
            .votes
            .values()
            .any(|vote| matches!(vote, Vote::Positive { .. }));
        let enough = self.policy == Policy::FirstPositive && has_positive;
        if self.answered || !(enough || self.pending.is_empty()) {
            return;
        }
        self.answered = true;
        for pending in self.pending.values() {
            forget(pending, out);
        }
        self.pending.clear();
        self.deadline = None;
        let answer = merge(
            &self.view,
            &self.asked.question.name,
            self.policy,
            &self.votes,
            self.rotation,
        );
        out.push(ResolutionEffect::Answer(answer));
    }

    fn on_deadline(&mut self, out: &mut Outbox<ResolutionEffect>) {
        for (voter, mut pending) in core::mem::take(&mut self.pending) {
            forget(&pending, out);
            let vote = pending
                .cut
                .take()
                .unwrap_or(Vote::Failed(Failure::TimedOut));
            self.votes.insert(voter, vote);
        }
        self.settle(out);
    }
}

impl Machine for Resolution {
    type Input = ResolutionInput;
    type Effect = ResolutionEffect;

    fn handle(&mut self, input: ResolutionInput, now: Now, out: &mut Outbox<ResolutionEffect>) {
        match input {
            ResolutionInput::Ask if self.deadline.is_none() && !self.answered => {
                self.start(now, out)
            }
            ResolutionInput::Ask => {}
            ResolutionInput::Reply { ticket, reply } => self.on_reply(ticket, &reply, now, out),
            ResolutionInput::Failed { ticket, failure } => {
                self.on_failure(ticket, failure, now, out)
            }
        }
    }

    fn wake(&mut self, now: Now, out: &mut Outbox<ResolutionEffect>) {
        if self.deadline.is_some_and(|deadline| deadline <= now.mono) {
            self.on_deadline(out);
            return;
        }
        for pending in self.pending.values_mut() {
            if pending.retransmit_at.is_some_and(|at| at <= now.mono) {
                pending.ask_udp(&self.asked, &mut self.tickets, now, out);
            }
        }
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let repeat = self
            .pending
            .values()
            .filter_map(|pending| pending.retransmit_at)
            .min();
        let repeat = repeat.map(|at| (at, "repeat a query"));
        let deadline = self.deadline.map(|at| (at, "deadline of a question"));
        repeat.into_iter().chain(deadline).min()
    }
}

impl Pending {
    const fn new(upstream: Upstream, try_limit: Duration) -> Self {
        Self {
            upstream,
            try_limit,
            udp_tries: 0,
            outstanding: BTreeMap::new(),
            last: None,
            retransmit_at: None,
            cut: None,
        }
    }

    /// The next UDP try; tries go through the server's addresses in turn.
    fn ask_udp(
        &mut self,
        asked: &Asked,
        tickets: &mut TicketCounter,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let turn = usize::from(self.udp_tries).checked_rem(self.upstream.addresses.len());
        let Some(server) = turn
            .and_then(|turn| self.upstream.addresses.get(turn))
            .copied()
        else {
            self.retransmit_at = None;
            return;
        };
        self.udp_tries += 1;
        self.retransmit_at = (self.udp_tries < UDP_TRIES_MAX).then(|| now.mono + self.try_limit);
        self.ask(Transport::Udp, server, asked, tickets, now, out);
    }

    fn ask(
        &mut self,
        transport: Transport,
        server: IpAddr,
        asked: &Asked,
        tickets: &mut TicketCounter,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let ticket = tickets.issue();
        self.outstanding.insert(
            ticket,
            Sent {
                server,
                at: now.mono,
                transport,
            },
        );
        let after = self.last.replace(ticket);
        let Asked { question, flags } = asked.clone();
        let domain = self.upstream.domain.clone();
        out.push(ResolutionEffect::Query(Query {
            ticket,
            domain,
            server,
            transport,
            after,
            question,
            flags,
        }));
    }
}

fn forget(pending: &Pending, out: &mut Outbox<ResolutionEffect>) {
    for ticket in pending.outstanding.keys() {
        out.push(ResolutionEffect::Forget(*ticket));
    }
}
