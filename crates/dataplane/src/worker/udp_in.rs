//! From the UDP sockets: open, check, and on.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vl3_core::forward::DropReason;

use super::room::{Batch, Onward, Room};
use super::{Worker, established, seen};
use crate::api::Endpoint;
use crate::engine::{Admission, HANDSHAKE_MAX, Message, Opened};
use crate::fragment::Fragments;
use crate::limits::RECEIVE_BATCH;
use crate::merge::Piece;
use crate::outbound::Wire;
use crate::packet;
use crate::port::{Kind, Peer, Port};

/// Receive calls of one wake-up; then others get their turn.
const CALLS_MAX: usize = 4;

impl Worker {
    pub(super) fn read_udp(&mut self, batch: &Batch<'_>, v6: bool) {
        for _ in 0..CALLS_MAX {
            let socket = if v6 {
                &self.wire.sockets.v6
            } else {
                &self.wire.sockets.v4
            };
            let Some(socket) = socket else { return };
            // Errors here are reports about earlier datagrams; reading takes them off.
            let Ok(count) = self.received.receive(socket) else {
                return;
            };
            for index in 0..count {
                let Some(received) = self.received.get(index) else {
                    continue;
                };
                if received.truncated {
                    batch.shared.drops.count(DropReason::Malformed, 1);
                    continue;
                }
                if received.bytes.is_empty() {
                    batch.shared.drops.count(DropReason::Unauthentic, 1);
                    continue;
                }
                let from = Endpoint {
                    remote: received.remote,
                    local: received.local,
                };
                let mut tally = Tally::default();
                for (number, datagram) in received.bytes.chunks(received.segment.max(1)).enumerate()
                {
                    let offset = received.offset + number * received.segment;
                    self.room
                        .datagram(batch, datagram, offset, from, &mut tally, &mut self.wire);
                }
                tally.settle(batch);
            }
            self.room.flush(batch, &mut self.wire);
            if count < RECEIVE_BATCH {
                return;
            }
        }
    }
}

/// What one buffer brought, counted once for all its datagrams.
#[derive(Default)]
struct Tally<'a> {
    from: Option<(&'a Port, &'a Arc<Peer>)>,
    packets: u64,
    bytes: u64,
}

impl<'a> Tally<'a> {
    /// Notes an authentic datagram; the first of a peer also tells its place.
    fn heard(&mut self, batch: &Batch<'_>, port: &'a Port, peer: &'a Arc<Peer>, from: Endpoint) {
        if self.from.is_some_and(|(held, _)| held.id == port.id) {
            return;
        }
        self.settle(batch);
        self.from = Some((port, peer));
        seen(batch.shared, port.id, peer, from);
        established(batch.shared, port.id, peer, batch.now);
    }

    fn settle(&mut self, batch: &Batch<'_>) {
        if let Some((_, peer)) = self.from.take() {
            peer.counters.received(self.packets, self.bytes, batch.now);
        }
        (self.packets, self.bytes) = (0, 0);
    }
}

impl Room {
    /// One datagram, received at `offset` of the receive batch.
    fn datagram<'a>(
        &mut self,
        batch: &Batch<'a>,
        datagram: &[u8],
        offset: usize,
        from: Endpoint,
        tally: &mut Tally<'a>,
        wire: &mut impl Wire,
    ) {
        match Message::classify(datagram) {
            Some(Message::Data { receiver }) => {
                self.data(batch, datagram, receiver, offset, from, tally, wire);
            }
            Some(message) => self.handshake(batch, message, datagram, from, wire),
            None => batch.shared.drops.count(DropReason::Unauthentic, 1),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the inner loop hands its locals down"
    )]
    fn data<'a>(
        &mut self,
        batch: &Batch<'a>,
        datagram: &[u8],
        receiver: u32,
        offset: usize,
        from: Endpoint,
        tally: &mut Tally<'a>,
        wire: &mut impl Wire,
    ) {
        let Some((port, peer)) = peer_of(batch, receiver) else {
            batch.shared.drops.count(DropReason::Unauthentic, 1);
            return;
        };
        let plain = &mut self.plain[offset..offset + datagram.len()];
        let opened = self
            .out
            .collect(port.id, Some(from), batch.books(), wire, |emit| {
                peer.engine.open(datagram, plain, emit)
            });
        match opened {
            Opened::Refused => batch.books().drop(port.id, DropReason::Unauthentic, 1),
            Opened::Keepalive => tally.heard(batch, port, peer, from),
            Opened::NoPacket => {
                tally.heard(batch, port, peer, from);
                batch.books().drop(port.id, DropReason::Malformed, 1);
            }
            Opened::Packet(len) => {
                tally.heard(batch, port, peer, from);
                tally.packets += 1;
                tally.bytes += len as u64;
                self.inner(batch, port, Piece { start: offset, len }, wire);
            }
        }
    }

    /// One opened packet in the plain arena.
    fn inner(&mut self, batch: &Batch<'_>, ingress: &Port, piece: Piece, wire: &mut impl Wire) {
        let Some(ip) = packet::parse(piece.of(&self.plain)) else {
            batch.books().drop(ingress.id, DropReason::Malformed, 1);
            return;
        };
        let piece = Piece {
            start: piece.start,
            len: ip.total_len,
        };
        // The arena is set aside while the rest of the room works on a packet in it.
        let mut plain = std::mem::take(&mut self.plain);
        let packet = &mut plain[piece.start..piece.start + piece.len];
        if let Some(onward) = self.onward(batch, ingress, packet, &ip, piece.len, wire) {
            match &onward.port.kind {
                Kind::Peer(peer) if onward.fragment => {
                    self.fragments_to_peer(batch, peer, &onward, packet, &ip, wire);
                }
                Kind::Peer(peer) => {
                    self.hand_to_peer(batch, peer, &onward, piece.len, wire, |slot| {
                        slot.copy_from_slice(packet)
                    });
                }
                // A host takes what the tunnel brought, whatever its interface sends.
                Kind::Tun(tun) => {
                    self.plain = plain;
                    self.hand_to_tun(onward.port.id, tun, piece, &ip);
                    return;
                }
            }
        }
        self.plain = plain;
    }

    pub(super) fn fragments_to_peer(
        &mut self,
        batch: &Batch<'_>,
        peer: &Arc<Peer>,
        onward: &Onward<'_>,
        packet: &[u8],
        ip: &packet::IpHeader,
        wire: &mut impl Wire,
    ) {
        let Some(fragments) = Fragments::plan(packet, ip, usize::from(onward.hop.mtu)) else {
            batch.books().drop(onward.port.id, DropReason::TooBig, 1);
            return;
        };
        for index in 0..fragments.count() {
            self.hand_to_peer(batch, peer, onward, fragments.len(index), wire, |slot| {
                fragments.write(index, slot)
            });
        }
    }

    fn handshake(
        &mut self,
        batch: &Batch<'_>,
        message: Message,
        datagram: &[u8],
        from: Endpoint,
        wire: &mut impl Wire,
    ) {
        let gate = &batch.shared.gate;
        let mut cookie = [0; HANDSHAKE_MAX];
        match gate.admit(from.remote.ip(), datagram, &mut cookie) {
            Admission::Admitted => {}
            Admission::Cookie(len) => {
                let stranger = vl3_core::forward::PortId(u32::MAX);
                self.out
                    .message(&cookie[..len], stranger, from, batch.books(), wire);
                return;
            }
            Admission::Refused => {
                batch.shared.drops.count(DropReason::Unauthentic, 1);
                return;
            }
        }
        let found = match message {
            Message::Initiation => gate
                .initiator(datagram)
                .and_then(|key| batch.ports.by_key.get(&key))
                .and_then(|id| batch.ports.by_id.get(id)),
            Message::Answer { receiver } | Message::Data { receiver } => {
                peer_of(batch, receiver).map(|(port, _)| port)
            }
        };
        let Some((port, peer)) = found.and_then(as_peer) else {
            batch.shared.drops.count(DropReason::Unauthentic, 1);
            return;
        };
        let authentic = self
            .out
            .collect(port.id, Some(from), batch.books(), wire, |emit| {
                peer.engine.handshake(datagram, emit)
            });
        if !authentic {
            batch.books().drop(port.id, DropReason::Unauthentic, 1);
            return;
        }
        if Message::is_cookie_reply(datagram) {
            return;
        }
        seen(batch.shared, port.id, peer, from);
        peer.counters.last_receive.store(batch.now.0, Relaxed);
        // The response confirms the session to the initiator; the responder waits for data.
        if matches!(message, Message::Answer { .. }) {
            peer.last_handshake.store(batch.now.0, Relaxed);
            established(batch.shared, port.id, peer, batch.now);
        } else {
            peer.last_handshake.store(batch.now.0, Relaxed);
        }
    }
}

fn peer_of<'a>(batch: &Batch<'a>, receiver: u32) -> Option<(&'a Port, &'a Arc<Peer>)> {
    as_peer(batch.ports.by_index.get(&(receiver >> 8))?)
}

fn as_peer(port: &Port) -> Option<(&Port, &Arc<Peer>)> {
    match &port.kind {
        Kind::Peer(peer) => Some((port, peer)),
        Kind::Tun(_) => None,
    }
}
