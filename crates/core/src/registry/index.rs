//! Names by service, so that a Find by service touches only what matches.

use core::ops::Bound;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which names offer which service.
#[derive(Debug, Default)]
pub(super) struct ByService {
    names: BTreeMap<Box<str>, BTreeSet<Arc<str>>>,
}

impl ByService {
    pub(super) fn insert<'a>(
        &mut self,
        name: &Arc<str>,
        services: impl IntoIterator<Item = &'a str>,
    ) {
        for service in services {
            if let Some(names) = self.names.get_mut(service) {
                names.insert(name.clone());
            } else {
                let names = BTreeSet::from([name.clone()]);
                self.names.insert(service.into(), names);
            }
        }
    }

    pub(super) fn remove<'a>(&mut self, name: &str, services: impl IntoIterator<Item = &'a str>) {
        for service in services {
            if let Some(names) = self.names.get_mut(service) {
                names.remove(name);
                if names.is_empty() {
                    self.names.remove(service);
                }
            }
        }
    }

    /// In order; those after a name only.
    pub(super) fn names<'a>(
        &'a self,
        service: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let names = self.names.get(service);
        let names = names.map(|names| names.range::<str, _>((beyond(after), Bound::Unbounded)));
        let names = names.into_iter().flatten();
        names.map(|name| &**name)
    }
}

/// From the first one, or from the one after a name.
pub(super) fn beyond(after: Option<&str>) -> Bound<&str> {
    after.map_or(Bound::Unbounded, Bound::Excluded)
}

/// How many of each; what has none is not kept.
#[derive(Debug)]
pub(super) struct Tally<K>(BTreeMap<K, usize>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Tally<K> {
    pub(super) fn add(&mut self, key: &K) {
        match self.0.get_mut(key) {
            Some(count) => *count += 1,
            None => {
                self.0.insert(key.clone(), 1);
            }
        }
    }

    pub(super) fn subtract(&mut self, key: &K) {
        match self.0.get_mut(key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                self.0.remove(key);
            }
            None => {}
        }
    }

    pub(super) fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> + '_ {
        self.0.keys()
    }
}
