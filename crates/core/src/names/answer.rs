//! What an asker is told, and which rule decided it.

use std::sync::Arc;

use super::{Record, RecordType};

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
    pub const STALE: u16 = 3;
    pub const PROHIBITED: u16 = 18;
    pub const NOT_AUTHORITATIVE: u16 = 20;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub const NETWORK_ERROR: u16 = 23;
}

/// Which rule decided an answer. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// From the records of this router (R1.5).
    Local,
    /// Part of the network's own tree: apex, domain labels, partial reverse names.
    Structure,
    /// A service, or no service, of the set of clusters (R1.7).
    Service,
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
    /// Every outside resolver that was asked has no opinion (R2.4).
    NoOpinion,
    /// An expired answer, because nothing better was to be had (R5.3).
    Stale,
    /// The name has addresses of the other family (R2.10).
    OtherType,
    /// The question came back to its sender, or went through too many servers (R4.2, R4.3).
    Loop,
    /// Refused at the limit of questions in flight (R3.10).
    Overload,
    /// Refused at the limit of one client (R6.6).
    ClientLimit,
}

impl Decision {
    pub const ALL: [Self; 16] = [
        Self::Local,
        Self::Structure,
        Self::Service,
        Self::SpecialUse,
        Self::NoOwner,
        Self::Outside,
        Self::NotForAsker,
        Self::Unsupported,
        Self::Merged,
        Self::VotesMissing,
        Self::NoOpinion,
        Self::Stale,
        Self::OtherType,
        Self::Loop,
        Self::Overload,
        Self::ClientLimit,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Structure => "structure",
            Self::Service => "service",
            Self::SpecialUse => "special_use",
            Self::NoOwner => "no_owner",
            Self::Outside => "outside",
            Self::NotForAsker => "not_for_asker",
            Self::Unsupported => "unsupported",
            Self::Merged => "merged",
            Self::VotesMissing => "votes_missing",
            Self::NoOpinion => "no_opinion",
            Self::Stale => "stale",
            Self::OtherType => "other_type",
            Self::Loop => "loop",
            Self::Overload => "overload",
            Self::ClientLimit => "client_limit",
        }
    }

    /// The number of the rule, as in `docs/dns.md`.
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Local => "R1.5",
            Self::Structure => "R1.3",
            Self::Service => "R1.7",
            Self::SpecialUse | Self::Outside => "R1.6",
            Self::NoOwner => "R1.8",
            Self::NotForAsker => "R4.1",
            Self::Unsupported => "R3.5",
            Self::Merged => "R2.2",
            Self::VotesMissing => "R2.5",
            Self::NoOpinion => "R2.4",
            Self::Stale => "R5.3",
            Self::OtherType => "R2.10",
            Self::Loop => "R4.2",
            Self::Overload => "R3.10",
            Self::ClientLimit => "R6.6",
        }
    }
}

/// What the asker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub rcode: Rcode,
    /// AA: every record comes from this router's own data.
    pub authoritative: bool,
    /// AD: every record comes from upstreams that are marked trusted and set it (R3.4). The shell
    /// passes it on to clients that asked with AD or DO.
    pub authenticated: bool,
    /// The only usable answer was cut by an upstream (R3.1): TC=1 towards UDP clients.
    pub truncated: bool,
    pub answers: Vec<Record>,
    /// With a negative answer the SOA (RFC 2308), and what proves it where the client set DO.
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
    pub extended: Option<ExtendedError>,
    pub decision: Decision,
    /// Parts of `answers` whose order turns from reply to reply (R2.7).
    pub turns: Turns,
}

/// Two neighbouring parts of an answer section, the local class first; each turns in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// Before it: aliases, which stay where they are.
    pub local: u16,
    /// Where the other classes begin.
    pub others: u16,
}

impl Turns {
    /// Nothing turns.
    pub const NONE: Self = Self {
        local: u16::MAX,
        others: u16::MAX,
    };

    /// One upstream's set: all but the aliases before it.
    pub(super) fn of_one(records: &[Record]) -> Self {
        let is_alias = |record: &&Record| record.data.rtype() == RecordType::CNAME;
        let aliases = records.iter().take_while(is_alias).count();
        Self {
            local: u16::try_from(aliases).unwrap_or(u16::MAX),
            others: u16::MAX,
        }
    }
}

impl Answer {
    /// A code and nothing else.
    pub const fn code(rcode: Rcode, decision: Decision) -> Self {
        Self {
            rcode,
            authoritative: false,
            authenticated: false,
            truncated: false,
            answers: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
            extended: None,
            decision,
            turns: Turns::NONE,
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

    /// No records of the asked type; aliases that lead to nothing come with a SOA.
    pub(super) fn is_denial(&self) -> bool {
        let is_soa = |record: &Record| record.data.rtype() == RecordType::SOA;
        !self.is_positive() || self.authority.iter().any(is_soa)
    }

    /// NOERROR without records: the name exists.
    pub fn is_nodata(&self) -> bool {
        self.rcode == Rcode::NO_ERROR && self.answers.is_empty()
    }

    /// The answer section in the order of the `turn`th reply.
    pub fn turned(&self, turn: u32) -> impl Iterator<Item = &Record> {
        let len = self.answers.len();
        let local = usize::from(self.turns.local).min(len);
        let others = usize::from(self.turns.others).clamp(local, len);
        let by = |part: usize| {
            usize::try_from(turn)
                .unwrap_or(0)
                .checked_rem(part)
                .unwrap_or(0)
        };
        let (first, second) = (by(others - local), by(len - others));
        (0..len).map(move |at| {
            let from = if at < local {
                at
            } else if at < others {
                local + (at - local + first) % (others - local)
            } else {
                others + (at - others + second) % (len - others)
            };
            &self.answers[from]
        })
    }
}

/// An answer on its way to one asker: shared with the cache and with other askers, of a certain
/// age, in an order of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub answer: Arc<Answer>,
    /// Seconds since it came: what every TTL has lost (R5.1).
    pub age: u32,
    /// Which order the records have (R2.7).
    pub turn: u32,
}

impl Reading {
    pub fn new(answer: impl Into<Arc<Answer>>) -> Self {
        Self {
            answer: answer.into(),
            age: 0,
            turn: 0,
        }
    }

    /// A TTL of the answer as this asker is told it.
    pub const fn ttl(&self, record: &Record) -> u32 {
        record.ttl.saturating_sub(self.age)
    }

    /// The answer section in order; TTLs by [`Self::ttl`].
    pub fn answers(&self) -> impl Iterator<Item = &Record> {
        self.answer.turned(self.turn)
    }

    /// Order and TTLs applied.
    pub fn to_answer(&self) -> Answer {
        let aged = |record: &Record| Record {
            ttl: self.ttl(record),
            ..record.clone()
        };
        Answer {
            answers: self.answers().map(aged).collect(),
            authority: self.answer.authority.iter().map(aged).collect(),
            additional: self.answer.additional.iter().map(aged).collect(),
            extended: self.answer.extended.clone(),
            turns: Turns::NONE,
            ..*self.answer
        }
    }
}

impl core::ops::Deref for Reading {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.answer
    }
}
