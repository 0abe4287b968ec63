//! How long to wait for one server before asking it again (R3.6).

use core::time::Duration;

/// Bounds of the wait before the retransmission.
pub const TRY_MIN: Duration = Duration::from_millis(50);
pub const TRY_MAX: Duration = Duration::from_millis(700);

/// Smoothed round-trip time and its variance of one server (RFC 6298 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtt {
    smoothed: Duration,
    variance: Duration,
}

impl Default for Rtt {
    /// Before the first sample: a wait of 300 ms, two round trips to the far side of the world.
    fn default() -> Self {
        Self {
            smoothed: Duration::from_millis(50),
            variance: Duration::from_millis(25),
        }
    }
}

impl Rtt {
    pub fn sample(&mut self, rtt: Duration) {
        let deviation = self.smoothed.abs_diff(rtt);
        self.variance = (self.variance * 3 + deviation) / 4;
        self.smoothed = (self.smoothed * 7 + rtt) / 8;
    }

    pub const fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// 4 x smoothed + 4 x variance, within [`TRY_MIN`] and [`TRY_MAX`].
    pub fn try_limit(&self) -> Duration {
        (self.smoothed * 4 + self.variance * 4).clamp(TRY_MIN, TRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r3_6_the_wait_follows_the_round_trip_within_its_bounds() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.try_limit(), Duration::from_millis(300));
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(1));
        }
        assert_eq!(rtt.try_limit(), TRY_MIN);
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(100));
        }
        assert!((400..450).contains(&rtt.try_limit().as_millis()), "{rtt:?}");
        for _ in 0..100 {
            rtt.sample(Duration::from_secs(9));
        }
        assert_eq!(rtt.try_limit(), TRY_MAX);
    }
}
