//! The handle that the control plane holds: it alone changes the snapshots.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use vl3_core::fib::Fib;
use vl3_core::forward::{DropReason, PortId, Route};
use vl3_core::ids::PublicKey;
use vl3_core::time::Mono;

use crate::api::{Config, Error, Event, PeerSpec, PortStatus, TunSpec};
use crate::engine::noise::NoiseGate;
use crate::limits::{PEERS_MAX, WORKERS_MAX};
use crate::merge::Piece;
use crate::outbound::{Books, Outbound};
use crate::port::{Drops, Kind, Peer, Port, Ports, Queue, Tun};
use crate::socket::WorkerWire;
use crate::vnet::VnetHeader;
use crate::worker::{Desk, Shared, TOKEN_TUN, Worker};
use crate::{packet, tun};

/// The running data plane. Dropping it stops the workers and closes every descriptor; not to
/// be dropped inside the `events` callback.
pub struct DataPlane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One writer of snapshots at a time. Never held while packets are carried.
    control: Mutex<Control>,
}

struct Control {
    next_slot: u32,
    next_token: u64,
    out: Outbound,
    wire: WorkerWire,
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane")
            .field("public_key", &self.public_key())
            .field("workers", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl DataPlane {
    /// Starts one worker per element of `config.sockets`.
    pub fn start(config: Config) -> Result<Self, Error> {
        let workers = config.sockets.len();
        if workers == 0 || workers > WORKERS_MAX {
            return Err(Error::Config {
                field: "workers",
                value: workers.to_string(),
                allowed: "1 to 255",
            });
        }
        let desks = config
            .sockets
            .into_iter()
            .map(Desk::new)
            .collect::<Result<Vec<_>, _>>();
        let desks = desks.map_err(|error| system("open a worker's event queue", error.into()))?;
        let wire = WorkerWire::new(Arc::clone(&desks[0].sockets));
        let shared = Arc::new(Shared {
            gate: Box::new(NoiseGate::new(config.private_key)),
            fib: ArcSwap::from_pointee(Fib::default()),
            ports: ArcSwap::from_pointee(Ports::default()),
            drops: Drops::default(),
            own: ArcSwap::from_pointee(config.own_addresses),
            events: config.events,
            stop: AtomicBool::new(false),
            desks,
            second: AtomicU64::new(0),
        });
        let mut plane = Self {
            control: Mutex::new(Control {
                next_slot: 0,
                next_token: TOKEN_TUN,
                out: Outbound::new(),
                wire,
            }),
            threads: Vec::with_capacity(workers),
            shared,
        };
        for id in 0..workers {
            let shared = Arc::clone(&plane.shared);
            let thread = std::thread::Builder::new()
                .name(format!("vl3-worker-{id}"))
                .spawn(move || work(id, &shared))
                .map_err(|error| system("start a worker thread", error))?;
            plane.threads.push(thread);
        }
        Ok(plane)
    }

    /// Adds a peer, or changes endpoint, preshared key, keepalive or class of the same port.
    pub fn set_peer(&self, spec: PeerSpec) -> Result<(), Error> {
        let mut control = self.lock();
        let mut ports = Ports::clone(&self.shared.ports.load());
        if let Some(holder) = ports.by_key.get(&spec.public_key)
            && *holder != spec.port
        {
            return Err(Error::KeyTaken(*holder));
        }
        let known = match ports.by_id.get(&spec.port).map(|port| &port.kind) {
            None => None,
            Some(Kind::Tun(_)) => return Err(Error::OtherKind(spec.port)),
            Some(Kind::Peer(peer)) if peer.public_key != spec.public_key => {
                return Err(Error::OtherKey(spec.port));
            }
            Some(Kind::Peer(peer)) => Some(Arc::clone(peer)),
        };
        let peer = match known {
            // Another preshared key is another session.
            Some(peer) if peer.preshared_key == spec.preshared_key => peer,
            known => {
                if known.is_none() && ports.by_index.len() >= PEERS_MAX {
                    return Err(Error::Full {
                        what: "peers",
                        limit: PEERS_MAX,
                    });
                }
                if let Some(old) = &known {
                    ports.by_index.remove(&old.index);
                }
                Arc::new(self.new_peer(&mut control, &ports, &spec, known.as_deref()))
            }
        };
        peer.keepalive
            .store(u32::from(spec.persistent_keepalive.unwrap_or(0)), Relaxed);
        if let Some(endpoint) = spec.endpoint {
            peer.seen_at(endpoint);
        }
        let port = Port {
            id: spec.port,
            class: spec.class,
            kind: Kind::Peer(Arc::clone(&peer)),
        };
        ports.by_key.insert(spec.public_key, spec.port);
        ports.by_index.insert(peer.index, port.clone());
        ports.by_id.insert(spec.port, port);
        self.shared.ports.store(Arc::new(ports));
        // It may be waiting without a deadline.
        self.shared.desks[peer.index as usize & 0xff].wake();
        if spec.initiate {
            self.with_books(&mut control, |out, wire, books| {
                let to = peer.endpoint.load().as_deref().copied();
                out.collect(spec.port, to, books, wire, |emit| {
                    peer.engine.initiate(emit)
                });
                out.flush(books, wire);
            });
        }
        Ok(())
    }

    fn new_peer(
        &self,
        control: &mut Control,
        ports: &Ports,
        spec: &PeerSpec,
        known: Option<&Peer>,
    ) -> Peer {
        // Slots are reused as late as possible: what is under way for a removed peer must not
        // meet its successor.
        let slots = (PEERS_MAX - 1) as u32;
        let workers = self.shared.desks.len() as u32;
        let index = loop {
            control.next_slot = (control.next_slot + 1) & slots;
            let index = (control.next_slot << 8) | (control.next_slot % workers);
            if !ports.by_index.contains_key(&index) {
                break index;
            }
        };
        Peer {
            public_key: spec.public_key,
            preshared_key: spec.preshared_key,
            index,
            engine: self
                .shared
                .gate
                .peer(spec.public_key, spec.preshared_key, index),
            endpoint: ArcSwapOption::from(known.and_then(|known| known.endpoint.load_full())),
            keepalive: AtomicU32::new(0),
            last_datagram: AtomicU64::new(0),
            last_handshake: AtomicU64::new(0),
            established: AtomicBool::new(false),
            single: AtomicBool::new(false),
            counters: known
                .map(|known| Arc::clone(&known.counters))
                .unwrap_or_default(),
        }
    }

    /// Adds a TUN, or replaces the descriptor of the same port.
    pub fn set_tun(&self, spec: TunSpec) -> Result<(), Error> {
        let mut control = self.lock();
        tun::prepare(spec.port, &spec.descriptor)?;
        self.install_tun(&mut control, spec, Vec::new())
    }

    /// Adds another queue of the multi-queue TUN that the port already is: another worker
    /// reads it.
    pub fn add_tun_queue(&self, spec: TunSpec) -> Result<(), Error> {
        let mut control = self.lock();
        tun::prepare(spec.port, &spec.descriptor)?;
        let kept = match self
            .shared
            .ports
            .load()
            .by_id
            .get(&spec.port)
            .map(|port| &port.kind)
        {
            Some(Kind::Tun(tun)) => tun.queues.clone(),
            Some(Kind::Peer(_)) | None => Vec::new(),
        };
        self.install_tun(&mut control, spec, kept)
    }

    fn install_tun(
        &self,
        control: &mut Control,
        spec: TunSpec,
        kept: Vec<Arc<Queue>>,
    ) -> Result<(), Error> {
        let mut ports = Ports::clone(&self.shared.ports.load());
        let old = match ports.by_id.get(&spec.port).map(|port| &port.kind) {
            None => None,
            Some(Kind::Peer(_)) => return Err(Error::OtherKind(spec.port)),
            Some(Kind::Tun(tun)) => Some(Arc::clone(tun)),
        };
        let token = control.next_token;
        control.next_token += 1;
        let worker = (spec.port.0 as usize).wrapping_add(kept.len()) % self.shared.desks.len();
        let queue = Arc::new(Queue {
            token,
            worker,
            descriptor: spec.descriptor,
        });
        let mut queues = kept;
        queues.push(Arc::clone(&queue));
        let tun = Arc::new(Tun {
            queues,
            mtu: spec.mtu,
            counters: old
                .as_ref()
                .map(|old| Arc::clone(&old.counters))
                .unwrap_or_default(),
            failed: AtomicBool::new(false),
            merge_failures: AtomicU32::new(0),
        });
        let port = Port {
            id: spec.port,
            class: spec.class,
            kind: Kind::Tun(Arc::clone(&tun)),
        };
        for queue in old.iter().flat_map(|old| &old.queues) {
            ports.by_token.remove(&queue.token);
            if !tun.queues.iter().any(|kept| kept.token == queue.token) {
                self.shared.desks[queue.worker].unwatch(&queue.descriptor);
            }
        }
        for queue in &tun.queues {
            ports
                .by_token
                .insert(queue.token, (port.clone(), Arc::clone(queue)));
        }
        ports.by_id.insert(spec.port, port);
        self.shared.ports.store(Arc::new(ports));
        // After the snapshot: a report about an unknown token would be ignored.
        let watched = self.shared.desks[worker].watch(&queue.descriptor, token);
        watched.map_err(|error| system("watch a TUN", error.into()))
    }

    /// Removes a peer or TUN with all its state. Whether there was one.
    pub fn remove_port(&self, port: PortId) -> bool {
        let _control = self.lock();
        let mut ports = Ports::clone(&self.shared.ports.load());
        let Some(removed) = ports.by_id.remove(&port) else {
            return false;
        };
        match &removed.kind {
            Kind::Peer(peer) => {
                ports.by_index.remove(&peer.index);
                ports.by_key.remove(&peer.public_key);
            }
            Kind::Tun(tun) => {
                for queue in &tun.queues {
                    ports.by_token.remove(&queue.token);
                }
            }
        }
        self.shared.ports.store(Arc::new(ports));
        if let Kind::Tun(tun) = &removed.kind {
            for queue in &tun.queues {
                self.shared.desks[queue.worker].unwatch(&queue.descriptor);
            }
        }
        true
    }

    /// Replaces the whole table at once.
    pub fn set_routes(&self, routes: Vec<Route>) {
        self.shared.fib.store(Arc::new(Fib::compile(routes)));
    }

    /// Where ICMP errors come from from now on: the first address of each family.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        self.shared.own.store(Arc::new(addresses));
    }

    /// Sends one inner packet out by this port (probes, echo), as it is. Whether it was handed
    /// over; a packet that waits for a peer's session was.
    pub fn send(&self, port: PortId, packet: &[u8]) -> bool {
        let Some(ip) = packet::parse(packet) else {
            return false;
        };
        let packet = &packet[..ip.total_len];
        let ports = self.shared.ports.load_full();
        let Some(to) = ports.by_id.get(&port) else {
            return false;
        };
        match &to.kind {
            Kind::Peer(peer) if peer.endpoint.load().is_none() => false,
            Kind::Peer(peer) => {
                let mut control = self.lock();
                self.with_books(&mut control, |out, wire, books| {
                    let padded = packet.len().next_multiple_of(16);
                    let slot = out.slot(peer, port, padded, books, wire);
                    slot[..packet.len()].copy_from_slice(packet);
                    slot[packet.len()..].fill(0);
                    out.flush(books, wire);
                });
                true
            }
            Kind::Tun(tun) => {
                let Some(queue) = tun.queues.first() else {
                    return false;
                };
                let piece = Piece {
                    start: 0,
                    len: packet.len(),
                };
                let written = tun::write(&queue.descriptor, VnetHeader::PLAIN, packet, &[piece]);
                if written.is_ok() {
                    tun.counters.sent(1, packet.len() as u64, clock());
                }
                written.is_ok()
            }
        }
    }

    /// Every port, in order.
    pub fn status(&self) -> Vec<PortStatus> {
        let ports = self.shared.ports.load_full();
        let sorted: BTreeMap<_, _> = ports.by_id.iter().collect();
        sorted.into_values().map(Port::status).collect()
    }

    pub fn port_status(&self, port: PortId) -> Option<PortStatus> {
        self.shared.ports.load().by_id.get(&port).map(Port::status)
    }

    /// Drops since start, by reason; ports that are gone included.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        self.shared.drops.read()
    }

    pub fn public_key(&self) -> PublicKey {
        self.shared.gate.public_key()
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // Every change is one store of a finished snapshot: nothing is left half done.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_books(
        &self,
        control: &mut Control,
        call: impl FnOnce(&mut Outbound, &mut WorkerWire, Books<'_>),
    ) {
        let ports = self.shared.ports.load_full();
        let books = Books {
            ports: &ports,
            drops: &self.shared.drops,
            now: clock(),
        };
        call(&mut control.out, &mut control.wire, books);
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for desk in &self.shared.desks {
            desk.wake();
        }
        for thread in self.threads.drain(..) {
            // A worker that panicked has reported itself.
            let _ = thread.join();
        }
    }
}

fn work(id: usize, shared: &Arc<Shared>) {
    let worker = AssertUnwindSafe(|| Worker::new(id, Arc::clone(shared)).run());
    if catch_unwind(worker).is_err() {
        (shared.events)(Event::WorkerDied { worker: id });
    }
}

fn system(action: &'static str, source: std::io::Error) -> Error {
    Error::System { action, source }
}

/// Monotonic time, the same for all users of the data plane (CLOCK_MONOTONIC).
pub fn clock() -> Mono {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default();
    Mono(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
