//! What the server counts. Labels come from enums and configured domains only: no client, no
//! name (R7.1).

mod figures;
mod known;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use vl3_core::names::{CacheCounters, CacheSize, Decision, Rcode, RecordType, ResolverCounters};
use vl3_runtime::Metrics as Registries;

use crate::wire::Mismatch;
pub(crate) use figures::ToFigures;
pub(crate) use known::Origin;
use known::{Known, Ours, Shown, Views};

/// Upstreams with figures of their own.
const TO_MAX: usize = 1_024;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    #[expect(non_camel_case_types, reason = "label values are lower case")]
    udp,
    #[expect(non_camel_case_types, reason = "label values are lower case")]
    tcp,
}

/// Why a message or connection was dropped without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Drop {
    Short,
    /// A stream with a length that no question has, or that ends within one.
    NotAQuestion,
    IsReply,
    /// The client's socket would not take the reply.
    ReplyBlocked,
    /// A connection that could not be accepted, out of descriptors for example.
    Accept,
    /// A connection beyond the limits.
    Connections,
    /// A silent connection of whoever holds most, which made room for another client's.
    CrowdedOut,
    /// A connection whose client does not read.
    SlowReader,
    /// A connection that was silent for too long.
    Idle,
    /// Sent away to prove its address first, under load.
    Unproven,
    /// Of a view that did not keep up with what another one received for it.
    ViewBehind,
}

impl Drop {
    const fn label(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::NotAQuestion => "not_a_question",
            Self::IsReply => "is_reply",
            Self::ReplyBlocked => "reply_blocked",
            Self::Accept => "accept",
            Self::Connections => "connections",
            Self::CrowdedOut => "crowded_out",
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::Unproven => "unproven",
            Self::ViewBehind => "view_behind",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    rcode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Cheap to clone; clones share the figures. Those of a view are its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    views: Views,
    shown: Arc<Shown>,
    malformed: Family<RefusalLabels, Counter>,
    dropped: Family<Reason, Counter>,
    mismatched: Family<Reason, Counter>,
    votes_missing: Family<Reason, Counter>,
    coalesced: Counter<u64, AtomicU64>,
    shed: Counter<u64, AtomicU64>,
    repeated: Counter<u64, AtomicU64>,
    probes: Counter<u64, AtomicU64>,
    strangers: Counter<u64, AtomicU64>,
    /// Lines of the query log.
    logged: Counter<u64, AtomicU64>,
    not_logged: Counter<u64, AtomicU64>,
    in_flight: Gauge,
    connections: Gauge,
}

impl Metrics {
    pub(crate) fn register(&self, registries: &Registries) {
        registries.register(|registry| {
            self.register_own(registry);
            registry.register_collector(Box::new(Ours(self.views.clone())));
        });
        registries.register_foreign(|registry| {
            registry.register_collector(Box::new(Known(self.views.clone())));
        });
    }

    fn register_own(&self, registry: &mut prometheus_client::registry::Registry) {
        let dns = registry.sub_registry_with_prefix("dns");
        dns.register(
            "malformed",
            "Messages refused before they were a question",
            self.malformed.clone(),
        );
        dns.register(
            "dropped",
            "Messages and connections dropped without a reply",
            self.dropped.clone(),
        );
        dns.register(
            "mismatched_replies",
            "Datagrams that answer no query",
            self.mismatched.clone(),
        );
        dns.register(
            "votes_missing",
            "Owners without a usable reply, by reason",
            self.votes_missing.clone(),
        );
        dns.register(
            "coalesced",
            "Questions that shared a fan-out in flight",
            self.coalesced.clone(),
        );
        dns.register(
            "shed",
            "Questions refused at the limit in flight",
            self.shed.clone(),
        );
        dns.register(
            "repeated",
            "Queries that were sent again because a reply was overdue",
            self.repeated.clone(),
        );
        dns.register(
            "probes",
            "Queries that look whether an upstream lives or leads back",
            self.probes.clone(),
        );
        dns.register(
            "strangers",
            "Questions of hosts outside the network",
            self.strangers.clone(),
        );
        dns.register(
            "query_log_lines",
            "Questions that were logged",
            self.logged.clone(),
        );
        dns.register(
            "query_log_dropped",
            "Questions that were drawn for the log, which was behind",
            self.not_logged.clone(),
        );
        dns.register("in_flight", "Fan-outs in flight", self.in_flight.clone());
        dns.register(
            "tcp_connections",
            "Open TCP connections of clients",
            self.connections.clone(),
        );
    }

    pub(crate) fn request(&self, proto: Proto, v6: bool, rtype: RecordType, octets: usize) {
        let figures = &self.shown.figures;
        figures.request(proto, v6, rtype);
        figures.request_size.observe(octets as u64);
    }

    pub(crate) fn response(&self, rcode: Rcode, decision: Decision, waited: Duration) {
        let figures = &self.shown.figures;
        figures.response(rcode, decision);
        figures.duration.observe_duration(waited);
    }

    /// Answered within the round.
    pub(crate) fn hit(&self, rcode: Rcode, decision: Decision) {
        self.response(rcode, decision, Duration::ZERO);
    }

    /// The octets of a reply.
    pub(crate) fn replied(&self, octets: usize) {
        self.shown.figures.response_size.observe(octets as u64);
    }

    /// Stored answers; evictions of packets count with those of the resolver's cache.
    pub(crate) fn cache(&self, counters: CacheCounters, size: CacheSize, packets_evicted: u64) {
        let cache = &self.shown.figures.cache;
        cache.hits[0].set(counters.hits_positive);
        cache.hits[1].set(counters.hits_negative);
        cache.entries[0].set(size.positive_entries as u64);
        cache.entries[1].set(size.negative_entries as u64);
        cache.misses.set(counters.misses);
        cache.stale.set(counters.served_stale);
        cache.evictions.set(counters.evictions + packets_evicted);
        cache.prefetches.set(counters.prefetches);
    }

    /// The figures of one upstream, by the name that is shown; several of one name share them.
    pub(crate) fn to(&self, to: &str) -> Arc<ToFigures> {
        let mut all = self.shown.to.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|known| known.to == to) {
            return Arc::clone(known);
        }
        let figures = ToFigures::new(to);
        // Beyond it they are counted, but not shown.
        if all.len() < TO_MAX {
            all.push(Arc::clone(&figures));
        }
        figures
    }

    /// For one more view, with figures of its own under that origin.
    pub(crate) fn of_view(&self, origin: Origin) -> Self {
        let shown = Arc::new(Shown::new(origin));
        self.views.add(Arc::clone(&shown));
        Self {
            shown,
            ..self.clone()
        }
    }

    pub(crate) fn malformed(&self, rcode: Rcode) {
        self.malformed
            .get_or_create(&RefusalLabels {
                rcode: rcode.label(),
            })
            .inc();
    }

    pub(crate) fn dropped(&self, why: Drop) {
        self.dropped
            .get_or_create(&Reason {
                reason: why.label(),
            })
            .inc();
    }

    pub(crate) fn mismatch(&self, why: Mismatch) {
        let reason = match why {
            Mismatch::NoReply => "no_reply",
            Mismatch::UnknownId => "unknown_id",
            Mismatch::Late => "late",
            Mismatch::OtherQuestion => "other_question",
        };
        self.mismatched.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn logged(&self) {
        self.logged.inc();
    }

    pub(crate) fn not_logged(&self) {
        self.not_logged.inc();
    }

    /// Questions that were logged, and that were not because the log was behind.
    #[cfg(test)]
    pub(crate) fn query_log(&self) -> (u64, u64) {
        (self.logged.get(), self.not_logged.get())
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.dec();
    }

    /// Brings the resolver's own totals up to date.
    pub(crate) fn totals(
        &self,
        before: &ResolverCounters,
        after: &ResolverCounters,
        in_flight: usize,
    ) {
        self.coalesced.inc_by(after.coalesced - before.coalesced);
        self.shed.inc_by(after.shed - before.shed);
        self.repeated.inc_by(after.repeated - before.repeated);
        self.probes.inc_by(after.probes - before.probes);
        self.strangers.inc_by(after.strangers - before.strangers);
        for (failure, count) in &after.failures {
            let known = before.failures.get(failure).copied().unwrap_or(0);
            if *count > known {
                self.votes_missing
                    .get_or_create(&Reason {
                        reason: failure.label(),
                    })
                    .inc_by(count - known);
            }
        }
        // Of all views together: each tells what changed of its own part.
        let in_flight = i64::try_from(in_flight).unwrap_or(i64::MAX);
        let before = self.shown.in_flight.swap(in_flight, Ordering::Relaxed);
        self.in_flight.inc_by(in_flight - before);
    }
}
