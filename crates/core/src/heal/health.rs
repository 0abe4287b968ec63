//! The data fact, measured by traffic.

use std::time::Duration;

use crate::rng::Rng;
use crate::time::Mono;

use super::Timing;

/// Whether packets return. Any authentic receipt counts as an answer; probes are sent fast
/// only while packets leave and none returns, else seldom.
#[derive(Clone, Debug)]
pub struct DataHealth {
    timing: Timing,
    up: bool,
    last_receipt: Option<Mono>,
    /// Since when packets leave without a receipt.
    unanswered_since: Option<Mono>,
    next_sample: Mono,
    next_probe: Mono,
    /// Gap to the next probe of a path that has not answered yet; grows to the fast period.
    first_gap: Option<Duration>,
}

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub sample: bool,
    pub probe: bool,
}

impl DataHealth {
    /// A path installed just now counts as up until shown otherwise, and is probed at once.
    pub fn new(timing: Timing, now: Mono) -> Self {
        Self {
            timing,
            up: true,
            last_receipt: None,
            unanswered_since: None,
            next_sample: now + timing.sample_every,
            next_probe: now,
            first_gap: Some(timing.probe_first),
        }
    }

    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// The path is known to be gone.
    pub const fn lost(&mut self) {
        self.up = false;
    }

    /// Takes what the data plane counted.
    pub fn observe(&mut self, last_send: Option<Mono>, last_receipt: Option<Mono>, now: Mono) {
        if last_receipt > self.last_receipt {
            self.last_receipt = last_receipt;
            self.up = true;
            if self.first_gap.take().is_some() {
                self.next_probe = now + self.timing.probe_idle;
            }
        }
        if last_send <= self.last_receipt {
            self.unanswered_since = None;
            return;
        }
        let since = match self.unanswered_since {
            // A receipt after the start of the silence ends it; later sends start another.
            Some(since) if self.last_receipt.is_none_or(|receipt| receipt <= since) => since,
            Some(_) => last_send.unwrap_or(now).min(now),
            None => {
                // From here on probes are urgent.
                self.next_probe = self.next_probe.min(now + self.timing.probe_fast);
                last_send.unwrap_or(now).min(now)
            }
        };
        self.unanswered_since = Some(since);
        if now.saturating_since(since) >= self.timing.data_down_after {
            self.up = false;
        }
    }

    /// Takes what is due and sets the next deadlines.
    pub fn wake(&mut self, now: Mono, rng: &mut Rng) -> Due {
        let due = Due {
            sample: self.next_sample <= now,
            probe: self.next_probe <= now,
        };
        if due.sample {
            self.next_sample = now + self.timing.sample_every;
        }
        if due.probe {
            self.next_probe = now
                + if let Some(gap) = self.first_gap {
                    self.first_gap = Some((gap * 2).min(self.timing.probe_fast));
                    gap
                } else if self.unanswered_since.is_some() {
                    self.timing.probe_fast
                } else {
                    jittered(self.timing.probe_idle, rng)
                };
        }
        due
    }

    pub fn next_wake(&self) -> (Mono, &'static str) {
        if self.next_probe < self.next_sample {
            (self.next_probe, "probe")
        } else {
            (self.next_sample, "sample")
        }
    }
}

/// Between 7/8 and 9/8 of the period.
fn jittered(period: Duration, rng: &mut Rng) -> Duration {
    let quarter = u64::try_from((period / 4).as_nanos()).unwrap_or(u64::MAX);
    period - period / 8 + Duration::from_nanos(rng.below(quarter.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    fn health() -> DataHealth {
        DataHealth::new(Timing::default(), at(0))
    }

    #[test]
    fn silence_while_sending_is_down_after_the_limit_and_a_receipt_is_up() {
        let mut health = health();
        health.observe(Some(at(1000)), Some(at(900)), at(1000));
        assert!(health.is_up());
        health.observe(Some(at(4900)), Some(at(900)), at(4900));
        assert!(health.is_up());
        health.observe(Some(at(5000)), Some(at(900)), at(5000));
        assert!(!health.is_up());
        health.observe(Some(at(5000)), Some(at(5100)), at(5200));
        assert!(health.is_up());
    }

    #[test]
    fn an_idle_path_stays_up_and_is_probed_seldom() {
        let mut health = health();
        let mut rng = Rng::new(1);
        assert!(health.wake(at(0), &mut rng).probe);
        let mut probes = 0;
        for tick in 1..=120 {
            let now = at(tick * 500);
            let due = health.wake(now, &mut rng);
            if due.probe {
                probes += 1;
            }
            // Each probe is answered within the tick.
            health.observe(Some(now), Some(now), now);
        }
        assert!((9..=14).contains(&probes), "{probes} probes in a minute");
        assert!(health.is_up());
    }

    #[test]
    fn a_path_that_has_not_answered_yet_is_probed_again_soon() {
        let mut health = health();
        let mut rng = Rng::new(1);
        let mut gaps = Vec::new();
        let mut last = at(0);
        health.wake(at(0), &mut rng);
        while gaps.len() < 8 {
            let now = health.next_wake().0;
            if health.wake(now, &mut rng).probe {
                gaps.push(now.saturating_since(last).as_millis());
                last = now;
            }
        }
        assert_eq!(gaps, [10, 20, 40, 80, 160, 320, 500, 500]);
        health.observe(Some(last), Some(last), last);
        assert!(health.next_wake().1 == "sample");
    }

    #[test]
    fn probes_are_fast_while_nothing_returns() {
        let mut health = health();
        let mut rng = Rng::new(1);
        health.wake(at(0), &mut rng);
        health.observe(Some(at(0)), Some(at(1)), at(1));
        health.observe(Some(at(600)), Some(at(1)), at(700));
        assert_eq!(health.next_wake().0, at(500));
        assert!(health.wake(at(1200), &mut rng).probe);
        assert!(health.wake(at(1700), &mut rng).probe);
    }
}
