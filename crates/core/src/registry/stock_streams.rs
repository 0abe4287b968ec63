//! Which stream uses which half of a stock router's lease: a stream is of one family.
//!
//! Of several routers with one identity each has a half of its own. A router that comes back
//! presents its prefix, and takes it over from its own former stream, whose end nobody may have
//! noticed. Where two that both run present one prefix, each would end the other for ever: so a
//! stream that took a half over keeps it for a while, and the other one gets another prefix.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::ids::RouterName;
use crate::time::Mono;

/// Whoever lives and lost its prefix comes back at once; a stream that is dead is noticed
/// within this time.
const KEPT: Duration = Duration::from_secs(600);

/// Leases of this process of which one half was never used.
const UNPAIRED_MAX: usize = 2048;

/// One family of a lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Half {
    pub router: RouterName,
    pub is_v6: bool,
}

/// What streams use at the moment; `T` is what ends one.
#[derive(Debug)]
pub struct StockStreams<T> {
    users: BTreeMap<Half, User<T>>,
    /// Leases that were granted here, and whose other half nobody had yet: a router that asks
    /// for both families gets those of one lease.
    unpaired: BTreeSet<Half>,
}

#[derive(Debug)]
struct User<T> {
    stream: u64,
    end: T,
    took_over: Option<Mono>,
}

impl<T> User<T> {
    fn is_kept(&self, now: Mono) -> bool {
        self.took_over.is_some_and(|at| now < at + KEPT)
    }
}

/// How other streams use the halves of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StockUse {
    /// Used by another stream.
    pub in_use: BTreeSet<RouterName>,
    /// Those of them that are not given to whoever presents their prefix.
    pub kept: BTreeSet<RouterName>,
    /// Never used, of leases whose other half was granted here.
    pub unpaired: BTreeSet<RouterName>,
}

/// Another stream was first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse;

impl<T> Default for StockStreams<T> {
    fn default() -> Self {
        Self {
            users: BTreeMap::new(),
            unpaired: BTreeSet::new(),
        }
    }
}

impl<T> StockStreams<T> {
    /// What a stream finds.
    pub fn others(&self, is_v6: bool, stream: u64, now: Mono) -> StockUse {
        let others = || {
            let of_family = self.users.iter().filter(|(half, _)| half.is_v6 == is_v6);
            of_family.filter(|(_, user)| user.stream != stream)
        };
        let router = |half: &Half| half.router.clone();
        StockUse {
            in_use: others().map(|(half, _)| router(half)).collect(),
            kept: others()
                .filter(|(_, user)| user.is_kept(now))
                .map(|(half, _)| router(half))
                .collect(),
            unpaired: self
                .unpaired
                .iter()
                .filter(|half| half.is_v6 == is_v6)
                .map(router)
                .collect(),
        }
    }

    /// Marks a half as used by a stream. `presented`: by its prefix, so that another stream,
    /// which is answered, ends; `is_new`: of a lease that nobody had before.
    pub fn take(
        &mut self,
        half: &Half,
        stream: u64,
        end: T,
        presented: bool,
        is_new: bool,
        now: Mono,
    ) -> Result<Option<T>, InUse> {
        let other = self.users.get(half).filter(|user| user.stream != stream);
        let is_taken = other.is_some();
        if other.is_some_and(|user| !presented || user.is_kept(now)) {
            return Err(InUse);
        }
        let before = self.users.remove(half);
        let took_over = match &before {
            Some(_) if is_taken => Some(now),
            Some(user) => user.took_over,
            None => None,
        };
        let user = User {
            stream,
            end,
            took_over,
        };
        self.users.insert(half.clone(), user);
        self.unpaired.remove(half);
        if is_new {
            if self.unpaired.len() >= UNPAIRED_MAX {
                self.unpaired.pop_first();
            }
            self.unpaired.insert(Half {
                router: half.router.clone(),
                is_v6: !half.is_v6,
            });
        }
        Ok(before.filter(|_| is_taken).map(|user| user.end))
    }

    /// Whether nobody uses the lease any more.
    pub fn give_back(&mut self, half: &Half, stream: u64) -> bool {
        if self
            .users
            .get(half)
            .is_some_and(|user| user.stream == stream)
        {
            self.users.remove(half);
        }
        !self.users.keys().any(|other| other.router == half.router)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(number: u8, is_v6: bool) -> Half {
        let router = RouterName::new(&format!("stock-{number}")).unwrap();
        Half { router, is_v6 }
    }

    const NOW: Mono = Mono::from_secs(1000);

    #[test]
    fn whoever_presents_a_prefix_takes_it_over_and_keeps_it() {
        let mut streams = StockStreams::default();
        let one = half(1, false);
        let mut take =
            |stream, presented, now| streams.take(&one, stream, stream, presented, false, now);
        assert_eq!(take(1, false, NOW), Ok(None));
        assert_eq!(take(2, false, NOW), Err(InUse));
        // A reconnect: the former stream ends.
        assert_eq!(take(2, true, NOW), Ok(Some(1)));
        // The former one was alive after all and comes back: it gets another prefix.
        assert_eq!(take(3, true, NOW), Err(InUse));
        // Asking again is no takeover, nor does it make one possible.
        assert_eq!(take(2, true, NOW + Duration::from_secs(599)), Ok(None));
        assert_eq!(take(3, true, NOW + Duration::from_secs(599)), Err(InUse));
        assert!(streams.others(false, 3, NOW).kept.contains(&one.router));
        // Much later it is a reconnect again.
        let later = NOW + KEPT;
        assert!(streams.others(false, 3, later).kept.is_empty());
        assert_eq!(streams.take(&one, 3, 3, true, false, later), Ok(Some(2)));
        // Once its end is noticed the half is free.
        assert!(!streams.give_back(&one, 2), "not its own any more");
        assert!(streams.give_back(&one, 3));
        assert_eq!(streams.take(&one, 4, 4, true, false, later), Ok(None));
        assert!(streams.others(false, 5, later).kept.is_empty());
    }

    #[test]
    fn a_new_lease_has_a_half_for_the_other_family_until_somebody_had_it() {
        let mut streams = StockStreams::default();
        let (v4, v6) = (half(1, false), half(1, true));
        let unpaired = |streams: &StockStreams<()>, is_v6| {
            let found = streams.others(is_v6, 99, NOW).unpaired;
            found.contains(&v4.router)
        };
        streams.take(&v4, 1, (), false, true, NOW).unwrap();
        assert!(unpaired(&streams, true) && !unpaired(&streams, false));
        streams.take(&v6, 2, (), false, false, NOW).unwrap();
        streams.give_back(&v6, 2);
        assert!(!unpaired(&streams, true), "it may be on its way back");
        // Of a lease of before this process nothing is known.
        let mut streams = StockStreams::default();
        streams.take(&v4, 4, (), true, false, NOW).unwrap();
        assert!(!unpaired(&streams, true));
        for number in 0..UNPAIRED_MAX + 9 {
            let router = RouterName::new(&format!("stock-x-{number}")).unwrap();
            let is_v6 = false;
            let new = Half { router, is_v6 };
            streams.take(&new, 9, (), false, true, NOW).unwrap();
        }
        assert_eq!(streams.unpaired.len(), UNPAIRED_MAX);
    }
}
