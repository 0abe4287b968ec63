use proptest::prelude::*;

use super::*;
use crate::checksum::{add, field, fold, pseudo_header};
use crate::packet::{address_bytes, parse, set_length};
use crate::testing::{Transport, packet};

/// A super-packet as a TUN hands it over.
fn frame(
    v4: bool,
    udp: bool,
    payload: &[u8],
    size: u16,
    flags: u8,
    options: usize,
) -> (VnetHeader, Vec<u8>) {
    let transport = if udp {
        Transport::Udp
    } else {
        Transport::Tcp {
            flags,
            options,
            sequence: 0xffff_fff0,
        }
    };
    let mut bytes = packet(v4, transport, payload);
    let start = if v4 { 20 } else { 40 };
    let (offset, protocol) = if udp { (6, UDP) } else { (16, TCP) };
    // The kernel leaves the pseudo-header sum in the field.
    let partial = fold(pseudo_header(
        address_bytes(&bytes),
        protocol,
        bytes.len() - start,
    ))
    .to_ne_bytes();
    bytes[start + offset..start + offset + 2].copy_from_slice(&partial);
    let gso = match (udp, v4) {
        (true, _) => Gso::Udp,
        (false, true) => Gso::TcpV4,
        (false, false) => Gso::TcpV6,
    };
    let vnet = VnetHeader {
        needs_csum: true,
        gso,
        hdr_len: 0,
        gso_size: size,
        csum_start: start as u16,
        csum_offset: offset as u16,
    };
    (vnet, bytes)
}

fn cut(vnet: VnetHeader, bytes: &mut [u8]) -> Vec<Vec<u8>> {
    let ip = parse(bytes).expect("a whole packet");
    let segments = Segments::plan(vnet, &ip, bytes).expect("headers agree");
    (0..segments.count())
        .map(|index| {
            let mut out = vec![0; segments.len(index)];
            segments.write(index, &mut out);
            out
        })
        .collect()
}

proptest! {
    #[test]
    fn segments_carry_the_payload_once_in_order_with_right_headers(
        v4 in any::<bool>(), udp in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 1..9000),
        size in 1u16..2000, flags in prop::sample::select(vec![0x10, 0x18, 0x19, 0x90, 0x98]), options in 0usize..=10,
    ) {
        let size = size.max((payload.len() / 1000 + 1) as u16);
        let (vnet, mut bytes) = frame(v4, udp, &payload, size, flags, options);
        let whole = bytes.clone();
        let longest = longest(vnet, &bytes).expect("headers agree");
        let segments = cut(vnet, &mut bytes);
        prop_assert_eq!(segments.len(), payload.len().div_ceil(usize::from(size)));
        prop_assert_eq!(segments[0].len(), longest);
        let start = if v4 { 20 } else { 40 };
        let mut rebuilt = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let last = index + 1 == segments.len();
            let ip = parse(segment).expect("a segment is a packet");
            prop_assert_eq!(ip.total_len, segment.len());
            prop_assert_eq!(address_bytes(segment), address_bytes(&whole));
            let protocol = if udp { UDP } else { TCP };
            let pseudo = pseudo_header(address_bytes(segment), protocol, segment.len() - start);
            prop_assert_eq!(fold(add(pseudo, &segment[start..])), 0xffff);
            if v4 {
                prop_assert_eq!(fold(add(0, &segment[..20])), 0xffff);
                let id = u16::from_be_bytes([whole[4], whole[5]]).wrapping_add(index as u16);
                prop_assert_eq!(u16::from_be_bytes([segment[4], segment[5]]), id);
            }
            let headers = if udp {
                let length = u16::from_be_bytes([segment[start + 4], segment[start + 5]]);
                prop_assert_eq!(usize::from(length), segment.len() - start);
                start + 8
            } else {
                let sequence = u32::from_be_bytes([segment[start + 4], segment[start + 5], segment[start + 6], segment[start + 7]]);
                prop_assert_eq!(sequence, 0xffff_fff0u32.wrapping_add(rebuilt.len() as u32));
                let kept = segment[start + 13];
                prop_assert_eq!(kept & 0x10, flags & 0x10);
                prop_assert_eq!(kept & 0x09, if last { flags & 0x09 } else { 0 }, "FIN and PSH on the last only");
                prop_assert_eq!(kept & 0x80, if index == 0 { flags & 0x80 } else { 0 }, "CWR on the first only");
                start + 20 + options * 4
            };
            prop_assert!(segment.len() - headers == usize::from(size) || last);
            rebuilt.extend_from_slice(&segment[headers..]);
        }
        prop_assert_eq!(rebuilt, payload);
    }

    #[test]
    fn headers_from_anywhere_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 20..200), v4 in any::<bool>(), gso in 0u8..4, size in any::<u16>(),
        start in 0u16..220, offset in 0u16..220, needs_csum in any::<bool>(),
    ) {
        let mut bytes = bytes;
        let header = if v4 { 20 } else { 40 };
        bytes.resize(bytes.len().max(header), 0);
        bytes[0] = if v4 { 0x45 } else { 0x60 };
        let total = bytes.len();
        set_length(&mut bytes, header, total);
        let gso = [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp][usize::from(gso)];
        let vnet = VnetHeader { needs_csum, gso, hdr_len: 0, gso_size: size, csum_start: start, csum_offset: offset };
        let ip = parse(&bytes).expect("a whole packet");
        let _ = longest(vnet, &bytes);
        if let Some(segments) = Segments::plan(vnet, &ip, &mut bytes) {
            for index in 0..segments.count() {
                let mut out = vec![0; segments.len(index)];
                segments.write(index, &mut out);
            }
        }
    }
}

#[test]
fn a_single_packet_gets_its_checksum_finished() {
    for (v4, udp) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut vnet, mut bytes) = frame(v4, udp, b"payload", 0, 0x18, 0);
        vnet.gso = Gso::None;
        let out = cut(vnet, &mut bytes).remove(0);
        let start = if v4 { 20 } else { 40 };
        let pseudo = pseudo_header(
            address_bytes(&out),
            if udp { UDP } else { TCP },
            out.len() - start,
        );
        assert_eq!(fold(add(pseudo, &out[start..])), 0xffff, "{v4} {udp}");
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    // Find a payload that sums to zero, then see the field.
    let (mut vnet, bytes) = frame(true, true, &[0, 0], 0, 0, 0);
    vnet.gso = Gso::None;
    let found = (0..=u16::MAX).find_map(|word| {
        let mut bytes = bytes.clone();
        bytes[28..30].copy_from_slice(&word.to_be_bytes());
        (field(add(0, &bytes[20..])) == [0, 0]).then_some(bytes)
    });
    let mut bytes = found.expect("one of all words does it");
    let out = cut(vnet, &mut bytes).remove(0);
    assert_eq!(out[26..28], [0xff, 0xff]);
}

#[test]
fn contradicting_headers_are_refused() {
    let (vnet, bytes) = frame(true, false, &[0; 3000], 1000, 0x10, 0);
    let ip = parse(&bytes).expect("a whole packet");
    let plan = |vnet: VnetHeader| Segments::plan(vnet, &ip, &mut bytes.clone()).is_some();
    assert!(plan(vnet));
    assert!(!plan(VnetHeader {
        gso_size: 0,
        ..vnet
    }));
    assert!(!plan(VnetHeader {
        gso: Gso::TcpV6,
        ..vnet
    }));
    assert!(!plan(VnetHeader {
        csum_start: 10,
        ..vnet
    }));
    assert!(!plan(VnetHeader {
        csum_start: 4000,
        ..vnet
    }));
    assert!(
        !plan(VnetHeader {
            gso_size: 1,
            ..vnet
        }),
        "more segments than the limit"
    );
}
