//! Votes into one answer (R2.2, R2.4, R2.5, R2.7, R2.8). Pure: depends on the set of votes, never
//! on the order in which they arrived (R2.6).

use super::answer::Turns;
use super::union::{union, unite};
use super::view::{NEGATIVE_TTL, UNSURE_TTL};
use super::{
    Answer, Data, Decision, ExtendedError, Failure, Flags, Negative, Policy, Positive, Question,
    Rcode, RecordType, View, Vote, Voter,
};

/// Largest merged set (R2.7).
pub const MERGED_RECORDS_MAX: usize = 64;

/// What votes are merged about.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// Gives the SOA and the limits.
    pub view: &'a View,
    pub question: &'a Question,
    pub flags: Flags,
    pub policy: Policy,
    /// Chooses what is left out of a set that is too large.
    pub random: u64,
}

/// One answer, or under [`Policy::Weighted`] several, of which each reply gets one by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Never empty.
    pub choices: Vec<(u32, Answer)>,
}

impl Merged {
    fn one(answer: Answer) -> Self {
        Self {
            choices: vec![(1, answer)],
        }
    }

    /// The choice that `random` falls on.
    pub fn choose(&self, random: u64) -> &Answer {
        let at = choose(self.choices.iter().map(|(weight, _)| *weight), random);
        &self.choices[at].1
    }
}

/// An index by weight; all weights zero: all equal.
pub(super) fn choose(weights: impl Iterator<Item = u32> + Clone, random: u64) -> usize {
    let sum: u64 = weights.clone().map(u64::from).sum();
    let count = u64::try_from(weights.clone().count()).unwrap_or(u64::MAX);
    let Some(mut left) = random.checked_rem(sum) else {
        return usize::try_from(random.checked_rem(count).unwrap_or(0)).unwrap_or(0);
    };
    for (at, weight) in weights.enumerate() {
        match left.checked_sub(u64::from(weight)) {
            Some(rest) => left = rest,
            None => return at,
        }
    }
    0
}

/// A vote and whose it is.
pub type Ballot = (Voter, Vote);

/// Merges one vote per voter.
pub fn merge(about: Merge<'_>, votes: &[Ballot]) -> Merged {
    let mut votes: Vec<&Ballot> = votes.iter().collect();
    votes.sort_by(|a, b| a.0.cmp(&b.0));
    let has_word = |vote: &Vote| !vote.is_missing(false) && *vote != Vote::NoOpinion;
    if about.policy == Policy::Race && votes.iter().any(|(_, vote)| has_word(vote)) {
        // Whoever speaks first decides: what others failed to say does not count.
        votes.retain(|(_, vote)| has_word(vote));
    }
    let missing = missing(&votes);
    let positives: Vec<(&Voter, &Positive)> = votes
        .iter()
        .filter_map(|(voter, vote)| match vote {
            Vote::Positive(positive) => Some((voter, positive)),
            _ => None,
        })
        .collect();
    let decision = if missing.is_empty() {
        Decision::Merged
    } else {
        Decision::VotesMissing
    };
    if !positives.is_empty() {
        return positive(about, &positives, decision);
    }
    let mut answer = Answer::code(Rcode::NO_ERROR, decision);
    answer.authoritative = votes.iter().all(|(voter, _)| *voter == Voter::Local);
    let nodata = votes.iter().find_map(|(voter, vote)| match vote {
        Vote::NoData(negative) => Some((voter, negative)),
        _ => None,
    });
    // With votes missing "no" has only a short life (R2.5).
    let ttl = if missing.is_empty() {
        NEGATIVE_TTL
    } else {
        UNSURE_TTL
    };
    if let Some((voter, negative)) = nodata {
        deny(about, voter, negative, ttl, &mut answer);
        return Merged::one(answer);
    }
    let nxdomain = votes.iter().find_map(|(voter, vote)| match vote {
        Vote::NxDomain(negative) => Some((voter, negative)),
        _ => None,
    });
    let is_denied = denied(&votes);
    #[cfg(feature = "plants")]
    let is_denied = is_denied || crate::plants::Plant::Merge.is_chosen();
    if let Some((voter, negative)) = nxdomain
        && is_denied
    {
        answer.rcode = Rcode::NX_DOMAIN;
        deny(about, voter, negative, ttl, &mut answer);
        return Merged::one(answer);
    }
    answer.authoritative = false;
    Merged::one(unanswered(&votes, &missing, answer))
}

/// R2.4: every owner said nxdomain, and every resolver that is not marked down said that or has
/// no opinion.
fn denied(votes: &[&Ballot]) -> bool {
    votes.iter().all(|(voter, vote)| match vote {
        Vote::NxDomain(_) => true,
        Vote::NoOpinion | Vote::Failed(Failure::Down) => !voter.is_owner(),
        Vote::Positive(_) | Vote::NoData(_) | Vote::Failed(_) => false,
    })
}

/// R2.4, R2.5, R3.10: nobody can say.
fn unanswered(votes: &[&Ballot], missing: &[&str], mut answer: Answer) -> Answer {
    if missing.is_empty() {
        answer.rcode = Rcode::REFUSED;
        answer.decision = Decision::NoOpinion;
        return answer.because(
            ExtendedError::NOT_AUTHORITATIVE,
            "no resolver answers for this name",
        );
    }
    let is = |failure: Failure| {
        votes
            .iter()
            .filter(|(voter, vote)| vote.is_missing(voter.is_owner()))
            .all(|(_, vote)| *vote == Vote::Failed(failure))
    };
    if is(Failure::Overloaded) {
        answer.rcode = Rcode::REFUSED;
        answer.decision = Decision::Overload;
        return answer.because(ExtendedError::OTHER, "too many questions in flight");
    }
    answer.rcode = Rcode::SERV_FAIL;
    let code = if is(Failure::Network) {
        ExtendedError::NETWORK_ERROR
    } else {
        ExtendedError::NO_REACHABLE_AUTHORITY
    };
    answer.because(code, format!("no answer from {}", missing.join(", ")))
}

/// Who gave no vote, sorted, each once: domains, and resolvers by name.
fn missing<'a>(votes: &[&'a Ballot]) -> Vec<&'a str> {
    let mut missing: Vec<&str> = votes
        .iter()
        .filter(|(voter, vote)| vote.is_missing(voter.is_owner()))
        .filter_map(|(voter, _)| voter.upstream().map(|upstream| upstream.label()))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// The "no" of one voter, with the network's SOA where the voter brought none of its own.
fn deny(about: Merge<'_>, voter: &Voter, negative: &Negative, ttl: u32, answer: &mut Answer) {
    answer.answers.clone_from(&negative.aliases);
    answer.authenticated = negative.authenticated;
    if negative.authority.is_empty() && voter.is_owner() {
        answer.authority = vec![about.view.soa_above(&about.question.name, ttl)];
    } else {
        answer.authority.clone_from(&negative.authority);
    }
    if answer.decision == Decision::VotesMissing {
        for record in &mut answer.authority {
            record.ttl = record.ttl.min(UNSURE_TTL);
        }
    }
}

fn positive(about: Merge<'_>, positives: &[(&Voter, &Positive)], decision: Decision) -> Merged {
    let one = &positives[..1];
    let one_of = |chosen: &[(&Voter, &Positive)]| united(about, chosen, decision);
    match about.policy {
        Policy::FirstPositive | Policy::Race | Policy::Prefer => Merged::one(one_of(one)),
        Policy::Union if stays_single(about, positives) => Merged::one(one_of(one)),
        Policy::Union => Merged::one(one_of(positives)),
        Policy::Weighted => Merged {
            choices: positives
                .iter()
                .map(|positive| {
                    let weight = positive.0.upstream().map_or(1, |upstream| upstream.weight);
                    (weight, one_of(&[*positive]))
                })
                .collect(),
        },
    }
}

/// R2.8: sets that make sense only whole, from one hand (RFC 2181 5.4).
fn stays_single(about: Merge<'_>, positives: &[(&Voter, &Positive)]) -> bool {
    if about.flags.dnssec_ok || about.flags.checking_disabled {
        return true;
    }
    if matches!(
        about.question.rtype,
        RecordType::SOA
            | RecordType::NS
            | RecordType::DS
            | RecordType::DNSKEY
            | RecordType::CNAME
            | RecordType::RRSIG
    ) {
        return true;
    }
    let mut records = positives.iter().flat_map(|(_, positive)| &positive.records);
    if records.any(|record| record.data.rtype() == RecordType::RRSIG) {
        return true;
    }
    // An alias stands alone at its name: all have the same one, or none has any.
    let alias = |positive: &Positive| {
        positive
            .records
            .iter()
            .find_map(|record| match &record.data {
                Data::Cname(target) if record.owner == about.question.name => Some(target.clone()),
                _ => None,
            })
    };
    let first = alias(positives[0].1);
    positives
        .iter()
        .any(|(_, positive)| alias(positive) != first)
}

fn united(about: Merge<'_>, chosen: &[(&Voter, &Positive)], decision: Decision) -> Answer {
    let mut answer = Answer::code(Rcode::NO_ERROR, decision);
    answer.truncated = chosen.iter().any(|(_, positive)| positive.truncated);
    answer.authenticated = chosen.iter().all(|(_, positive)| positive.authenticated);
    answer.authoritative = chosen.iter().all(|(voter, _)| **voter == Voter::Local);
    if let [(_, only)] = chosen {
        answer.answers.clone_from(&only.records);
        answer.authority.clone_from(&only.authority);
        answer.additional.clone_from(&only.additional);
        if !(about.flags.dnssec_ok || about.flags.checking_disabled) {
            answer.turns = Turns::of_one(&only.records);
        }
        return answer;
    }
    let records_max = about.view.records_max;
    let united = union(chosen, records_max, about.random);
    answer.answers = united.records;
    answer.turns = united.turns;
    answer.additional = unite(
        chosen.iter().flat_map(|(_, positive)| &positive.additional),
        records_max,
    );
    answer
}
