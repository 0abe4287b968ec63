//! Packets for unit tests.

use crate::checksum;
use crate::packet::{self, TCP, UDP};

#[derive(Clone, Copy)]
pub(crate) enum Transport {
    Udp,
    /// `options` in words of 4 bytes.
    Tcp {
        flags: u8,
        options: usize,
        sequence: u32,
    },
}

/// A whole packet with right checksums, with DF, from a fixed sender to a fixed receiver.
pub(crate) fn packet(v4: bool, transport: Transport, payload: &[u8]) -> Vec<u8> {
    let mut bytes = if v4 {
        let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 0, 0, 0];
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        header
    };
    let start = bytes.len();
    bytes.extend([0x13, 0x88, 0x1f, 0x90]);
    let (protocol, field) = match transport {
        Transport::Udp => {
            bytes.extend(((8 + payload.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
            (UDP, 6)
        }
        Transport::Tcp {
            flags,
            options,
            sequence,
        } => {
            bytes.extend(sequence.to_be_bytes());
            bytes.extend(77u32.to_be_bytes());
            bytes.extend([((5 + options) as u8) << 4, flags, 1, 0, 0, 0, 0, 0]);
            bytes.extend((0..options * 4).map(|byte| byte as u8));
            (TCP, 16)
        }
    };
    bytes.extend_from_slice(payload);
    bytes[if v4 { 9 } else { 6 }] = protocol;
    let total = bytes.len();
    packet::set_length(&mut bytes, start, total);
    let pseudo = checksum::pseudo_header(packet::address_bytes(&bytes), protocol, total - start);
    let sum = match checksum::field(checksum::add(pseudo, &bytes[start..])) {
        [0, 0] if protocol == UDP => [0xff, 0xff],
        sum => sum,
    };
    bytes[start + field..start + field + 2].copy_from_slice(&sum);
    bytes
}
