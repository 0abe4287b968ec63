//! Claims of workload names with the domain's registry: taken when the workload attaches,
//! renewed while it lives, given back when it goes.

use std::collections::BTreeMap;

use crate::backoff::Backoff;
use crate::ids::WorkloadName;
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::state::{Identity, Record};
use crate::router::{Effect, NameAnswer};
use crate::time::Mono;
use core::time::Duration;

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A name held by somebody else may become free.
const HELD_RETRY: Duration = Duration::from_secs(15);
/// An unanswered claim is asked again after that long.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(15);

/// The claims of one router. Bounded by the number of workloads.
#[derive(Debug, Default)]
pub(crate) struct Names {
    claims: BTreeMap<Identity, Claim>,
}

#[derive(Debug)]
struct Claim {
    name: WorkloadName,
    due: Mono,
    backoff: Backoff,
    in_flight: Option<Ticket>,
    held_by: Option<String>,
}

impl Names {
    /// The identity is attached (again): its name is wanted.
    pub(crate) fn want(&mut self, identity: &Identity, ctx: &mut Context<'_>) {
        let Some(name) = &identity.name else { return };
        let claim = self
            .claims
            .entry(identity.clone())
            .or_insert_with(|| Claim {
                name: name.clone(),
                due: ctx.now.mono,
                backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
                in_flight: None,
                held_by: None,
            });
        if claim.in_flight.is_none() && claim.due <= ctx.now.mono {
            send(identity, claim, ctx);
        }
    }

    /// The identity is gone.
    pub(crate) fn drop_claim(&mut self, identity: &Identity, ctx: &mut Context<'_>) {
        if let Some(claim) = self.claims.remove(identity) {
            ctx.effect(Effect::ReleaseName {
                name: claim.name,
                workload: identity.id.clone(),
            });
        }
    }

    /// True when the served names changed.
    pub(crate) fn answered(
        &mut self,
        ticket: Ticket,
        answer: NameAnswer,
        ctx: &mut Context<'_>,
    ) -> bool {
        let Some((identity, claim)) = self
            .claims
            .iter_mut()
            .find(|(_, claim)| claim.in_flight == Some(ticket))
        else {
            return false;
        };
        claim.in_flight = None;
        let identity = identity.clone();
        let answer = match self.holder(&identity, ctx) {
            Some(by) if answer == NameAnswer::Granted => NameAnswer::Held { by },
            _ => answer,
        };
        let Some(claim) = self.claims.get_mut(&identity) else {
            return false;
        };
        let named = match answer {
            NameAnswer::Granted => {
                claim.backoff.reset();
                claim.held_by = None;
                let refresh = ctx.config.times.name_refresh;
                claim.due = ctx.now.mono + jittered(refresh, ctx);
                Some(true)
            }
            NameAnswer::Held { by } => {
                claim.held_by = Some(by);
                claim.due = ctx.now.mono + jittered(HELD_RETRY, ctx);
                Some(false)
            }
            NameAnswer::Unreachable => {
                claim.due = ctx.now.mono + claim.backoff.next(ctx.rng);
                None
            }
        };
        let Some(named) = named else { return false };
        let Some(assignment) = ctx
            .state
            .assignments
            .get(&identity)
            .filter(|held| held.named != named)
        else {
            return false;
        };
        let mut assignment = assignment.clone();
        assignment.named = named;
        ctx.record(Record::Assigned {
            identity,
            assignment: Some(assignment),
        });
        true
    }

    /// Which other workload here has the name already. The registry keeps identities apart; where
    /// there is none that knows names, or it has just given one away, this does (R1.10).
    fn holder(&self, identity: &Identity, ctx: &Context<'_>) -> Option<String> {
        let others = self
            .claims
            .keys()
            .filter(|other| other.name == identity.name && other.id != identity.id);
        let is_named = |other: &&Identity| {
            let held = ctx.state.assignments.get(*other);
            held.is_some_and(|held| held.named)
        };
        others
            .filter(is_named)
            .map(|other| other.id.to_string())
            .next()
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) {
        for (identity, claim) in &mut self.claims {
            if claim.due <= ctx.now.mono {
                send(identity, claim, ctx);
            }
        }
    }

    pub(crate) fn next_wake(&self) -> Option<Mono> {
        self.claims.values().map(|claim| claim.due).min()
    }

    /// Who holds the name instead, where somebody does.
    pub(crate) fn held_by(&self, identity: &Identity) -> Option<&str> {
        self.claims.get(identity)?.held_by.as_deref()
    }
}

fn send(identity: &Identity, claim: &mut Claim, ctx: &mut Context<'_>) {
    let ticket = ctx.ticket();
    claim.in_flight = Some(ticket);
    claim.due = ctx.now.mono + CLAIM_TIMEOUT;
    let addresses = ctx
        .state
        .assignments
        .get(identity)
        .map(|held| held.addresses.clone())
        .unwrap_or_default();
    ctx.effect(Effect::ClaimName {
        ticket,
        name: claim.name.clone(),
        workload: identity.id.clone(),
        addresses,
    });
}

/// Up to a quarter less, so that a crowd does not move in step.
fn jittered(period: Duration, ctx: &mut Context<'_>) -> Duration {
    let quarter = u64::try_from((period / 4).as_nanos()).unwrap_or(u64::MAX);
    period - Duration::from_nanos(ctx.rng.below(quarter.saturating_add(1)))
}
