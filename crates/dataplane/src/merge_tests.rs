use proptest::prelude::*;

use super::*;
use crate::packet::parse;
use crate::segment::Segments;
use crate::testing::{Transport, packet};

/// Merges packets, cuts what came out again, and tells how many writes it took.
fn round_trip(packets: &[Vec<u8>]) -> (usize, Vec<Vec<u8>>) {
    let mut arena = Vec::new();
    let mut pieces = Vec::new();
    for packet in packets {
        pieces.push(Piece {
            start: arena.len(),
            len: packet.len(),
        });
        arena.extend_from_slice(packet);
    }
    let mut merger = Merger::default();
    for piece in pieces {
        let ip = parse(piece.of(&arena)).expect("a whole packet");
        merger.push(&arena, piece, &ip, true);
    }
    let mut writes = 0;
    let mut out = Vec::new();
    merger.finish(&mut arena, |arena, vnet, pieces| {
        writes += 1;
        let mut whole = Vec::new();
        assemble(arena, pieces, &mut whole);
        let ip = parse(&whole).expect("a group is a packet");
        assert_eq!(ip.total_len, whole.len());
        let segments = Segments::plan(vnet, &ip, &mut whole).expect("headers agree");
        for index in 0..segments.count() {
            let mut segment = vec![0; segments.len(index)];
            segments.write(index, &mut segment);
            out.push(segment);
        }
    });
    (writes, out)
}

/// Cuts a stream like a sender would: one flow's packets in order.
fn flow(
    v4: bool,
    udp: bool,
    payload: &[u8],
    size: usize,
    options: usize,
    push_every: usize,
) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (index, part) in payload.chunks(size).enumerate() {
        let flags = if push_every > 0 && index % push_every == push_every - 1 {
            0x18
        } else {
            0x10
        };
        let sequence = 0xffff_ff00u32.wrapping_add((index * size) as u32);
        let transport = if udp {
            Transport::Udp
        } else {
            Transport::Tcp {
                flags,
                options,
                sequence,
            }
        };
        let mut bytes = packet(v4, transport, part);
        if v4 {
            // Counted up, as cutting does.
            bytes[4..6].copy_from_slice(&(0xfffa_u16.wrapping_add(index as u16)).to_be_bytes());
            let total = bytes.len();
            packet::set_length(&mut bytes, 20, total);
        }
        packets.push(bytes);
    }
    packets
}

fn is_udp(packet: &[u8]) -> bool {
    parse(packet).expect("a whole packet").protocol == UDP
}

proptest! {
    #[test]
    fn what_is_merged_is_cut_into_the_same_bytes_in_the_order_of_each_flow(
        v4 in any::<bool>(), first in prop::collection::vec(any::<u8>(), 1..30_000),
        second in prop::collection::vec(any::<u8>(), 1..8_000), size in 200usize..1400, options in 0usize..=10,
        push_every in 0usize..9, order in prop::collection::vec(any::<bool>(), 0..200),
    ) {
        let tcp = flow(v4, false, &first, size, options, push_every);
        let udp = flow(v4, true, &second, size, 0, 0);
        let (mut tcp_left, mut udp_left) = (tcp.iter(), udp.iter());
        let mut mixed = Vec::new();
        for pick in order {
            mixed.extend(if pick { tcp_left.next() } else { udp_left.next() }.cloned());
        }
        mixed.extend(tcp_left.chain(udp_left).cloned());
        let (writes, out) = round_trip(&mixed);
        prop_assert!(writes <= mixed.len());
        let of = |udp: bool| out.iter().filter(move |packet| is_udp(packet) == udp).cloned().collect::<Vec<_>>();
        prop_assert_eq!(of(false), tcp);
        prop_assert_eq!(of(true), udp);
    }

    #[test]
    fn a_corrupt_packet_arrives_corrupt_and_in_its_place(
        v4 in any::<bool>(), udp in any::<bool>(), victim in 0usize..20, at in any::<prop::sample::Index>(), flip in 1u8..=255,
    ) {
        let mut packets = flow(v4, udp, &vec![7; 20_000], 1000, 3, 0);
        let payload = packets[victim].len() - 1000;
        let at = payload + at.index(1000);
        packets[victim][at] ^= flip;
        let (writes, out) = round_trip(&packets);
        prop_assert_eq!(&out, &packets, "the bad checksum must survive");
        prop_assert!(writes >= 2, "the corrupt packet goes alone");
    }

    #[test]
    fn packets_from_anywhere_never_panic(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 40..120), 1..40), v4 in any::<bool>()) {
        let sane: Vec<Vec<u8>> = packets.into_iter().map(|mut bytes| {
            bytes[0] = if v4 { 0x45 } else { 0x60 };
            bytes[9] = if bytes[9] & 1 == 0 { TCP } else { UDP };
            bytes[6] = if v4 { 0 } else { bytes[9] };
            let total = bytes.len();
            packet::set_length(&mut bytes, if v4 { 20 } else { 40 }, total);
            bytes
        }).collect();
        let (_, out) = round_trip(&sane);
        prop_assert_eq!(out, sane);
    }
}

#[test]
fn a_full_stream_becomes_few_writes() {
    let packets = flow(true, false, &vec![1; 60_000], 1380, 3, 0);
    assert_eq!(round_trip(&packets).0, 1);
    let packets = flow(false, true, &vec![1; 60_000], 1000, 0, 0);
    assert_eq!(round_trip(&packets).0, 1);
}

#[test]
fn a_push_ends_a_group_and_stays_on_its_last_packet() {
    let packets = flow(true, false, &vec![1; 10_000], 1000, 0, 5);
    let (writes, out) = round_trip(&packets);
    assert_eq!((writes, out), (2, packets));
}

#[test]
fn other_fields_than_the_sequence_keep_packets_apart() {
    let whole = flow(true, false, &[1; 2000], 1000, 3, 0);
    for (at, what) in [
        (1, "traffic class"),
        (8, "TTL"),
        (28, "acknowledgement"),
        (34, "window"),
        (42, "an option"),
    ] {
        let mut packets = whole.clone();
        packets[1][at] ^= 1;
        reseal(&mut packets[1]);
        let (writes, out) = round_trip(&packets);
        assert_eq!((writes, out), (2, packets), "{what}");
    }
    assert_eq!(round_trip(&whole).0, 1);
}

#[test]
fn a_gap_a_repeat_and_a_pure_acknowledgement_are_not_merged() {
    let packets = flow(true, false, &[1; 3000], 1000, 0, 0);
    let gap = vec![packets[0].clone(), packets[2].clone()];
    assert_eq!(round_trip(&gap), (2, gap));
    let repeat = vec![packets[0].clone(), packets[0].clone()];
    assert_eq!(round_trip(&repeat), (2, repeat));
    let ack = packet(
        true,
        Transport::Tcp {
            flags: 0x10,
            options: 0,
            sequence: 0xffff_ff00,
        },
        &[],
    );
    let acks = vec![ack.clone(), ack, packets[0].clone(), packets[1].clone()];
    assert_eq!(round_trip(&acks).1, acks);
}

#[test]
fn fragments_stay_what_and_where_they_are() {
    let mut packets = flow(true, true, &[1; 3000], 1000, 0, 0);
    packets[1][6] = 0x20;
    reseal(&mut packets[1]);
    let (writes, out) = round_trip(&packets);
    assert_eq!((writes, out), (3, packets));
}

/// Puts both checksums right again.
fn reseal(bytes: &mut [u8]) {
    let ip = parse(bytes).expect("a whole packet");
    let total = bytes.len();
    packet::set_length(bytes, 20, total);
    let at = if ip.protocol == TCP { 36 } else { 26 };
    bytes[at..at + 2].fill(0);
    let pseudo = checksum::pseudo_header(packet::address_bytes(bytes), ip.protocol, total - 20);
    let sum = checksum::field(checksum::add(pseudo, &bytes[20..]));
    bytes[at..at + 2].copy_from_slice(&sum);
}
