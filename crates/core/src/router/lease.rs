//! The router's lease with its own domain: acquired once, renewed for ever, fenced by a
//! newer life of the same name.

use core::time::Duration;

use crate::backoff::Backoff;
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::state::Record;
use crate::router::{Effect, LeaseAnswer, LeaseFailure};
use crate::time::{Mono, Now, Wall};

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The stored confirmation need not be newer than this: it is compared with days.
const CONFIRMED_STEP: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct LeaseClient {
    due: Mono,
    in_flight: Option<Ticket>,
    backoff: Backoff,
    /// Renewal, as opposed to a first or repeated acquire.
    confirmed: bool,
    last_error: Option<String>,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseEvent {
    Nothing,
    /// Another prefix or generation than before.
    Changed,
    Fenced,
}

impl Default for LeaseClient {
    fn default() -> Self {
        Self {
            due: Mono::default(),
            in_flight: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            confirmed: false,
            last_error: None,
        }
    }
}

impl LeaseClient {
    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) {
        if ctx.fenced || self.due > ctx.now.mono {
            return;
        }
        if self.in_flight.take().is_some() {
            self.due = ctx.now.mono + self.backoff.next(ctx.rng);
            self.last_error = Some("no answer in time".to_owned());
            return;
        }
        let ticket = ctx.ticket();
        self.in_flight = Some(ticket);
        self.due = ctx.now.mono + CALL_TIMEOUT;
        match ctx.state.lease.clone() {
            Some(lease) if self.confirmed => ctx.effect(Effect::RenewLease { ticket, lease }),
            held => {
                let exclusions = ctx.config.exclusions.clone();
                ctx.effect(Effect::AcquireLease {
                    ticket,
                    held,
                    prefix_len4: ctx.config.prefix_len4,
                    exclusions,
                });
            }
        }
    }

    pub(crate) fn answered(
        &mut self,
        ticket: Ticket,
        result: Result<LeaseAnswer, LeaseFailure>,
        ctx: &mut Context<'_>,
    ) -> LeaseEvent {
        if self.in_flight != Some(ticket) {
            return LeaseEvent::Nothing;
        }
        self.in_flight = None;
        match result {
            Ok(answer) => self.granted(answer, ctx),
            Err(LeaseFailure::Fenced(reason)) => {
                self.last_error = Some(reason);
                LeaseEvent::Fenced
            }
            Err(failure) => {
                // The registry may have forgotten it: present it again.
                if matches!(failure, LeaseFailure::Refused(_)) {
                    self.confirmed = false;
                }
                self.retry(failure.to_string(), ctx);
                LeaseEvent::Nothing
            }
        }
    }

    /// What was asked for is not wanted any more.
    pub(crate) fn stop(&mut self) {
        self.in_flight = None;
    }

    fn granted(&mut self, answer: LeaseAnswer, ctx: &mut Context<'_>) -> LeaseEvent {
        let lease = answer.lease;
        let config = ctx.config;
        let own = lease.uid == config.uid
            && lease.router == config.router.name
            && lease.instance == config.instance;
        let inside = ctx
            .own_member()
            .is_some_and(|member| lease.prefixes().all(|prefix| member.owns(&prefix)));
        let older = ctx
            .state
            .lease
            .as_ref()
            .is_some_and(|held| lease.generation < held.generation);
        if !own || !inside || older {
            self.retry(
                "the registry's answer is no lease of this router inside its domain's blocks"
                    .to_owned(),
                ctx,
            );
            return LeaseEvent::Nothing;
        }
        self.backoff.reset();
        self.confirmed = true;
        self.last_error = None;
        let quarter = u64::try_from((answer.renew_after / 4).as_nanos()).unwrap_or(u64::MAX);
        let early = Duration::from_nanos(ctx.rng.below(quarter.saturating_add(1)));
        self.due = ctx.now.mono + answer.renew_after.saturating_sub(early).max(RETRY_FIRST);
        let changed = ctx.state.lease.as_ref() != Some(&lease);
        if changed || ctx.state.lease_confirmed + CONFIRMED_STEP <= ctx.now.wall {
            ctx.record(Record::Lease {
                lease: Some(lease),
                confirmed: ctx.now.wall,
            });
        }
        if changed {
            LeaseEvent::Changed
        } else {
            LeaseEvent::Nothing
        }
    }

    fn retry(&mut self, error: String, ctx: &mut Context<'_>) {
        self.last_error = Some(error);
        self.due = ctx.now.mono + self.backoff.next(ctx.rng);
    }

    pub(crate) const fn next_wake(&self) -> (Mono, &'static str) {
        (self.due, "lease")
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

/// Whether prefixes of a lease confirmed at `confirmed` may still be announced.
pub(crate) fn fresh(confirmed: Wall, silent_max: Duration, now: Now) -> bool {
    now.wall < confirmed + silent_max
}
