//! How many connections one caller has, and all of other domains together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vl3_core::caller::Caller;
use vl3_core::ids::SpiffeId;

/// Counts of open connections; a caller without any takes no memory.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    open: Arc<Mutex<Open>>,
    own_trust_domain: Arc<str>,
    per_caller: usize,
    foreign: usize,
}

#[derive(Debug, Default)]
struct Open {
    by_caller: BTreeMap<Caller, usize>,
    foreign: usize,
}

/// One connection's, given back when it ends.
#[derive(Debug)]
pub(super) struct Share {
    of: Shares,
    caller: Caller,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoShare {
    Caller,
    /// The rest is the own domain's.
    Foreign,
}

impl Shares {
    /// Of `total` connections, for a server of that trust domain.
    pub(super) fn new(own_trust_domain: &str, per_caller: usize, total: usize) -> Self {
        Self {
            open: Arc::default(),
            own_trust_domain: own_trust_domain.into(),
            per_caller,
            foreign: Caller::foreign_share(total),
        }
    }

    pub(super) fn take(&self, id: &SpiffeId) -> Result<Share, NoShare> {
        let caller = Caller::of(id, &self.own_trust_domain);
        let mut open = self.lock();
        let count = open.by_caller.get(&caller).copied().unwrap_or(0);
        if count >= self.per_caller {
            return Err(NoShare::Caller);
        }
        if caller.is_foreign() {
            if open.foreign >= self.foreign {
                return Err(NoShare::Foreign);
            }
            open.foreign += 1;
        }
        open.by_caller.insert(caller.clone(), count + 1);
        drop(open);
        Ok(Share {
            of: self.clone(),
            caller,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        open.foreign -= usize::from(self.caller.is_foreign());
        match open.by_caller.get_mut(&self.caller) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.by_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(of: &str) -> SpiffeId {
        SpiffeId::new(&format!("spiffe://{of}")).unwrap()
    }

    #[test]
    fn an_identity_has_its_share_and_gives_it_back() {
        let shares = Shares::new("east.test", 2, 100);
        let id = |name: &str| id(&format!("east.test/{name}"));
        let first = shares.take(&id("a")).unwrap();
        let _second = shares.take(&id("a")).unwrap();
        assert_eq!(shares.take(&id("a")).unwrap_err(), NoShare::Caller);
        let other = shares.take(&id("b")).unwrap();
        drop(first);
        let _again = shares.take(&id("a")).unwrap();
        drop(other);
        assert_eq!(
            shares.lock().by_caller.len(),
            1,
            "nothing is kept of who left"
        );
    }

    #[test]
    fn other_domains_make_identities_and_get_no_more_with_them() {
        let shares = Shares::new("east.test", 4, 8);
        let mut held = Vec::new();
        for name in ["a", "b", "c", "d"] {
            held.push(shares.take(&id(&format!("west.test/{name}"))).unwrap());
        }
        let one_more = shares.take(&id("west.test/e"));
        assert_eq!(one_more.unwrap_err(), NoShare::Caller);
        for domain in ["north.test/a", "south.test/a"] {
            held.push(shares.take(&id(domain)).unwrap());
        }
        let one_more = || shares.take(&id("south.test/b"));
        assert_eq!(one_more().unwrap_err(), NoShare::Foreign);
        let _own = [(); 4].map(|()| shares.take(&id("east.test/a")).unwrap());
        drop(held.pop());
        let _again = one_more().unwrap();
        drop(held);
        assert_eq!(shares.lock().foreign, 1);
    }
}
