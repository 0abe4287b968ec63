//! Figures of the hot path: one writer, the engine; a scrape reads them as they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vl3_core::names::{Condition, Decision, Rcode, RecordType, Transport, UpstreamStatus};

use super::Proto;

/// Types with a label of their own, and the rest.
pub(super) const TYPES: [&str; 9] = [
    "A", "AAAA", "PTR", "SOA", "SRV", "TXT", "NS", "ANY", "other",
];
/// Codes with a label of their own, and the rest.
pub(super) const RCODES: [Rcode; 9] = [
    Rcode::NO_ERROR,
    Rcode::FORM_ERR,
    Rcode::SERV_FAIL,
    Rcode::NX_DOMAIN,
    Rcode::NOT_IMP,
    Rcode::REFUSED,
    Rcode::NOT_AUTH,
    Rcode::BAD_VERS,
    Rcode(u16::MAX),
];
pub(super) const DECISIONS: usize = Decision::ALL.len();
/// Buckets of durations and of sizes, the last without a bound.
const BUCKETS: usize = 17;

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// A histogram whose bounds double.
#[derive(Debug)]
pub(super) struct Buckets {
    /// The first bound.
    first: u64,
    /// What one is in the unit that is shown.
    unit: f64,
    counts: [Count; BUCKETS],
    sum: Count,
}

impl Buckets {
    /// 0.25 ms x 2^n, 16 of them, as CoreDNS has (R7.1); in microseconds.
    pub(super) fn durations() -> Self {
        Self::new(250, 1e-6)
    }

    /// 16 octets x 2^n, up to the largest message.
    pub(super) fn sizes() -> Self {
        Self::new(16, 1.0)
    }

    fn new(first: u64, unit: f64) -> Self {
        Self {
            first,
            unit,
            counts: Default::default(),
            sum: Count::default(),
        }
    }

    pub(super) fn observe(&self, value: u64) {
        let above = value.saturating_sub(1) / self.first;
        let bucket = (u64::BITS - above.leading_zeros()) as usize;
        self.counts[bucket.min(BUCKETS - 1)].add(1);
        self.sum.add(value);
    }

    pub(super) fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Bounds and how many lie within each, the bound before excluded.
    pub(super) fn read(&self) -> Vec<(f64, u64)> {
        let bounds = (0..).map(|at| match at {
            at if at == BUCKETS - 1 => f64::INFINITY,
            // At most 16 x 2^15 or 250 x 2^15: exact.
            at => (self.first << at) as f64 * self.unit,
        });
        bounds
            .zip(&self.counts)
            .map(|(bound, count)| (bound, count.get()))
            .collect()
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum.get() as f64 * self.unit
    }
}

/// Of one server instance.
#[derive(Debug)]
pub(super) struct Figures {
    /// By transport, family, type.
    pub(super) requests: [[[Count; TYPES.len()]; 2]; 2],
    /// By code and decision.
    pub(super) responses: [[Count; DECISIONS]; RCODES.len()],
    pub(super) duration: Buckets,
    pub(super) request_size: Buckets,
    pub(super) response_size: Buckets,
    pub(super) cache: CacheFigures,
}

/// Of stored answers; pairs are positive and negative ones.
#[derive(Debug, Default)]
pub(super) struct CacheFigures {
    pub(super) hits: [Count; 2],
    pub(super) entries: [Count; 2],
    pub(super) misses: Count,
    pub(super) stale: Count,
    pub(super) evictions: Count,
    pub(super) prefetches: Count,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            requests: Default::default(),
            responses: Default::default(),
            duration: Buckets::durations(),
            request_size: Buckets::sizes(),
            response_size: Buckets::sizes(),
            cache: CacheFigures::default(),
        }
    }
}

impl Figures {
    pub(super) fn request(&self, proto: Proto, v6: bool, rtype: RecordType) {
        self.requests[proto as usize][usize::from(v6)][type_place(rtype)].add(1);
    }

    pub(super) fn response(&self, rcode: Rcode, decision: Decision) {
        self.responses[rcode_place(rcode)][decision as usize].add(1);
    }
}

/// Of one upstream.
#[derive(Debug)]
pub(crate) struct ToFigures {
    pub(super) to: String,
    pub(super) queries: [Count; 2],
    pub(super) duration: Buckets,
    pub(super) rcodes: [Count; RCODES.len()],
    /// 1: asked like any other.
    pub(super) up: Count,
    /// Smoothed round trip, microseconds; 0 before the first reply.
    pub(super) rtt: Count,
    pub(super) timed_out: Count,
    pub(super) went_down: Count,
}

impl ToFigures {
    pub(super) fn new(to: &str) -> Arc<Self> {
        Arc::new(Self {
            to: to.to_owned(),
            queries: Default::default(),
            duration: Buckets::durations(),
            rcodes: Default::default(),
            up: Count::default(),
            rtt: Count::default(),
            timed_out: Count::default(),
            went_down: Count::default(),
        })
    }

    pub(crate) fn asked(&self, transport: Transport) {
        let proto = match transport {
            Transport::Udp => Proto::udp,
            Transport::Tcp => Proto::tcp,
        };
        self.queries[proto as usize].add(1);
    }

    pub(crate) fn health(&self, status: &UpstreamStatus) {
        self.up.set(u64::from(status.condition == Condition::Up));
        let rtt = status.rtt.map_or(0, |rtt| rtt.as_micros());
        self.rtt.set(u64::try_from(rtt).unwrap_or(u64::MAX));
        self.timed_out.set(status.timed_out);
        self.went_down.set(status.went_down);
    }

    pub(crate) fn said(&self, rcode: Rcode, after: Duration) {
        self.rcodes[rcode_place(rcode)].add(1);
        self.duration.observe_duration(after);
    }
}

pub(super) fn rcode_place(rcode: Rcode) -> usize {
    RCODES
        .iter()
        .position(|known| *known == rcode)
        .unwrap_or(RCODES.len() - 1)
}

const fn type_place(rtype: RecordType) -> usize {
    match rtype {
        RecordType::A => 0,
        RecordType::AAAA => 1,
        RecordType::PTR => 2,
        RecordType::SOA => 3,
        RecordType::SRV => 4,
        RecordType::TXT => 5,
        RecordType::NS => 6,
        RecordType::ANY => 7,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_1_buckets_are_those_that_dashboards_know() {
        let buckets = Buckets::durations();
        for micros in [0, 250, 251, 500, 8_192_000, u64::MAX / 2] {
            buckets.observe(micros);
        }
        let read = buckets.read();
        assert_eq!(read.len(), 17);
        assert_eq!((read[0], read[1]), ((0.000_25, 2), (0.000_5, 2)));
        assert_eq!((read[15].0, read[15].1), (8.192, 1));
        assert_eq!((read[16].0, read[16].1), (f64::INFINITY, 1));
    }

    #[test]
    fn every_decision_has_a_place() {
        for decision in Decision::ALL {
            assert!((decision as usize) < DECISIONS, "{decision:?}");
        }
    }
}
