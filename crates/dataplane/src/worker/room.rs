//! What a worker carries packets with: its arenas, and the way of one packet.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vl3_core::fib::Fib;
use vl3_core::forward::{DropReason, Hop, PortClass, PortId, Verdict, forward};
use vl3_core::time::Mono;

use super::Shared;
use crate::api::Event;
use crate::icmp::{self, ERROR_V6_MAX};
use crate::merge::{Merger, Piece};
use crate::outbound::{Books, Outbound, Wire};
use crate::packet::{self, IpHeader};
use crate::port::{Kind, Peer, Port, Ports, Tun};
use crate::sys::ReceiveBatch;
use crate::tun;
use crate::vnet::VnetHeader;

/// One wake-up: the snapshots that it sees, and its time.
pub(super) struct Batch<'a> {
    pub(super) shared: &'a Shared,
    pub(super) fib: &'a Fib,
    pub(super) ports: &'a Ports,
    pub(super) now: Mono,
    /// The last way: packets of a batch mostly go the same one.
    last: Cell<Option<Way<'a>>>,
}

#[derive(Clone, Copy)]
struct Way<'a> {
    ingress: PortId,
    source: IpAddr,
    destination: IpAddr,
    hop: Hop,
    port: &'a Port,
}

impl<'a> Batch<'a> {
    pub(super) fn new(shared: &'a Shared, fib: &'a Fib, ports: &'a Ports, now: Mono) -> Self {
        Self {
            shared,
            fib,
            ports,
            now,
            last: Cell::new(None),
        }
    }

    pub(super) fn books(&self) -> Books<'a> {
        Books {
            ports: self.ports,
            drops: &self.shared.drops,
            now: self.now,
        }
    }

    /// Where a packet goes, by the packet order.
    fn way(&self, ingress: &Port, ip: &IpHeader) -> Result<(Hop, &'a Port), DropReason> {
        if let Some(way) = self.last.get()
            && way.ingress == ingress.id
            && way.source == ip.source
            && way.destination == ip.destination
        {
            return Ok((way.hop, way.port));
        }
        match forward(
            self.fib,
            ingress.id,
            ingress.class,
            ip.source,
            ip.destination,
        ) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::Forward(hop) => {
                // A route may outlive its port for a moment.
                let port = self.ports.by_id.get(&hop.port).ok_or(DropReason::NoRoute)?;
                let (source, destination) = (ip.source, ip.destination);
                self.last.set(Some(Way {
                    ingress: ingress.id,
                    source,
                    destination,
                    hop,
                    port,
                }));
                Ok((hop, port))
            }
        }
    }
}

/// What a packet may do next.
pub(super) struct Onward<'a> {
    pub(super) hop: Hop,
    pub(super) port: &'a Port,
    /// Larger than the way, but may be cut into fragments.
    pub(super) fragment: bool,
}

pub(super) struct Room {
    worker: usize,
    /// Opened packets, at the offset that their datagram was received at.
    pub(super) plain: Box<[u8]>,
    pub(super) out: Outbound,
    /// Groups per TUN of the batch.
    mergers: Vec<(Option<Arc<Tun>>, PortId, Merger)>,
    mergers_used: usize,
    /// A super-packet that must be cut.
    whole: Vec<u8>,
}

impl Room {
    pub(super) fn new(worker: usize) -> Self {
        Self {
            worker,
            plain: vec![0; ReceiveBatch::BYTES].into_boxed_slice(),
            out: Outbound::new(),
            mergers: Vec::new(),
            mergers_used: 0,
            whole: Vec::new(),
        }
    }

    /// Decides a packet's way and takes a hop off it; `longest` is what must fit. On a drop
    /// counts it and, where that is right, tells the sender.
    pub(super) fn onward<'a>(
        &mut self,
        batch: &Batch<'a>,
        ingress: &Port,
        packet: &mut [u8],
        ip: &IpHeader,
        longest: usize,
        wire: &mut impl Wire,
    ) -> Option<Onward<'a>> {
        let (hop, port) = match batch.way(ingress, ip) {
            Ok(way) => way,
            Err(reason) => {
                self.refuse(batch, ingress, reason, 0, packet, ip, wire);
                return None;
            }
        };
        let mtu = match &port.kind {
            Kind::Tun(tun) => hop.mtu.min(tun.mtu),
            Kind::Peer(_) => hop.mtu,
        };
        let too_big = longest > usize::from(mtu);
        if too_big && !ip.may_fragment {
            self.refuse(batch, ingress, DropReason::TooBig, mtu, packet, ip, wire);
            return None;
        }
        // Packets of the router itself start here, packets to it end here: no hop.
        let passes = ingress.class != PortClass::Own && hop.class != PortClass::Own;
        if passes && !packet::decrement_ttl(packet) {
            self.refuse(batch, ingress, DropReason::TtlExceeded, 0, packet, ip, wire);
            return None;
        }
        Some(Onward {
            hop,
            port,
            fragment: too_big,
        })
    }

    /// Counts a drop and answers it with an ICMP error from the own address.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call per drop, all of it is needed"
    )]
    fn refuse(
        &mut self,
        batch: &Batch<'_>,
        ingress: &Port,
        reason: DropReason,
        mtu: u16,
        packet: &[u8],
        ip: &IpHeader,
        wire: &mut impl Wire,
    ) {
        batch.books().drop(ingress.id, reason, 1);
        let own = batch.shared.own.load();
        let Some(own) = own.iter().find(|own| own.is_ipv4() == ip.is_v4()) else {
            return;
        };
        let mut error = [0; ERROR_V6_MAX];
        let Some(len) = icmp::error(reason, mtu, packet, ip, *own, &mut error) else {
            return;
        };
        if !ingress.counters().may_complain(batch.now) {
            return;
        }
        match &ingress.kind {
            Kind::Peer(peer) => {
                self.out
                    .slot(peer, ingress.id, len, batch.books(), wire)
                    .copy_from_slice(&error[..len]);
            }
            Kind::Tun(tun) => {
                let piece = Piece { start: 0, len };
                self.write(batch, ingress.id, tun, VnetHeader::PLAIN, &error, &[piece]);
            }
        }
    }

    /// Hands one packet to a peer, padded as the protocol asks, never beyond the way.
    pub(super) fn hand_to_peer(
        &mut self,
        batch: &Batch<'_>,
        peer: &Arc<Peer>,
        onward: &Onward<'_>,
        len: usize,
        wire: &mut impl Wire,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let padded = padded(len, usize::from(onward.hop.mtu));
        let slot = self
            .out
            .slot(peer, onward.port.id, padded, batch.books(), wire);
        fill(&mut slot[..len]);
        slot[len..].fill(0);
    }

    /// Queues an opened packet, at `piece` of the plain arena, for a TUN.
    pub(super) fn hand_to_tun(
        &mut self,
        port: PortId,
        tun: &Arc<Tun>,
        piece: Piece,
        ip: &IpHeader,
    ) {
        let known = self.mergers[..self.mergers_used]
            .iter_mut()
            .find(|(_, held, _)| *held == port);
        let merger = match known {
            Some((_, _, merger)) => merger,
            None => {
                if self.mergers_used == self.mergers.len() {
                    self.mergers.push((None, port, Merger::default()));
                }
                let entry = &mut self.mergers[self.mergers_used];
                self.mergers_used += 1;
                entry.0 = Some(Arc::clone(tun));
                entry.1 = port;
                &mut entry.2
            }
        };
        merger.push(&self.plain, piece, ip, tun.merges());
    }

    /// Writes what was queued for TUNs, and sends what was queued for peers.
    pub(super) fn flush(&mut self, batch: &Batch<'_>, wire: &mut impl Wire) {
        let mut mergers = std::mem::take(&mut self.mergers);
        let mut plain = std::mem::take(&mut self.plain);
        for (tun, port, merger) in &mut mergers[..self.mergers_used] {
            let Some(tun) = tun.take() else { continue };
            merger.finish(&mut plain, |arena, vnet, pieces| {
                self.write(batch, *port, &tun, vnet, arena, pieces);
            });
        }
        self.plain = plain;
        self.mergers = mergers;
        self.mergers_used = 0;
        self.out.flush(batch.books(), wire);
    }

    /// Writes one packet or group to a TUN and counts what became of it.
    pub(super) fn write(
        &mut self,
        batch: &Batch<'_>,
        port: PortId,
        tun: &Tun,
        vnet: VnetHeader,
        arena: &[u8],
        pieces: &[Piece],
    ) {
        let Some(queue) = tun.queue_of(self.worker) else {
            return;
        };
        let packets = packets(vnet, pieces);
        match tun::write_or_cut(tun, &queue.descriptor, vnet, arena, pieces, &mut self.whole) {
            Ok(()) => {
                let bytes = pieces.iter().map(|piece| piece.len as u64).sum();
                tun.counters.sent(packets, bytes, batch.now);
            }
            Err(error) => {
                let full = error.kind() == io::ErrorKind::WouldBlock;
                let reason = if full {
                    DropReason::QueueFull
                } else {
                    DropReason::WriteFailed
                };
                batch.books().drop(port, reason, packets);
                if is_gone(&error) {
                    fail(batch.shared, port, tun, &error);
                }
            }
        }
    }
}

/// Packets that a group or super-packet stands for.
fn packets(vnet: VnetHeader, pieces: &[Piece]) -> u64 {
    let bytes: usize = pieces.iter().map(|piece| piece.len).sum();
    match usize::from(vnet.gso_size) {
        0 => 1,
        size => bytes.div_ceil(size).max(1) as u64,
    }
}

/// The device behind the descriptor does not exist any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADFD | libc::EBADF | libc::ENODEV)
    )
}

/// Reports a dead TUN, once.
pub(super) fn fail(shared: &Shared, port: PortId, tun: &Tun, error: &io::Error) {
    if tun.failed.swap(true, Relaxed) {
        return;
    }
    for queue in &tun.queues {
        shared.desks[queue.worker].unwatch(&queue.descriptor);
    }
    (shared.events)(Event::TunFailed {
        port,
        error: error.to_string(),
    });
}

/// To 16 bytes, never beyond the way's MTU.
fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(16).min(mtu.max(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stops_at_the_mtu() {
        assert_eq!(padded(0, 1420), 0);
        assert_eq!(padded(1, 1420), 16);
        assert_eq!(padded(1408, 1420), 1408);
        assert_eq!(padded(1409, 1420), 1420);
        assert_eq!(padded(1420, 1420), 1420);
    }
}
