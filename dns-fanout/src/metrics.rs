//! What the server counts. Labels come from enums and configured domains only: no client, no
//! name (R7.1).

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use vl3_core::names::{Answer, Query, Rcode, RecordType, ResolverCounters, Transport};

use crate::wire::Mismatch;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
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
    /// A connection whose client does not read.
    SlowReader,
    /// A connection that was silent for too long.
    Idle,
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
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    proto: Proto,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    rcode: &'static str,
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    rcode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    to: String,
    proto: Proto,
}

/// Cheap to clone; clones share the figures.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    malformed: Family<RefusalLabels, Counter>,
    dropped: Family<Reason, Counter>,
    duration: Histogram,
    queries: Family<QueryLabels, Counter>,
    mismatched: Family<Reason, Counter>,
    votes_missing: Family<Reason, Counter>,
    coalesced: Counter<u64, AtomicU64>,
    shed: Counter<u64, AtomicU64>,
    strangers: Counter<u64, AtomicU64>,
    in_flight: Gauge,
    connections: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            responses: Family::default(),
            malformed: Family::default(),
            dropped: Family::default(),
            // 0.25 ms x 2^n: what CoreDNS uses.
            duration: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            queries: Family::default(),
            mismatched: Family::default(),
            votes_missing: Family::default(),
            coalesced: Counter::default(),
            shed: Counter::default(),
            strangers: Counter::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        let dns = registry.sub_registry_with_prefix("dns");
        dns.register(
            "requests",
            "Questions by transport and type",
            self.requests.clone(),
        );
        dns.register(
            "responses",
            "Replies by code and by the rule that decided",
            self.responses.clone(),
        );
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
            "request_duration_seconds",
            "From question to reply",
            self.duration.clone(),
        );
        dns.register(
            "queries",
            "Queries to other domains' servers",
            self.queries.clone(),
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
            "strangers",
            "Questions of hosts outside the network",
            self.strangers.clone(),
        );
        dns.register("in_flight", "Fan-outs in flight", self.in_flight.clone());
        dns.register(
            "tcp_connections",
            "Open TCP connections of clients",
            self.connections.clone(),
        );
    }

    pub(crate) fn request(&self, proto: Proto, rtype: RecordType) {
        self.requests
            .get_or_create(&RequestLabels {
                proto,
                r#type: type_label(rtype),
            })
            .inc();
    }

    pub(crate) fn response(&self, answer: &Answer, seconds: f64) {
        let labels = ResponseLabels {
            rcode: answer.rcode.label(),
            decision: answer.decision.label(),
        };
        self.responses.get_or_create(&labels).inc();
        self.duration.observe(seconds);
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

    pub(crate) fn query(&self, query: &Query) {
        let proto = match query.transport {
            Transport::Udp => Proto::udp,
            Transport::Tcp => Proto::tcp,
        };
        self.queries
            .get_or_create(&QueryLabels {
                to: query.upstream.label().to_owned(),
                proto,
            })
            .inc();
    }

    pub(crate) fn mismatch(&self, why: Mismatch) {
        let reason = match why {
            Mismatch::NoReply => "no_reply",
            Mismatch::UnknownId => "unknown_id",
            Mismatch::OtherQuestion => "other_question",
        };
        self.mismatched.get_or_create(&Reason { reason }).inc();
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
        self.in_flight
            .set(i64::try_from(in_flight).unwrap_or(i64::MAX));
    }
}

fn type_label(rtype: RecordType) -> &'static str {
    match rtype {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        RecordType::ANY => "ANY",
        _ => "other",
    }
}
