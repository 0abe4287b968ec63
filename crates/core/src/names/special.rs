//! Names that never leave the server (R1.6): special-use names (RFC 6761, 7686, 6762) and the
//! locally served reverse zones (RFC 6303, RFC 7793).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Name;

/// What a special name is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 127.0.0.1 and ::1.
    Localhost,
    NxDomain,
}

/// A special zone: an upstream suffix of at least as many labels names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    pub(super) kind: Kind,
    pub(super) labels: usize,
}

/// Reverse zones that are answered locally, as the prefixes they stand for.
const LOCAL_RANGES: [&str; 17] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "fd00::/8",
    "fe80::/10",
    "2001:db8::/32",
    "fc00::/8",
];

/// Whether a name lies in a special zone.
pub(super) fn special(name: &Name) -> Option<Special> {
    let of = |kind, labels| Some(Special { kind, labels });
    match name.labels().last()? {
        b"localhost" => return of(Kind::Localhost, 1),
        b"invalid" | b"onion" | b"local" => return of(Kind::NxDomain, 1),
        b"arpa" => {}
        _ => return None,
    }
    let prefix = name.reverse_prefix()?;
    let range = LOCAL_RANGES
        .iter()
        .filter_map(|range| range.parse::<IpNet>().ok())
        .find(|range| range.contains(&prefix))?;
    let bits = usize::from(range.prefix_len());
    let labels = match range {
        IpNet::V4(_) => bits.div_ceil(8),
        IpNet::V6(_) => bits.div_ceil(4),
    };
    of(Kind::NxDomain, labels + 2)
}

pub(super) const LOCALHOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];
