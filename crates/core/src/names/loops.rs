//! How a question that comes back to its sender is found (R4.2).

/// Servers of our kind that a question may go through on its way out of the network.
pub const HOPS_MAX: usize = 3;

/// One server that passed a question on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Which server: random, the same for its whole life.
    pub instance: u64,
    /// Which of its upstreams it asked, so that it knows who leads back to it.
    pub upstream: u32,
}

/// The way of a question so far, as a private EDNS option carries it; empty for one that comes
/// from a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopMark {
    hops: [Hop; HOPS_MAX + 1],
    count: u8,
}

impl LoopMark {
    /// Hops in the order they were made; those behind one too many make no difference.
    pub fn new(way: impl IntoIterator<Item = Hop>) -> Self {
        way.into_iter().fold(Self::default(), Self::and)
    }

    pub fn hops(&self) -> &[Hop] {
        self.hops.get(..usize::from(self.count)).unwrap_or_default()
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the question made more than [`HOPS_MAX`] hops.
    pub fn is_too_long(&self) -> bool {
        self.hops().len() > HOPS_MAX
    }

    /// The mark of the query that goes on.
    #[must_use]
    pub fn and(mut self, hop: Hop) -> Self {
        if let Some(room) = self.hops.get_mut(usize::from(self.count)) {
            *room = hop;
            self.count += 1;
        }
        self
    }

    /// The upstream by which a question of `instance` left, should it have come back.
    pub fn own(&self, instance: u64) -> Option<u32> {
        self.hops()
            .iter()
            .find(|hop| hop.instance == instance)
            .map(|hop| hop.upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r4_2_a_mark_knows_its_way_and_ends_after_three_hops() {
        let hop = |instance, upstream| Hop { instance, upstream };
        let mark = LoopMark::new([hop(7, 1), hop(8, 2)]);
        assert_eq!(
            (mark.own(7), mark.own(8), mark.own(9)),
            (Some(1), Some(2), None)
        );
        let full = mark.and(hop(9, 3));
        assert!(!full.is_too_long());
        let beyond = full.and(hop(10, 4));
        assert!(beyond.is_too_long());
        assert_eq!(beyond.and(hop(11, 5)), beyond);
        assert!(LoopMark::default().is_empty() && LoopMark::default().own(0).is_none());
    }
}
