//! Fan-outs in flight: where they are, what wakes them, how they end.

use core::time::Duration;
use std::sync::Arc;

use super::ask::{answered, stale_of};
use super::conclude::{About, Told};
use super::{Answered, Resolver, ResolverEffect};
use crate::machine::{Machine as _, Outbox, Ticket};
use crate::names::Reading;
use crate::names::cache::Key;
use crate::names::explain::Trace;
use crate::names::limits::ClientPlace;
use crate::names::merge::{Merged, choose};
use crate::names::resolution::{Resolution, ResolutionEffect, ResolutionInput};
use crate::time::{Mono, Now};

/// An older fan-out is joined no more: what it will tell may be wrong for too long by then.
const JOIN_MAX: Duration = Duration::from_millis(800);

/// Who waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) asker: Ticket,
    pub(super) client: Option<ClientPlace>,
    /// Of one that joined and is logged; what happens to the fan-out is told to who began it.
    pub(super) trace: Option<Box<Trace>>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) resolution: Resolution,
    pub(super) about: About,
    /// Under which equal questions find it.
    pub(super) hash: Option<u32>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) tickets: Vec<Ticket>,
    /// From then on askers get the expired answer, while this goes on (R5.3).
    pub(super) stale_at: Option<Mono>,
    pub(super) wake: Option<(Mono, &'static str)>,
}

impl Running {
    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let stale = self.stale_at.map(|at| (at, "serve an expired answer"));
        self.resolution.next_wake().into_iter().chain(stale).min()
    }

    fn answers(&self, key: Key<'_>, sequence: u64, now: Now) -> bool {
        let about = &self.about;
        about.started + JOIN_MAX > now.mono
            && about.class == key.asker
            && about.flags == key.flags
            && *about.question == *key.question
            && about.view.sequence() == sequence
    }
}

impl Resolver {
    pub(super) fn hash_question(&self, key: Key<'_>) -> u32 {
        let number = u64::from(key.question.rtype.0) << 32 | u64::from(key.question.class);
        self.key.hash_name(&key.question.name, number)
    }

    fn hash_ticket(&self, ticket: Ticket) -> u32 {
        self.key.hash(&[], ticket.0)
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Running> {
        self.running.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    fn at_mut(&mut self, slot: u32) -> Option<&mut Running> {
        self.running.get_mut(usize::try_from(slot).ok()?)?.as_mut()
    }

    /// R2.11: a fan-out in flight for an equal question of an asker of the same class.
    pub(super) fn joinable(
        &mut self,
        hash: u32,
        key: Key<'_>,
        sequence: u64,
        now: Now,
    ) -> Option<&mut Running> {
        let slot = self.by_question.find(hash, |slot| {
            self.at(slot)
                .is_some_and(|running| running.answers(key, sequence, now))
        })?;
        self.at_mut(slot)
    }

    pub(super) fn place(&mut self, running: Running) -> u32 {
        let hash = running.hash;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.running.push(None);
                u32::try_from(self.running.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let room = usize::try_from(slot)
            .ok()
            .and_then(|at| self.running.get_mut(at));
        if let Some(room) = room {
            *room = Some(running);
        }
        if let Some(hash) = hash {
            self.by_question.insert(hash, slot);
        }
        slot
    }

    /// Runs one child and drains it.
    pub(super) fn step(
        &mut self,
        slot: u32,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
        run: impl FnOnce(&mut Resolution, Now, &mut Outbox<ResolutionEffect>),
    ) {
        let mut child = core::mem::take(&mut self.child);
        let tickets = self.tickets.clone();
        let Some(running) = self.at_mut(slot) else {
            self.child = child;
            return;
        };
        running.resolution.set_tickets(tickets);
        run(&mut running.resolution, now, &mut child);
        self.tickets = running.resolution.tickets();
        let mut answer = None;
        for effect in child.drain() {
            self.apply(slot, effect, &mut answer, now, out);
        }
        self.child = child;
        match answer {
            Some(merged) => self.finish(slot, merged, now, out),
            None => self.set_wake(slot),
        }
    }

    fn apply(
        &mut self,
        slot: u32,
        effect: ResolutionEffect,
        answer: &mut Option<Merged>,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        match effect {
            ResolutionEffect::Query(query) => {
                let hash = self.hash_ticket(query.ticket);
                if let Some(running) = self.at_mut(slot) {
                    running.tickets.push(query.ticket);
                    self.by_ticket.insert(hash, slot);
                }
                out.push(ResolverEffect::Query(query));
            }
            ResolutionEffect::Forget(ticket) => {
                self.take_ticket(ticket);
                out.push(ResolverEffect::Forget(ticket));
            }
            ResolutionEffect::Heard {
                upstream,
                rtt,
                mixed_case,
                private_removed,
            } => {
                self.counters.private_removed += u64::try_from(private_removed).unwrap_or(0);
                if mixed_case {
                    self.health.case_kept(&upstream.id);
                }
                if self.health.heard(&upstream.id, rtt, now) {
                    self.memory.forgive_all(&upstream.id);
                }
            }
            ResolutionEffect::Unheard {
                upstream,
                failure,
                sent,
            } => self.health.failed(&upstream.id, failure, sent, now),
            ResolutionEffect::Left { upstream, sent } => {
                self.health.left(&upstream.id, sent, now);
            }
            ResolutionEffect::Overdue { upstream, sent } => {
                self.counters.repeated += 1;
                self.health.overdue(&upstream.id, sent, now);
            }
            ResolutionEffect::Answer(merged) => *answer = Some(merged),
        }
    }

    fn set_wake(&mut self, slot: u32) {
        let Some(running) = usize::try_from(slot)
            .ok()
            .and_then(|at| self.running.get_mut(at)?.as_mut())
        else {
            return;
        };
        let wake = running.next_wake();
        let before = core::mem::replace(&mut running.wake, wake);
        let time = |wake: Option<(Mono, &'static str)>| wake.map(|(at, _)| at);
        self.wakes.set(&slot, time(before), time(wake));
    }

    pub(super) fn wake_running(&mut self, slot: u32, now: Now, out: &mut Outbox<ResolverEffect>) {
        let Some(running) = self.at_mut(slot) else {
            return;
        };
        if running.stale_at.is_some_and(|at| at <= now.mono) {
            running.stale_at = None;
            let since = now.mono.saturating_since(running.about.started);
            let stale = running.about.stale.as_ref();
            let stale = stale.filter(|stale| !stale.is_withdrawn(running.resolution.votes()));
            if let Some(stale) = stale.map(|stale| Arc::clone(&stale.answer)) {
                let waiters = core::mem::take(&mut running.waiters);
                let trace = running.resolution.take_trace();
                // Whoever asks next does not wait for this one either.
                if let Some(hash) = running.hash.take() {
                    self.by_question.remove(hash, slot);
                }
                self.not_confirmed(slot, now);
                let told = Told::one(stale_of(&stale));
                self.tell_stale(waiters, &told, trace, since, out);
            }
        }
        self.step(slot, now, out, |resolution, now, child| {
            resolution.wake(now, child)
        });
    }

    fn not_confirmed(&mut self, slot: u32, now: Now) {
        let Some(running) = usize::try_from(slot)
            .ok()
            .and_then(|at| self.running.get(at)?.as_ref())
        else {
            return;
        };
        self.cache.not_confirmed(running.about.key(), now);
    }

    fn tell_stale(
        &mut self,
        waiters: Vec<Waiter>,
        told: &Told,
        trace: Option<Box<Trace>>,
        since: Duration,
        out: &mut Outbox<ResolverEffect>,
    ) {
        for _ in &waiters {
            self.cache.count_stale();
        }
        self.tell(waiters, told, trace, since, out);
    }

    fn finish(&mut self, slot: u32, merged: Merged, now: Now, out: &mut Outbox<ResolverEffect>) {
        let running = usize::try_from(slot)
            .ok()
            .and_then(|at| self.running.get_mut(at)?.take());
        let Some(mut running) = running else {
            return;
        };
        self.free.push(slot);
        self.wakes.set(&slot, running.wake.map(|(at, _)| at), None);
        if let Some(hash) = running.hash {
            self.by_question.remove(hash, slot);
        }
        for ticket in &running.tickets {
            let hash = self.hash_ticket(*ticket);
            self.by_ticket.remove(hash, slot);
        }
        for upstream in &running.about.asked {
            self.health.ended(&upstream.id);
        }
        let told = self.conclude(&running.about, running.resolution.votes(), merged, now);
        let trace = running.resolution.take_trace();
        let since = now.mono.saturating_since(running.about.started);
        self.tell(running.waiters, &told, trace, since, out);
    }

    /// Answers everybody who waits; what is explained, is so for one alone.
    pub(super) fn tell(
        &mut self,
        waiters: Vec<Waiter>,
        told: &Told,
        mut trace: Option<Box<Trace>>,
        since: Duration,
        out: &mut Outbox<ResolverEffect>,
    ) {
        for waiter in waiters {
            self.waiting = self.waiting.saturating_sub(1);
            self.clients.answered(waiter.client);
            let weights = told.choices.iter().map(|(weight, _)| *weight);
            let at = match told.choices.len() {
                1 => 0,
                _ => choose(weights, self.rng.next_u64()),
            };
            let Some((_, answer)) = told.choices.get(at) else {
                continue;
            };
            self.count(answer);
            self.turn = self.turn.wrapping_add(1);
            let mut trace = waiter.trace.or_else(|| trace.take());
            if let Some(trace) = &mut trace {
                trace.push(since, answered(answer));
            }
            out.push(ResolverEffect::Answer(Answered {
                asker: waiter.asker,
                reading: Reading {
                    answer: Arc::clone(answer),
                    age: 0,
                    turn: self.turn,
                },
                stamp: told.stamp,
                trace,
            }));
        }
    }

    fn take_ticket(&mut self, ticket: Ticket) -> Option<u32> {
        let hash = self.hash_ticket(ticket);
        let slot = self.by_ticket.find(hash, |slot| {
            self.at(slot)
                .is_some_and(|running| running.tickets.contains(&ticket))
        })?;
        self.by_ticket.remove(hash, slot);
        if let Some(running) = self.at_mut(slot) {
            running.tickets.retain(|known| *known != ticket);
        }
        Some(slot)
    }

    pub(super) fn completion(
        &mut self,
        ticket: Ticket,
        input: ResolutionInput,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        if let Some(slot) = self.take_ticket(ticket) {
            self.step(slot, now, out, |resolution, now, child| {
                resolution.handle(input, now, child)
            });
        }
    }
}
