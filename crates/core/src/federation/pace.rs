//! How much work one domain may make, so that what it says delays nobody else.

use super::{Config, Federation, Scope};
use crate::ids::DomainName;
use crate::rate::Rate;
use crate::time::Mono;

/// What something that a domain does costs us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A stream: everything that we offer goes out.
    Open,
    /// It says what is known, as in most of a snapshot.
    Repeat,
    /// A record, or something that is not believed.
    Change,
}

/// Tokens of one change.
const CHANGE: u32 = 10;

impl Work {
    const fn tokens(self) -> u32 {
        match self {
            Self::Open => 100 * CHANGE,
            Self::Repeat => 1,
            Self::Change => CHANGE,
        }
    }
}

impl Config {
    const fn pace(&self) -> Rate {
        Rate {
            per_second: self.changes.per_second.saturating_mul(CHANGE),
            burst: self.changes.burst.saturating_mul(CHANGE),
        }
    }
}

impl Federation {
    /// Whether the domain, by who speaks for it there, may make that work now.
    pub fn admits(&mut self, domain: &DomainName, scope: &Scope, work: Work, now: Mono) -> bool {
        let pace = self.config.pace();
        let of = self.remotes.get_mut(domain).zip(scope.best());
        // Whoever has nothing in common with us has no stream either.
        of.is_none_or(|(remote, best)| {
            let bucket = remote.paces.entry(best).or_default();
            bucket.take(pace, work.tokens(), now)
        })
    }
}
