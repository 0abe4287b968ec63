//! Ports as workers see them: shared, counted by atomics, found through a snapshot.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use vl3_core::forward::{DropReason, PortClass, PortId};
use vl3_core::ids::PublicKey;
use vl3_core::time::Mono;

use crate::api::{Endpoint, PortStatus};
use crate::engine::Engine;
use crate::limits::{ICMP_BURST, ICMP_INTERVAL, MERGE_FAILURES_MAX};

/// All ports at one moment. Replaced whole by the control plane, never changed.
#[derive(Clone, Default)]
pub(crate) struct Ports {
    pub(crate) by_id: HashMap<PortId, Port>,
    pub(crate) by_key: HashMap<PublicKey, PortId>,
    /// By the upper 24 bits of the receiver index.
    pub(crate) by_index: HashMap<u32, Port>,
    /// By what epoll reports.
    pub(crate) by_token: HashMap<u64, (Port, Arc<Queue>)>,
}

/// One port of a snapshot.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) id: PortId,
    pub(crate) class: PortClass,
    pub(crate) kind: Kind,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Peer(Arc<Peer>),
    Tun(Arc<Tun>),
}

/// A WireGuard peer. Its sessions are behind the engine; the rest is atomics.
pub(crate) struct Peer {
    pub(crate) public_key: PublicKey,
    pub(crate) preshared_key: Option<[u8; 32]>,
    /// Upper 24 bits of its receiver indices; the lowest 8 of them name the worker that runs
    /// its timers.
    pub(crate) index: u32,
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) endpoint: ArcSwapOption<Endpoint>,
    /// Seconds, 0 is none.
    pub(crate) keepalive: AtomicU32,
    /// Any datagram handed to the socket; for keepalives.
    pub(crate) last_datagram: AtomicU64,
    pub(crate) last_handshake: AtomicU64,
    pub(crate) established: AtomicBool,
    /// The path refused a train: datagrams go singly until the endpoint changes.
    pub(crate) single: AtomicBool,
    pub(crate) counters: Arc<Counters>,
}

/// A TUN, with one or several queues.
pub(crate) struct Tun {
    pub(crate) queues: Vec<Arc<Queue>>,
    pub(crate) mtu: u16,
    pub(crate) counters: Arc<Counters>,
    pub(crate) failed: AtomicBool,
    /// Merged writes that were refused.
    pub(crate) merge_failures: AtomicU32,
}

/// One descriptor of a TUN, read by one worker, written by any.
pub(crate) struct Queue {
    pub(crate) token: u64,
    pub(crate) worker: usize,
    pub(crate) descriptor: OwnedFd,
}

/// What a port has carried and lost. Survives a change of key or descriptor.
pub(crate) struct Counters {
    pub(crate) received_packets: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_packets: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) last_receive: AtomicU64,
    pub(crate) last_send: AtomicU64,
    pub(crate) drops: Drops,
    /// When the next ICMP error to this port is free of debt.
    icmp_until: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            received_packets: zero(),
            received_bytes: zero(),
            sent_packets: zero(),
            sent_bytes: zero(),
            last_receive: zero(),
            last_send: zero(),
            drops: Drops::default(),
            icmp_until: zero(),
        }
    }
}

impl Counters {
    pub(crate) fn received(&self, packets: u64, bytes: u64, now: Mono) {
        self.received_packets.fetch_add(packets, Relaxed);
        self.received_bytes.fetch_add(bytes, Relaxed);
        self.last_receive.store(now.0, Relaxed);
    }

    pub(crate) fn sent(&self, packets: u64, bytes: u64, now: Mono) {
        self.sent_packets.fetch_add(packets, Relaxed);
        self.sent_bytes.fetch_add(bytes, Relaxed);
        self.last_send.store(now.0, Relaxed);
    }

    /// Whether one more ICMP error may go to this port: a bucket of [`ICMP_BURST`], one more
    /// each [`ICMP_INTERVAL`].
    pub(crate) fn may_complain(&self, now: Mono) -> bool {
        let interval = nanos(ICMP_INTERVAL);
        let debt_max = interval * u64::from(ICMP_BURST);
        self.icmp_until
            .fetch_update(Relaxed, Relaxed, |until| {
                let until = until.max(now.0) + interval;
                (until - now.0 <= debt_max).then_some(until)
            })
            .is_ok()
    }
}

/// Drops by reason.
#[derive(Default)]
pub(crate) struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    pub(crate) fn count(&self, reason: DropReason, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Relaxed);
    }

    pub(crate) fn read(&self) -> Vec<(DropReason, u64)> {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, self.0[reason as usize].load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

impl Port {
    pub(crate) fn counters(&self) -> &Counters {
        match &self.kind {
            Kind::Peer(peer) => &peer.counters,
            Kind::Tun(tun) => &tun.counters,
        }
    }

    pub(crate) fn status(&self) -> PortStatus {
        let counters = self.counters();
        let time = |at: &AtomicU64| Some(at.load(Relaxed)).filter(|at| *at > 0).map(Mono);
        let peer = match &self.kind {
            Kind::Peer(peer) => Some(peer),
            Kind::Tun(_) => None,
        };
        let failed = match &self.kind {
            Kind::Peer(_) => false,
            Kind::Tun(tun) => tun.failed.load(Relaxed),
        };
        PortStatus {
            port: self.id,
            class: self.class,
            public_key: peer.map(|peer| peer.public_key),
            endpoint: peer.and_then(|peer| peer.endpoint.load().as_deref().copied()),
            failed,
            established: peer.is_some_and(|peer| peer.established.load(Relaxed)),
            last_handshake: peer.and_then(|peer| time(&peer.last_handshake)),
            last_receive: time(&counters.last_receive),
            last_send: time(&counters.last_send),
            received_packets: counters.received_packets.load(Relaxed),
            received_bytes: counters.received_bytes.load(Relaxed),
            sent_packets: counters.sent_packets.load(Relaxed),
            sent_bytes: counters.sent_bytes.load(Relaxed),
            drops: counters.drops.read(),
        }
    }
}

impl Peer {
    /// Takes the place that an authentic message came from. Whether it is new.
    pub(crate) fn seen_at(&self, endpoint: Endpoint) -> bool {
        if self.endpoint.load().as_deref() == Some(&endpoint) {
            return false;
        }
        self.endpoint.store(Some(Arc::new(endpoint)));
        self.single.store(false, Relaxed);
        true
    }

    /// Forgets a local address that the system refused, unless the endpoint has changed.
    pub(crate) fn forget_local(&self, local: IpAddr) {
        if let Some(endpoint) = self.endpoint.load_full()
            && endpoint.local == Some(local)
        {
            self.endpoint.store(Some(Arc::new(Endpoint {
                local: None,
                ..*endpoint
            })));
        }
    }

    pub(crate) fn keepalive_due(&self, now: Mono) -> bool {
        let seconds = self.keepalive.load(Relaxed);
        seconds > 0
            && self.endpoint.load().is_some()
            && now.saturating_since(Mono(self.last_datagram.load(Relaxed)))
                >= Duration::from_secs(u64::from(seconds))
    }
}

impl Tun {
    /// The queue that this worker reads, else the first: a flow goes out where it is read.
    pub(crate) fn queue_of(&self, worker: usize) -> Option<&Arc<Queue>> {
        self.queues
            .iter()
            .find(|queue| queue.worker == worker)
            .or(self.queues.first())
    }

    pub(crate) fn merges(&self) -> bool {
        self.merge_failures.load(Relaxed) < MERGE_FAILURES_MAX
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn icmp_errors_are_limited_to_a_burst_and_a_rate() {
        let counters = Counters::default();
        let now = Mono::from_secs(100);
        let burst = (0..100).filter(|_| counters.may_complain(now)).count();
        assert_eq!(burst, ICMP_BURST as usize);
        let later = now + ICMP_INTERVAL;
        assert!(counters.may_complain(later));
        assert!(!counters.may_complain(later));
    }

    #[test]
    fn drops_are_kept_by_reason() {
        let drops = Drops::default();
        drops.count(DropReason::NoRoute, 2);
        drops.count(DropReason::WriteFailed, 1);
        drops.count(DropReason::NoRoute, 1);
        assert_eq!(
            drops.read(),
            vec![(DropReason::NoRoute, 3), (DropReason::WriteFailed, 1)]
        );
    }
}
