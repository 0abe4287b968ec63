//! What one upstream's reply says about a question (R2.1), and whether it may say it (R2.12).

use super::{Data, Name, Question, Rcode, Record, RecordType, Upstream, View};

/// Longest CNAME chain that is followed within one message.
const CHAIN_MAX: usize = 16;
/// TTL limit for names of a network, seconds (R5.1).
const TTL_MAX: u32 = 300;

/// A parsed reply that matched its query (R3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub rcode: Rcode,
    /// TC: the answer was cut.
    pub truncated: bool,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
}

/// Why an upstream gave no usable reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// Nothing arrived before the deadline.
    TimedOut,
    /// The network said no (refused, unreachable).
    Network,
    /// A reply that is no DNS message, or answers in a way the protocol does not allow.
    Malformed,
    /// An error code other than NXDOMAIN and the no-opinion codes.
    ErrorCode,
    /// Names or addresses that the answering domain does not own (R2.12).
    Foreign,
    /// No live server is known (R1.9).
    NobodyLive,
}

impl Failure {
    pub const ALL: [Self; 6] = [
        Self::TimedOut,
        Self::Network,
        Self::Malformed,
        Self::ErrorCode,
        Self::Foreign,
        Self::NobodyLive,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Network => "network",
            Self::Malformed => "malformed",
            Self::ErrorCode => "error_code",
            Self::Foreign => "foreign",
            Self::NobodyLive => "nobody_live",
        }
    }
}

/// What one owner says about the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Records: the CNAME chain, then the set it ends in.
    Positive {
        records: Vec<Record>,
        truncated: bool,
    },
    /// The name exists, without such records.
    NoData,
    NxDomain,
    /// REFUSED, NOTAUTH, NOTIMP or a referral.
    NoOpinion,
    Failed(Failure),
}

impl Vote {
    /// An owner that is down, silent or refuses is a missing vote, never an nxdomain (R2.5).
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::NoOpinion | Self::Failed(_))
    }
}

/// Classes a reply of `upstream` and drops what it may not say.
pub fn classify(view: &View, question: &Question, upstream: &Upstream, reply: &Reply) -> Vote {
    match reply.rcode {
        Rcode::NO_ERROR => {}
        Rcode::NX_DOMAIN => return Vote::NxDomain,
        Rcode::REFUSED | Rcode::NOT_AUTH | Rcode::NOT_IMP => return Vote::NoOpinion,
        _ => return Vote::Failed(Failure::ErrorCode),
    }
    if reply.answers.is_empty() {
        return if is_referral(reply) {
            Vote::NoOpinion
        } else {
            Vote::NoData
        };
    }
    if !reply
        .answers
        .iter()
        .all(|record| may_say(view, question, upstream, record))
    {
        return Vote::Failed(Failure::Foreign);
    }
    match chain(question, &reply.answers) {
        Ok(records) if records.is_empty() => Vote::NoData,
        Ok(records) => Vote::Positive {
            records,
            truncated: reply.truncated,
        },
        Err(failure) => Vote::Failed(failure),
    }
}

fn is_referral(reply: &Reply) -> bool {
    let has = |rtype: RecordType| {
        reply
            .authority
            .iter()
            .any(|record| record.data.rtype() == rtype)
    };
    has(RecordType::NS) && !has(RecordType::SOA)
}

/// R2.12: names belong to the answering domain (the question's own name apart, which the planner
/// gave to that domain), addresses lie in its blocks, and nothing hides from this check.
fn may_say(view: &View, question: &Question, upstream: &Upstream, record: &Record) -> bool {
    let domain = &upstream.domain;
    let owns = |name: &Name| view.belongs_to(name, domain);
    if record.owner != question.name && !owns(&record.owner) {
        return false;
    }
    match &record.data {
        Data::A(_) | Data::Aaaa(_) => {
            let member = view.document.members.get(domain);
            let address = record.data.address();
            member
                .zip(address)
                .is_some_and(|(member, address)| member.owns_address(address))
        }
        Data::Cname(target) | Data::Ptr(target) | Data::Srv { target, .. } => owns(target),
        Data::Soa(_) => true,
        Data::Opaque { rtype, .. } => !rtype.hides_names(),
    }
}

/// The CNAME chain from the question's name and the records of the asked type at its end, in
/// order; empty when the chain ends in nothing. Records beside the chain are left out.
fn chain(question: &Question, answers: &[Record]) -> Result<Vec<Record>, Failure> {
    let mut records = Vec::new();
    let mut name = &question.name;
    for _ in 0..CHAIN_MAX {
        let asked = |record: &&Record| {
            record.owner == *name
                && (question.rtype == RecordType::ANY || record.data.rtype() == question.rtype)
        };
        let found: Vec<Record> = answers.iter().filter(asked).map(capped).collect();
        if !found.is_empty() {
            records.extend(found);
            return Ok(records);
        }
        let alias = answers.iter().find_map(|record| match &record.data {
            Data::Cname(target) if record.owner == *name => Some((record, target)),
            _ => None,
        });
        let Some((record, target)) = alias else {
            return Ok(Vec::new());
        };
        records.push(capped(record));
        name = target;
    }
    Err(Failure::Malformed)
}

/// TTLs with the top bit set count as zero (RFC 2181 8).
fn capped(record: &Record) -> Record {
    let ttl = if record.ttl > i32::MAX.unsigned_abs() {
        0
    } else {
        record.ttl.min(TTL_MAX)
    };
    Record {
        ttl,
        ..record.clone()
    }
}
