//! How many bytes readers may leave unread: each its own, and all together.

use std::collections::BTreeMap;

/// What was handed to readers and not taken yet. A reader may have as much as is left for all,
/// so that a few who do not read leave room for those who do, and the whole is bounded.
#[derive(Debug)]
pub struct Unread<K> {
    per_reader_max: usize,
    total_max: usize,
    of: BTreeMap<K, usize>,
    total: usize,
}

/// The limit, in bytes, that a reader would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full(pub usize);

impl<K: Ord + Clone> Unread<K> {
    pub const fn new(per_reader_max: usize, total_max: usize) -> Self {
        Self {
            per_reader_max,
            total_max,
            of: BTreeMap::new(),
            total: 0,
        }
    }

    /// Counts bytes that a reader is handed; they are to be [`Self::taken`] once.
    pub fn handed(&mut self, reader: &K, bytes: usize) -> Result<(), Full> {
        let held = self.of.get(reader).copied().unwrap_or(0);
        let allowed = self.per_reader_max.min(self.total_max - self.total);
        if held.saturating_add(bytes) > allowed {
            return Err(Full(allowed));
        }
        if bytes > 0 {
            self.of.insert(reader.clone(), held + bytes);
            self.total += bytes;
        }
        Ok(())
    }

    pub fn taken(&mut self, reader: &K, bytes: usize) {
        let Some(held) = self.of.get_mut(reader) else {
            return;
        };
        let bytes = bytes.min(*held);
        *held -= bytes;
        self.total -= bytes;
        if *held == 0 {
            self.of.remove(reader);
        }
    }

    /// Bytes that nobody took yet.
    pub const fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_does_not_read_is_stopped_and_leaves_room_for_others() {
        let mut unread = Unread::new(4000, 10_000);
        assert_eq!(unread.handed(&"a", 4000), Ok(()));
        assert_eq!(unread.handed(&"a", 1), Err(Full(4000)));
        // However many do not read: the next one still has something.
        for reader in ["b", "c", "d", "e", "f"] {
            while unread.handed(&reader, 1).is_ok() {}
        }
        assert_eq!(unread.handed(&"new", 100), Ok(()));
        assert!(unread.total() < 10_000);
        unread.taken(&"a", 4000);
        assert_eq!(unread.handed(&"a", 2000), Ok(()));
    }

    #[test]
    fn what_is_not_kept_costs_nothing_and_a_reader_without_anything_is_forgotten() {
        let mut unread = Unread::new(10, 10);
        assert_eq!(unread.handed(&1, 0), Ok(()));
        assert_eq!(unread.handed(&1, usize::MAX), Err(Full(10)));
        assert!(unread.of.is_empty());
        assert_eq!(unread.handed(&1, 5), Ok(()));
        unread.taken(&1, 9);
        unread.taken(&2, 9);
        assert!(unread.of.is_empty() && unread.total() == 0);
    }

    proptest! {
        #[test]
        fn the_whole_is_bounded_whoever_reads(steps in prop::collection::vec((0..5_u8, 0..40_usize, any::<bool>()), 1..200)) {
            let mut unread = Unread::new(60, 100);
            let mut held = BTreeMap::<u8, Vec<usize>>::new();
            for (reader, bytes, takes) in steps {
                let of = held.entry(reader).or_default();
                if takes {
                    if let Some(bytes) = of.pop() {
                        unread.taken(&reader, bytes);
                    }
                } else if unread.handed(&reader, bytes).is_ok() {
                    of.push(bytes);
                }
                prop_assert!(of.iter().sum::<usize>() <= 60);
                let total: usize = held.values().flatten().sum();
                prop_assert_eq!(total, unread.total());
                prop_assert!(total <= 100);
            }
        }
    }
}
