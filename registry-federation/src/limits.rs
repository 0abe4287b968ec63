//! How much one caller gets: calls per second before the queue, quotas in the machine.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use vl3_core::Mono;
use vl3_core::allocator;
use vl3_core::caller::Caller;
use vl3_core::ids::SpiffeId;
use vl3_core::rate::{Buckets, Rate};
use vl3_core::registry::{self, Command, Peer, Refusal};
use vl3_runtime::Section;

/// Callers that are counted apart; beyond that newcomers share one allowance.
const CALLERS_MAX: usize = 8192;

/// Beside a page, of 256 KiB, there is room for changes.
const UNREAD_BYTES: std::ops::RangeInclusive<usize> = 1 << 20..=1 << 30;

const CHANGES: &str = "changes per second of one caller";
const FINDS: &str = "finds per second of one caller";

/// An object is one value of the store; etcd takes requests of 1.5 MiB.
const OBJECT_BYTES_MAX: usize = 1_000_000;

/// The table `[limits]`. What each does when it is met: `docs/limits.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Register, Unregister, leases, names, documents. 0 = without limit; twice as many may
    /// come at once.
    pub changes_per_second: u32,
    /// Finds and opened watches. 0 = without limit; twice as many may come at once.
    pub finds_per_second: u32,
    /// Of the own domain.
    pub endpoints: usize,
    pub services: usize,
    /// Endpoints, and services, of one identity.
    pub objects_per_identity: usize,
    pub object_bytes: usize,
    pub names: usize,
    pub watches: usize,
    /// What one caller was handed by Finds and watches and did not read yet; all callers
    /// together may have four times as much.
    pub unread_bytes: usize,
    pub connections: usize,
    pub connections_per_identity: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            changes_per_second: 2000,
            finds_per_second: 20_000,
            endpoints: 16_384,
            services: 4096,
            objects_per_identity: 1024,
            object_bytes: 16 * 1024,
            names: 65_536,
            watches: 16_384,
            unread_bytes: 32 << 20,
            connections: 4096,
            connections_per_identity: 1024,
        }
    }
}

impl Limits {
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let usual = Self::default();
        let read = Self {
            changes_per_second: section.or("changes_per_second", usual.changes_per_second),
            finds_per_second: section.or("finds_per_second", usual.finds_per_second),
            endpoints: section.or("endpoints", usual.endpoints),
            services: section.or("services", usual.services),
            objects_per_identity: section.or("objects_per_identity", usual.objects_per_identity),
            object_bytes: section.or("object_bytes", usual.object_bytes),
            names: section.or("names", usual.names),
            watches: section.or("watches", usual.watches),
            unread_bytes: section.or("unread_bytes", usual.unread_bytes),
            connections: section.or("connections", usual.connections),
            connections_per_identity: section
                .or("connections_per_identity", usual.connections_per_identity),
        };
        let sizes = [
            ("endpoints", read.endpoints),
            ("services", read.services),
            ("objects_per_identity", read.objects_per_identity),
            ("object_bytes", read.object_bytes),
            ("names", read.names),
            ("watches", read.watches),
            ("connections", read.connections),
            ("connections_per_identity", read.connections_per_identity),
        ];
        for (key, value) in sizes {
            if !(1..=10_000_000).contains(&value) {
                section.problem(key, Some(value.to_string()), "1 to 10000000");
            }
        }
        if read.object_bytes > OBJECT_BYTES_MAX {
            let allowed = format!("at most {OBJECT_BYTES_MAX}, which every store takes");
            section.problem(
                "object_bytes",
                Some(read.object_bytes.to_string()),
                &allowed,
            );
        }
        if !UNREAD_BYTES.contains(&read.unread_bytes) {
            let (least, most) = (UNREAD_BYTES.start(), UNREAD_BYTES.end());
            let value = Some(read.unread_bytes.to_string());
            section.problem("unread_bytes", value, &format!("{least} to {most}"));
        }
        read
    }

    pub(crate) fn apply(&self, core: &mut registry::Config) {
        core.endpoints_max = self.endpoints;
        core.services_max = self.services;
        core.per_owner_max = self.objects_per_identity;
        core.object_bytes_max = self.object_bytes;
        core.names_max = self.names;
        core.watchers_max = self.watches;
    }
}

/// Every limit that was met, by its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Met(pub(crate) Family<Limit, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Limit {
    limit: &'static str,
}

impl Met {
    pub(crate) fn count(&self, refusal: &Refusal) {
        let limit = if let Refusal::Limit { what, .. } = refusal {
            what
        } else if let Refusal::Lease(allocator::Refusal::GenerationTooHigh { .. }) = refusal {
            "generation"
        } else {
            return;
        };
        self.0.get_or_create(&Limit { limit }).inc();
    }

    /// Shows what the machine counted since its start.
    pub(crate) fn reach(&self, limit: &'static str, total: u64) {
        // Most are never met, and not shown then.
        if total > 0 {
            let counter = self.0.get_or_create(&Limit { limit });
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}

/// Calls that may be asked, before they take room in the machine's queue.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    /// Whose operator calls as it wants.
    own: SpiffeId,
    changes: Arc<Mutex<Buckets<Caller>>>,
    finds: Arc<Mutex<Buckets<Caller>>>,
    met: Met,
}

impl Gate {
    pub(crate) fn new(limits: &Limits, own: SpiffeId, met: Met) -> Self {
        let buckets = |per_second: u32| {
            let burst = per_second.saturating_mul(2);
            let rate = Rate { per_second, burst };
            Arc::new(Mutex::new(Buckets::new(rate, CALLERS_MAX)))
        };
        Self {
            own,
            changes: buckets(limits.changes_per_second),
            finds: buckets(limits.finds_per_second),
            met,
        }
    }

    pub(crate) fn admit(&self, peer: &Peer, command: &Command, now: Mono) -> Result<(), Refusal> {
        match command {
            Command::FindServices { .. } | Command::FindEndpoints { .. } => {
                self.take(&self.finds, FINDS, peer, now)
            }
            _ if peer.id == self.own => Ok(()),
            _ => self.take(&self.changes, CHANGES, peer, now),
        }
    }

    /// A Find or a watch.
    pub(crate) fn admit_find(&self, peer: &Peer, now: Mono) -> Result<(), Refusal> {
        self.take(&self.finds, FINDS, peer, now)
    }

    pub(crate) fn caller(&self, peer: &Peer) -> Caller {
        Caller::of(&peer.id, self.own.trust_domain())
    }

    fn take(
        &self,
        buckets: &Mutex<Buckets<Caller>>,
        what: &'static str,
        peer: &Peer,
        now: Mono,
    ) -> Result<(), Refusal> {
        let caller = self.caller(peer);
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.admit(&caller, now) {
            return Ok(());
        }
        let limit = usize::try_from(buckets.rate().per_second).unwrap_or(usize::MAX);
        let refusal = Refusal::Limit { what, limit };
        self.met.count(&refusal);
        Err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use vl3_core::registry::EndpointQuery;

    use super::*;

    fn peer(id: &str) -> Peer {
        Peer::own(SpiffeId::new(&format!("spiffe://{id}")).unwrap())
    }

    fn gate(limits: &Limits) -> (Gate, Met) {
        let met = Met::default();
        let own = SpiffeId::new("spiffe://east.test/vl3/registry/east").unwrap();
        (Gate::new(limits, own, met.clone()), met)
    }

    fn unregister() -> Command {
        Command::UnregisterEndpoint {
            name: "x".to_owned(),
        }
    }

    fn find() -> Command {
        Command::FindEndpoints {
            query: EndpointQuery::default(),
            after: None,
        }
    }

    #[test]
    fn one_identity_that_asks_too_often_is_refused_and_others_are_not() {
        let limits = Limits {
            changes_per_second: 3,
            ..Limits::default()
        };
        let (gate, met) = gate(&limits);
        let now = Mono::from_secs(5);
        let admitted = |id: &str| {
            let peer = peer(id);
            (0..20)
                .filter(|_| gate.admit(&peer, &unregister(), now).is_ok())
                .count()
        };
        assert_eq!(admitted("east.test/workload/a"), 6);
        assert_eq!(admitted("east.test/workload/b"), 6);
        // Another domain is one caller, however many identities it has.
        assert_eq!(admitted("west.test/workload/a"), 6);
        assert_eq!(admitted("west.test/workload/b"), 0);
        // Nor does it cost anybody a Find; and the operator is not counted.
        assert_eq!(admitted("east.test/vl3/registry/east"), 20);
        assert!(
            gate.admit(&peer("east.test/workload/a"), &find(), now)
                .is_ok()
        );
        let refused = gate.admit(&peer("east.test/workload/a"), &unregister(), now);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "changes per second of one caller: at most 3 are allowed"
        );
        let counted = met.0.get_or_create(&Limit { limit: CHANGES }).get();
        assert_eq!(counted, 14 + 14 + 14 + 20 + 1);
    }

    /// 10,000 endpoints behind 200 connections of one identity each, refreshed every 40 s, and
    /// 200 registrations per second beside them.
    #[test]
    fn the_usual_limits_are_not_met_by_a_large_domain() {
        let (gate, met) = gate(&Limits::default());
        for millisecond in 0..60_000_u64 {
            let now = Mono(millisecond * 1_000_000);
            let id = peer(&format!("east.test/workload/{}", millisecond % 200));
            if millisecond % 4 == 0 {
                gate.admit(&id, &unregister(), now).unwrap();
            }
            if millisecond % 5 == 0 {
                let one = peer("east.test/ns/nsm/nsmgr");
                gate.admit(&one, &unregister(), now).unwrap();
            }
            for _ in 0..10 {
                gate.admit(&id, &find(), now).unwrap();
            }
        }
        assert!(met.0.get(&Limit { limit: FINDS }).is_none());
    }
}
