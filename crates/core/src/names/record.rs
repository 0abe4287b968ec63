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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flags {
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

/// A response code (RFC 6895 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    pub const NO_ERROR: Self = Self(0);
    pub const FORM_ERR: Self = Self(1);
    pub const SERV_FAIL: Self = Self(2);
    pub const NX_DOMAIN: Self = Self(3);
    pub const NOT_IMP: Self = Self(4);
    pub const REFUSED: Self = Self(5);
    pub const NOT_AUTH: Self = Self(9);
    pub const BAD_VERS: Self = Self(16);

    /// A label for metrics; codes that we never expect share one.
    pub const fn label(self) -> &'static str {
        match self.0 {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            9 => "NOTAUTH",
            16 => "BADVERS",
            _ => "OTHER",
        }
    }
}

/// Why an answer is what it is, beyond its code (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    pub code: u16,
    pub text: String,
}

impl ExtendedError {
    pub const OTHER: u16 = 0;
    pub const PROHIBITED: u16 = 18;
    pub const NOT_AUTHORITATIVE: u16 = 20;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
}

/// Which rule decided an answer. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// From the records of this router (R1.5).
    Local,
    /// Part of the network's own tree: apex, domain labels, partial reverse names.
    Structure,
    /// Never forwarded (R1.6).
    SpecialUse,
    /// Names a domain that is no member, or an address that nobody owns (R1.8, R1.3).
    NoOwner,
    /// Not in this network and no outside resolver is configured.
    Outside,
    /// Who asks may not have this (R4.1).
    NotForAsker,
    /// A class or type that is not served (R6.3, R3.5).
    Unsupported,
    /// From votes, all of which arrived.
    Merged,
    /// From votes of which some are missing (R2.5).
    VotesMissing,
    /// Refused at the limit of questions in flight (R3.10).
    Overload,
}

impl Decision {
    pub const ALL: [Self; 10] = [
        Self::Local,
        Self::Structure,
        Self::SpecialUse,
        Self::NoOwner,
        Self::Outside,
        Self::NotForAsker,
        Self::Unsupported,
        Self::Merged,
        Self::VotesMissing,
        Self::Overload,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Structure => "structure",
            Self::SpecialUse => "special_use",
            Self::NoOwner => "no_owner",
            Self::Outside => "outside",
            Self::NotForAsker => "not_for_asker",
            Self::Unsupported => "unsupported",
            Self::Merged => "merged",
            Self::VotesMissing => "votes_missing",
            Self::Overload => "overload",
        }
    }
}

/// What the asker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub rcode: Rcode,
    /// AA: every record comes from this router's own data.
    pub authoritative: bool,
    /// The only usable answer was cut by an upstream (R3.1): TC=1 towards UDP clients.
    pub truncated: bool,
    pub answers: Vec<Record>,
    /// The zone's SOA with a negative answer (RFC 2308).
    pub authority: Vec<Record>,
    pub extended: Option<ExtendedError>,
    pub decision: Decision,
}

impl Answer {
    /// A code and nothing else.
    pub const fn code(rcode: Rcode, decision: Decision) -> Self {
        Self {
            rcode,
            authoritative: false,
            truncated: false,
            answers: Vec::new(),
            authority: Vec::new(),
            extended: None,
            decision,
        }
    }

    #[must_use]
    pub fn because(mut self, code: u16, text: impl Into<String>) -> Self {
        self.extended = Some(ExtendedError {
            code,
            text: text.into(),
        });
        self
    }

    /// NOERROR with at least one record.
    pub fn is_positive(&self) -> bool {
        self.rcode == Rcode::NO_ERROR && !self.answers.is_empty()
    }

    /// NOERROR without records: the name exists.
    pub fn is_nodata(&self) -> bool {
        self.rcode == Rcode::NO_ERROR && self.answers.is_empty()
    }
}
