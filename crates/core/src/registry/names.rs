//! Names of workloads in one network: the first workload identity that takes a name holds it
//! for `Config::name_lifetime` after each claim (its router claims again and again), and no
//! longer than the lease of the router that claimed it.
//!
//! The same identity may claim again: from the same router (other addresses) or from another
//! one, to which the name moves. Another identity is told who holds the name. A release
//! counts only from the router that claimed last, so that a late release of a router which
//! the workload left takes nothing away.

use core::time::Duration;
use std::collections::BTreeMap;

use super::record::{Claim, Record};
use crate::deadlines::Deadlines;
use crate::ids::{NetworkUid, RouterName, SpiffeId, WorkloadName};
use crate::time::Mono;

#[derive(Debug, Default)]
pub(super) struct Names {
    held: BTreeMap<WorkloadName, Held>,
    deadlines: Deadlines<WorkloadName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) claim: Claim,
    /// The router's identity, which alone may release.
    pub(super) by: SpiffeId,
    /// When it is free without another claim. Not durable: starts anew with every restart.
    pub(super) deadline: Mono,
}

/// What a claim comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    Granted(Vec<Record>),
    HeldBy(SpiffeId),
    /// Too many names.
    Full,
}

impl Names {
    pub(super) fn claim(
        &self,
        uid: NetworkUid,
        claim: &Claim,
        by: &SpiffeId,
        names_max: usize,
    ) -> Claimed {
        match self.held.get(&claim.name) {
            Some(held) if held.claim.workload != claim.workload => {
                Claimed::HeldBy(held.claim.workload.clone())
            }
            Some(held) if held.claim == *claim && held.by == *by => Claimed::Granted(Vec::new()),
            None if self.held.len() >= names_max => Claimed::Full,
            Some(_) | None => Claimed::Granted(vec![Record::Name {
                uid,
                claim: claim.clone(),
                by: by.clone(),
            }]),
        }
    }

    pub(super) fn release(
        &self,
        uid: NetworkUid,
        name: &WorkloadName,
        workload: &SpiffeId,
        by: &SpiffeId,
    ) -> Vec<Record> {
        let held = self.held.get(name);
        let own = held.is_some_and(|held| held.claim.workload == *workload && held.by == *by);
        own.then(|| Record::NameReleased {
            uid,
            name: name.clone(),
        })
        .into_iter()
        .collect()
    }

    /// The router's lease ended: its names are free.
    pub(super) fn router_gone(&self, uid: NetworkUid, router: &RouterName) -> Vec<Record> {
        let of_router = self
            .held
            .values()
            .filter(|held| held.claim.router == *router);
        of_router
            .map(|held| Record::NameReleased {
                uid,
                name: held.claim.name.clone(),
            })
            .collect()
    }

    pub(super) fn apply(&mut self, record: &Record, lifetime: Duration, now: Mono) {
        match record {
            Record::Name { claim, by, .. } => {
                let deadline = now + lifetime;
                let held = Held {
                    claim: claim.clone(),
                    by: by.clone(),
                    deadline,
                };
                let before = self.held.insert(claim.name.clone(), held);
                let before = before.map(|held| held.deadline);
                self.deadlines.set(&claim.name, before, Some(deadline));
            }
            Record::NameReleased { name, .. } => {
                if let Some(held) = self.held.remove(name) {
                    self.deadlines.set(name, Some(held.deadline), None);
                }
            }
            Record::Document { .. }
            | Record::Lease { .. }
            | Record::Service { .. }
            | Record::ServiceRemoved { .. }
            | Record::Endpoint { .. }
            | Record::EndpointRemoved { .. }
            | Record::Remote { .. }
            | Record::RemoteRemoved { .. } => {}
        }
    }

    pub(super) fn snapshot(&self, uid: NetworkUid) -> impl Iterator<Item = Record> + '_ {
        self.held.values().map(move |held| Record::Name {
            uid,
            claim: held.claim.clone(),
            by: held.by.clone(),
        })
    }

    /// A claim of the holder: one full lifetime from now.
    pub(super) fn touch(&mut self, name: &WorkloadName, deadline: Mono) {
        if let Some(held) = self.held.get_mut(name) {
            self.deadlines
                .set(name, Some(held.deadline), Some(deadline));
            held.deadline = deadline;
        }
    }

    /// Names that nobody claimed for a lifetime.
    pub(super) fn expired(&self, uid: NetworkUid, now: Mono) -> impl Iterator<Item = Record> + '_ {
        let silent = self.deadlines.due(now);
        silent.map(move |name| Record::NameReleased {
            uid,
            name: name.clone(),
        })
    }

    pub(super) fn next_expiry(&self) -> Option<Mono> {
        self.deadlines.next()
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = &Held> + '_ {
        self.held.values()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Claim> + '_ {
        self.held.values().map(|held| &held.claim)
    }
}
