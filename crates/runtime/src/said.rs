//! The same line again and again is said seldom.

use std::time::Duration;

use vl3_core::time::Mono;

use crate::clock;

/// The pause between two lines that say the same.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What was logged last by one place that repeats itself.
#[derive(Debug, Default)]
pub struct Said {
    last: Option<(String, Mono)>,
    unsaid: u64,
}

impl Said {
    /// Whether this line is due: it is another one than before, or the last is 30 s old. Holds
    /// how many were left out since.
    pub fn say(&mut self, line: &str) -> Option<u64> {
        self.say_at(line, clock::mono())
    }

    /// After a success: the next line is said.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn say_at(&mut self, line: &str, now: Mono) -> Option<u64> {
        let again = self
            .last
            .as_ref()
            .is_some_and(|(said, at)| said == line && now.saturating_since(*at) < AGAIN_AFTER);
        if again {
            self.unsaid += 1;
            return None;
        }
        self.last = Some((line.to_owned(), now));
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_said_at_first_then_every_30_seconds_with_a_count() {
        let mut said = Said::default();
        let start = clock::mono();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(said.say_at("down", at(0)), Some(0));
        assert_eq!(said.say_at("down", at(1)), None);
        assert_eq!(said.say_at("down", at(29)), None);
        assert_eq!(said.say_at("down", at(30)), Some(2));
        assert_eq!(said.say_at("refused", at(31)), Some(0));
        said.reset();
        assert_eq!(said.say_at("refused", at(32)), Some(0));
    }
}
