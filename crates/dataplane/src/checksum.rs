//! The internet checksum (RFC 1071). Sums are kept in the machine's byte order: the ones'
//! complement sum does not care, as long as it is stored the way it was read.

/// Adds `bytes` to an unfolded sum. All pieces but the last must have an even length.
pub(crate) fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        let mut part = 0u64;
        for word in block.chunks_exact(4) {
            part += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        sum += part;
    }
    let mut pairs = blocks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// Folds to 16 bits, not complemented.
pub(crate) fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    let mut sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for `sum`, in the bytes that go into the packet.
pub(crate) fn field(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// The pseudo-header of TCP, UDP or ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `addresses` is source and destination as they stand in the IP header.
pub(crate) fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    let length = length as u32;
    let sum = add(0, addresses);
    sum + u64::from(((length >> 16) as u16).to_be())
        + u64::from((length as u16).to_be())
        + u64::from(u16::from(protocol).to_be())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Big-endian words one by one, as RFC 1071 says.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum += word;
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(u16::from_be_bytes(field(add(0, &bytes))), !0xddf2);
    }

    proptest! {
        #[test]
        fn equals_the_slow_reference(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(u16::from_be_bytes(field(add(0, &bytes))), reference(&bytes));
        }

        #[test]
        fn pieces_add_up(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..150) {
            let cut = (2 * at).min(bytes.len() & !1);
            let (head, tail) = bytes.split_at(cut);
            prop_assert_eq!(fold(add(add(0, head), tail)), fold(add(0, &bytes)));
        }

        #[test]
        fn pseudo_header_equals_its_bytes(source in any::<[u8; 16]>(), destination in any::<[u8; 16]>(), length in 0u32..70_000, protocol in any::<u8>()) {
            let mut bytes = [source, destination].concat();
            let addresses = bytes.clone();
            bytes.extend(length.to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
            let sum = pseudo_header(&addresses, protocol, length as usize);
            prop_assert_eq!(u16::from_be_bytes(field(sum)), reference(&bytes));
        }
    }

    #[test]
    fn the_longest_packet_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(u16::from_be_bytes(field(add(0, &bytes))), reference(&bytes));
    }
}
