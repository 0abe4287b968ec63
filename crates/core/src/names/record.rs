//! Questions, records and answers, independent of any wire format.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Name;

/// Class Internet (RFC 1035 3.2.4).
pub const CLASS_IN: u16 = 1;

/// A record type by its number (RFC 1035 3.2.2 and its successors).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u16);

impl RecordType {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const CNAME: Self = Self(5);
    pub const SOA: Self = Self(6);
    pub const PTR: Self = Self(12);
    pub const TXT: Self = Self(16);
    pub const DS: Self = Self(43);
    pub const RRSIG: Self = Self(46);
    pub const DNSKEY: Self = Self(48);
    pub const AAAA: Self = Self(28);
    pub const SRV: Self = Self(33);
    pub const ANY: Self = Self(255);

    /// Types that stand for no record: OPT (41), 0 and the query types 128 to 255 (RFC 6895).
    /// ANY, AXFR and IXFR are query types with rules of their own.
    pub const fn is_meta(self) -> bool {
        matches!(self.0, 0 | 41 | 128..=255)
    }

    /// AXFR (252) and IXFR (251).
    pub const fn is_transfer(self) -> bool {
        matches!(self.0, 251 | 252)
    }

    /// Whether data of this type hold names or addresses that only a decoder of the type finds,
    /// so that an opaque record of it cannot be checked (R2.12).
    pub const fn hides_names(self) -> bool {
        // NS MD MF | MB MG MR | MINFO MX | RP AFSDB | RT | SIG PX | NXT | NAPTR KX | A6 DNAME | APL |
        // IPSECKEY RRSIG NSEC | HIP | SVCB HTTPS | L32 L64 LP | AMTRELAY
        matches!(
            self.0,
            2..=4 | 7..=9 | 14 | 15 | 17 | 18 | 21 | 24 | 26 | 30 | 35 | 36 | 38 | 39 | 42 | 45 | 46 | 47 | 55
                | 64 | 65 | 105..=107 | 260
        )
    }
}

/// What is asked. Two questions that differ only in case are equal (R1.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    pub name: Name,
    pub rtype: RecordType,
    pub class: u16,
}

impl Question {
    /// A question of class Internet.
    pub const fn new(name: Name, rtype: RecordType) -> Self {
        Self {
            name,
            rtype,
            class: CLASS_IN,
        }
    }
}

/// Flags of a question that must agree for two questions to be one (R2.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags {
    /// In a [`Query`](super::Query): the RD bit to send, by the server that is asked.
    pub recursion_desired: bool,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

/// Start of authority (RFC 1035 3.3.13).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Soa {
    pub mname: Name,
    pub rname: Name,
    pub serial: u32,
    /// Seconds, as the following ones.
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    /// How long a negative answer may be kept (RFC 2308 4).
    pub minimum: u32,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(Name),
    Ptr(Name),
    Srv {
        priority: u16,
        weight: u16,
        port: u16,
        target: Name,
    },
    Soa(Soa),
    /// Any other type: uncompressed data, passed unchanged (RFC 3597).
    Opaque {
        rtype: RecordType,
        data: Vec<u8>,
    },
}

impl Data {
    pub const fn rtype(&self) -> RecordType {
        match self {
            Self::A(_) => RecordType::A,
            Self::Aaaa(_) => RecordType::AAAA,
            Self::Cname(_) => RecordType::CNAME,
            Self::Ptr(_) => RecordType::PTR,
            Self::Srv { .. } => RecordType::SRV,
            Self::Soa(_) => RecordType::SOA,
            Self::Opaque { rtype, .. } => *rtype,
        }
    }

    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::A(address) => Some(IpAddr::V4(*address)),
            Self::Aaaa(address) => Some(IpAddr::V6(*address)),
            _ => None,
        }
    }
}

impl From<IpAddr> for Data {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// One resource record of class Internet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub owner: Name,
    /// Seconds.
    pub ttl: u32,
    pub data: Data,
}
