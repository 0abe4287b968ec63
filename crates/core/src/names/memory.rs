//! Failures of one question at one upstream, so that it is not asked again at once (R3.8,
//! RFC 9520).

use core::time::Duration;

use super::index::{HashKey, Index};
use super::{Failure, Question, UpstreamId};
use crate::time::{Mono, Now};

/// Failures remembered; the oldest go.
const FAILURES_MAX: usize = 8_192;
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause for a resolver; a router of the network comes back sooner, as it must be in use
/// again within two seconds of its return.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const OWNER_PAUSE_MAX: Duration = Duration::from_secs(2);
/// A failure that long ago does not lengthen the next pause.
const FORGET_AFTER: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Failed {
    upstream: UpstreamId,
    question: Question,
    hash: u32,
    failure: Failure,
    pause: Duration,
    until: Mono,
}

/// A ring of failures with an index.
#[derive(Debug)]
pub(super) struct FailureMemory {
    key: HashKey,
    index: Index,
    ring: Vec<Option<Failed>>,
    next: usize,
}

impl FailureMemory {
    pub(super) const fn new(key: HashKey) -> Self {
        Self {
            key,
            index: Index::new(),
            ring: Vec::new(),
            next: 0,
        }
    }

    /// Why the upstream is not asked this now.
    pub(super) fn recall(
        &self,
        upstream: &UpstreamId,
        question: &Question,
        now: Now,
    ) -> Option<Failure> {
        if self.ring.is_empty() {
            return None;
        }
        let place = self.find(upstream, question)?;
        let failed = self.at(place)?;
        (failed.until > now.mono).then_some(failed.failure)
    }

    /// The pauses of one failure after another: 1 s, 2 s, 4 s and so on. `is_sure`: not just a
    /// message that was lost; of one that may be, the first costs no pause.
    pub(super) fn remember(
        &mut self,
        upstream: &UpstreamId,
        is_owner: bool,
        question: &Question,
        failure: Failure,
        is_sure: bool,
        now: Now,
    ) {
        let pause_max = if is_owner { OWNER_PAUSE_MAX } else { PAUSE_MAX };
        let known = self.find(upstream, question);
        if let Some(known) = known.and_then(|place| self.at_mut(place)) {
            let is_recent = known.until + FORGET_AFTER > now.mono;
            known.pause = if is_recent {
                (known.pause * 2).clamp(PAUSE_MIN, pause_max)
            } else {
                PAUSE_MIN
            };
            known.failure = failure;
            known.until = now.mono + known.pause;
            return;
        }
        let pause = if is_sure { PAUSE_MIN } else { Duration::ZERO };
        let hash = self.hash(upstream, question);
        let failed = Failed {
            upstream: upstream.clone(),
            question: question.clone(),
            hash,
            failure,
            pause,
            until: now.mono + pause,
        };
        if self.next >= self.ring.len() {
            self.ring.push(None);
        }
        let place = u32::try_from(self.next).unwrap_or(0);
        self.take(place);
        if let Some(room) = self.ring.get_mut(self.next) {
            *room = Some(failed);
            self.index.insert(hash, place);
        }
        self.next = (self.next + 1) % FAILURES_MAX;
    }

    /// It answered this question.
    pub(super) fn forgive(&mut self, upstream: &UpstreamId, question: &Question) {
        if self.ring.is_empty() {
            return;
        }
        if let Some(place) = self.find(upstream, question) {
            self.take(place);
        }
    }

    /// It is back.
    pub(super) fn forgive_all(&mut self, upstream: &UpstreamId) {
        let places: Vec<u32> = (0_u32..)
            .zip(&self.ring)
            .filter(|(_, failed)| failed.as_ref().is_some_and(|one| one.upstream == *upstream))
            .map(|(place, _)| place)
            .collect();
        for place in places {
            self.take(place);
        }
    }

    fn take(&mut self, place: u32) {
        let room = usize::try_from(place)
            .ok()
            .and_then(|at| self.ring.get_mut(at));
        if let Some(failed) = room.and_then(Option::take) {
            self.index.remove(failed.hash, place);
        }
    }

    fn find(&self, upstream: &UpstreamId, question: &Question) -> Option<u32> {
        let hash = self.hash(upstream, question);
        self.index.find(hash, |place| {
            self.at(place)
                .is_some_and(|known| known.upstream == *upstream && known.question == *question)
        })
    }

    fn hash(&self, upstream: &UpstreamId, question: &Question) -> u32 {
        let number = u64::from(upstream.number()) << 32 | u64::from(question.rtype.0);
        self.key.hash_name(&question.name, number)
    }

    fn at(&self, place: u32) -> Option<&Failed> {
        self.ring.get(usize::try_from(place).ok()?)?.as_ref()
    }

    fn at_mut(&mut self, place: u32) -> Option<&mut Failed> {
        self.ring.get_mut(usize::try_from(place).ok()?)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Name, RecordType};

    fn at(millis: u64) -> Now {
        Now {
            mono: Mono(millis * 1_000_000),
            ..Now::default()
        }
    }

    fn question(text: &str) -> Question {
        Question::new(Name::parse(text).unwrap(), RecordType::A)
    }

    #[test]
    fn r3_8_failures_are_remembered_longer_each_time() {
        let mut memory = FailureMemory::new(HashKey::new(1, 2));
        let (upstream, other) = (UpstreamId::new("one"), UpstreamId::new("other"));
        let asked = question("a.test");
        let mut now = 0;
        for pause in [1_u64, 2, 4, 8, 16, 32, 60, 60] {
            memory.remember(&upstream, false, &asked, Failure::ErrorCode, true, at(now));
            assert_eq!(
                memory.recall(&upstream, &asked, at(now + pause * 1_000 - 1)),
                Some(Failure::ErrorCode)
            );
            now += pause * 1_000;
            assert_eq!(memory.recall(&upstream, &asked, at(now)), None);
        }
        assert_eq!(memory.recall(&other, &asked, at(0)), None);
        assert_eq!(memory.recall(&upstream, &question("b.test"), at(0)), None);
        memory.forgive(&upstream, &asked);
        memory.remember(&upstream, false, &asked, Failure::TimedOut, false, at(now));
        assert_eq!(
            memory.recall(&upstream, &asked, at(now)),
            None,
            "perhaps a lost message"
        );
        memory.remember(&upstream, false, &asked, Failure::TimedOut, false, at(now));
        assert!(memory.recall(&upstream, &asked, at(now)).is_some());
        memory.forgive_all(&upstream);
        assert_eq!(memory.recall(&upstream, &asked, at(now)), None);
    }

    #[test]
    fn r3_8_the_memory_is_bounded() {
        let mut memory = FailureMemory::new(HashKey::new(1, 2));
        let upstream = UpstreamId::new("one");
        for number in 0..FAILURES_MAX + 10 {
            let asked = question(&format!("n{number}.test"));
            memory.remember(&upstream, true, &asked, Failure::ErrorCode, true, at(0));
        }
        assert_eq!(
            (memory.ring.len(), memory.index.len()),
            (FAILURES_MAX, FAILURES_MAX)
        );
        assert_eq!(memory.recall(&upstream, &question("n0.test"), at(1)), None);
        let last = question(&format!("n{}.test", FAILURES_MAX + 9));
        assert!(memory.recall(&upstream, &last, at(1)).is_some());
    }
}
