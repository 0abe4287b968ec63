//! Readiness as a set of named conditions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// A role is ready when every item is. No item: ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    items: Arc<Mutex<BTreeMap<(String, u64), bool>>>,
    ready: Arc<watch::Sender<bool>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            items: Arc::default(),
            ready: Arc::new(watch::Sender::new(true)),
        }
    }
}

/// One condition; not met at first. Dropping it removes it.
#[derive(Debug)]
pub struct ReadyItem {
    of: Readiness,
    key: (String, u64),
}

/// Stands until a role names its first condition.
const START: &str = "start";

impl Readiness {
    /// Not ready until the first item: a role that has not begun has nothing to say.
    pub(crate) fn starting(&self) {
        self.lock().insert((START.to_owned(), 0), false);
        self.update();
    }

    pub fn item(&self, name: impl Into<String>) -> ReadyItem {
        let name = name.into();
        let key = {
            let mut items = self.lock();
            items.remove(&(START.to_owned(), 0));
            let next = items
                .keys()
                .map(|(_, number)| number + 1)
                .max()
                .unwrap_or(0);
            items.insert((name.clone(), next), false);
            (name, next)
        };
        self.update();
        ReadyItem {
            of: self.clone(),
            key,
        }
    }

    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Names of the items that are not met.
    pub fn waiting_for(&self) -> Vec<String> {
        self.lock()
            .iter()
            .filter(|(_, met)| !**met)
            .map(|((name, _), _)| name.clone())
            .collect()
    }

    fn update(&self) {
        let ready = self.lock().values().all(|met| *met);
        self.ready
            .send_if_modified(|old| std::mem::replace(old, ready) != ready);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, u64), bool>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadyItem {
    pub fn set(&self, met: bool) {
        if let Some(item) = self.of.lock().get_mut(&self.key) {
            *item = met;
        }
        self.of.update();
    }
}

impl Drop for ReadyItem {
    fn drop(&mut self) {
        self.of.lock().remove(&self.key);
        self.of.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_named_no_condition_yet_is_not_ready() {
        let readiness = Readiness::default();
        readiness.starting();
        assert_eq!(readiness.waiting_for(), [START]);
        let lease = readiness.item("lease");
        assert_eq!(readiness.waiting_for(), ["lease"]);
        lease.set(true);
        assert!(readiness.is_ready());
    }

    #[test]
    fn ready_is_when_every_item_is_met() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let lease = readiness.item("lease");
        let identity = readiness.item("identity");
        lease.set(true);
        assert_eq!(readiness.waiting_for(), ["identity"]);
        identity.set(true);
        assert!(readiness.is_ready());
        lease.set(false);
        assert!(!readiness.is_ready());
        drop(lease);
        assert!(readiness.is_ready());
    }
}
