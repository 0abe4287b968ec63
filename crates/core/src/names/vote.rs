//! What one upstream's reply says about a question (R2.1), and whether it may say it (R2.12, R6.7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Data, Flags, Name, Network, Owner, Preference, Question, Rcode, Record, RecordType, Upstream,
    View,
};

/// Longest CNAME chain that is followed within one message.
const CHAIN_MAX: usize = 16;
/// TTL limits of positive answers, for names of a network and others, seconds (R5.1).
const NETWORK_TTL_MAX: u32 = 300;
const OUTSIDE_TTL_MAX: u32 = 3_600;
/// TTL limits of negative answers, likewise (R5.2).
const NETWORK_NEGATIVE_MAX: u32 = 30;
const OUTSIDE_NEGATIVE_MAX: u32 = 900;
/// Proofs of absence: NSEC and NSEC3.
const NSEC: RecordType = RecordType(47);
const NSEC3: RecordType = RecordType(50);

/// A parsed reply that matched its query (R3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub rcode: Rcode,
    /// TC: the answer was cut.
    pub truncated: bool,
    /// AD.
    pub authenticated: bool,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
}

impl Reply {
    /// A code and nothing else.
    pub const fn code(rcode: Rcode) -> Self {
        Self {
            rcode,
            truncated: false,
            authenticated: false,
            answers: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }
}

/// Why an upstream gave no usable reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// Nothing arrived before the deadline.
    TimedOut,
    /// The network said no (refused, unreachable).
    Network,
    /// This host could not send: no socket, no free ID, a full queue. Says nothing about the server.
    Local,
    /// A reply that is no DNS message, or answers in a way the protocol does not allow.
    Malformed,
    /// An error code other than NXDOMAIN and the no-opinion codes.
    ErrorCode,
    /// Names or addresses that the answering domain does not own (R2.12).
    Foreign,
    /// No live server is known (R1.9).
    NobodyLive,
    /// Marked down: not asked (R3.7).
    Down,
    /// Too many queries are in flight to it (R3.10).
    Overloaded,
    /// The question came back in another case than it was sent in (R3.3).
    CaseChanged,
}

impl Failure {
    pub const ALL: [Self; 10] = [
        Self::TimedOut,
        Self::Network,
        Self::Local,
        Self::Malformed,
        Self::ErrorCode,
        Self::Foreign,
        Self::NobodyLive,
        Self::Down,
        Self::Overloaded,
        Self::CaseChanged,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Network => "network",
            Self::Local => "local",
            Self::Malformed => "malformed",
            Self::ErrorCode => "error_code",
            Self::Foreign => "foreign",
            Self::NobodyLive => "nobody_live",
            Self::Down => "down",
            Self::Overloaded => "overloaded",
            Self::CaseChanged => "case_changed",
        }
    }
}

/// What one owner says about the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    Positive(Positive),
    /// The name exists, without such records.
    NoData(Negative),
    NxDomain(Negative),
    /// REFUSED, NOTAUTH, NOTIMP or a referral.
    NoOpinion,
    Failed(Failure),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positive {
    /// The CNAME chain, then the set it ends in.
    pub records: Vec<Record>,
    /// For a client that checks signatures: what proves that no closer name exists.
    pub authority: Vec<Record>,
    /// Addresses of the names in `records`.
    pub additional: Vec<Record>,
    pub truncated: bool,
    /// AD of an upstream that is marked trusted.
    pub authenticated: bool,
}

/// What came with a "no". Both lists are empty for own data and for owners, whose SOA is the
/// network's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negative {
    /// The CNAME chain that ends in nothing.
    pub aliases: Vec<Record>,
    /// SOA and, where the client set DO, proofs; TTLs as R5.2 says.
    pub authority: Vec<Record>,
    pub authenticated: bool,
}

impl Vote {
    pub fn positive(records: Vec<Record>) -> Self {
        Self::Positive(Positive {
            records,
            ..Positive::default()
        })
    }

    pub fn no_data() -> Self {
        Self::NoData(Negative::default())
    }

    pub fn nx_domain() -> Self {
        Self::NxDomain(Negative::default())
    }

    pub const fn is_positive(&self) -> bool {
        matches!(self, Self::Positive(_))
    }

    pub const fn is_nx_domain(&self) -> bool {
        matches!(self, Self::NxDomain(_))
    }

    /// An owner that is down, silent or refuses is a missing vote, never an nxdomain (R2.5). A
    /// resolver without an opinion is none.
    pub const fn is_missing(&self, is_owner: bool) -> bool {
        match self {
            Self::NoOpinion => is_owner,
            Self::Failed(_) => true,
            Self::Positive(_) | Self::NoData(_) | Self::NxDomain(_) => false,
        }
    }

    /// For explanations and metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Positive(_) => "positive",
            Self::NoData(_) => "nodata",
            Self::NxDomain(_) => "nxdomain",
            Self::NoOpinion => "no_opinion",
            Self::Failed(failure) => failure.label(),
        }
    }
}

/// A vote, and how many private addresses were taken out of it (R6.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classed {
    pub vote: Vote,
    pub private_removed: usize,
}

/// Classes a reply of `upstream` and drops what it may not say.
pub fn classify(
    view: &View,
    question: &Question,
    flags: Flags,
    upstream: &Upstream,
    reply: &Reply,
) -> Classed {
    let vote = match reply.rcode {
        Rcode::NO_ERROR | Rcode::NX_DOMAIN => None,
        Rcode::REFUSED | Rcode::NOT_AUTH | Rcode::NOT_IMP => Some(Vote::NoOpinion),
        _ => Some(Vote::Failed(Failure::ErrorCode)),
    };
    if let Some(vote) = vote {
        return plain(vote);
    }
    let limits = Limits::of(view, &question.name);
    match (&upstream.owner, view.network()) {
        (None, _) => outside(question, flags, upstream, reply, limits),
        (Some(owner), Some(network)) => plain(owned(network, question, owner, reply, limits)),
        // An owner is nobody's without its network.
        (Some(_), None) => plain(Vote::Failed(Failure::Foreign)),
    }
}

const fn plain(vote: Vote) -> Classed {
    Classed {
        vote,
        private_removed: 0,
    }
}

/// How long an answer about one name may live, seconds.
#[derive(Clone, Copy)]
struct Limits {
    positive: u32,
    negative: u32,
}

impl Limits {
    fn of(view: &View, name: &Name) -> Self {
        if view.is_network_name(name) {
            Self {
                positive: NETWORK_TTL_MAX,
                negative: NETWORK_NEGATIVE_MAX,
            }
        } else {
            Self {
                positive: OUTSIDE_TTL_MAX,
                negative: OUTSIDE_NEGATIVE_MAX,
            }
        }
    }
}

/// The reply of a router of the network.
fn owned(
    network: &Network,
    question: &Question,
    owner: &Owner,
    reply: &Reply,
    limits: Limits,
) -> Vote {
    if reply.rcode == Rcode::NX_DOMAIN {
        return Vote::nx_domain();
    }
    if reply.answers.is_empty() {
        return if is_referral(reply) {
            Vote::NoOpinion
        } else {
            Vote::no_data()
        };
    }
    let may_say = |record: &&Record| may_say(network, question, owner, record);
    if !reply.answers.iter().all(|record| may_say(&record)) {
        return Vote::Failed(Failure::Foreign);
    }
    match chain(question, &reply.answers, limits.positive) {
        Ok(chain) if !chain.ends => Vote::no_data(),
        Ok(chain) => Vote::Positive(Positive {
            authority: Vec::new(),
            additional: reply
                .additional
                .iter()
                .filter(may_say)
                .filter(|record| record.data.address().is_some())
                .map(|record| capped(record, limits.positive))
                .collect(),
            records: chain.records,
            truncated: reply.truncated,
            authenticated: false,
        }),
        Err(failure) => Vote::Failed(failure),
    }
}

/// The reply of a resolver that was configured.
fn outside(
    question: &Question,
    flags: Flags,
    upstream: &Upstream,
    reply: &Reply,
    limits: Limits,
) -> Classed {
    let guarded = upstream.class == Preference::Outside && !upstream.allow_private;
    let keep = |record: &&Record| !guarded || !is_private(record);
    let answers: Vec<Record> = reply.answers.iter().filter(keep).cloned().collect();
    let private_removed = reply.answers.len() - answers.len();
    let classed = |vote| Classed {
        vote,
        private_removed,
    };
    if reply.rcode == Rcode::NO_ERROR && reply.answers.is_empty() && is_referral(reply) {
        return classed(Vote::NoOpinion);
    }
    let chain = match chain(question, &answers, limits.positive) {
        Ok(chain) => chain,
        Err(failure) => return classed(Vote::Failed(failure)),
    };
    let authenticated = upstream.trusted && reply.authenticated && private_removed == 0;
    // Signatures and what they cover stay together for a client that checks them.
    let checked = flags.dnssec_ok || flags.checking_disabled;
    if reply.rcode == Rcode::NO_ERROR && chain.ends {
        let records = if checked {
            answers
                .iter()
                .map(|record| capped(record, limits.positive))
                .collect()
        } else {
            chain.records
        };
        let additional = reply.additional.iter().filter(keep);
        let proofs = reply
            .authority
            .iter()
            .filter(|record| checked && is_proof(record));
        return classed(Vote::Positive(Positive {
            records,
            authority: proofs
                .map(|record| capped(record, limits.positive))
                .collect(),
            additional: additional
                .filter(|record| checked || record.data.address().is_some())
                .map(|record| capped(record, limits.positive))
                .collect(),
            truncated: reply.truncated,
            authenticated,
        }));
    }
    let negative = Negative {
        aliases: chain.records,
        authority: proof(reply, checked, limits.negative),
        authenticated,
    };
    classed(if reply.rcode == Rcode::NX_DOMAIN {
        Vote::NxDomain(negative)
    } else {
        Vote::NoData(negative)
    })
}

/// R5.2: the SOA with the lower of its TTL and its minimum, capped; proofs live no longer.
fn proof(reply: &Reply, checked: bool, ttl_max: u32) -> Vec<Record> {
    let soa = reply
        .authority
        .iter()
        .find_map(|record| match &record.data {
            Data::Soa(soa) => Some((record, record.ttl.min(soa.minimum).min(ttl_max))),
            _ => None,
        });
    let Some((soa, ttl)) = soa else {
        return Vec::new();
    };
    let proofs = reply
        .authority
        .iter()
        .filter(|record| checked && is_proof(record));
    core::iter::once(soa)
        .chain(proofs)
        .map(|record| capped(record, ttl))
        .collect()
}

const fn is_proof(record: &Record) -> bool {
    matches!(record.data.rtype(), NSEC | NSEC3 | RecordType::RRSIG)
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
fn may_say(network: &Network, question: &Question, owner: &Owner, record: &Record) -> bool {
    let domain = &owner.domain;
    let owns = |name: &Name| network.belongs_to(name, domain);
    if record.owner != question.name && !owns(&record.owner) {
        return false;
    }
    match &record.data {
        Data::A(_) | Data::Aaaa(_) => {
            let member = network.document.members.get(domain);
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

/// R6.7: an address that only means something in the client's own networks.
fn is_private(record: &Record) -> bool {
    match record.data.address().map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => is_private4(address),
        Some(IpAddr::V6(address)) => is_private6(address),
        None => false,
    }
}

const fn is_private4(address: Ipv4Addr) -> bool {
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_unspecified()
}

const fn is_private6(address: Ipv6Addr) -> bool {
    address.is_unique_local()
        || address.is_unicast_link_local()
        || address.is_loopback()
        || address.is_unspecified()
}

struct Chain {
    records: Vec<Record>,
    /// Whether records of the asked type stand at its end.
    ends: bool,
}

/// The CNAME chain from the question's name and the records of the asked type at its end, in
/// order. Records beside the chain are left out.
fn chain(question: &Question, answers: &[Record], ttl_max: u32) -> Result<Chain, Failure> {
    let mut records = Vec::with_capacity(answers.len());
    let mut name = &question.name;
    for _ in 0..CHAIN_MAX {
        let asked = |record: &&Record| {
            record.owner == *name
                && (question.rtype == RecordType::ANY || record.data.rtype() == question.rtype)
        };
        let before = records.len();
        records.extend(
            answers
                .iter()
                .filter(asked)
                .map(|record| capped(record, ttl_max)),
        );
        if records.len() > before {
            return Ok(Chain {
                records,
                ends: true,
            });
        }
        let alias = answers.iter().find_map(|record| match &record.data {
            Data::Cname(target) if record.owner == *name => Some((record, target)),
            _ => None,
        });
        let Some((record, target)) = alias else {
            return Ok(Chain {
                records,
                ends: false,
            });
        };
        records.push(capped(record, ttl_max));
        name = target;
    }
    Err(Failure::Malformed)
}

/// TTLs with the top bit set count as zero (RFC 2181 8).
fn capped(record: &Record, ttl_max: u32) -> Record {
    let ttl = if record.ttl > i32::MAX.unsigned_abs() {
        0
    } else {
        record.ttl.min(ttl_max)
    };
    Record {
        ttl,
        ..record.clone()
    }
}
