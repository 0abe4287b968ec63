//! The engine of tests and of registries without a state directory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::{Change, Conflict, Journal, Object, Objects, StoreError, Swap};

/// Changes that a slow watcher may be behind.
pub(super) const FEED: usize = 1024;

/// Clones share the content: a restarted registry finds what the last one kept.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<Content>>);

#[derive(Debug)]
struct Content {
    revision: u64,
    entries: Vec<Vec<u8>>,
    objects: BTreeMap<String, (u64, Vec<u8>)>,
    feed: broadcast::Sender<Change>,
}

impl Default for Memory {
    fn default() -> Self {
        let feed = broadcast::Sender::new(FEED);
        let content = Content {
            revision: 0,
            entries: Vec::new(),
            objects: BTreeMap::new(),
            feed,
        };
        Self(Arc::new(Mutex::new(content)))
    }
}

impl Memory {
    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for Memory {
    fn replay(&mut self) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(self.content().entries.clone())
    }

    fn append(&mut self, entries: &[Vec<u8>]) -> Result<u64, StoreError> {
        let mut content = self.content();
        content.entries.extend_from_slice(entries);
        content.revision += 1;
        Ok(content.revision)
    }

    fn rewrite(&mut self, entries: &[Vec<u8>]) -> Result<u64, StoreError> {
        self.content().entries.clear();
        self.append(entries)
    }
}

impl Objects for Memory {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        let object = |(key, (revision, value)): (&String, &(u64, Vec<u8>))| Object {
            key: key.clone(),
            revision: *revision,
            value: value.clone(),
        };
        Ok(self.content().objects.iter().map(object).collect())
    }

    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        let mut content = self.content();
        let content = &mut *content;
        let mut one = |swap: &Swap| {
            let found = content
                .objects
                .get(&swap.key)
                .map(|(revision, _)| *revision);
            if found != swap.expected {
                return Err(Conflict { found });
            }
            content.revision += 1;
            let revision = content.revision;
            match &swap.value {
                Some(value) => drop(
                    content
                        .objects
                        .insert(swap.key.clone(), (revision, value.clone())),
                ),
                None => drop(content.objects.remove(&swap.key)),
            }
            // Err: nobody watches.
            let _unwatched = content.feed.send(Change {
                key: swap.key.clone(),
                revision,
                value: swap.value.clone(),
            });
            Ok(revision)
        };
        Ok(swaps.iter().map(&mut one).collect())
    }

    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.content().feed.subscribe()
    }
}
