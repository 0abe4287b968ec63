//! The end of a fan-out: what it teaches, what is stored of it, what its askers are told.

use core::time::Duration;
use std::sync::Arc;

use super::Resolver;
use super::ask::stale_of;
use crate::names::cache::{CacheStamp, Key, Sources};
use crate::names::health::Condition;
use crate::names::merge::{Ballot, Merged};
use crate::names::view::UNSURE_TTL;
use crate::names::{
    Answer, ClientClass, Data, Decision, Failure, Flags, Policy, Question, Rcode, RecordType,
    Upstream, View, Vote, Voter,
};
use crate::time::{Mono, Now};

/// Life of a "no" that came without a SOA, seconds (R5.2).
const BARE_DENIAL_TTL: u32 = 1;

/// What a fan-out is about.
#[derive(Debug)]
pub(super) struct About {
    pub(super) view: Arc<View>,
    pub(super) question: Arc<Question>,
    pub(super) flags: Flags,
    pub(super) class: ClientClass,
    pub(super) policy: Policy,
    /// Who was asked.
    pub(super) asked: Vec<Arc<Upstream>>,
    /// What was known to have changed when it began.
    pub(super) epoch: u64,
    /// When it began: whoever answers did not know less than that.
    pub(super) started: Mono,
    /// The expired answer, should nothing better come (R5.3).
    pub(super) stale: Option<Expired>,
}

/// An expired answer, and whose records it has.
#[derive(Debug)]
pub(super) struct Expired {
    pub(super) answer: Arc<Answer>,
    pub(super) givers: Box<[u32]>,
}

impl Expired {
    /// Whether one of those who gave it says "no" now: others that are missing bring nothing back.
    pub(super) fn is_withdrawn(&self, votes: &[Ballot]) -> bool {
        votes.iter().any(|(voter, vote)| {
            matches!(vote, Vote::NoData(_) | Vote::NxDomain(_))
                && voter
                    .upstream()
                    .is_some_and(|upstream| self.givers.contains(&upstream.giver()))
        })
    }
}

impl About {
    pub(super) fn key(&self) -> Key<'_> {
        Key {
            question: &self.question,
            flags: self.flags,
            asker: self.class,
        }
    }
}

/// The outcome, as all askers share it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) choices: Vec<(u32, Arc<Answer>)>,
    pub(super) stamp: Option<CacheStamp>,
}

impl Told {
    pub(super) fn one(answer: Answer) -> Self {
        Self {
            choices: vec![(1, Arc::new(answer))],
            stamp: None,
        }
    }
}

impl Resolver {
    pub(super) fn conclude(
        &mut self,
        about: &About,
        votes: &[Ballot],
        merged: Merged,
        now: Now,
    ) -> Told {
        self.learn(about, votes, now);
        let key = about.key();
        let mut choices = merged.choices;
        let is_answered = choices
            .first()
            .is_some_and(|(_, first)| first.rcode == Rcode::NO_ERROR);
        if !is_answered && let Some(nodata) = self.other_type(about, &choices, now) {
            choices = vec![(1, nodata)];
        }
        let Some((_, first)) = choices.first() else {
            return Told::one(Answer::code(Rcode::SERV_FAIL, Decision::VotesMissing));
        };
        let mut stale = about.stale.as_ref();
        if stale.is_some_and(|stale| stale.is_withdrawn(votes)) {
            self.cache.withdraw(key, now);
            stale = None;
        }
        if !matches!(first.rcode, Rcode::NO_ERROR | Rcode::NX_DOMAIN) {
            if let Some(stale) = stale {
                self.cache.not_confirmed(key, now);
                self.cache.count_stale();
                return Told::one(stale_of(&stale.answer));
            }
            return Told::one(first.clone());
        }
        // What is not sure does not take the place of what once was, and that a name is gone
        // without the word of one who may have it is not sure.
        let is_unsure = !first.is_positive() && first.decision == Decision::VotesMissing;
        if is_unsure && let Some(stale) = stale {
            self.cache.not_confirmed(key, now);
            if first.rcode == Rcode::NX_DOMAIN {
                self.cache.count_stale();
                return Told::one(stale_of(&stale.answer));
            }
            return Told::one(first.clone());
        }
        let life = self.life(about, choices.iter().map(|(_, answer)| answer), now);
        let choices: Vec<(u32, Arc<Answer>)> = choices
            .into_iter()
            .map(|(weight, answer)| (weight, Arc::new(about.sharing(answer))))
            .collect();
        // What changed meanwhile may have made it wrong (R5.6).
        let stamp = if about.epoch == self.epoch {
            let sources = sources(votes);
            self.cache.store(key, &choices, life, sources, now)
        } else {
            None
        };
        Told { choices, stamp }
    }

    /// Counts missing votes, and remembers who failed at this question (R3.8).
    fn learn(&mut self, about: &About, votes: &[Ballot], now: Now) {
        for (voter, vote) in votes {
            let failure = match vote {
                Vote::Failed(failure) => *failure,
                Vote::NoOpinion if voter.is_owner() => Failure::ErrorCode,
                _ => {
                    if let Voter::Upstream(upstream) = voter {
                        self.memory.forgive(&upstream.id, &about.question);
                    }
                    continue;
                }
            };
            *self.counters.failures.entry(failure).or_default() += 1;
            let Voter::Upstream(upstream) = voter else {
                continue;
            };
            let was_asked = about.asked.iter().any(|asked| Arc::ptr_eq(asked, upstream));
            let is_sure = match failure {
                Failure::ErrorCode | Failure::Malformed | Failure::Foreign => true,
                // Silence of one that speaks to others may be a message lost.
                Failure::TimedOut => self.health.condition(&upstream.id) != Condition::Up,
                Failure::Network
                | Failure::Local
                | Failure::NobodyLive
                | Failure::Down
                | Failure::Overloaded
                | Failure::CaseChanged => continue,
            };
            if was_asked && *vote != Vote::NoOpinion {
                let is_owner = upstream.is_owner();
                let (id, question) = (&upstream.id, &*about.question);
                self.memory
                    .remember(id, is_owner, question, failure, is_sure, now);
            }
        }
    }

    /// R2.10: a name that has addresses of one family exists, whatever was said of the other.
    fn other_type(&self, about: &About, choices: &[(u32, Answer)], now: Now) -> Option<Answer> {
        let (_, first) = choices.first()?;
        let other = match about.question.rtype {
            RecordType::AAAA => RecordType::A,
            // That no address of this family is known does not follow from a failure.
            RecordType::A if first.rcode == Rcode::NX_DOMAIN => RecordType::AAAA,
            _ => return None,
        };
        self.cache.knows(about.key(), other, now).then(|| {
            let mut nodata = Answer::code(Rcode::NO_ERROR, Decision::OtherType);
            nodata.authority = vec![about.view.soa_above(&about.question.name, UNSURE_TTL)];
            nodata
        })
    }

    /// How long the answer is kept (R5.1, R5.2).
    fn life<'a>(
        &self,
        about: &About,
        answers: impl Iterator<Item = &'a Answer>,
        now: Now,
    ) -> Duration {
        // Of what was known when it was asked for, not of when the reply came.
        let age = now.mono.saturating_since(about.started);
        let is_network_name = about.view.is_network_name(&about.question.name);
        let merges = matches!(about.policy, Policy::Union | Policy::Weighted);
        let life = |answer: &Answer| {
            let seconds = if answer.truncated {
                0
            } else if !answer.is_denial() {
                let lowest = answer.answers.iter().map(|record| record.ttl).min();
                let lowest = lowest.unwrap_or(0);
                if merges && answer.decision == Decision::VotesMissing {
                    lowest.min(UNSURE_TTL)
                } else {
                    lowest
                }
            } else {
                let soa = answer
                    .authority
                    .iter()
                    .find(|record| matches!(record.data, Data::Soa(_)));
                soa.map_or(BARE_DENIAL_TTL, |record| record.ttl)
            };
            let limit = match (is_network_name, answer.is_denial()) {
                (false, _) => Duration::MAX,
                (true, false) => self.settings.network_life_max.saturating_sub(age),
                (true, true) => self.settings.network_denial_max.saturating_sub(age),
            };
            Duration::from_secs(seconds.into()).min(limit)
        };
        answers.map(life).min().unwrap_or_default()
    }
}

impl About {
    /// Lets records share the question's own name.
    fn sharing(&self, mut answer: Answer) -> Answer {
        for record in &mut answer.answers {
            if record.owner == self.question.name {
                record.owner = self.question.name.clone();
            }
        }
        answer
    }
}

fn sources(votes: &[Ballot]) -> Sources {
    let of = |counts: fn(&Vote) -> bool, number: fn(&Upstream) -> u32| {
        votes
            .iter()
            .filter(|(_, vote)| counts(vote))
            .filter_map(|(voter, _)| voter.upstream().map(|upstream| number(upstream)))
            .collect()
    };
    Sources {
        all: of(|vote| !vote.is_missing(true), Upstream::source),
        givers: of(Vote::is_positive, Upstream::giver),
    }
}
