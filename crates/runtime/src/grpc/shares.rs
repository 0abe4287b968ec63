//! How many connections one identity has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vl3_core::ids::SpiffeId;

/// Counts of open connections; an identity without any takes no memory.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    open: Arc<Mutex<BTreeMap<SpiffeId, usize>>>,
    limit: usize,
}

/// One connection's, given back when it ends.
#[derive(Debug)]
pub(super) struct Share {
    of: Shares,
    id: SpiffeId,
}

impl Shares {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            open: Arc::default(),
            limit,
        }
    }

    /// None at the limit.
    pub(super) fn take(&self, id: &SpiffeId) -> Option<Share> {
        let mut open = self.lock();
        let count = open.get(id).copied().unwrap_or(0);
        if count >= self.limit {
            return None;
        }
        open.insert(id.clone(), count + 1);
        Some(Share {
            of: self.clone(),
            id: id.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SpiffeId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        match open.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_its_share_and_gives_it_back() {
        let shares = Shares::new(2);
        let id = |name: &str| SpiffeId::new(&format!("spiffe://east.test/{name}")).unwrap();
        let first = shares.take(&id("a")).unwrap();
        let _second = shares.take(&id("a")).unwrap();
        assert!(shares.take(&id("a")).is_none());
        let other = shares.take(&id("b")).unwrap();
        drop(first);
        let _again = shares.take(&id("a")).unwrap();
        drop(other);
        assert_eq!(shares.lock().len(), 1, "nothing is kept of who left");
    }
}
