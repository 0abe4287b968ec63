//! From the TUNs: super-packets in, whole to other TUNs, cut to peers.

use std::io;
use std::sync::Arc;

use vl3_core::forward::DropReason;

use super::Worker;
use super::room::{Batch, Onward, Room, fail, is_gone};
use crate::limits::TUN_READ_BUDGET;
use crate::merge::Piece;
use crate::outbound::Wire;
use crate::packet::{self, IpHeader};
use crate::port::{Kind, Peer, Port};
use crate::segment::{self, Segments};
use crate::vnet::{Gso, VNET_LEN, VnetHeader};

impl Worker {
    pub(super) fn read_tun(&mut self, batch: &Batch<'_>, token: u64) {
        // A token that is not in the snapshot belongs to a TUN that was just removed.
        let Some((port, queue)) = batch.ports.by_token.get(&token) else {
            return;
        };
        let Kind::Tun(tun) = &port.kind else { return };
        let mut bytes = 0;
        let mut packets = 0;
        while bytes < TUN_READ_BUDGET {
            match nix::unistd::read(&queue.descriptor, &mut self.tun_buffer) {
                Ok(len) => {
                    bytes += len;
                    packets += 1;
                    self.room
                        .frame(batch, port, &mut self.tun_buffer[..len], &mut self.wire);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(error) => {
                    let error = io::Error::from(error);
                    // A device that is down only says so; one that is gone stays gone.
                    if is_gone(&error) {
                        fail(batch.shared, port.id, tun, &error);
                    }
                    break;
                }
            }
        }
        if packets > 0 {
            tun.counters.received(
                packets,
                (bytes as u64).saturating_sub(packets * VNET_LEN as u64),
                batch.now,
            );
        }
        self.room.flush(batch, &mut self.wire);
    }
}

impl Room {
    /// One frame of a TUN: vnet header and packet.
    fn frame(&mut self, batch: &Batch<'_>, ingress: &Port, frame: &mut [u8], wire: &mut impl Wire) {
        let Some((vnet, ip, packet)) = read_frame(frame) else {
            batch.books().drop(ingress.id, DropReason::Malformed, 1);
            return;
        };
        let Some(longest) = segment::longest(vnet, packet) else {
            batch.books().drop(ingress.id, DropReason::Malformed, 1);
            return;
        };
        let Some(onward) = self.onward(batch, ingress, packet, &ip, longest, wire) else {
            return;
        };
        match &onward.port.kind {
            Kind::Tun(tun) => {
                // Whole: the kernel behind the other TUN cuts it, if anyone must.
                let piece = Piece {
                    start: 0,
                    len: packet.len(),
                };
                self.write(batch, onward.port.id, tun, vnet, packet, &[piece]);
            }
            Kind::Peer(peer) => {
                self.cut_to_peer(batch, peer, &onward, vnet, &ip, packet, ingress, wire)
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the inner loop hands its locals down"
    )]
    fn cut_to_peer(
        &mut self,
        batch: &Batch<'_>,
        peer: &Arc<Peer>,
        onward: &Onward<'_>,
        vnet: VnetHeader,
        ip: &IpHeader,
        packet: &mut [u8],
        ingress: &Port,
        wire: &mut impl Wire,
    ) {
        let Some(segments) = Segments::plan(vnet, ip, packet) else {
            batch.books().drop(ingress.id, DropReason::Malformed, 1);
            return;
        };
        for index in 0..segments.count() {
            let len = segments.len(index);
            if onward.fragment && len > usize::from(onward.hop.mtu) {
                let mut segment = vec![0; len];
                segments.write(index, &mut segment);
                if let Some(ip) = packet::parse(&segment) {
                    self.fragments_to_peer(batch, peer, onward, &segment, &ip, wire);
                }
            } else {
                self.hand_to_peer(batch, peer, onward, len, wire, |slot| {
                    segments.write(index, slot)
                });
            }
        }
    }
}

/// Splits and checks a frame.
fn read_frame(frame: &mut [u8]) -> Option<(VnetHeader, IpHeader, &mut [u8])> {
    let (header, packet) = frame.split_first_chunk_mut::<VNET_LEN>()?;
    let vnet = VnetHeader::parse(header)?;
    let ip = packet::parse(packet)?;
    let packet = &mut packet[..ip.total_len];
    if vnet.gso != Gso::None && !vnet.needs_csum {
        return None;
    }
    Some((vnet, ip, packet))
}
