//! All questions of one view: planning, sharing of identical questions in flight, limits.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::merge::{Merged, choose};
use super::resolution::{Asked, Manner, Query, Resolution, ResolutionEffect, ResolutionInput};
use super::rtt::Rtt;
use super::{
    Answer, ClientClass, DEADLINE, Decision, ExtendedError, Failure, Flags, Plan, Question, Rcode,
    Reading, Reply, UpstreamId, View, Vote, plan,
};
use crate::machine::{Machine, Outbox, Ticket, TicketCounter};
use crate::rng::Rng;
use crate::time::{Mono, Now};

/// Askers waiting at one time (R3.10).
pub const WAITING_MAX: usize = 10_000;
/// Servers whose round-trip time is remembered.
const RTTS_MAX: usize = 4_096;

#[derive(Clone, Debug)]
pub enum ResolverInput {
    /// A state from the router; questions in flight end by the one they began with (R3.9).
    View(Arc<View>),
    Ask(Asking),
    Reply {
        ticket: Ticket,
        reply: Reply,
    },
    Failed {
        ticket: Ticket,
        failure: Failure,
    },
}

/// One client's question.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The caller's own number, used once; comes back with the answer.
    pub asker: Ticket,
    pub source: IpAddr,
    pub question: Question,
    pub flags: Flags,
}

/// The answer to one asker.
#[derive(Clone, Debug)]
pub struct Answered {
    pub asker: Ticket,
    pub reading: Reading,
}

#[derive(Clone, Debug)]
pub enum ResolverEffect {
    Query(Query),
    /// Nobody waits for this query any more.
    Forget(Ticket),
    Answer(Answered),
}

/// What happened, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolverCounters {
    /// Questions that joined one in flight (R2.11).
    pub coalesced: u64,
    /// Questions refused at [`WAITING_MAX`].
    pub shed: u64,
    /// Questions of nobody we serve.
    pub strangers: u64,
    /// Questions before the first state.
    pub not_ready: u64,
    /// Private addresses taken out of replies (R6.7).
    pub private_removed: u64,
    /// Missing votes by reason.
    pub failures: BTreeMap<Failure, u64>,
    pub decisions: BTreeMap<Decision, u64>,
}

/// The resolver of one view (R1.1). Owns its fan-outs, which the shell or the simulation wakes
/// through it.
#[derive(Debug)]
pub struct Resolver {
    view: Option<Arc<View>>,
    rng: Rng,
    tickets: TicketCounter,
    rtts: BTreeMap<UpstreamId, Rtt>,
    running: BTreeMap<u64, Running>,
    by_key: BTreeMap<Key, u64>,
    by_ticket: BTreeMap<Ticket, u64>,
    wakes: BTreeSet<(Mono, &'static str, u64)>,
    next_id: u64,
    turn: u32,
    waiting: usize,
    counters: ResolverCounters,
}

#[derive(Debug)]
struct Running {
    resolution: Resolution,
    key: Key,
    askers: Vec<Ticket>,
    tickets: BTreeSet<Ticket>,
    wake: Option<(Mono, &'static str)>,
}

/// Questions with equal keys share one fan-out. The class of the asker is part of it: a router's
/// question must not wait for one that waits for that router.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    view: u64,
    question: Question,
    flags: Flags,
    class: ClientClass,
}

impl Resolver {
    /// The seed decides rotations only.
    pub fn new(seed: u64) -> Self {
        Self {
            view: None,
            rng: Rng::new(seed),
            tickets: TicketCounter::default(),
            rtts: BTreeMap::new(),
            running: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_ticket: BTreeMap::new(),
            wakes: BTreeSet::new(),
            next_id: 0,
            turn: 0,
            waiting: 0,
            counters: ResolverCounters::default(),
        }
    }

    pub const fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref()
    }

    pub const fn counters(&self) -> &ResolverCounters {
        &self.counters
    }

    /// Askers that wait for an answer.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Fan-outs in flight.
    pub fn in_flight(&self) -> usize {
        self.running.len()
    }

    pub fn rtt(&self, upstream: &UpstreamId) -> Option<Duration> {
        self.rtts.get(upstream).map(Rtt::smoothed)
    }

    fn ask(&mut self, asking: Asking, now: Now, out: &mut Outbox<ResolverEffect>) {
        let Asking {
            asker,
            source,
            question,
            flags,
        } = asking;
        let Some(view) = self.view.clone() else {
            self.counters.not_ready += 1;
            let answer = Answer::code(Rcode::SERV_FAIL, Decision::VotesMissing).because(
                ExtendedError::NO_REACHABLE_AUTHORITY,
                "no state from the router yet",
            );
            return self.answer(asker, answer, out);
        };
        let Some(class) = view.client_class(source) else {
            self.counters.strangers += 1;
            let answer = Answer::code(Rcode::REFUSED, Decision::NotForAsker)
                .because(ExtendedError::PROHIBITED, "not a client of this network");
            return self.answer(asker, answer, out);
        };
        let ask = match plan(&view, &question, class, now) {
            Plan::Answer(answer) => return self.answer(asker, answer, out),
            Plan::Ask(ask) => ask,
        };
        if self.waiting >= WAITING_MAX {
            self.counters.shed += 1;
            let answer = Answer::code(Rcode::REFUSED, Decision::Overload)
                .because(ExtendedError::OTHER, "too many questions in flight");
            return self.answer(asker, answer, out);
        }
        self.waiting += 1;
        let key = Key {
            view: view.sequence(),
            question,
            flags,
            class,
        };
        if let Some(running) = self
            .by_key
            .get(&key)
            .and_then(|id| self.running.get_mut(id))
        {
            self.counters.coalesced += 1;
            running.askers.push(asker);
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let rtts = &self.rtts;
        let manner = |upstream: &super::Upstream| Manner {
            try_limit: rtts
                .get(&upstream.id)
                .copied()
                .unwrap_or_default()
                .try_limit(),
            mixed_case: upstream.mixes_case(),
        };
        let random = self.rng.next_u64();
        let asked = Asked::new(key.question.clone(), flags);
        let resolution = Resolution::new(view, asked, ask, DEADLINE, random, manner);
        self.by_key.insert(key.clone(), id);
        let running = Running {
            resolution,
            key,
            askers: vec![asker],
            tickets: BTreeSet::new(),
            wake: None,
        };
        self.running.insert(id, running);
        self.step(id, now, out, |resolution, now, child| {
            resolution.handle(ResolutionInput::Ask, now, child)
        });
    }

    fn answer(&mut self, asker: Ticket, answer: Answer, out: &mut Outbox<ResolverEffect>) {
        self.count(&answer);
        out.push(ResolverEffect::Answer(Answered {
            asker,
            reading: Reading::new(answer),
        }));
    }

    fn count(&mut self, answer: &Answer) {
        *self.counters.decisions.entry(answer.decision).or_default() += 1;
    }

    /// Runs one child and drains it.
    fn step(
        &mut self,
        id: u64,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
        run: impl FnOnce(&mut Resolution, Now, &mut Outbox<ResolutionEffect>),
    ) {
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        let mut child = Outbox::default();
        running.resolution.set_tickets(self.tickets.clone());
        run(&mut running.resolution, now, &mut child);
        self.tickets = running.resolution.tickets();
        let mut answer = None;
        for effect in child.drain() {
            match effect {
                ResolutionEffect::Query(query) => {
                    running.tickets.insert(query.ticket);
                    self.by_ticket.insert(query.ticket, id);
                    out.push(ResolverEffect::Query(query));
                }
                ResolutionEffect::Forget(ticket) => {
                    running.tickets.remove(&ticket);
                    self.by_ticket.remove(&ticket);
                    out.push(ResolverEffect::Forget(ticket));
                }
                ResolutionEffect::Heard {
                    upstream,
                    rtt,
                    private_removed,
                } => {
                    self.counters.private_removed += u64::try_from(private_removed).unwrap_or(0);
                    if let Some(rtt) = rtt {
                        measure(&mut self.rtts, &upstream.id, rtt);
                    }
                }
                ResolutionEffect::Unheard { .. } | ResolutionEffect::Overdue { .. } => {}
                ResolutionEffect::Answer(merged) => answer = Some(merged),
            }
        }
        let wake = running.resolution.next_wake();
        if wake != running.wake {
            if let Some((at, reason)) = running.wake {
                self.wakes.remove(&(at, reason, id));
            }
            if let Some((at, reason)) = wake {
                self.wakes.insert((at, reason, id));
            }
            running.wake = wake;
        }
        if let Some(answer) = answer {
            self.finish(id, answer, out);
        }
    }

    fn finish(&mut self, id: u64, merged: Merged, out: &mut Outbox<ResolverEffect>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        self.by_key.remove(&running.key);
        for ticket in &running.tickets {
            self.by_ticket.remove(ticket);
        }
        for (voter, vote) in running.resolution.votes() {
            let failure = match vote {
                Vote::Failed(failure) => *failure,
                Vote::NoOpinion if voter.is_owner() => Failure::ErrorCode,
                Vote::NoOpinion | Vote::Positive(_) | Vote::NoData(_) | Vote::NxDomain(_) => {
                    continue;
                }
            };
            *self.counters.failures.entry(failure).or_default() += 1;
        }
        self.waiting = self.waiting.saturating_sub(running.askers.len());
        let choices: Vec<(u32, Arc<Answer>)> = merged
            .choices
            .into_iter()
            .map(|(weight, answer)| (weight, Arc::new(answer)))
            .collect();
        for asker in running.askers {
            let at = choose(
                choices.iter().map(|(weight, _)| *weight),
                self.rng.next_u64(),
            );
            let Some((_, answer)) = choices.get(at) else {
                continue;
            };
            self.count(answer);
            self.turn = self.turn.wrapping_add(1);
            out.push(ResolverEffect::Answer(Answered {
                asker,
                reading: Reading {
                    answer: Arc::clone(answer),
                    age: 0,
                    turn: self.turn,
                },
            }));
        }
    }

    fn completion(
        &mut self,
        ticket: Ticket,
        input: ResolutionInput,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        let Some(id) = self.by_ticket.remove(&ticket) else {
            return;
        };
        if let Some(running) = self.running.get_mut(&id) {
            running.tickets.remove(&ticket);
        }
        self.step(id, now, out, |resolution, now, child| {
            resolution.handle(input, now, child)
        });
    }
}

/// Bounded: at the limit the servers seen so far keep their figures, others use the default.
fn measure(rtts: &mut BTreeMap<UpstreamId, Rtt>, server: &UpstreamId, rtt: Duration) {
    if let Some(known) = rtts.get_mut(server) {
        known.sample(rtt);
    } else if rtts.len() < RTTS_MAX {
        rtts.entry(server.clone()).or_default().sample(rtt);
    }
}

impl Machine for Resolver {
    type Input = ResolverInput;
    type Effect = ResolverEffect;

    fn handle(&mut self, input: ResolverInput, now: Now, out: &mut Outbox<ResolverEffect>) {
        match input {
            ResolverInput::View(view) => {
                let servers: BTreeSet<&UpstreamId> =
                    view.upstreams().map(|upstream| &upstream.id).collect();
                self.rtts.retain(|server, _| servers.contains(server));
                self.view = Some(view);
            }
            ResolverInput::Ask(asking) => self.ask(asking, now, out),
            ResolverInput::Reply { ticket, reply } => {
                self.completion(ticket, ResolutionInput::Reply { ticket, reply }, now, out);
            }
            ResolverInput::Failed { ticket, failure } => {
                self.completion(
                    ticket,
                    ResolutionInput::Failed { ticket, failure },
                    now,
                    out,
                );
            }
        }
    }

    fn wake(&mut self, now: Now, out: &mut Outbox<ResolverEffect>) {
        let due: BTreeSet<u64> = self
            .wakes
            .iter()
            .take_while(|(at, ..)| *at <= now.mono)
            .map(|(_, _, id)| *id)
            .collect();
        for id in due {
            self.step(id, now, out, |resolution, now, child| {
                resolution.wake(now, child)
            });
        }
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        self.wakes.first().map(|(at, reason, _)| (*at, *reason))
    }
}
