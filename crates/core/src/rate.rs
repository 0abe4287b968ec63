//! How often somebody may ask: a token bucket per key, in bounded memory.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::time::Mono;

/// Calls per second, and how many may come at once after silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0 = without limit.
    pub per_second: u32,
    pub burst: u32,
}

/// A look for buckets that are full again takes time in proportion to their number.
const PRUNE_PAUSE: Duration = Duration::from_secs(1);

/// One bucket, full at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket(Mono);

impl Bucket {
    /// Takes so many tokens at once; false, and none taken, when there are fewer.
    pub fn take(&mut self, rate: Rate, tokens: u32, now: Mono) -> bool {
        let interval = rate.interval();
        interval.is_none_or(|interval| take(&mut self.0, interval, rate.burst, tokens, now))
    }
}

impl Rate {
    /// Nanoseconds between two tokens; None without limit.
    fn interval(self) -> Option<u64> {
        let interval = 1_000_000_000_u64.checked_div(self.per_second.into())?;
        // Faster than the clock's step: a token a nanosecond.
        Some(interval.max(1))
    }
}

/// One bucket per key. A full bucket needs no memory; beyond `keys_max` others, newcomers
/// share one bucket, so that many keys are no way around the limit.
#[derive(Clone, Debug)]
pub struct Buckets<K> {
    rate: Rate,
    keys_max: usize,
    /// When each bucket is full again.
    full_at: BTreeMap<K, Mono>,
    shared: Mono,
    prune_at: Mono,
}

impl<K: Ord + Clone> Buckets<K> {
    pub const fn new(rate: Rate, keys_max: usize) -> Self {
        Self {
            rate,
            keys_max,
            full_at: BTreeMap::new(),
            shared: Mono(0),
            prune_at: Mono(0),
        }
    }

    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one token of that key; false when there is none.
    pub fn admit(&mut self, key: &K, now: Mono) -> bool {
        let Some(interval) = self.rate.interval() else {
            return true;
        };
        if let Some(full_at) = self.full_at.get_mut(key) {
            return take(full_at, interval, self.rate.burst, 1, now);
        }
        if self.full_at.len() >= self.keys_max {
            self.prune(now);
        }
        if self.full_at.len() >= self.keys_max {
            return take(&mut self.shared, interval, self.rate.burst, 1, now);
        }
        let full_at = self.full_at.entry(key.clone()).or_insert(now);
        take(full_at, interval, self.rate.burst, 1, now)
    }

    /// Forgets buckets that are full.
    fn prune(&mut self, now: Mono) {
        if self.prune_at <= now {
            self.prune_at = now + PRUNE_PAUSE;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
    }

    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }
}

fn take(full_at: &mut Mono, interval: u64, burst: u32, tokens: u32, now: Mono) -> bool {
    let taken = Duration::from_nanos(interval.saturating_mul(tokens.into()));
    let next = (*full_at).max(now) + taken;
    let room = Duration::from_nanos(interval.saturating_mul(burst.max(1).into()));
    let admitted = next.saturating_since(now) <= room;
    if admitted {
        *full_at = next;
    }
    admitted
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 5,
    };

    fn admitted(buckets: &mut Buckets<u32>, key: u32, calls: usize, now: Mono) -> usize {
        (0..calls).filter(|_| buckets.admit(&key, now)).count()
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_nobody_elses() {
        let mut buckets = Buckets::new(RATE, 8);
        let start = Mono::from_secs(100);
        assert_eq!(admitted(&mut buckets, 1, 50, start), 5);
        assert_eq!(
            admitted(&mut buckets, 2, 50, start),
            5,
            "a bucket of its own"
        );
        assert_eq!(
            admitted(&mut buckets, 1, 50, start + Duration::from_millis(99)),
            0
        );
        assert_eq!(
            admitted(&mut buckets, 1, 50, start + Duration::from_millis(100)),
            1
        );
        assert_eq!(
            admitted(&mut buckets, 1, 50, start + Duration::from_millis(400)),
            3
        );
        // Silence fills it, no further than the burst.
        assert_eq!(
            admitted(&mut buckets, 1, 50, start + Duration::from_secs(60)),
            5
        );
    }

    #[test]
    fn over_any_time_no_more_pass_than_rate_and_burst_allow() {
        let mut buckets = Buckets::new(RATE, 8);
        let passed: usize = (0..10_000)
            .map(|step| admitted(&mut buckets, 1, 1, Mono(step * 3_000_000)))
            .sum();
        assert!((300..=305).contains(&passed), "{passed} in 30 s");
    }

    #[test]
    fn many_keys_take_bounded_memory_and_are_no_way_around() {
        let mut buckets = Buckets::new(RATE, 8);
        let start = Mono::from_secs(1);
        let passed: usize = (0..1000)
            .map(|key| admitted(&mut buckets, key, 1, start))
            .sum();
        assert_eq!((passed, buckets.len()), (8 + 5, 8));
        // Full buckets make room.
        let later = start + Duration::from_secs(10);
        let passed: usize = (1000..1008)
            .map(|key| admitted(&mut buckets, key, 5, later))
            .sum();
        assert_eq!((passed, buckets.len()), (40, 8));
    }

    #[test]
    fn several_tokens_are_taken_together_or_not_at_all() {
        let mut bucket = Bucket::default();
        let start = Mono::from_secs(100);
        assert!(bucket.take(RATE, 4, start));
        assert!(!bucket.take(RATE, 2, start));
        assert!(bucket.take(RATE, 1, start));
        assert!(!bucket.take(RATE, 1, start));
        assert!(bucket.take(RATE, 3, start + Duration::from_millis(300)));
        let none = Rate {
            per_second: 0,
            burst: 0,
        };
        assert!(bucket.take(none, 1000, start));
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let none = Rate {
            per_second: 0,
            burst: 0,
        };
        let mut buckets = Buckets::new(none, 8);
        assert_eq!(admitted(&mut buckets, 1, 10_000, Mono(1)), 10_000);
        assert!(buckets.is_empty());
        // One at a time where no burst is given.
        let mut strict = Buckets::new(Rate { burst: 0, ..RATE }, 8);
        assert_eq!(admitted(&mut strict, 1, 10, Mono(1)), 1);
    }
}
