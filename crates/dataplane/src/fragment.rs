//! IPv4 fragmentation on the way (RFC 791, 3.2), for packets without DF. Pure.

use crate::packet::{self, IpHeader};

const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// A packet and where it is cut.
#[derive(Debug)]
pub(crate) struct Fragments<'a> {
    packet: &'a [u8],
    header_len: usize,
    /// Payload of every fragment but the last: a multiple of 8.
    size: usize,
}

impl<'a> Fragments<'a> {
    /// `None` when it may not be cut, has options (which would be copied selectively), or the
    /// way is too narrow.
    pub(crate) fn plan(packet: &'a [u8], ip: &IpHeader, mtu: usize) -> Option<Self> {
        let size = mtu.checked_sub(ip.header_len)? & !7;
        (ip.may_fragment && ip.header_len == 20 && size > 0).then_some(Self {
            packet,
            header_len: ip.header_len,
            size,
        })
    }

    fn payload(&self) -> usize {
        self.packet.len() - self.header_len
    }

    pub(crate) fn count(&self) -> usize {
        self.payload().div_ceil(self.size).max(1)
    }

    pub(crate) fn len(&self, index: usize) -> usize {
        self.header_len
            + self
                .size
                .min(self.payload().saturating_sub(index * self.size))
    }

    /// Writes the fragment `index` to `out`, which holds [`Self::len`] bytes.
    pub(crate) fn write(&self, index: usize, out: &mut [u8]) {
        let (header_len, total) = (self.header_len, self.len(index));
        let start = header_len + index * self.size;
        out[..header_len].copy_from_slice(&self.packet[..header_len]);
        out[header_len..total].copy_from_slice(&self.packet[start..start + total - header_len]);
        let was = u16::from_be_bytes([self.packet[6], self.packet[7]]);
        let offset = (was & OFFSET) + (index * self.size / 8) as u16;
        let more = was & MORE | if index + 1 < self.count() { MORE } else { 0 };
        let flags = was & !(MORE | OFFSET) | more | offset & OFFSET;
        out[6..8].copy_from_slice(&flags.to_be_bytes());
        packet::set_length(out, header_len, total);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(payload: &[u8], flags: u16) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        packet[9] = 17;
        packet.extend_from_slice(payload);
        let len = packet.len();
        packet::set_length(&mut packet, 20, len);
        packet
    }

    proptest! {
        #[test]
        fn fragments_put_together_are_the_packet(
            payload in prop::collection::vec(any::<u8>(), 1..5000), mtu in 68usize..1500,
            before in 0u16..100, more in any::<bool>(),
        ) {
            let flags = before | if more { MORE } else { 0 };
            let whole = packet(&payload, flags);
            let ip = packet::parse(&whole).expect("a whole packet");
            let fragments = Fragments::plan(&whole, &ip, mtu).expect("may be cut");
            let mut rebuilt = Vec::new();
            for index in 0..fragments.count() {
                let mut out = vec![0; fragments.len(index)];
                fragments.write(index, &mut out);
                prop_assert!(out.len() <= mtu);
                let ip = packet::parse(&out).expect("a fragment is a packet");
                let field = u16::from_be_bytes([out[6], out[7]]);
                prop_assert_eq!(usize::from(field & OFFSET), usize::from(before) + rebuilt.len() / 8);
                prop_assert_eq!(field & MORE != 0, more || index + 1 < fragments.count());
                prop_assert_eq!(crate::checksum::fold(crate::checksum::add(0, &out[..20])), 0xffff);
                rebuilt.extend_from_slice(&out[ip.header_len..]);
            }
            prop_assert_eq!(rebuilt, payload);
        }
    }

    #[test]
    fn a_packet_with_df_is_not_cut() {
        let whole = packet(&[0; 100], 0x4000);
        let ip = packet::parse(&whole).expect("a whole packet");
        assert!(Fragments::plan(&whole, &ip, 68).is_none());
    }
}
