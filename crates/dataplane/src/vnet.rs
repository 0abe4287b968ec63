//! The header in front of every packet of a TUN with IFF_VNET_HDR (virtio 1.2, 5.1.6),
//! in the machine's byte order.

pub(crate) const VNET_LEN: usize = 10;
/// The checksum field holds the pseudo-header sum; the rest is to be added.
pub(crate) const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// How a super-packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gso {
    None,
    TcpV4,
    TcpV6,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    pub(crate) needs_csum: bool,
    pub(crate) gso: Gso,
    /// Only a hint: never trusted.
    pub(crate) hdr_len: u16,
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    /// A packet as it is.
    pub(crate) const PLAIN: Self = Self {
        needs_csum: false,
        gso: Gso::None,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// `None` for a kind of super-packet that was not asked for.
    pub(crate) fn parse(bytes: &[u8; VNET_LEN]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            0 => Gso::None,
            1 => Gso::TcpV4,
            4 => Gso::TcpV6,
            5 => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            needs_csum: bytes[0] & NEEDS_CSUM != 0,
            gso,
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    pub(crate) fn to_bytes(self) -> [u8; VNET_LEN] {
        let mut bytes = [0; VNET_LEN];
        bytes[0] = if self.needs_csum { NEEDS_CSUM } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::TcpV4 => 1,
            Gso::TcpV6 => 4,
            Gso::Udp => 5,
        };
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }
}
