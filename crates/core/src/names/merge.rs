//! Votes into one answer (R2.2, R2.4, R2.5, R2.7). Pure: depends on the set of votes, never on
//! the order in which they arrived (R2.6).

use std::collections::BTreeMap;

use super::view::{NEGATIVE_TTL, UNSURE_TTL};
use super::{
    Answer, Data, Decision, ExtendedError, Name, Policy, Rcode, Record, View, Vote, Voter,
};

/// Largest merged set (R2.7).
pub const MERGED_RECORDS_MAX: usize = 64;

/// Merges one vote per voter about `name`; `view` gives the SOA and the own domain's name.
/// `rotation` turns the order of a union, so that repeated answers spread load.
pub fn merge(
    view: &View,
    name: &Name,
    policy: Policy,
    votes: &BTreeMap<Voter, Vote>,
    rotation: u64,
) -> Answer {
    let missing = missing_domains(view, votes);
    let decision = if missing.is_empty() {
        Decision::Merged
    } else {
        Decision::VotesMissing
    };
    let authoritative = votes.keys().all(|voter| *voter == Voter::Local);
    let mut answer = Answer::code(Rcode::NO_ERROR, decision);
    answer.authoritative = authoritative;

    let positives: Vec<(&Voter, &Vote)> = votes
        .iter()
        .filter(|(_, vote)| matches!(vote, Vote::Positive { .. }))
        .collect();
    if !positives.is_empty() {
        let chosen = match policy {
            Policy::FirstPositive => &positives[..1],
            Policy::Union => &positives[..],
        };
        answer.truncated = chosen.iter().any(|(_, vote)| {
            matches!(
                vote,
                Vote::Positive {
                    truncated: true,
                    ..
                }
            )
        });
        answer.answers = union(chosen, rotation);
        answer.authoritative = chosen.iter().all(|(voter, _)| **voter == Voter::Local);
        return answer;
    }
    if votes.values().any(|vote| *vote == Vote::NoData) {
        // The name exists; with votes missing only a short life (R2.5).
        let ttl = if missing.is_empty() {
            NEGATIVE_TTL
        } else {
            UNSURE_TTL
        };
        answer.authority = vec![view.soa_above(name, ttl)];
        return answer;
    }
    if missing.is_empty() || cfg!(feature = "plant-merge") {
        answer.rcode = Rcode::NX_DOMAIN;
        answer.authority = vec![view.soa_above(name, NEGATIVE_TTL)];
        return answer;
    }
    answer.rcode = Rcode::SERV_FAIL;
    answer.authoritative = false;
    answer.because(
        ExtendedError::NO_REACHABLE_AUTHORITY,
        format!("no answer from {}", missing.join(", ")),
    )
}

/// Domains without a vote, sorted, each once.
fn missing_domains(view: &View, votes: &BTreeMap<Voter, Vote>) -> Vec<String> {
    let mut domains: Vec<String> = votes
        .iter()
        .filter(|(_, vote)| vote.is_missing())
        .map(|(voter, _)| match voter {
            Voter::Local => view.domain().to_string(),
            Voter::Upstream(domain, _) => domain.to_string(),
        })
        .collect();
    domains.dedup();
    domains
}

/// R2.7: duplicates dropped, one TTL per set (the lowest), the local class first, the others
/// rotated, at most [`MERGED_RECORDS_MAX`]. Aliases stay before what they lead to.
fn union(chosen: &[(&Voter, &Vote)], rotation: u64) -> Vec<Record> {
    let mut aliases: Vec<Record> = Vec::new();
    let mut local: Vec<Record> = Vec::new();
    let mut others: Vec<Record> = Vec::new();
    for (voter, vote) in chosen {
        let Vote::Positive { records, .. } = vote else {
            continue;
        };
        for record in records {
            let list = match (&record.data, voter) {
                (Data::Cname(_), _) => &mut aliases,
                (_, Voter::Local) => &mut local,
                (_, Voter::Upstream(..)) => &mut others,
            };
            list.push(record.clone());
        }
    }
    rotate(&mut local, rotation);
    rotate(&mut others, rotation);
    let mut merged: Vec<Record> = Vec::new();
    for record in aliases.into_iter().chain(local).chain(others) {
        let known = merged
            .iter()
            .position(|other| other.owner == record.owner && other.data == record.data);
        match known {
            Some(at) => merged[at].ttl = merged[at].ttl.min(record.ttl),
            None if merged.len() < MERGED_RECORDS_MAX => merged.push(record),
            None => {}
        }
    }
    lowest_ttl_per_set(&mut merged);
    merged
}

fn rotate(records: &mut [Record], rotation: u64) {
    if let Some(by) = u64::try_from(records.len())
        .ok()
        .and_then(|len| rotation.checked_rem(len))
    {
        records.rotate_left(usize::try_from(by).unwrap_or(0));
    }
}

/// RFC 2181 5.2: one set, one TTL.
fn lowest_ttl_per_set(records: &mut [Record]) {
    let mut lowest = BTreeMap::new();
    for record in records.iter() {
        let key = (record.owner.clone(), record.data.rtype());
        let ttl = lowest.entry(key).or_insert(record.ttl);
        *ttl = (*ttl).min(record.ttl);
    }
    for record in records {
        let key = (record.owner.clone(), record.data.rtype());
        record.ttl = lowest.get(&key).copied().unwrap_or(record.ttl);
    }
}
