//! What forwarding reads and writes in an IP header. Pure, over slices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
const IPV6_FRAGMENT: u8 = 44;
const IPV6_HEADER: usize = 40;

/// The fields of an IP header that decide a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IpHeader {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Options included; of IPv6 the fixed header alone.
    pub(crate) header_len: usize,
    /// What the header says; the packet may be padded beyond.
    pub(crate) total_len: usize,
    /// Of IPv6 the first next header.
    pub(crate) protocol: u8,
    /// Any fragment, the first included.
    pub(crate) fragment: bool,
    /// A fragment without the transport header.
    pub(crate) later_fragment: bool,
    /// May be fragmented on the way: IPv4 without DF.
    pub(crate) may_fragment: bool,
}

impl IpHeader {
    pub(crate) const fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }
}

/// Reads the header. `None` when this is no IPv4 or IPv6 packet, or shorter than it says.
pub(crate) fn parse(packet: &[u8]) -> Option<IpHeader> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<IpHeader> {
    let fixed = packet.first_chunk::<20>()?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if header_len < 20 || total_len < header_len || total_len > packet.len() {
        return None;
    }
    let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
    Some(IpHeader {
        source: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
        destination: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
        header_len,
        total_len,
        protocol: fixed[9],
        fragment: flags & 0x3fff != 0,
        later_fragment: flags & 0x1fff != 0,
        may_fragment: flags & 0x4000 == 0,
    })
}

fn parse_v6(packet: &[u8]) -> Option<IpHeader> {
    let fixed = packet.first_chunk::<IPV6_HEADER>()?;
    let total_len = IPV6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if total_len > packet.len() {
        return None;
    }
    let fragment = fixed[6] == IPV6_FRAGMENT;
    let offset = packet
        .get(42..44)
        .map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    Some(IpHeader {
        source: IpAddr::V6(address_v6(fixed, 8)),
        destination: IpAddr::V6(address_v6(fixed, 24)),
        header_len: IPV6_HEADER,
        total_len,
        protocol: fixed[6],
        fragment,
        later_fragment: fragment && offset & 0xfff8 != 0,
        may_fragment: false,
    })
}

fn address_v6(fixed: &[u8; IPV6_HEADER], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&fixed[at..at + 16]);
    Ipv6Addr::from(octets)
}

/// Source and destination as they stand in the header.
pub(crate) fn address_bytes(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    }
}

/// Takes one hop off a parsed packet. `false`, and nothing changed, when none is left.
pub(crate) fn decrement_ttl(packet: &mut [u8]) -> bool {
    let v4 = packet[0] >> 4 == 4;
    let ttl = if v4 { &mut packet[8] } else { &mut packet[7] };
    if *ttl <= 1 {
        return false;
    }
    *ttl -= 1;
    if v4 {
        // RFC 1624: the sum falls by 0x0100, so its complement grows by as much.
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

/// Writes IPv4 total length or IPv6 payload length, and the IPv4 header checksum.
pub(crate) fn set_length(packet: &mut [u8], header_len: usize, total_len: usize) {
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(total_len as u16).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum::field(checksum::add(0, &packet[..header_len]));
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet[4..6].copy_from_slice(&((total_len - IPV6_HEADER) as u16).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_or_foreign_packets_are_no_packets() {
        let mut v4 = [0u8; 20];
        v4[0] = 0x45;
        v4[3] = 20;
        assert!(parse(&v4).is_some());
        assert!(parse(&v4[..19]).is_none());
        v4[3] = 21;
        assert!(parse(&v4).is_none(), "longer than the packet");
        v4[3] = 19;
        assert!(parse(&v4).is_none(), "shorter than its header");
        v4[3] = 20;
        v4[0] = 0x44;
        assert!(parse(&v4).is_none(), "header below 20 bytes");
        v4[0] = 0x55;
        assert!(parse(&v4).is_none(), "version 5");
        let mut v6 = [0u8; 40];
        v6[0] = 0x60;
        assert!(parse(&v6).is_some());
        v6[5] = 1;
        assert!(parse(&v6).is_none());
        assert!(parse(&[]).is_none());
    }

    #[test]
    fn taking_a_hop_keeps_the_header_checksum_right() {
        for ttl in 0..=255u8 {
            let mut packet = [0u8; 20];
            packet[0] = 0x45;
            packet[8] = ttl;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 255, 254, ttl]);
            set_length(&mut packet, 20, 20);
            assert_eq!(decrement_ttl(&mut packet), ttl > 1);
            assert_eq!(packet[8], if ttl > 1 { ttl - 1 } else { ttl });
            assert_eq!(checksum::fold(checksum::add(0, &packet)), 0xffff);
        }
    }
}
