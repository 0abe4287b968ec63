//! Just enough of IP, UDP, TCP and ICMP for the relay and the injector.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Ones' complement sum of RFC 1071, not yet folded.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let mut pairs = bytes.chunks_exact(2);
    let mut total: u32 = pairs
        .by_ref()
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    if let [odd] = pairs.remainder() {
        total += u32::from(*odd) << 8;
    }
    total
}

pub(crate) fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // Folded above.
    !(total as u16)
}

fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        _ => 0,
    };
    addresses + u32::from(protocol) + u32::try_from(len).unwrap_or(0)
}

/// Checksum of a transport segment whose checksum field is zero.
pub(crate) fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> u16 {
    let folded = fold(pseudo_sum(source, destination, protocol, segment.len()) + sum(segment));
    if folded == 0 && protocol == UDP {
        0xffff
    } else {
        folded
    }
}

/// Changes a checksum for 16-bit words that were replaced (RFC 1624, equation 3).
pub(crate) fn adjust(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let mut total = u32::from(!checksum);
    for pair in old.chunks_exact(2) {
        total += u32::from(!u16::from_be_bytes([pair[0], pair[1]]));
    }
    for pair in new.chunks_exact(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    fold(total)
}

/// One UDP datagram to be written whole.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: &'a [u8],
}

/// A complete IP packet with a UDP datagram, checksums right; `None` where the families differ
/// or the payload is too long.
pub fn udp_packet(datagram: Datagram<'_>) -> Option<Vec<u8>> {
    let len = u16::try_from(8 + datagram.payload.len()).ok()?;
    let mut segment = Vec::with_capacity(usize::from(len));
    segment.extend(datagram.source.port().to_be_bytes());
    segment.extend(datagram.destination.port().to_be_bytes());
    segment.extend(len.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(datagram.payload);
    ip_packet(
        datagram.source.ip(),
        datagram.destination.ip(),
        UDP,
        segment,
        6,
    )
}

/// An IP packet around a segment whose checksum field is at `checksum_at`.
pub(crate) fn ip_packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut segment: Vec<u8>,
    checksum_at: usize,
) -> Option<Vec<u8>> {
    let checksum = if protocol == ICMP {
        fold(sum(&segment))
    } else {
        transport_checksum(source, destination, protocol, &segment)
    };
    segment
        .get_mut(checksum_at..checksum_at + 2)?
        .copy_from_slice(&checksum.to_be_bytes());
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => header_v4(
            source,
            destination,
            protocol,
            u16::try_from(20 + segment.len()).ok()?,
        ),
        (IpAddr::V6(source), IpAddr::V6(destination)) => header_v6(
            source,
            destination,
            protocol,
            u16::try_from(segment.len()).ok()?,
        ),
        _ => return None,
    };
    packet.append(&mut segment);
    Some(packet)
}

const HOPS: u8 = 64;

fn header_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, total: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let checksum = fold(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn header_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(len.to_be_bytes());
    header.extend([protocol, HOPS]);
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_packet_sums_to_zero_in_both_families() {
        for (source, destination) in [
            ("10.0.0.1:1", "10.0.0.2:53"),
            ("[fd00::1]:1", "[fd00::2]:53"),
        ] {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            let packet = udp_packet(Datagram {
                source,
                destination,
                payload: b"odd",
            })
            .unwrap();
            let header = if source.is_ipv4() { 20 } else { 40 };
            let total = pseudo_sum(source.ip(), destination.ip(), UDP, packet.len() - header)
                + sum(&packet[header..]);
            assert_eq!(fold(total), 0);
        }
    }

    #[test]
    fn an_adjusted_checksum_equals_a_computed_one() {
        let mut bytes = *b"\x12\x34\x56\x78\x9a\xbc";
        let before = fold(sum(&bytes));
        let old = [bytes[2], bytes[3]];
        bytes[2..4].copy_from_slice(&[0xff, 0x01]);
        assert_eq!(adjust(before, &old, &[0xff, 0x01]), fold(sum(&bytes)));
    }
}
