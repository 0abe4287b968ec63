//! ICMP errors about packets that are not forwarded (RFC 792, 1191, 1812, 4443). Pure.

use std::net::IpAddr;

use vl3_core::forward::DropReason;

use crate::checksum;
use crate::packet::{self, ICMP, ICMPV6, IpHeader};

/// Largest error: IPv6's minimal MTU, what RFC 1812 advises for IPv4.
pub(crate) const ERROR_V6_MAX: usize = 1280;
const ERROR_V4_MAX: usize = 576;
const ICMP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;

/// Type and code of both families, and the next-hop MTU where there is one.
struct Kind {
    v4: (u8, u8),
    v6: (u8, u8),
    mtu: u16,
}

/// The error that `reason` calls for; most reasons call for silence.
fn kind(reason: DropReason, mtu: u16) -> Option<Kind> {
    let plain = |v4, v6| Some(Kind { v4, v6, mtu: 0 });
    match reason {
        DropReason::NoRoute => plain((3, 0), (1, 0)),
        DropReason::PacketOrder => plain((3, 13), (1, 1)),
        DropReason::Hairpin | DropReason::NoSession => plain((3, 1), (1, 3)),
        DropReason::TtlExceeded => plain((11, 0), (3, 0)),
        DropReason::TooBig => Some(Kind {
            v4: (3, 4),
            v6: (2, 0),
            mtu,
        }),
        DropReason::Malformed
        | DropReason::LinkLocalNoise
        | DropReason::ForgedSource
        | DropReason::QueueFull
        | DropReason::Unauthentic
        | DropReason::WriteFailed => None,
    }
}

/// Writes the error about `offending` (parsed as `ip`) from `own` into `out`
/// ([`ERROR_V6_MAX`] bytes). `None` when there must be none: about ICMP errors, later
/// fragments, or for reasons that call for silence.
pub(crate) fn error(
    reason: DropReason,
    mtu: u16,
    offending: &[u8],
    ip: &IpHeader,
    own: IpAddr,
    out: &mut [u8; ERROR_V6_MAX],
) -> Option<usize> {
    let kind = kind(reason, mtu)?;
    if ip.later_fragment || is_icmp_error(offending, ip) {
        return None;
    }
    let offending = &offending[..ip.total_len.min(offending.len())];
    match (own, ip.source) {
        (IpAddr::V4(own), IpAddr::V4(to)) => {
            let quoted = offending.len().min(ERROR_V4_MAX - 20 - ICMP_HEADER);
            let total = 20 + ICMP_HEADER + quoted;
            out[..20].copy_from_slice(&[
                0x45, 0xc0, 0, 0, 0, 0, 0x40, 0, HOP_LIMIT, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ]);
            out[12..16].copy_from_slice(&own.octets());
            out[16..20].copy_from_slice(&to.octets());
            packet::set_length(out, 20, total);
            let message = &mut out[20..total];
            let mtu = u32::from(kind.mtu).to_be_bytes();
            fill(message, kind.v4, mtu, &offending[..quoted]);
            let sum = checksum::field(checksum::add(0, message));
            message[2..4].copy_from_slice(&sum);
            Some(total)
        }
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            let quoted = offending.len().min(ERROR_V6_MAX - 40 - ICMP_HEADER);
            let total = 40 + ICMP_HEADER + quoted;
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, ICMPV6, HOP_LIMIT]);
            out[8..24].copy_from_slice(&own.octets());
            out[24..40].copy_from_slice(&to.octets());
            packet::set_length(out, 40, total);
            let pseudo = checksum::pseudo_header(&out[8..40], ICMPV6, total - 40);
            let message = &mut out[40..total];
            fill(
                message,
                kind.v6,
                u32::from(kind.mtu).to_be_bytes(),
                &offending[..quoted],
            );
            let sum = checksum::field(checksum::add(pseudo, message));
            message[2..4].copy_from_slice(&sum);
            Some(total)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn fill(message: &mut [u8], (kind, code): (u8, u8), rest: [u8; 4], quoted: &[u8]) {
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..8].copy_from_slice(&rest);
    message[ICMP_HEADER..].copy_from_slice(quoted);
}

/// RFC 1122 3.2.2 and RFC 4443 2.4 (e): no error about an error. What cannot be read counts
/// as one.
fn is_icmp_error(packet: &[u8], ip: &IpHeader) -> bool {
    let Some(kind) = packet.get(ip.header_len) else {
        return ip.protocol == ICMP || ip.protocol == ICMPV6;
    };
    match ip.protocol {
        // All but echo, timestamp, information and address mask.
        ICMP if ip.is_v4() => !matches!(kind, 0 | 8 | 13..=18),
        ICMPV6 => *kind < 128,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4_packet(protocol: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0u8; len];
        packet[0] = 0x45;
        packet[8] = 1;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 9, 9, 9]);
        packet::set_length(&mut packet, 20, len);
        packet
    }

    fn v6_packet(next: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0u8; len];
        packet[0] = 0x60;
        packet[6] = next;
        packet[7] = 1;
        packet[8] = 0xfd;
        packet[24] = 0xfd;
        packet[39] = 9;
        packet::set_length(&mut packet, 40, len);
        packet
    }

    fn make(reason: DropReason, offending: &[u8], own: &str) -> Option<Vec<u8>> {
        let ip = packet::parse(offending).expect("a whole packet");
        let mut out = [0; ERROR_V6_MAX];
        let len = error(
            reason,
            1300,
            offending,
            &ip,
            own.parse().expect("a constant"),
            &mut out,
        )?;
        Some(out[..len].to_vec())
    }

    #[test]
    fn too_big_names_the_mtu_in_both_families() {
        let four = make(DropReason::TooBig, &v4_packet(17, 1400), "10.0.0.254").expect("an error");
        assert_eq!((four.len(), four[20], four[21]), (576, 3, 4));
        assert_eq!(
            u32::from_be_bytes([four[24], four[25], four[26], four[27]]),
            1300
        );
        assert_eq!(checksum::fold(checksum::add(0, &four[20..])), 0xffff);
        assert_eq!(&four[28..48], &v4_packet(17, 1400)[..20]);
        assert_eq!(&four[16..20], &[10, 0, 0, 1]);

        let six = make(DropReason::TooBig, &v6_packet(17, 1400), "fd00::fe").expect("an error");
        assert_eq!((six.len(), six[40], six[41]), (1280, 2, 0));
        assert_eq!(
            u32::from_be_bytes([six[44], six[45], six[46], six[47]]),
            1300
        );
        let pseudo = checksum::pseudo_header(&six[8..40], ICMPV6, six.len() - 40);
        assert_eq!(checksum::fold(checksum::add(pseudo, &six[40..])), 0xffff);
    }

    #[test]
    fn errors_are_never_about_errors_or_later_fragments() {
        let mut unreachable = v4_packet(ICMP, 60);
        unreachable[20] = 3;
        assert!(make(DropReason::NoRoute, &unreachable, "10.0.0.254").is_none());
        let mut echo = v4_packet(ICMP, 60);
        echo[20] = 8;
        assert!(make(DropReason::NoRoute, &echo, "10.0.0.254").is_some());
        let mut six = v6_packet(ICMPV6, 60);
        six[40] = 1;
        assert!(make(DropReason::NoRoute, &six, "fd00::fe").is_none());
        let mut later = v4_packet(17, 60);
        later[7] = 1;
        assert!(make(DropReason::NoRoute, &later, "10.0.0.254").is_none());
    }

    #[test]
    fn forged_sources_are_met_with_silence() {
        assert!(make(DropReason::ForgedSource, &v4_packet(17, 60), "10.0.0.254").is_none());
        assert!(make(DropReason::LinkLocalNoise, &v4_packet(17, 60), "10.0.0.254").is_none());
    }

    #[test]
    fn a_packet_of_the_other_family_than_the_own_address_gets_none() {
        assert!(make(DropReason::NoRoute, &v6_packet(17, 60), "10.0.0.254").is_none());
    }
}
