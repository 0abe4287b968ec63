//! Record sets of several upstreams as one (R2.7).

use std::collections::{BTreeMap, BTreeSet};

use super::answer::Turns;
use super::{Data, Name, Positive, Preference, Record, RecordType, Voter};
use crate::rng::Rng;

#[derive(Debug)]
pub(super) struct United {
    pub(super) records: Vec<Record>,
    pub(super) turns: Turns,
}

/// Duplicates dropped, one TTL per set (the lowest), aliases before what they lead to, the local
/// class first, at most `records_max`: what is too much goes by preference class, then at random.
pub(super) fn union(chosen: &[(&Voter, &Positive)], records_max: usize, random: u64) -> United {
    let mut rng = Rng::new(random);
    let is_alias = |record: &&Record| matches!(record.data, Data::Cname(_));
    let all = || chosen.iter().flat_map(|(_, positive)| &positive.records);
    let lowest = lowest_ttls(all());
    let mut seen = BTreeSet::new();
    let mut records: Vec<Record> = Vec::new();
    let mut take = |record: &Record, records: &mut Vec<Record>| {
        if seen.insert((record.owner.clone(), record.data.clone())) {
            let key = (record.owner.clone(), record.data.rtype());
            let ttl = lowest.get(&key).copied().unwrap_or(record.ttl);
            records.push(Record {
                ttl,
                ..record.clone()
            });
        }
    };
    for record in all().filter(is_alias) {
        take(record, &mut records);
    }
    records.truncate(records_max);
    let mut starts = Vec::with_capacity(Preference::ALL.len());
    for class in Preference::ALL {
        let start = records.len();
        starts.push(u16::try_from(start).unwrap_or(u16::MAX));
        let of_class = chosen.iter().filter(|(voter, _)| voter.class() == class);
        for record in of_class
            .flat_map(|(_, positive)| &positive.records)
            .filter(|record| !is_alias(record))
        {
            take(record, &mut records);
        }
        if records.len() > records_max {
            shuffle(&mut records[start..], &mut rng);
            records.truncate(records_max);
        }
    }
    let turns = Turns {
        local: starts[0],
        others: starts[1],
    };
    United { records, turns }
}

/// Records of several additional sections, each once.
pub(super) fn unite<'a>(
    records: impl Iterator<Item = &'a Record> + Clone,
    records_max: usize,
) -> Vec<Record> {
    let lowest = lowest_ttls(records.clone());
    let mut seen = BTreeSet::new();
    records
        .filter(|record| seen.insert((record.owner.clone(), record.data.clone())))
        .take(records_max)
        .map(|record| {
            let key = (record.owner.clone(), record.data.rtype());
            Record {
                ttl: lowest.get(&key).copied().unwrap_or(record.ttl),
                ..record.clone()
            }
        })
        .collect()
}

/// RFC 2181 5.2: one set, one TTL.
fn lowest_ttls<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<(Name, RecordType), u32> {
    let mut lowest = BTreeMap::new();
    for record in records {
        let key = (record.owner.clone(), record.data.rtype());
        let ttl = lowest.entry(key).or_insert(record.ttl);
        *ttl = (*ttl).min(record.ttl);
    }
    lowest
}

fn shuffle(records: &mut [Record], rng: &mut Rng) {
    for at in (1..records.len()).rev() {
        let bound = u64::try_from(at + 1).unwrap_or(u64::MAX);
        let with = usize::try_from(rng.below(bound)).unwrap_or(0);
        records.swap(at, with);
    }
}
