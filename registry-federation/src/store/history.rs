//! Journal entries, and what a rewrite does with those that it replaces.

use std::collections::HashMap;

use vl3_core::Wall;

/// Replaced entries that are kept, so that "who had this before" can be answered; the oldest
/// are dropped first. A day of one change per second, and several documents of 250 members.
pub const HISTORY_ENTRIES_MAX: usize = 100_000;

/// As [`HISTORY_ENTRIES_MAX`], the bytes of the entries together.
pub const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was appended first. Zero: by a version that did not write it down.
    pub at: Wall,
    pub bytes: Vec<u8>,
}

/// Gives entries of a snapshot that stood in the journal the time that they had there, and
/// returns the positions of those that the snapshot replaces. Where equal entries stood, the
/// last one is it that stays.
pub(super) fn replaced(journal: &[Entry], snapshot: &mut [Entry]) -> Vec<usize> {
    let last: HashMap<&[u8], usize> = (0..)
        .zip(journal)
        .map(|(position, entry)| (entry.bytes.as_slice(), position))
        .collect();
    let mut stays = vec![false; journal.len()];
    for entry in snapshot {
        if let Some(position) = last.get(entry.bytes.as_slice()) {
            entry.at = journal[*position].at;
            stays[*position] = true;
        }
    }
    let gone = stays.iter().zip(0..).filter(|(stays, _)| !**stays);
    gone.map(|(_, position)| position).collect()
}

/// How many of the oldest have to go; sizes in bytes, oldest first.
pub(super) fn surplus(sizes: &[usize]) -> usize {
    let mut bytes = 0;
    let fitting = sizes.iter().rev().take(HISTORY_ENTRIES_MAX);
    let kept = fitting
        .take_while(|size| {
            bytes += **size;
            bytes <= HISTORY_BYTES_MAX
        })
        .count();
    sizes.len() - kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64, bytes: &str) -> Entry {
        Entry {
            at: Wall(at),
            bytes: bytes.as_bytes().to_vec(),
        }
    }

    #[test]
    fn what_stays_keeps_its_time_and_the_rest_is_history() {
        let journal = [entry(1, "a"), entry(2, "b"), entry(3, "a"), entry(4, "c")];
        let mut snapshot = [entry(9, "c"), entry(9, "new"), entry(9, "a")];
        assert_eq!(replaced(&journal, &mut snapshot), [0, 1]);
        assert_eq!(snapshot, [entry(4, "c"), entry(9, "new"), entry(3, "a")]);
    }

    #[test]
    fn history_is_bounded_by_count_and_bytes_and_the_oldest_goes_first() {
        assert_eq!(surplus(&[1; HISTORY_ENTRIES_MAX + 3]), 3);
        assert_eq!(surplus(&[HISTORY_BYTES_MAX, 1, 1]), 1);
        assert_eq!(surplus(&[HISTORY_BYTES_MAX + 1]), 1);
        assert_eq!(surplus(&[HISTORY_BYTES_MAX - 1, 1]), 0);
        assert_eq!(surplus(&[]), 0);
    }
}
