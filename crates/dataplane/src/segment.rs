//! Cuts a super-packet from a TUN into packets that fit the way. Pure, over slices.

use crate::checksum;
use crate::limits::SEGMENTS_MAX;
use crate::packet::{self, IpHeader, TCP, UDP};
use crate::vnet::{Gso, VnetHeader};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const UDP_HEADER: usize = 8;

/// A packet and how it is cut. The segments are written one by one, each to its final place.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    kind: Kind,
    ip_header_len: usize,
    /// Where the transport header starts.
    transport: usize,
    /// Where the payload starts.
    payload: usize,
    /// Payload of every segment but the last.
    size: usize,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Tcp,
    Udp,
}

impl<'a> Segments<'a> {
    /// Plans the cut; of a packet that stays whole, finishes the checksum in place.
    /// `packet` has been parsed as `ip` and ends where it says. `None` when the headers
    /// contradict each other.
    pub(crate) fn plan(vnet: VnetHeader, ip: &IpHeader, packet: &'a mut [u8]) -> Option<Self> {
        let kind = match vnet.gso {
            Gso::None => {
                if vnet.needs_csum {
                    finish_checksum(vnet, packet)?;
                }
                return Some(Self::whole(packet, ip));
            }
            Gso::TcpV4 if ip.is_v4() => Kind::Tcp,
            Gso::TcpV6 if !ip.is_v4() => Kind::Tcp,
            Gso::Udp => Kind::Udp,
            Gso::TcpV4 | Gso::TcpV6 => return None,
        };
        let transport = usize::from(vnet.csum_start);
        if transport < ip.header_len || (ip.is_v4() && transport != ip.header_len) {
            return None;
        }
        let header = match kind {
            Kind::Tcp => usize::from(packet.get(transport + 12)? >> 4) * 4,
            Kind::Udp | Kind::Whole => UDP_HEADER,
        };
        if kind == Kind::Tcp && header < 20 {
            return None;
        }
        let payload = transport + header;
        let size = usize::from(vnet.gso_size);
        let bytes = packet.len().checked_sub(payload)?;
        if size == 0 {
            return None;
        }
        let count = bytes.div_ceil(size).max(1);
        (count <= SEGMENTS_MAX).then_some(Self {
            packet,
            kind,
            ip_header_len: ip.header_len,
            transport,
            payload,
            size,
            count,
        })
    }

    fn whole(packet: &'a [u8], ip: &IpHeader) -> Self {
        Self {
            packet,
            kind: Kind::Whole,
            ip_header_len: ip.header_len,
            transport: ip.header_len,
            payload: 0,
            size: packet.len(),
            count: 1,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the segment `index`.
    pub(crate) fn len(&self, index: usize) -> usize {
        let start = self.payload + index * self.size;
        self.payload + self.size.min(self.packet.len().saturating_sub(start))
    }

    /// Writes the segment `index` to the start of `out`, which holds at least
    /// [`Self::len`] bytes.
    pub(crate) fn write(&self, index: usize, out: &mut [u8]) {
        let total = self.len(index);
        let out = &mut out[..total];
        if self.kind == Kind::Whole {
            out.copy_from_slice(self.packet);
            return;
        }
        let start = self.payload + index * self.size;
        out[..self.payload].copy_from_slice(&self.packet[..self.payload]);
        out[self.payload..].copy_from_slice(&self.packet[start..start + total - self.payload]);
        if out[0] >> 4 == 4 {
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(index as u16);
            out[4..6].copy_from_slice(&id.to_be_bytes());
        }
        packet::set_length(out, self.ip_header_len, total);
        match self.kind {
            Kind::Tcp => self.finish_tcp(index, out),
            Kind::Udp | Kind::Whole => self.finish_udp(out),
        }
    }

    fn finish_tcp(&self, index: usize, out: &mut [u8]) {
        let total = out.len();
        let addresses =
            checksum::pseudo_header(packet::address_bytes(out), TCP, total - self.transport);
        let tcp = &mut out[self.transport..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
            .wrapping_add((index * self.size) as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count {
            tcp[13] &= !(FIN | PSH);
        }
        if index > 0 {
            tcp[13] &= !CWR;
        }
        tcp[16..18].fill(0);
        let sum = checksum::field(checksum::add(addresses, tcp));
        tcp[16..18].copy_from_slice(&sum);
    }

    fn finish_udp(&self, out: &mut [u8]) {
        let length = out.len() - self.transport;
        let addresses = checksum::pseudo_header(packet::address_bytes(out), UDP, length);
        let udp = &mut out[self.transport..];
        udp[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        udp[6..8].fill(0);
        let sum = udp_field(checksum::add(addresses, udp));
        udp[6..8].copy_from_slice(&sum);
    }
}

/// Bytes of the longest packet that will leave: what must fit the way. `None` when the
/// headers contradict each other.
pub(crate) fn longest(vnet: VnetHeader, packet: &[u8]) -> Option<usize> {
    let transport = usize::from(vnet.csum_start);
    let payload = match vnet.gso {
        Gso::None => return Some(packet.len()),
        Gso::TcpV4 | Gso::TcpV6 => transport + usize::from(packet.get(transport + 12)? >> 4) * 4,
        Gso::Udp => transport + UDP_HEADER,
    };
    Some(packet.len().min(payload + usize::from(vnet.gso_size)))
}

/// Zero would mean "no checksum" (RFC 768).
fn udp_field(sum: u64) -> [u8; 2] {
    match checksum::field(sum) {
        [0, 0] => [0xff, 0xff],
        field => field,
    }
}

/// Adds the rest of a packet to the pseudo-header sum that its checksum field holds.
pub(crate) fn finish_checksum(vnet: VnetHeader, packet: &mut [u8]) -> Option<()> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if field + 2 > packet.len() {
        return None;
    }
    // The field's own content, the pseudo-header sum, is part of what is summed.
    let sum = checksum::add(0, &packet[start..]);
    packet[field..field + 2].copy_from_slice(&udp_field(sum));
    Some(())
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
