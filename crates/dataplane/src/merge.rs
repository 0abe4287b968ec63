//! Joins packets of one flow into super-packets for a TUN: the reverse of `segment`. Pure,
//! over slices of one arena.
//!
//! Order inside a flow is kept: a packet is appended to the flow's latest group or comes
//! after it. A packet whose checksum is wrong is never merged, so it arrives wrong: a merged
//! packet's checksum is vouched for, and merging would launder it.

use crate::checksum;
use crate::limits::{MERGE_LOOKBACK, MERGED_MAX, MERGED_UDP_MAX};
use crate::packet::{self, IpHeader, TCP, UDP};
use crate::vnet::{Gso, VNET_LEN, VnetHeader};

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const UDP_HEADER: usize = 8;
/// Largest IPv4 packet; for IPv6 slightly below what it allows.
const TOTAL_MAX: usize = 65_535;

/// A piece of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Piece {
    pub(crate) fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start..self.start + self.len]
    }
}

/// The groups of one batch for one TUN, in the order they are to be written.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    groups: Vec<Group>,
    /// Groups in use; the rest keep their allocations.
    used: usize,
    /// Groups before this one are not appended to.
    barrier: usize,
}

#[derive(Debug)]
struct Group {
    /// Mixes addresses, ports and protocol; unequal means another flow.
    flow: u64,
    kind: Kind,
    /// The first packet, then the payloads of those that follow it.
    pieces: Vec<Piece>,
    /// IP and transport header.
    headers: usize,
    transport: usize,
    /// Payload of every packet but the last.
    size: usize,
    total: usize,
    next_sequence: u32,
    next_id: u16,
    /// Flags that the last packet adds.
    flags: u8,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Never merged.
    Whole,
    Tcp,
    Udp,
}

/// What merging needs to know of one packet.
struct Candidate<'a> {
    packet: &'a [u8],
    kind: Kind,
    flow: u64,
    transport: usize,
    headers: usize,
    sequence: u32,
    id: u16,
    flags: u8,
}

impl Candidate<'_> {
    fn payload(&self) -> usize {
        self.packet.len() - self.headers
    }
}

impl Merger {
    /// Takes the packet at `piece`, parsed as `ip`. With `merge` off it stays alone.
    pub(crate) fn push(&mut self, arena: &[u8], piece: Piece, ip: &IpHeader, merge: bool) {
        let Some(candidate) = merge.then(|| examine(piece.of(arena), ip)).flatten() else {
            self.barrier = self.used + 1;
            self.start(piece, None);
            return;
        };
        let from = self.barrier.max(self.used.saturating_sub(MERGE_LOOKBACK));
        let latest = self.groups[from..self.used]
            .iter_mut()
            .rev()
            .find(|group| group.flow == candidate.flow && group.same_flow(arena, &candidate));
        if let Some(group) = latest
            && group.accepts(arena, &candidate)
        {
            group.append(piece, &candidate);
            return;
        }
        self.start(piece, Some(&candidate));
    }

    fn start(&mut self, piece: Piece, candidate: Option<&Candidate<'_>>) {
        if self.used == self.groups.len() {
            self.groups.push(Group::empty());
        }
        self.groups[self.used].restart(piece, candidate);
        self.used += 1;
    }

    /// Hands every group to `write` in order: the vnet header and the pieces that make the
    /// packet. The headers of merged groups are changed in the arena. Starts anew.
    pub(crate) fn finish(
        &mut self,
        arena: &mut [u8],
        mut write: impl FnMut(&[u8], VnetHeader, &[Piece]),
    ) {
        for group in &mut self.groups[..self.used] {
            let vnet = group.seal(arena);
            write(arena, vnet, &group.pieces);
        }
        self.used = 0;
        self.barrier = 0;
    }
}

impl Group {
    fn empty() -> Self {
        Self {
            flow: 0,
            kind: Kind::Whole,
            pieces: Vec::new(),
            headers: 0,
            transport: 0,
            size: 0,
            total: 0,
            next_sequence: 0,
            next_id: 0,
            flags: 0,
            closed: true,
        }
    }

    fn restart(&mut self, piece: Piece, candidate: Option<&Candidate<'_>>) {
        self.pieces.clear();
        self.pieces.push(piece);
        self.total = piece.len;
        self.flags = 0;
        self.closed = true;
        self.kind = Kind::Whole;
        self.flow = 0;
        let Some(candidate) = candidate else { return };
        self.kind = candidate.kind;
        self.flow = candidate.flow;
        self.headers = candidate.headers;
        self.transport = candidate.transport;
        self.size = candidate.payload();
        self.next_sequence = candidate.sequence.wrapping_add(self.size as u32);
        self.next_id = candidate.id.wrapping_add(1);
        // A group that begins with PSH or carries nothing has no continuation.
        self.closed = candidate.kind == Kind::Whole || candidate.flags & PSH != 0 || self.size == 0;
    }

    /// Equal addresses and ports (the protocol is in `flow`).
    fn same_flow(&self, arena: &[u8], next: &Candidate<'_>) -> bool {
        let first = self.pieces[0].of(arena);
        let ports =
            |packet: &[u8], at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
        first[0] >> 4 == next.packet[0] >> 4
            && packet::address_bytes(first) == packet::address_bytes(next.packet)
            && ports(first, self.transport) == ports(next.packet, next.transport)
    }

    fn accepts(&self, arena: &[u8], next: &Candidate<'_>) -> bool {
        if self.closed || self.kind != next.kind || self.headers != next.headers {
            return false;
        }
        let payload = next.payload();
        let most = if self.kind == Kind::Udp {
            MERGED_UDP_MAX
        } else {
            MERGED_MAX
        };
        if payload == 0
            || payload > self.size
            || self.total + payload > TOTAL_MAX
            || self.pieces.len() >= most
        {
            return false;
        }
        let first = self.pieces[0].of(arena);
        if !same_ip_fields(first, next.packet) {
            return false;
        }
        if first[0] >> 4 == 4 {
            let may_fragment = first[6] & 0x40 == 0;
            // With DF the identification means nothing (RFC 6864); without, cutting counts up.
            if may_fragment && next.id != self.next_id {
                return false;
            }
        }
        self.kind == Kind::Udp
            || (next.sequence == self.next_sequence
                && same_tcp(
                    &first[self.transport..self.headers],
                    &next.packet[self.transport..self.headers],
                ))
    }

    fn append(&mut self, piece: Piece, next: &Candidate<'_>) {
        let payload = next.payload();
        self.pieces.push(Piece {
            start: piece.start + next.headers,
            len: payload,
        });
        self.total += payload;
        self.next_sequence = self.next_sequence.wrapping_add(payload as u32);
        self.next_id = self.next_id.wrapping_add(1);
        self.flags = next.flags;
        self.closed = payload < self.size || next.flags & PSH != 0;
    }

    /// Rewrites the first packet's headers for the whole group.
    fn seal(&self, arena: &mut [u8]) -> VnetHeader {
        if self.pieces.len() == 1 {
            return VnetHeader::PLAIN;
        }
        let first = self.pieces[0];
        let head = &mut arena[first.start..first.start + self.headers];
        let v4 = head[0] >> 4 == 4;
        packet::set_length(head, if v4 { self.transport } else { 40 }, self.total);
        let length = self.total - self.transport;
        let protocol = if self.kind == Kind::Tcp { TCP } else { UDP };
        let pseudo = checksum::pseudo_header(packet::address_bytes(head), protocol, length);
        let partial = checksum::fold(pseudo).to_ne_bytes();
        let transport = &mut head[self.transport..];
        let (gso, csum_offset) = match self.kind {
            Kind::Tcp => {
                transport[13] |= self.flags;
                (if v4 { Gso::TcpV4 } else { Gso::TcpV6 }, 16)
            }
            Kind::Udp | Kind::Whole => {
                transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                (Gso::Udp, 6)
            }
        };
        transport[csum_offset..csum_offset + 2].copy_from_slice(&partial);
        VnetHeader {
            needs_csum: true,
            gso,
            hdr_len: self.headers as u16,
            gso_size: self.size as u16,
            csum_start: self.transport as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

/// Reads what merging compares. `None`: neither mergeable nor told apart by flow, so nothing
/// may pass it.
fn examine<'a>(packet: &'a [u8], ip: &IpHeader) -> Option<Candidate<'a>> {
    let packet = &packet[..ip.total_len];
    if ip.fragment || !matches!(ip.protocol, TCP | UDP) {
        return None;
    }
    let transport = ip.header_len;
    let header = if ip.protocol == UDP { UDP_HEADER } else { 20 };
    let head = packet.get(transport..transport + header)?;
    let mut candidate = Candidate {
        packet,
        kind: Kind::Whole,
        flow: flow_of(packet, transport, ip.protocol),
        transport,
        headers: transport + header,
        sequence: 0,
        id: if ip.is_v4() {
            u16::from_be_bytes([packet[4], packet[5]])
        } else {
            0
        },
        flags: 0,
    };
    let plain = !ip.is_v4() || transport == 20;
    let mergeable = if ip.protocol == UDP {
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        length == packet.len() - transport && head[6..8] != [0, 0]
    } else {
        candidate.headers = transport + usize::from(head[12] >> 4) * 4;
        candidate.sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        candidate.flags = head[13];
        let sane = candidate.headers >= transport + 20 && candidate.headers <= packet.len();
        if !sane {
            candidate.headers = transport;
        }
        sane && candidate.flags & !PSH == ACK && head[12] & 0x0f == 0
    };
    if plain
        && mergeable
        && candidate.payload() > 0
        && checksum_holds(packet, transport, ip.protocol)
    {
        candidate.kind = if ip.protocol == TCP {
            Kind::Tcp
        } else {
            Kind::Udp
        };
    }
    Some(candidate)
}

fn checksum_holds(packet: &[u8], transport: usize, protocol: u8) -> bool {
    let pseudo = checksum::pseudo_header(
        packet::address_bytes(packet),
        protocol,
        packet.len() - transport,
    );
    checksum::fold(checksum::add(pseudo, &packet[transport..])) == 0xffff
}

/// Cheap mix; only speeds the search up.
fn flow_of(packet: &[u8], transport: usize, protocol: u8) -> u64 {
    let mut mixed = u64::from(protocol);
    let addresses = packet::address_bytes(packet);
    let ports = &packet[transport..transport + 4];
    for word in addresses.chunks_exact(4).chain([ports]) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        mixed = (mixed ^ u64::from(word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
    mixed
}

/// Traffic class, hop limit, flow label, DF and reserved bits: a merged packet has them once.
fn same_ip_fields(first: &[u8], next: &[u8]) -> bool {
    if first[0] >> 4 == 4 {
        first[..2] == next[..2] && first[6..10] == next[6..10]
    } else {
        first[..4] == next[..4] && first[6..8] == next[6..8]
    }
}

/// Acknowledgement, data offset, window, urgent pointer and options.
fn same_tcp(first: &[u8], next: &[u8]) -> bool {
    first[8..13] == next[8..13] && first[14..16] == next[14..16] && first[18..] == next[18..]
}

/// Copies a group into one packet behind its vnet header: what a descriptor without merging
/// gets cut again.
pub(crate) fn assemble(arena: &[u8], pieces: &[Piece], out: &mut Vec<u8>) {
    out.clear();
    for piece in pieces {
        out.extend_from_slice(piece.of(arena));
    }
    debug_assert!(out.len() <= TOTAL_MAX + VNET_LEN, "groups are bounded");
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
