//! Who watches what.

use std::collections::BTreeMap;

use super::api::{Peer, Query, WatcherId};

/// The watchers of one registry, bounded.
#[derive(Debug)]
pub(super) struct Watchers {
    watchers: BTreeMap<WatcherId, Watcher>,
    limit: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Watcher {
    pub(super) peer: Peer,
    pub(super) query: Query,
}

impl Watchers {
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            watchers: BTreeMap::new(),
            limit,
        }
    }

    /// False when there are too many.
    pub(super) fn insert(&mut self, id: WatcherId, watcher: Watcher) -> bool {
        if self.watchers.len() >= self.limit {
            return false;
        }
        self.watchers.insert(id, watcher);
        true
    }

    pub(super) fn remove(&mut self, id: WatcherId) {
        self.watchers.remove(&id);
    }

    /// Ends all of them; their ids.
    pub(super) fn clear(&mut self) -> Vec<WatcherId> {
        core::mem::take(&mut self.watchers).into_keys().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WatcherId, &Watcher)> + '_ {
        self.watchers.iter().map(|(id, watcher)| (*id, watcher))
    }

    pub(super) fn len(&self) -> usize {
        self.watchers.len()
    }
}
