//! The engine on boringtun's `noise`: one lock per peer, one copy each way.
//!
//! Its timers, replay window and key rotation are its own. Waiting packets are kept here,
//! because its queue can neither be counted nor emptied in order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use vl3_core::ids::PublicKey;

use super::{
    Admission, DATA_HEADER, DATA_OVERHEAD, Emit, Engine, Gate, HANDSHAKE_MAX, Opened, Sealed,
    Ticked, Train,
};
use crate::limits::{HANDSHAKES_PER_SECOND, WAITING_MAX};

/// Longest inner packet plus overhead.
const SCRATCH: usize = (1 << 16) + DATA_OVERHEAD;

thread_local! {
    /// Where packets are copied from or messages are written to, because `Tunn` does not
    /// work in place.
    static COPY: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// The shared part: own key, load limit.
pub(crate) struct NoiseGate {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Counts the handshakes of all peers and strangers.
    front: RateLimiter,
    /// Given to every `Tunn`: it checks again, and must not count again.
    unlimited: Arc<RateLimiter>,
}

impl NoiseGate {
    pub(crate) fn new(private_key: [u8; 32]) -> Self {
        let private = x25519::StaticSecret::from(private_key);
        let public = x25519::PublicKey::from(&private);
        Self {
            front: RateLimiter::new(&public, HANDSHAKES_PER_SECOND),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            private,
            public,
        }
    }
}

impl Gate for NoiseGate {
    fn public_key(&self) -> PublicKey {
        PublicKey(self.public.to_bytes())
    }

    fn admit(&self, from: IpAddr, message: &[u8], cookie: &mut [u8; HANDSHAKE_MAX]) -> Admission {
        match self.front.verify_packet(Some(from), message, cookie) {
            Ok(_) => Admission::Admitted,
            Err(TunnResult::WriteToNetwork(reply)) => Admission::Cookie(reply.len()),
            Err(_) => Admission::Refused,
        }
    }

    fn initiator(&self, initiation: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(parsed)) = Tunn::parse_incoming_packet(initiation) else {
            return None;
        };
        let half = parse_handshake_anon(&self.private, &self.public, &parsed).ok()?;
        Some(PublicKey(half.peer_static_public))
    }

    fn peer(&self, key: PublicKey, preshared: Option<[u8; 32]>, index: u32) -> Box<dyn Engine> {
        let tunnel = Tunn::new(
            self.private.clone(),
            x25519::PublicKey::from(key.0),
            preshared,
            // Persistent keepalives are the peer's timer, so that they change without a handshake.
            None,
            index,
            Some(Arc::clone(&self.unlimited)),
        );
        Box::new(NoisePeer {
            inner: Mutex::new(Inner {
                tunnel,
                waiting: VecDeque::new(),
            }),
        })
    }

    fn second(&self) {
        self.front.reset_count();
    }
}

struct NoisePeer {
    inner: Mutex<Inner>,
}

struct Inner {
    tunnel: Tunn,
    /// Packets before the first session, at most [`WAITING_MAX`].
    waiting: VecDeque<Vec<u8>>,
}

impl NoisePeer {
    /// A worker that panicked leaves the tunnel at worst one message behind.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for NoisePeer {
    fn seal(&self, train: Train<'_>, emit: &mut Emit<'_>) -> Sealed {
        COPY.with_borrow_mut(|copy| {
            let mut inner = self.lock();
            if !inner.has_session() {
                return inner.wait(train, copy, emit);
            }
            let mut at = 0;
            for &len in train.lengths {
                let slot = &mut train.bytes[at..at + len + DATA_OVERHEAD];
                copy[..len].copy_from_slice(&slot[DATA_HEADER..DATA_HEADER + len]);
                seal_one(&mut inner.tunnel, &copy[..len], slot);
                at += slot.len();
            }
            Sealed::Ready
        })
    }

    fn open(&self, datagram: &[u8], plain: &mut [u8], emit: &mut Emit<'_>) -> Opened {
        let mut inner = self.lock();
        let opened = match inner.tunnel.decapsulate(None, datagram, plain) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::Done => Opened::Keepalive,
            // The message itself was classified before, so this is about its content.
            TunnResult::Err(WireGuardError::InvalidPacket) => Opened::NoPacket,
            TunnResult::WriteToNetwork(_) | TunnResult::Err(_) => Opened::Refused,
        };
        if opened != Opened::Refused && !inner.waiting.is_empty() {
            inner.release(emit);
        }
        opened
    }

    fn handshake(&self, message: &[u8], emit: &mut Emit<'_>) -> bool {
        COPY.with_borrow_mut(|copy| {
            let mut inner = self.lock();
            let authentic = match inner.tunnel.decapsulate(None, message, copy) {
                TunnResult::WriteToNetwork(reply) => {
                    emit(reply);
                    true
                }
                TunnResult::Done => true,
                TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..)
                | TunnResult::Err(_) => false,
            };
            if authentic && inner.has_session() {
                inner.release_into(copy, emit);
            }
            authentic
        })
    }

    fn initiate(&self, emit: &mut Emit<'_>) {
        COPY.with_borrow_mut(|copy| {
            emit_result(
                self.lock().tunnel.format_handshake_initiation(copy, true),
                emit,
            );
        });
    }

    fn keepalive(&self, emit: &mut Emit<'_>) {
        COPY.with_borrow_mut(|copy| {
            let mut inner = self.lock();
            if inner.has_session() {
                emit_result(inner.tunnel.encapsulate(&[], copy), emit);
            } else {
                emit_result(inner.tunnel.format_handshake_initiation(copy, false), emit);
            }
        });
    }

    fn tick(&self, emit: &mut Emit<'_>) -> Ticked {
        COPY.with_borrow_mut(|copy| {
            let mut inner = self.lock();
            let mut dropped = 0;
            match inner.tunnel.update_timers(copy) {
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    dropped = inner.waiting.len();
                    inner.waiting.clear();
                }
                result => emit_result(result, emit),
            }
            Ticked {
                session: inner.has_session(),
                dropped,
            }
        })
    }
}

impl Inner {
    fn has_session(&self) -> bool {
        self.tunnel.time_since_last_handshake().is_some()
    }

    fn wait(&mut self, train: Train<'_>, copy: &mut [u8], emit: &mut Emit<'_>) -> Sealed {
        let mut dropped = 0;
        let mut at = DATA_HEADER;
        for &len in train.lengths {
            if self.waiting.len() < WAITING_MAX {
                self.waiting.push_back(train.bytes[at..at + len].to_vec());
            } else {
                dropped += 1;
            }
            at += len + DATA_OVERHEAD;
        }
        emit_result(self.tunnel.format_handshake_initiation(copy, false), emit);
        Sealed::Waiting { dropped }
    }

    fn release(&mut self, emit: &mut Emit<'_>) {
        if self.has_session() {
            COPY.with_borrow_mut(|copy| self.release_into(copy, emit));
        }
    }

    fn release_into(&mut self, copy: &mut [u8], emit: &mut Emit<'_>) {
        while let Some(packet) = self.waiting.pop_front() {
            emit_result(self.tunnel.encapsulate(&packet, copy), emit);
        }
    }
}

/// The caller has seen a session under the same lock, so this seals.
fn seal_one(tunnel: &mut Tunn, packet: &[u8], slot: &mut [u8]) {
    // `encapsulate` wants room for an initiation, which it does not write here.
    debug_assert!(
        slot.len() >= packet.len() + DATA_OVERHEAD,
        "a slot holds its message"
    );
    let _ = tunnel.encapsulate(packet, slot);
}

fn emit_result(result: TunnResult<'_>, emit: &mut Emit<'_>) {
    if let TunnResult::WriteToNetwork(message) = result {
        emit(message);
    }
}
