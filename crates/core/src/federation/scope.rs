//! In which networks the other end of a stream speaks for its domain.

use crate::ids::NetworkUid;

/// Networks by rank, best first. What is said beyond them means nothing, and nothing of others
/// is told. A network that has a lower number (the configuration names it earlier) counts more
/// where two contradict each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(Vec<(usize, NetworkUid)>);

impl Scope {
    /// One more network; ranks rise.
    pub fn push(&mut self, rank: usize, uid: NetworkUid) {
        self.0.push((rank, uid));
    }

    pub fn contains(&self, uid: NetworkUid) -> bool {
        self.0.iter().any(|(_, of)| *of == uid)
    }

    pub fn uids(&self) -> impl Iterator<Item = NetworkUid> + '_ {
        self.0.iter().map(|(_, uid)| *uid)
    }

    pub fn best(&self) -> Option<NetworkUid> {
        self.uids().next()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the best network that only one of the two has is ours.
    pub fn outranks(&self, other: &Self) -> bool {
        let only = |these: &Self, those: &Self| {
            let mut only = these.0.iter().filter(|(_, uid)| !those.contains(*uid));
            only.next().map(|(rank, _)| *rank)
        };
        match (only(self, other), only(other, self)) {
            (Some(ours), Some(theirs)) => ours < theirs,
            (ours, _) => ours.is_some(),
        }
    }

    /// Whether what was said in a network of that rank gives way.
    pub fn may_displace(&self, rank: usize, uid: NetworkUid) -> bool {
        self.contains(uid) || self.0.first().is_some_and(|(best, _)| *best < rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(ranks: &[u8]) -> Scope {
        let mut scope = Scope::default();
        for rank in ranks {
            scope.push(usize::from(*rank), NetworkUid([*rank; 16]));
        }
        scope
    }

    #[test]
    fn the_best_network_that_only_one_has_decides() {
        for (better, worse) in [
            (&[0][..], &[1][..]),
            (&[0, 1], &[0]),
            (&[0], &[1, 2]),
            (&[0, 2], &[1, 2, 3]),
            (&[3], &[]),
        ] {
            assert!(scope(better).outranks(&scope(worse)), "{better:?}");
            assert!(!scope(worse).outranks(&scope(better)), "{worse:?}");
            assert!(!scope(better).outranks(&scope(better)));
        }
    }

    #[test]
    fn what_a_better_network_said_stays() {
        let held = |rank: u8| (usize::from(rank), NetworkUid([rank; 16]));
        let may = |(rank, uid)| scope(&[1, 3]).may_displace(rank, uid);
        assert_eq!(
            [0, 1, 2, 3, 4].map(held).map(may),
            [false, true, true, true, true]
        );
    }
}
