//! The one retry delay: exponential with jitter.

use core::time::Duration;

use crate::rng::Rng;

/// Doubles from `first` to `max`; each delay is drawn from the upper half of its step, so
/// that a crowd that failed together does not return together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    step: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            step: first,
        }
    }

    /// The delay before the next try.
    pub fn next(&mut self, rng: &mut Rng) -> Duration {
        let step = self.step.min(self.max);
        self.step = step.saturating_mul(2).min(self.max);
        let half = step / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(rng.below(span.saturating_add(1)))
    }

    pub const fn reset(&mut self) {
        self.step = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_start_over_after_reset() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, max);
        let mut rng = Rng::new(1);
        let mut step = first;
        for _ in 0..10 {
            let delay = backoff.next(&mut rng);
            assert!(delay >= step / 2 && delay <= step, "{delay:?} of {step:?}");
            step = (step * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= first);
    }
}
