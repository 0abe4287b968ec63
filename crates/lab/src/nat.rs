//! A source-NAT for IPv4 as an access router does it: outgoing only, one public address, ports
//! chosen per inner (protocol, address, port), only remotes that were spoken to may answer, idle
//! mappings expire. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::packet::{ICMP, TCP, UDP, adjust, fold, sum};

/// How one NAT behaves.
#[derive(Clone, Copy, Debug)]
pub struct NatSpec {
    /// A mapping without outgoing packets for this long is gone.
    pub mapping_lifetime: Duration,
}

/// Mappings at once; an outgoing packet beyond that is dropped, as on a small access router.
const MAPPINGS_MAX: usize = 4096;

/// Remotes that one mapping has spoken to; beyond that the oldest entries are forgotten.
const REMOTES_MAX: usize = 256;

const FIRST_PORT: u16 = 20_000;

/// Port or, for echo, identifier on the inner side.
type Inner = (u8, Ipv4Addr, u16);

#[derive(Debug)]
struct Mapping {
    inner: Inner,
    remotes: BTreeSet<(Ipv4Addr, u16)>,
    last_out: Duration,
}

#[derive(Debug)]
pub(crate) struct Nat {
    public: Ipv4Addr,
    lifetime: Duration,
    next_port: u16,
    by_inner: BTreeMap<Inner, u16>,
    by_port: BTreeMap<(u8, u16), Mapping>,
}

/// Where the addresses and ports of one IPv4 packet are.
struct Layout {
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// Offset of the transport header.
    transport: usize,
}

impl Nat {
    pub(crate) fn new(public: Ipv4Addr, spec: NatSpec) -> Self {
        Self {
            public,
            lifetime: spec.mapping_lifetime,
            next_port: FIRST_PORT,
            by_inner: BTreeMap::new(),
            by_port: BTreeMap::new(),
        }
    }

    /// Forgets every mapping: the next outgoing packet of a flow gets another port.
    pub(crate) fn rebind(&mut self) {
        self.by_inner.clear();
        self.by_port.clear();
    }

    /// Rewrites a packet on its way out; false = drop it.
    pub(crate) fn outbound(&mut self, packet: &mut [u8], now: Duration) -> bool {
        self.expire(now);
        let Some(layout) = layout(packet) else {
            return false;
        };
        let (source_at, destination_at) = port_offsets(&layout, packet, true);
        let Some(inner_port) = source_at.and_then(|at| read(packet, at)) else {
            return false;
        };
        let remote_port = destination_at.and_then(|at| read(packet, at)).unwrap_or(0);
        let inner = (layout.protocol, layout.source, inner_port);
        let Some(port) = self.mapping(inner, now) else {
            return false;
        };
        if let Some(mapping) = self.by_port.get_mut(&(layout.protocol, port)) {
            mapping.last_out = now;
            if mapping.remotes.len() >= REMOTES_MAX {
                mapping.remotes.pop_first();
            }
            mapping.remotes.insert((layout.destination, remote_port));
        }
        let Some(source_at) = source_at else {
            return false;
        };
        rewrite(packet, &layout, Side::Source, self.public, source_at, port)
    }

    /// Rewrites a packet on its way in; false = drop it.
    pub(crate) fn inbound(&mut self, packet: &mut [u8], now: Duration) -> bool {
        self.expire(now);
        let Some(layout) = layout(packet) else {
            return false;
        };
        if layout.destination != self.public {
            return false;
        }
        if layout.protocol == ICMP && is_error(packet[layout.transport]) {
            return self.inbound_error(packet, &layout);
        }
        let (source_at, destination_at) = port_offsets(&layout, packet, false);
        let Some(port) = destination_at.and_then(|at| read(packet, at)) else {
            return false;
        };
        let remote_port = source_at.and_then(|at| read(packet, at)).unwrap_or(0);
        let Some(mapping) = self.by_port.get(&(layout.protocol, port)) else {
            return false;
        };
        if !mapping.remotes.contains(&(layout.source, remote_port)) {
            return false;
        }
        let (_, address, inner_port) = mapping.inner;
        let Some(destination_at) = destination_at else {
            return false;
        };
        rewrite(
            packet,
            &layout,
            Side::Destination,
            address,
            destination_at,
            inner_port,
        )
    }

    /// An ICMP error about a packet that went out (RFC 5508, section 4.2): without it an inner
    /// host never learns the path's MTU.
    fn inbound_error(&self, packet: &mut [u8], outer: &Layout) -> bool {
        let quoted_at = outer.transport + ICMP_ERROR_HEADER;
        let Some(quoted) = packet.get_mut(quoted_at..) else {
            return false;
        };
        let Some(quote) = layout(quoted) else {
            return false;
        };
        if quote.source != self.public || !matches!(quote.protocol, TCP | UDP) {
            return false;
        }
        let Some(port) = read(quoted, quote.transport) else {
            return false;
        };
        let Some(mapping) = self.by_port.get(&(quote.protocol, port)) else {
            return false;
        };
        let (_, address, inner_port) = mapping.inner;
        quoted[12..16].copy_from_slice(&address.octets());
        quoted[quote.transport..quote.transport + 2].copy_from_slice(&inner_port.to_be_bytes());
        quoted[10..12].copy_from_slice(&[0, 0]);
        let header = fold(sum(&quoted[..quote.transport]));
        quoted[10..12].copy_from_slice(&header.to_be_bytes());
        packet[outer.transport + 2..outer.transport + 4].copy_from_slice(&[0, 0]);
        let message = fold(sum(&packet[outer.transport..]));
        packet[outer.transport + 2..outer.transport + 4].copy_from_slice(&message.to_be_bytes());
        packet[16..20].copy_from_slice(&address.octets());
        packet[10..12].copy_from_slice(&[0, 0]);
        let header = fold(sum(&packet[..outer.transport]));
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        true
    }

    fn mapping(&mut self, inner: Inner, now: Duration) -> Option<u16> {
        if let Some(port) = self.by_inner.get(&inner) {
            return Some(*port);
        }
        if self.by_port.len() >= MAPPINGS_MAX {
            return None;
        }
        let mut port = self.next_port;
        while self.by_port.contains_key(&(inner.0, port)) {
            port = after(port);
        }
        self.next_port = after(port);
        self.by_inner.insert(inner, port);
        self.by_port.insert(
            (inner.0, port),
            Mapping {
                inner,
                remotes: BTreeSet::new(),
                last_out: now,
            },
        );
        Some(port)
    }

    fn expire(&mut self, now: Duration) {
        let lifetime = self.lifetime;
        let by_inner = &mut self.by_inner;
        self.by_port.retain(|_, mapping| {
            let live = now.saturating_sub(mapping.last_out) < lifetime;
            if !live {
                by_inner.remove(&mapping.inner);
            }
            live
        });
    }
}

/// Type, code, checksum and four bytes that depend on both.
const ICMP_ERROR_HEADER: usize = 8;

/// Unreachable (too big is one of its codes), time exceeded, parameter problem.
fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

fn after(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(FIRST_PORT)
}

enum Side {
    Source,
    Destination,
}

fn layout(packet: &[u8]) -> Option<Layout> {
    let first = *packet.first()?;
    let transport = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || packet.len() < transport + 8 || transport < 20 {
        return None;
    }
    // Later fragments have no ports; this router does not reassemble.
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0 {
        return None;
    }
    let address =
        |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Some(Layout {
        protocol: packet[9],
        source: address(12),
        destination: address(16),
        transport,
    })
}

/// Offsets of the source and destination port; an echo has one identifier, on the inner side.
fn port_offsets(layout: &Layout, packet: &[u8], outbound: bool) -> (Option<usize>, Option<usize>) {
    let at = layout.transport;
    match layout.protocol {
        TCP | UDP => (Some(at), Some(at + 2)),
        ICMP if outbound && packet[at] == 8 => (Some(at + 4), None),
        ICMP if !outbound && packet[at] == 0 => (None, Some(at + 4)),
        _ => (None, None),
    }
}

fn read(packet: &[u8], at: usize) -> Option<u16> {
    packet
        .get(at..at + 2)
        .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn rewrite(
    packet: &mut [u8],
    layout: &Layout,
    side: Side,
    address: Ipv4Addr,
    port_at: usize,
    port: u16,
) -> bool {
    let address_at = match side {
        Side::Source => 12,
        Side::Destination => 16,
    };
    let checksum_at = layout.transport
        + match layout.protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
    let Some(checksum) = read(packet, checksum_at) else {
        return false;
    };
    let mut old = [0_u8; 6];
    old[..4].copy_from_slice(&packet[address_at..address_at + 4]);
    old[4..].copy_from_slice(&packet[port_at..port_at + 2]);
    let mut new = [0_u8; 6];
    new[..4].copy_from_slice(&address.octets());
    new[4..].copy_from_slice(&port.to_be_bytes());
    // The checksum of ICMP covers no addresses; a UDP checksum of zero means none.
    let covered = if layout.protocol == ICMP { 4 } else { 0 };
    if !(layout.protocol == UDP && checksum == 0) {
        let checksum = adjust(checksum, &old[covered..], &new[covered..]);
        packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    let header = u16::from_be_bytes([packet[10], packet[11]]);
    packet[10..12].copy_from_slice(&adjust(header, &old[..4], &new[..4]).to_be_bytes());
    packet[address_at..address_at + 4].copy_from_slice(&new[..4]);
    packet[port_at..port_at + 2].copy_from_slice(&new[4..]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Datagram, ip_packet, udp_packet};

    const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 18, 9, 2);
    const SECOND: Duration = Duration::from_secs(1);

    fn nat() -> Nat {
        Nat::new(
            PUBLIC,
            NatSpec {
                mapping_lifetime: SECOND * 30,
            },
        )
    }

    fn packet(source: &str, destination: &str) -> Vec<u8> {
        let datagram = Datagram {
            source: source.parse().expect("a constant"),
            destination: destination.parse().expect("a constant"),
            payload: b"tunnel",
        };
        udp_packet(datagram).expect("one family")
    }

    fn ports(packet: &[u8]) -> (u16, u16) {
        (
            read(packet, 20).expect("a port"),
            read(packet, 22).expect("a port"),
        )
    }

    #[test]
    fn an_answer_of_the_remote_spoken_to_comes_back_and_no_other() {
        let mut nat = nat();
        let mut out = packet("192.168.1.2:51820", "198.18.1.2:51820");
        assert!(nat.outbound(&mut out, Duration::ZERO));
        assert_eq!(out[12..16], PUBLIC.octets());
        assert_eq!(fold(sum(&out[..20])), 0);
        let (port, _) = ports(&out);
        let expected = packet(&format!("{PUBLIC}:{port}"), "198.18.1.2:51820");
        assert_eq!(out, expected);

        let mut answer = packet("198.18.1.2:51820", &format!("{PUBLIC}:{port}"));
        assert!(nat.inbound(&mut answer, SECOND));
        assert_eq!(answer, packet("198.18.1.2:51820", "192.168.1.2:51820"));
        let mut stranger = packet("198.18.2.2:51820", &format!("{PUBLIC}:{port}"));
        assert!(!nat.inbound(&mut stranger, SECOND));
    }

    #[test]
    fn an_idle_mapping_is_gone_and_the_next_packet_gets_another_port() {
        let mut nat = nat();
        let mut first = packet("192.168.1.2:51820", "198.18.1.2:51820");
        assert!(nat.outbound(&mut first, Duration::ZERO));
        let (port, _) = ports(&first);
        let mut late = packet("198.18.1.2:51820", &format!("{PUBLIC}:{port}"));
        assert!(!nat.inbound(&mut late, SECOND * 31));
        let mut again = packet("192.168.1.2:51820", "198.18.1.2:51820");
        assert!(nat.outbound(&mut again, SECOND * 32));
        assert_ne!(ports(&again).0, port);
    }

    #[test]
    fn a_too_big_about_a_packet_that_went_out_reaches_its_sender() {
        let mut nat = nat();
        let original = packet("192.168.1.2:51820", "198.18.1.2:51820");
        let mut out = original.clone();
        assert!(nat.outbound(&mut out, Duration::ZERO));
        let too_big = |quoted: &[u8], to: Ipv4Addr| {
            let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
            message.extend(&quoted[..28]);
            let router = Ipv4Addr::new(198, 18, 3, 1);
            ip_packet(router.into(), to.into(), ICMP, message, 2).expect("one family")
        };
        let mut error = too_big(&out, PUBLIC);
        assert!(nat.inbound(&mut error, SECOND));
        let inner: Ipv4Addr = "192.168.1.2".parse().expect("a constant");
        assert_eq!(error[16..20], inner.octets());
        assert_eq!(fold(sum(&error[..20])), 0);
        assert_eq!(fold(sum(&error[20..])), 0);
        assert_eq!(error[28..48], original[..20]);
        assert_eq!(error[48..52], original[20..24]);
    }

    #[test]
    fn garbage_is_dropped() {
        let mut nat = nat();
        for len in 0..28 {
            assert!(!nat.outbound(&mut vec![0x4f; len], Duration::ZERO));
            assert!(!nat.inbound(&mut vec![0x45; len], Duration::ZERO));
        }
    }
}
