//! The network between sites: what becomes of a message.

use core::time::Duration;
use std::collections::BTreeSet;

use vl3_core::Rng;

use crate::faults::{Fault, Profile, Tally};

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Travel {
    /// One packet: may be lost, doubled, overtaken.
    Datagram,
    /// Part of an ordered stream or a call: arrives once and in order, or the stream breaks.
    Stream,
}

#[derive(Debug)]
pub struct Internet {
    rng: Rng,
    profile: Profile,
    /// Pairs of sites that cannot talk, lower first.
    cuts: BTreeSet<(usize, usize)>,
    storm: bool,
}

impl Internet {
    pub const fn new(profile: Profile, rng: Rng) -> Self {
        Self {
            rng,
            profile,
            cuts: BTreeSet::new(),
            storm: false,
        }
    }

    /// Faults of messages happen between storm and calm only.
    pub fn set_storm(&mut self, storm: bool) {
        self.storm = storm;
    }

    pub fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
    }

    pub fn heal(&mut self, a: usize, b: usize) {
        self.cuts.remove(&(a.min(b), a.max(b)));
    }

    pub fn heal_all(&mut self) {
        self.cuts.clear();
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// When copies of a message arrive; none when it is lost.
    pub fn fate(
        &mut self,
        from: usize,
        to: usize,
        travel: Travel,
        tally: &mut Tally,
    ) -> Vec<Duration> {
        if self.is_cut(from, to) {
            return Vec::new();
        }
        let near = if from == to { 200 } else { 5_000 };
        let mut delay = Duration::from_micros(near + self.rng.below(near * 3));
        let unruly = self.storm && from != to;
        if unruly && self.hit(Fault::Drop, 25, tally) {
            return Vec::new();
        }
        if unruly && self.hit(Fault::Delay, 30, tally) {
            delay += Duration::from_millis(self.rng.below(3_000));
        }
        if travel == Travel::Stream {
            return vec![delay];
        }
        if unruly && self.hit(Fault::Reorder, 20, tally) {
            delay += Duration::from_millis(20 + self.rng.below(60));
        }
        if unruly && self.hit(Fault::Duplicate, 30, tally) {
            return vec![delay, delay + Duration::from_millis(self.rng.below(200))];
        }
        vec![delay]
    }

    /// Whether this fault strikes now, once in `n` where the profile has it.
    pub fn hit(&mut self, fault: Fault, n: u64, tally: &mut Tally) -> bool {
        let struck = self.storm && self.profile.injects(fault) && self.rng.one_in(n);
        if struck {
            tally.count(fault);
        }
        struck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_crosses_a_cut_until_it_heals() {
        let mut internet = Internet::new(Profile::Calm, Rng::new(1));
        let mut tally = Tally::default();
        internet.cut(2, 1);
        assert!(internet.fate(1, 2, Travel::Datagram, &mut tally).is_empty());
        assert!(!internet.fate(0, 2, Travel::Datagram, &mut tally).is_empty());
        internet.heal(1, 2);
        assert!(!internet.fate(1, 2, Travel::Datagram, &mut tally).is_empty());
    }

    #[test]
    fn a_calm_network_loses_nothing() {
        let mut internet = Internet::new(Profile::Calm, Rng::new(1));
        let mut tally = Tally::default();
        internet.set_storm(true);
        assert!((0..1000).all(|_| internet.fate(0, 1, Travel::Datagram, &mut tally).len() == 1));
    }
}
