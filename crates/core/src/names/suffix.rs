//! The longest suffix of a name that something is known for (R1.3).

use std::collections::BTreeMap;

use super::Name;

/// Values by suffix; the root matches every name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suffixes<T> {
    by_suffix: BTreeMap<Name, T>,
}

impl<T> Default for Suffixes<T> {
    fn default() -> Self {
        Self {
            by_suffix: BTreeMap::new(),
        }
    }
}

impl<T> Suffixes<T> {
    pub(super) fn entry(&mut self, suffix: Name) -> &mut T
    where
        T: Default,
    {
        self.by_suffix.entry(suffix).or_default()
    }

    /// The longest match: its labels and its value.
    pub(super) fn longest(&self, name: &Name) -> Option<(usize, &T)> {
        if self.by_suffix.is_empty() {
            return None;
        }
        let count = name.label_count();
        name.ancestors()
            .enumerate()
            .find_map(|(cut, ancestor)| Some((count - cut, self.by_suffix.get(ancestor)?)))
    }
}
