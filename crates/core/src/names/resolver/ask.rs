//! One question, from its client to the fan-out it starts or joins.

use core::time::Duration;
use std::sync::Arc;

use super::conclude::{About, Expired};
use super::running::{Running, Waiter};
use super::{Answered, Asking, Resolver, ResolverEffect, WAITING_MAX};
use crate::machine::{Machine as _, Outbox, Ticket};
use crate::names::cache::{CacheStamp, Hit, Key, Look};
use crate::names::explain::{Step, Trace};
use crate::names::health::Condition;
use crate::names::loops::LoopMark;
use crate::names::merge::{Merge, merge};
use crate::names::plan::unsupported;
use crate::names::resolution::{Asked, Resolution, ResolutionInput};
use crate::names::{
    Answer, Ask, DEADLINE, Decision, ExtendedError, Failure, Plan, Rcode, Reading, Upstream, View,
    Vote, Voter, plan,
};
use crate::time::Now;

/// A fan-out to resolvers that are all marked down (R3.7).
const ALL_DOWN_LIMIT: Duration = Duration::from_millis(500);
/// An expired answer is served after that time without a better one (R5.3).
const STALE_AFTER: Duration = Duration::from_millis(800);

impl Resolver {
    pub(super) fn ask(&mut self, asking: Asking, now: Now, out: &mut Outbox<ResolverEffect>) {
        let asker = asking.asker;
        let Some(view) = self.view.clone() else {
            self.counters.not_ready += 1;
            let answer = Answer::code(Rcode::SERV_FAIL, Decision::VotesMissing).because(
                ExtendedError::NO_REACHABLE_AUTHORITY,
                "no state from the router yet",
            );
            return self.answer(asker, answer, None, out);
        };
        let source = asking.source.to_canonical();
        let Some(class) = view.client_class(source) else {
            self.counters.strangers += 1;
            let answer = Answer::code(Rcode::REFUSED, Decision::NotForAsker)
                .because(ExtendedError::PROHIBITED, "not a client of this network");
            return self.answer(asker, answer, None, out);
        };
        if !self.clients.admit(source, class, now) {
            return self.answer_limited(asker, out);
        }
        let mut trace = (asking.explain || asking.log).then(Box::<Trace>::default);
        if let Some(refusal) = unsupported(&asking.question) {
            return self.answer(asker, refusal, trace, out);
        }
        if let Some(answer) = self.looped(&asking, now) {
            return self.answer(asker, answer, trace, out);
        }
        let key = Key {
            question: &asking.question,
            flags: asking.flags,
            asker: class,
        };
        let mut stale = None;
        let look = self.cache.look(key, self.rng.next_u64(), now);
        note_look(&look, trace.as_deref_mut());
        match look {
            _ if asking.explain => {}
            Look::Fresh(hit) => {
                let prefetch = hit.prefetch;
                self.answer_hit(asker, hit, trace, out);
                if prefetch {
                    self.prefetch(view, key, now, out);
                }
                return;
            }
            Look::Stale {
                hit,
                recheck,
                givers,
            } => {
                if !recheck {
                    self.cache.count_stale();
                    let answer = stale_of(&hit.answer);
                    return self.answer(asker, answer, trace, out);
                }
                let answer = hit.answer;
                stale = Some(Expired { answer, givers });
            }
            Look::Miss => {}
        }
        let ask = match plan(&view, &asking.question, class, now) {
            Plan::Answer(answer) => return self.answer(asker, answer, trace, out),
            Plan::Ask(ask) => ask,
        };
        if self.waiting >= WAITING_MAX {
            self.counters.shed += 1;
            let answer = Answer::code(Rcode::REFUSED, Decision::Overload)
                .because(ExtendedError::OTHER, "too many questions in flight");
            return self.answer(asker, answer, trace, out);
        }
        let Ok(client) = self.clients.waits(source, class, now) else {
            return self.answer_limited(asker, out);
        };
        self.waiting += 1;
        // A question that came through another server may be the one that server waits for.
        let joins = asking.mark.is_empty() && !asking.explain;
        let hash = self.hash_question(key);
        if joins && let Some(running) = self.joinable(hash, key, view.sequence(), now) {
            if let Some(trace) = &mut trace {
                trace.push(Duration::ZERO, Step::Joined);
            }
            running.waiters.push(Waiter {
                asker,
                client,
                trace,
            });
            self.counters.coalesced += 1;
            return;
        }
        if let Some(trace) = &mut trace {
            trace.push(Duration::ZERO, planned(&ask));
        }
        let waiter = Waiter {
            asker,
            client,
            trace: None,
        };
        let start = Start {
            about: About {
                view,
                question: Arc::new(asking.question),
                flags: asking.flags,
                class,
                policy: ask.policy,
                asked: Vec::new(),
                epoch: self.epoch,
                started: now.mono,
                stale,
            },
            mark: asking.mark,
            hash: joins.then_some(hash),
            waiters: vec![waiter],
            trace,
        };
        self.start(start, ask, now, out);
    }

    /// R4.2, R4.3: `Some` for a question that we sent ourselves, or that went too far.
    fn looped(&mut self, asking: &Asking, now: Now) -> Option<Answer> {
        let own = asking
            .mark
            .own(self.instance)
            .and_then(|number| self.health.by_number(number))
            .or_else(|| self.own_probe(&asking.question.name));
        let is_own = own.is_some() || asking.mark.own(self.instance).is_some();
        if let Some(upstream) = own {
            self.health.loops(&upstream, now);
        }
        (is_own || asking.mark.is_too_long()).then(|| {
            self.counters.loops += 1;
            Answer::code(Rcode::SERV_FAIL, Decision::Loop).because(ExtendedError::OTHER, "loop")
        })
    }

    /// Asks again for an answer that is about to expire; nobody waits for it (R5.5).
    fn prefetch(
        &mut self,
        view: Arc<View>,
        key: Key<'_>,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        let hash = self.hash_question(key);
        if self.joinable(hash, key, view.sequence(), now).is_some() {
            return;
        }
        let Plan::Ask(ask) = plan(&view, key.question, key.asker, now) else {
            return;
        };
        let start = Start {
            about: About {
                view,
                question: Arc::new(key.question.clone()),
                flags: key.flags,
                class: key.asker,
                policy: ask.policy,
                asked: Vec::new(),
                epoch: self.epoch,
                started: now.mono,
                stale: None,
            },
            mark: LoopMark::default(),
            hash: Some(hash),
            waiters: Vec::new(),
            trace: None,
        };
        self.start(start, ask, now, out);
    }

    /// Begins a fan-out, or ends it at once where nobody can be asked (R2.5).
    fn start(
        &mut self,
        mut start: Start,
        mut ask: Ask,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        let time_limit = self.leave_out(&start, &mut ask, now);
        if let Some(trace) = &mut start.trace {
            for (voter, vote) in &ask.votes {
                if let (Voter::Upstream(upstream), Vote::Failed(failure)) = (voter, vote) {
                    let left_out = Step::LeftOut {
                        upstream: upstream.id.clone(),
                        failure: *failure,
                    };
                    trace.push(Duration::ZERO, left_out);
                }
            }
        }
        let random = self.rng.next_u64();
        if ask.upstreams.is_empty() {
            let about = Merge {
                view: &start.about.view,
                question: &start.about.question,
                flags: start.about.flags,
                policy: ask.policy,
                random,
            };
            let merged = merge(about, &ask.votes);
            let told = self.conclude(&start.about, &ask.votes, merged, now);
            return self.tell(start.waiters, &told, start.trace, Duration::ZERO, out);
        }
        start.about.asked.clone_from(&ask.upstreams);
        for upstream in &ask.upstreams {
            self.health.began(&upstream.id);
        }
        let asked = Asked {
            question: Arc::clone(&start.about.question),
            flags: start.about.flags,
            mark: start.mark,
            instance: self.instance,
        };
        let health = &self.health;
        let manner = |upstream: &Upstream| health.manner(upstream, now);
        let view = Arc::clone(&start.about.view);
        let mut resolution = Resolution::new(view, asked, ask, time_limit, random, manner);
        resolution.set_trace(start.trace);
        let stale_at = start.about.stale.as_ref().map(|_| now.mono + STALE_AFTER);
        let slot = self.place(Running {
            resolution,
            about: start.about,
            hash: start.hash,
            waiters: start.waiters,
            tickets: Vec::new(),
            stale_at,
            wake: None,
        });
        self.step(slot, now, out, |resolution, now, child| {
            resolution.handle(ResolutionInput::Ask, now, child)
        });
    }

    /// Takes out who is not asked now and gives its vote for it; how long the others have.
    fn leave_out(&mut self, start: &Start, ask: &mut Ask, now: Now) -> Duration {
        let all_down = self.health.is_outside_down();
        let mut any_up = false;
        let Ask {
            upstreams, votes, ..
        } = ask;
        upstreams.retain(|upstream| {
            let condition = self.health.condition(&upstream.id);
            let failure = match condition {
                Condition::Looping { .. } => Some(Failure::Down),
                // Better than nothing; an owner that is down is a missing vote at once (R2.5).
                Condition::Down if !all_down || upstream.is_owner() => Some(Failure::Down),
                _ if self.health.is_full(&upstream.id) => Some(Failure::Overloaded),
                _ => self.memory.recall(&upstream.id, &start.about.question, now),
            };
            if let Some(failure) = failure {
                let voter = Voter::Upstream(Arc::clone(upstream));
                votes.push((voter, Vote::Failed(failure)));
            }
            any_up |= failure.is_none() && condition.is_asked();
            failure.is_none()
        });
        if any_up { DEADLINE } else { ALL_DOWN_LIMIT }
    }

    fn answer_limited(&mut self, asker: Ticket, out: &mut Outbox<ResolverEffect>) {
        self.counters.limited += 1;
        let answer = Answer::code(Rcode::REFUSED, Decision::ClientLimit)
            .because(ExtendedError::OTHER, "too many questions of this client");
        self.answer(asker, answer, None, out);
    }

    fn answer_hit(
        &mut self,
        asker: Ticket,
        hit: Hit,
        mut trace: Option<Box<Trace>>,
        out: &mut Outbox<ResolverEffect>,
    ) {
        self.count(&hit.answer);
        if let Some(trace) = &mut trace {
            trace.push(Duration::ZERO, answered(&hit.answer));
        }
        self.turn = self.turn.wrapping_add(1);
        out.push(ResolverEffect::Answer(Answered {
            asker,
            reading: Reading {
                answer: hit.answer,
                age: hit.age,
                turn: self.turn,
            },
            stamp: hit.stamp,
            trace,
        }));
    }

    /// Answers without a fan-out.
    fn answer(
        &mut self,
        asker: Ticket,
        answer: Answer,
        mut trace: Option<Box<Trace>>,
        out: &mut Outbox<ResolverEffect>,
    ) {
        self.count(&answer);
        self.turn = self.turn.wrapping_add(1);
        if let Some(trace) = &mut trace {
            trace.push(Duration::ZERO, answered(&answer));
        }
        // Own records last as long as the state does; what depends on the day does not.
        let lasts = match answer.decision {
            Decision::Local => !self.has_leases,
            Decision::SpecialUse | Decision::Outside | Decision::Service => true,
            _ => false,
        };
        out.push(ResolverEffect::Answer(Answered {
            asker,
            reading: Reading {
                answer: Arc::new(answer),
                age: 0,
                turn: self.turn,
            },
            stamp: lasts.then(|| CacheStamp::for_view(self.view_number)),
            trace,
        }));
    }

    pub(super) fn count(&mut self, answer: &Answer) {
        *self.counters.decisions.entry(answer.decision).or_default() += 1;
    }
}

/// What a fan-out begins with.
struct Start {
    about: About,
    mark: LoopMark,
    /// `None`: no other question joins it.
    hash: Option<u32>,
    waiters: Vec<Waiter>,
    trace: Option<Box<Trace>>,
}

/// R5.3: an expired answer as it is served.
pub(super) fn stale_of(answer: &Answer) -> Answer {
    let mut stale = answer.clone();
    for record in stale.answers.iter_mut().chain(&mut stale.additional) {
        record.ttl = crate::names::STALE_TTL;
    }
    stale.decision = Decision::Stale;
    stale.because(ExtendedError::STALE, "no fresh answer")
}

pub(super) fn answered(answer: &Answer) -> Step {
    Step::Answered {
        rcode: answer.rcode,
        decision: answer.decision,
        rule: answer.decision.rule(),
    }
}

fn planned(ask: &Ask) -> Step {
    Step::Planned {
        rule: ask.rule,
        policy: ask.policy,
        upstreams: ask
            .upstreams
            .iter()
            .map(|upstream| upstream.id.clone())
            .collect(),
    }
}

fn note_look(look: &Look, trace: Option<&mut Trace>) {
    let Some(trace) = trace else {
        return;
    };
    let (state, age) = match look {
        Look::Fresh(hit) => ("fresh", hit.age),
        Look::Stale { hit, .. } => ("stale", hit.age),
        Look::Miss => ("miss", 0),
    };
    let age = u64::from(age);
    trace.push(Duration::ZERO, Step::Cached { state, age });
}
