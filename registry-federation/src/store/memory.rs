//! The engine of tests and of registries without a state directory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::history::{replaced, surplus};
use super::{Change, Conflict, Entry, Job, Journal, Object, Objects, Store, StoreError, Swap};

/// Changes that a slow watcher may be behind.
pub(super) const FEED: usize = 1024;

/// Clones share the content: a restarted registry finds what the last one kept.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<Content>>);

#[derive(Debug)]
struct Content {
    revision: u64,
    entries: Vec<Entry>,
    history: VecDeque<Entry>,
    objects: BTreeMap<String, (u64, Vec<u8>)>,
    feed: broadcast::Sender<Change>,
}

impl Default for Memory {
    fn default() -> Self {
        let feed = broadcast::Sender::new(FEED);
        let content = Content {
            revision: 0,
            entries: Vec::new(),
            history: VecDeque::new(),
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

impl Content {
    fn append(&mut self, entries: &[Entry]) -> u64 {
        self.entries.extend_from_slice(entries);
        self.revision += 1;
        self.revision
    }

    fn rewrite(&mut self, entries: &[Entry]) -> u64 {
        let mut snapshot = entries.to_vec();
        let gone = replaced(&self.entries, &mut snapshot);
        let gone = gone
            .into_iter()
            .map(|position| self.entries[position].clone());
        self.history.extend(gone);
        let sizes: Vec<_> = self.history.iter().map(|entry| entry.bytes.len()).collect();
        self.history.drain(..surplus(&sizes));
        self.entries = snapshot;
        self.revision += 1;
        self.revision
    }

    fn found(&self, swap: &Swap) -> Option<u64> {
        self.objects.get(&swap.key).map(|(revision, _)| *revision)
    }

    fn swap(&mut self, swap: &Swap) -> Result<u64, Conflict> {
        let found = self.found(swap);
        if found != swap.expected {
            return Err(Conflict { found });
        }
        self.revision += 1;
        let revision = self.revision;
        match &swap.value {
            Some(value) => {
                let value = (revision, value.clone());
                self.objects.insert(swap.key.clone(), value);
            }
            None => drop(self.objects.remove(&swap.key)),
        }
        // Err: nobody watches.
        let _unwatched = self.feed.send(Change {
            key: swap.key.clone(),
            revision,
            value: swap.value.clone(),
        });
        Ok(revision)
    }
}

impl Journal for Memory {
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError> {
        Ok(self.content().entries.clone())
    }

    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        Ok(self.content().append(entries))
    }

    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        Ok(self.content().rewrite(entries))
    }

    fn history(&mut self) -> Result<Vec<Entry>, StoreError> {
        Ok(self.content().history.iter().cloned().collect())
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
        Ok(swaps.iter().map(|swap| content.swap(swap)).collect())
    }

    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.content().feed.subscribe()
    }
}

impl Store for Memory {
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        let mut content = self.content();
        for swap in &job.swaps {
            let found = content.found(swap);
            if found != swap.expected {
                return Err(swap.fenced(found));
            }
        }
        if !job.append.is_empty() {
            content.append(&job.append);
        }
        if let Some(entries) = &job.rewrite {
            content.rewrite(entries);
        }
        let revisions = job.swaps.iter().map(|swap| content.swap(swap));
        revisions
            .zip(&job.swaps)
            .map(|(revision, swap)| revision.map_err(|conflict| swap.fenced(conflict.found)))
            .collect()
    }
}
