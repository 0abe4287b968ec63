//! A worker: one OS thread that waits for input and carries each batch to its outputs.
//!
//! Workers are symmetric. Each owns the sockets of its index, some TUN queues and its
//! buffers; it reads snapshots, and writes to any port. Between inputs nothing is kept:
//! every batch is flushed before the next wait.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use vl3_core::fib::Fib;
use vl3_core::forward::{DropReason, PortId};
use vl3_core::time::Mono;

use crate::api::{Endpoint, Event};
use crate::engine::Gate;
use crate::limits::{EVENTS_MAX, TICK};
use crate::plane::clock;
use crate::port::{Drops, Kind, Ports};
use crate::socket::{UdpSockets, WorkerWire};
use crate::sys::ReceiveBatch;
use room::{Batch, Room};

mod room;
mod tun_in;
mod udp_in;

pub(crate) const TOKEN_WAKE: u64 = 0;
pub(crate) const TOKEN_V4: u64 = 1;
pub(crate) const TOKEN_V6: u64 = 2;
/// TUN queues count from here.
pub(crate) const TOKEN_TUN: u64 = 16;

/// What all workers and the control plane share.
pub(crate) struct Shared {
    pub(crate) gate: Box<dyn Gate>,
    pub(crate) fib: ArcSwap<Fib>,
    pub(crate) ports: ArcSwap<Ports>,
    /// Totals; ports gone included.
    pub(crate) drops: Drops,
    /// Where ICMP errors come from.
    pub(crate) own: ArcSwap<Vec<std::net::IpAddr>>,
    pub(crate) events: Box<dyn Fn(Event) + Send + Sync>,
    pub(crate) stop: AtomicBool,
    pub(crate) desks: Vec<Desk>,
    /// When the gate's load was last reset.
    pub(crate) second: AtomicU64,
}

/// Where a worker waits.
pub(crate) struct Desk {
    pub(crate) epoll: Epoll,
    pub(crate) wake: EventFd,
    pub(crate) sockets: Arc<UdpSockets>,
}

impl Desk {
    pub(crate) fn new(sockets: UdpSockets) -> nix::Result<Self> {
        let epoll = Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(
            nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC,
        )?;
        let input = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&wake, input(TOKEN_WAKE))?;
        for (socket, token) in [(&sockets.v4, TOKEN_V4), (&sockets.v6, TOKEN_V6)] {
            if let Some(socket) = socket {
                epoll.add(socket, input(token))?;
            }
        }
        Ok(Self {
            epoll,
            wake,
            sockets: Arc::new(sockets),
        })
    }

    pub(crate) fn watch(&self, descriptor: impl AsFd, token: u64) -> nix::Result<()> {
        self.epoll
            .add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token))
    }

    /// Explicit, because a descriptor that others hold too is not forgotten when it is closed
    /// here.
    pub(crate) fn unwatch(&self, descriptor: impl AsFd) {
        let _ = self.epoll.delete(descriptor);
    }

    pub(crate) fn wake(&self) {
        let _ = self.wake.write(1);
    }
}

pub(crate) struct Worker {
    id: usize,
    shared: Arc<Shared>,
    wire: WorkerWire,
    received: ReceiveBatch,
    /// Read from a TUN.
    tun_buffer: Box<[u8]>,
    room: Room,
}

impl Worker {
    pub(crate) fn new(id: usize, shared: Arc<Shared>) -> Self {
        let wire = WorkerWire::new(Arc::clone(&shared.desks[id].sockets));
        Self {
            id,
            wire,
            received: ReceiveBatch::new(),
            tun_buffer: vec![0; crate::tun::TUN_BUFFER].into_boxed_slice(),
            room: Room::new(id),
            shared,
        }
    }

    /// Runs until the data plane stops.
    pub(crate) fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        let desk = &shared.desks[self.id];
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let mut next_tick = Mono(0);
        while !shared.stop.load(Relaxed) {
            let count = desk
                .epoll
                .wait(&mut events, self.timeout(next_tick))
                .unwrap_or(0);
            // One look at the snapshots per wake-up: what follows sees one state of the world.
            let (fib, ports) = (shared.fib.load(), shared.ports.load());
            let batch = Batch::new(&shared, &fib, &ports, clock());
            if batch.now >= next_tick {
                self.tick(&batch);
                next_tick = batch.now + TICK;
            }
            for event in &events[..count] {
                match event.data() {
                    TOKEN_WAKE => {
                        let _ = desk.wake.read();
                    }
                    TOKEN_V4 => self.read_udp(&batch, false),
                    TOKEN_V6 => self.read_udp(&batch, true),
                    token => self.read_tun(&batch, token),
                }
            }
        }
    }

    /// Until the next tick; without peers of our own there is none to wait for.
    fn timeout(&self, next_tick: Mono) -> EpollTimeout {
        let ports = self.shared.ports.load();
        if ports.by_index.is_empty() {
            return EpollTimeout::NONE;
        }
        let left = next_tick.saturating_since(clock());
        // Rounded up: waking early would spin.
        let left = Duration::from_millis(left.as_micros().div_ceil(1000) as u64);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
    }

    /// Runs the timers of the peers that this worker owns.
    fn tick(&mut self, batch: &Batch<'_>) {
        let due =
            |last: u64| (batch.now.0.saturating_sub(last) >= 1_000_000_000).then_some(batch.now.0);
        if self
            .shared
            .second
            .fetch_update(Relaxed, Relaxed, due)
            .is_ok()
        {
            self.shared.gate.second();
        }
        for port in batch.ports.by_index.values() {
            let Kind::Peer(peer) = &port.kind else {
                continue;
            };
            if peer.index as usize & 0xff != self.id {
                continue;
            }
            let to = peer.endpoint.load().as_deref().copied();
            let keepalive = peer.keepalive_due(batch.now);
            let ticked =
                self.room
                    .out
                    .collect(port.id, to, batch.books(), &mut self.wire, |emit| {
                        if keepalive {
                            peer.engine.keepalive(emit);
                        }
                        peer.engine.tick(emit)
                    });
            if keepalive {
                // Also when nothing left: the next try is one interval later.
                peer.last_datagram.store(batch.now.0, Relaxed);
            }
            if ticked.dropped > 0 {
                batch
                    .books()
                    .drop(port.id, DropReason::NoSession, ticked.dropped as u64);
            }
            if !ticked.session {
                peer.established.store(false, Relaxed);
            }
        }
        self.room.out.flush(batch.books(), &mut self.wire);
    }
}

/// Tells the control plane that a session stands, once per session gap.
pub(crate) fn established(shared: &Shared, port: PortId, peer: &crate::port::Peer, now: Mono) {
    if !peer.established.load(Relaxed) && !peer.established.swap(true, Relaxed) {
        peer.last_handshake.store(now.0, Relaxed);
        (shared.events)(Event::Established { port });
    }
}

/// An authentic message came from `endpoint`.
pub(crate) fn seen(shared: &Shared, port: PortId, peer: &crate::port::Peer, endpoint: Endpoint) {
    if peer.seen_at(endpoint) {
        (shared.events)(Event::EndpointLearned { port, endpoint });
    }
}
