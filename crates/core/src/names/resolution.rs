//! One question's fan-out: asks every owner, repeats, falls back to TCP, merges.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::Arc;

use super::explain::{Step, Trace};
use super::loops::{Hop, LoopMark};
use super::merge::{Ballot, Merge, Merged, merge};
use super::pending::{Pending, Sent};
use super::{
    Ask, Classed, Failure, Flags, Policy, Preference, Question, Rcode, Reply, Transport, Upstream,
    View, Vote, Voter, classify,
};
use crate::machine::{Machine, Outbox, Ticket, TicketCounter};
use crate::time::{Mono, Now};

/// A question is answered within this time, whoever is silent (R3.6).
pub const DEADLINE: Duration = Duration::from_millis(1500);

/// One query to send. The shell answers each with a reply or a failure; silence is the machine's
/// own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub ticket: Ticket,
    pub upstream: Arc<Upstream>,
    pub server: SocketAddr,
    pub transport: Transport,
    /// The try before this one: a repetition leaves by another socket (R3.6).
    pub after: Option<Ticket>,
    pub question: Arc<Question>,
    /// As they are to be sent: DO and CD travel on, RD is the upstream's (R4.1).
    pub flags: Flags,
    /// The name goes out in random letter case, and the reply must repeat it (R3.3); otherwise
    /// [`Failure::CaseChanged`].
    pub mixed_case: bool,
    /// Sent along as a private EDNS option (R4.2).
    pub mark: Option<LoopMark>,
    /// Nobody's question: it asks whether the upstream lives (R3.7) or leads back (R4.3).
    pub probe: bool,
}

/// What every query of one fan-out asks.
#[derive(Clone, Debug)]
pub struct Asked {
    pub question: Arc<Question>,
    pub flags: Flags,
    /// The way of the question up to here.
    pub mark: LoopMark,
    /// Our own number in marks.
    pub instance: u64,
}

impl Asked {
    /// A client's question.
    pub fn new(question: Question, flags: Flags) -> Self {
        Self {
            question: Arc::new(question),
            flags,
            mark: LoopMark::default(),
            instance: 0,
        }
    }

    pub(super) fn mark_for(&self, upstream: &Upstream) -> Option<LoopMark> {
        let hop = Hop {
            instance: self.instance,
            upstream: upstream.id.number(),
        };
        upstream.marks_loops().then(|| self.mark.and(hop))
    }
}

/// How one upstream is asked.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The wait before the repetition.
    pub try_limit: Duration,
    pub mixed_case: bool,
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
    /// An upstream replied; by UDP, after this time.
    Heard {
        upstream: Arc<Upstream>,
        rtt: Option<Duration>,
        /// The reply repeated a name in mixed case (R3.3).
        mixed_case: bool,
        /// Addresses taken out of the reply (R6.7).
        private_removed: usize,
    },
    /// A query that left at `sent` ended without a reply, or without one that counts.
    Unheard {
        upstream: Arc<Upstream>,
        failure: Failure,
        sent: Mono,
    },
    /// The question was answered by others while a query that left at `sent` was outstanding:
    /// its reply will not be heard.
    Left {
        upstream: Arc<Upstream>,
        sent: Mono,
    },
    /// A reply is overdue: the question was repeated.
    Overdue {
        upstream: Arc<Upstream>,
        sent: Mono,
    },
    /// The one answer; nothing follows it.
    Answer(Merged),
}

/// One fan-out. Lives from `Ask` to `Answer`.
///
/// Ask -> (replies, failures, repetitions)* -> Answer: at the first positive vote (policies that
/// take the first), when every vote is in, or at the deadline.
#[derive(Debug)]
pub struct Resolution {
    view: Arc<View>,
    asked: Asked,
    policy: Policy,
    votes: Vec<Ballot>,
    pending: Vec<Pending>,
    tickets: TicketCounter,
    random: u64,
    time_limit: Duration,
    started: Mono,
    deadline: Option<Mono>,
    /// A positive vote is in, one of a better class may follow until then (R2.2 `prefer`).
    prefer_until: Option<Mono>,
    answered: bool,
    trace: Option<Box<Trace>>,
}

impl Resolution {
    /// `manner` says how each upstream is asked, `random` chooses what a merged set leaves out.
    pub fn new(
        view: Arc<View>,
        asked: Asked,
        ask: Ask,
        time_limit: Duration,
        random: u64,
        manner: impl Fn(&Upstream) -> Manner,
    ) -> Self {
        let pending = ask
            .upstreams
            .into_iter()
            .map(|upstream| {
                let Manner {
                    try_limit,
                    mixed_case,
                } = manner(&upstream);
                Pending::new(upstream, try_limit, mixed_case)
            })
            .collect();
        Self {
            view,
            asked,
            policy: ask.policy,
            votes: ask.votes,
            pending,
            tickets: TicketCounter::default(),
            random,
            time_limit,
            started: Mono::default(),
            deadline: None,
            prefer_until: None,
            answered: false,
            trace: None,
        }
    }

    pub fn question(&self) -> &Question {
        &self.asked.question
    }

    pub const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Votes that are in.
    pub fn votes(&self) -> &[Ballot] {
        &self.votes
    }

    /// Keeps what happens from here on (R7.3).
    pub(super) fn set_trace(&mut self, trace: Option<Box<Trace>>) {
        self.trace = trace;
    }

    pub(super) const fn take_trace(&mut self) -> Option<Box<Trace>> {
        self.trace.take()
    }

    /// Continues another counter: fan-outs whose tickets meet share one.
    pub(super) fn set_tickets(&mut self, tickets: TicketCounter) {
        self.tickets = tickets;
    }

    /// The counter after this machine's last ticket.
    pub fn tickets(&self) -> TicketCounter {
        self.tickets.clone()
    }

    fn note(&mut self, now: Now, step: impl FnOnce() -> Step) {
        if let Some(trace) = &mut self.trace {
            trace.push(now.mono.saturating_since(self.started), step());
        }
    }

    fn start(&mut self, now: Now, out: &mut Outbox<ResolutionEffect>) {
        self.started = now.mono;
        self.deadline = Some(now.mono + self.time_limit);
        for at in 0..self.pending.len() {
            self.ask(at, now, out);
        }
        self.settle(now, out);
    }

    fn ask(&mut self, at: usize, now: Now, out: &mut Outbox<ResolutionEffect>) {
        if let Some(pending) = self.pending.get_mut(at) {
            pending.ask(&self.asked, &mut self.tickets, now, out);
            self.note_query(now, out);
        }
    }

    fn note_query(&mut self, now: Now, out: &Outbox<ResolutionEffect>) {
        if self.trace.is_some()
            && let Some(ResolutionEffect::Query(query)) = out.as_slice().last()
        {
            let step = Step::Asked {
                upstream: query.upstream.id.clone(),
                server: query.server,
                transport: query.transport,
            };
            self.note(now, || step);
        }
    }

    fn on_reply(
        &mut self,
        ticket: Ticket,
        reply: &Reply,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let Some((at, sent)) = self.take(ticket) else {
            return;
        };
        let upstream = Arc::clone(&self.pending[at].upstream);
        let Classed {
            vote,
            private_removed,
        } = classify(
            &self.view,
            &self.asked.question,
            self.asked.flags,
            &upstream,
            reply,
        );
        self.note(now, || Step::Said {
            upstream: upstream.id.clone(),
            vote: vote.label(),
            records: reply.answers.len(),
            truncated: reply.truncated,
        });
        let by_udp = sent.transport == Transport::Udp;
        let is_miss = upstream.stock.is_some() && reply.rcode == Rcode::SERV_FAIL;
        out.push(ResolutionEffect::Heard {
            upstream,
            rtt: by_udp.then(|| now.mono.saturating_since(sent.at)),
            mixed_case: sent.mixed_case,
            private_removed,
        });
        if reply.truncated && by_udp {
            let pending = &mut self.pending[at];
            if pending.cut.is_none() {
                pending.cut = Some(vote);
                pending.ask_whole(sent.server, &self.asked, &mut self.tickets, now, out);
                self.note_query(now, out);
            }
            return;
        }
        if is_miss {
            return self.missed(at, vote, now, out);
        }
        self.vote(at, vote, now, out);
    }

    /// R2.13: a stock router says SERVFAIL for names that it does not know, and to a message whose
    /// ID is in use there. The second one, to another ID, says that it does not know the name.
    fn missed(&mut self, at: usize, vote: Vote, now: Now, out: &mut Outbox<ResolutionEffect>) {
        let pending = &mut self.pending[at];
        pending.misses += 1;
        if pending.misses > 1 {
            self.vote(at, Vote::nx_domain(), now, out);
        } else if pending.may_try() {
            self.ask(at, now, out);
        } else if pending.is_silent() {
            self.vote(at, vote, now, out);
        }
    }

    fn on_failure(
        &mut self,
        ticket: Ticket,
        failure: Failure,
        now: Now,
        out: &mut Outbox<ResolutionEffect>,
    ) {
        let Some((at, sent)) = self.take(ticket) else {
            return;
        };
        let upstream = Arc::clone(&self.pending[at].upstream);
        self.note(now, || Step::Failed {
            upstream: upstream.id.clone(),
            failure,
        });
        out.push(ResolutionEffect::Unheard {
            upstream,
            failure,
            sent: sent.at,
        });
        let pending = &mut self.pending[at];
        if failure == Failure::CaseChanged {
            pending.plain_case();
        }
        if pending.may_try() {
            return self.ask(at, now, out);
        }
        let whole_failed = sent.transport == Transport::Tcp;
        if let Some(cut) = pending.cut.take_if(|_| whole_failed) {
            self.vote(at, cut, now, out);
        } else if pending.is_silent() {
            self.vote(at, Vote::Failed(failure), now, out);
        }
    }

    fn take(&mut self, ticket: Ticket) -> Option<(usize, Sent)> {
        self.pending
            .iter_mut()
            .enumerate()
            .find_map(|(at, pending)| Some((at, pending.take(ticket)?)))
    }

    /// One upstream's last word.
    fn vote(&mut self, at: usize, vote: Vote, now: Now, out: &mut Outbox<ResolutionEffect>) {
        let pending = self.pending.remove(at);
        pending.forget(out);
        self.votes.push((Voter::Upstream(pending.upstream), vote));
        self.settle(now, out);
    }

    /// Answers as soon as no further vote can be waited for: see [`Policy`]; else every vote
    /// (R2.6: what arrives first decides nothing else).
    fn settle(&mut self, now: Now, out: &mut Outbox<ResolutionEffect>) {
        if self.answered || !(self.pending.is_empty() || self.is_enough(now)) {
            return;
        }
        self.answered = true;
        for pending in core::mem::take(&mut self.pending) {
            pending.forget(out);
            if let Some(sent) = pending.waiting_since() {
                out.push(ResolutionEffect::Left {
                    upstream: pending.upstream,
                    sent,
                });
            }
        }
        self.deadline = None;
        self.prefer_until = None;
        let about = Merge {
            view: &self.view,
            question: &self.asked.question,
            flags: self.asked.flags,
            policy: self.policy,
            random: self.random,
        };
        out.push(ResolutionEffect::Answer(merge(about, &self.votes)));
    }

    fn is_enough(&mut self, now: Now) -> bool {
        let upstreams = || {
            self.votes
                .iter()
                .filter(|(voter, _)| *voter != Voter::Local)
        };
        match self.policy {
            Policy::Union | Policy::Weighted => false,
            Policy::FirstPositive => self.votes.iter().any(|(_, vote)| vote.is_positive()),
            Policy::Race => upstreams().any(|(_, vote)| {
                matches!(
                    vote,
                    Vote::Positive(_) | Vote::NoData(_) | Vote::NxDomain(_)
                )
            }),
            Policy::Prefer => {
                let Some(best) = self.best_positive() else {
                    return false;
                };
                let is_better = |pending: &Pending| pending.upstream.class < best;
                if !self.pending.iter().any(is_better) {
                    return true;
                }
                let until = *self
                    .prefer_until
                    .get_or_insert(now.mono + self.view.prefer_wait);
                until <= now.mono
            }
        }
    }

    fn best_positive(&self) -> Option<Preference> {
        self.votes
            .iter()
            .filter(|(_, vote)| vote.is_positive())
            .map(|(voter, _)| voter.class())
            .min()
    }

    fn on_deadline(&mut self, now: Now, out: &mut Outbox<ResolutionEffect>) {
        for mut pending in core::mem::take(&mut self.pending) {
            pending.forget(out);
            if let Some(sent) = pending.waiting_since() {
                out.push(ResolutionEffect::Unheard {
                    upstream: Arc::clone(&pending.upstream),
                    failure: Failure::TimedOut,
                    sent,
                });
            }
            let vote = pending
                .cut
                .take()
                .unwrap_or(Vote::Failed(Failure::TimedOut));
            self.note(now, || Step::Failed {
                upstream: pending.upstream.id.clone(),
                failure: Failure::TimedOut,
            });
            self.votes.push((Voter::Upstream(pending.upstream), vote));
        }
        self.settle(now, out);
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
            return self.on_deadline(now, out);
        }
        if self.prefer_until.is_some_and(|until| until <= now.mono) {
            return self.settle(now, out);
        }
        for at in 0..self.pending.len() {
            let pending = &self.pending[at];
            if pending.repeat_at.is_some_and(|due| due <= now.mono) {
                if let Some(sent) = pending.waiting_since() {
                    out.push(ResolutionEffect::Overdue {
                        upstream: Arc::clone(&pending.upstream),
                        sent,
                    });
                }
                self.ask(at, now, out);
            }
        }
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let repeat = self
            .pending
            .iter()
            .filter_map(|pending| pending.repeat_at)
            .min();
        let repeat = repeat.map(|at| (at, "repeat a query"));
        let prefer = self.prefer_until.map(|at| (at, "wait for a better class"));
        let deadline = self.deadline.map(|at| (at, "deadline of a question"));
        repeat.into_iter().chain(prefer).chain(deadline).min()
    }
}
