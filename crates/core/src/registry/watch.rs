//! Who watches what, by what a change can match.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{Config, Peer, Place, Query, Refusal, WatcherId};
use super::index::Tally;
use crate::caller::Caller;
use crate::ids::NetworkUid;

/// The watchers of one registry, bounded in all, for other domains together and for each
/// caller.
#[derive(Debug)]
pub(super) struct Watchers {
    own_trust_domain: String,
    watchers: BTreeMap<WatcherId, Watcher>,
    /// Watches of endpoints: by the queried name, else by the first queried service.
    by_name: BTreeMap<String, BTreeSet<WatcherId>>,
    by_service: BTreeMap<String, BTreeSet<WatcherId>>,
    /// Watches of endpoints that neither can serve.
    rest: BTreeSet<WatcherId>,
    services: BTreeSet<WatcherId>,
    documents: BTreeMap<NetworkUid, BTreeSet<WatcherId>>,
    callers: Tally<Caller>,
    foreign: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Watcher {
    pub(super) peer: Peer,
    pub(super) query: Query,
    /// Where the part of its snapshot begins that it was not shown yet.
    pub(super) rest: Option<Place>,
    /// Somebody of another domain: the networks whose endpoints were shown so far.
    pub(super) sees: BTreeSet<NetworkUid>,
}

impl Watchers {
    pub(super) fn new(own_trust_domain: &str) -> Self {
        Self {
            own_trust_domain: own_trust_domain.to_owned(),
            watchers: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_service: BTreeMap::new(),
            rest: BTreeSet::new(),
            services: BTreeSet::new(),
            documents: BTreeMap::new(),
            callers: Tally::default(),
            foreign: 0,
        }
    }

    fn caller(&self, peer: &Peer) -> Caller {
        Caller::of(&peer.id, &self.own_trust_domain)
    }

    /// Whether there is room for one more of this caller.
    pub(super) fn room(&self, peer: &Peer, config: &Config) -> Result<(), Refusal> {
        let full = |what, limit| Err(Refusal::Limit { what, limit });
        if self.watchers.len() >= config.watchers_max {
            return full("watches", config.watchers_max);
        }
        let caller = self.caller(peer);
        let others_max = Caller::foreign_share(config.watchers_max);
        if caller.is_foreign() && self.foreign >= others_max {
            return full("watches of other domains", others_max);
        }
        if self.callers.of(&caller) >= config.watchers_per_identity_max {
            return full("watches of one identity", config.watchers_per_identity_max);
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, id: WatcherId, watcher: Watcher) {
        self.remove(id);
        let caller = self.caller(&watcher.peer);
        self.foreign += usize::from(caller.is_foreign());
        self.callers.add(&caller);
        self.class(&watcher.query, |ids| {
            ids.insert(id);
        });
        self.watchers.insert(id, watcher);
    }

    pub(super) fn remove(&mut self, id: WatcherId) {
        if let Some(watcher) = self.watchers.remove(&id) {
            let caller = self.caller(&watcher.peer);
            self.foreign -= usize::from(caller.is_foreign());
            self.callers.subtract(&caller);
            self.class(&watcher.query, |ids| {
                ids.remove(&id);
            });
        }
    }

    /// Ends all of them; their ids.
    pub(super) fn clear(&mut self) -> Vec<WatcherId> {
        let empty = Self::new(&self.own_trust_domain);
        core::mem::replace(self, empty)
            .watchers
            .into_keys()
            .collect()
    }

    /// Changes the set that a query belongs to; an empty one is not kept.
    fn class(&mut self, query: &Query, change: impl FnOnce(&mut BTreeSet<WatcherId>)) {
        match query {
            Query::Services(_) => change(&mut self.services),
            Query::Document(uid) => keyed(&mut self.documents, uid, change),
            Query::Endpoints(query) => match (query.name.as_str(), query.services.first()) {
                ("", None) => change(&mut self.rest),
                ("", Some(service)) => keyed(&mut self.by_service, service, change),
                _ => keyed(&mut self.by_name, &query.name, change),
            },
        }
    }

    /// Those among whom all are whose query an endpoint of this name with these services can
    /// match, in order.
    pub(super) fn of_endpoint<'a>(
        &self,
        name: &str,
        services: impl IntoIterator<Item = &'a str>,
    ) -> BTreeSet<WatcherId> {
        let mut of = self.rest.clone();
        of.extend(self.by_name.get(name).into_iter().flatten());
        for service in services {
            of.extend(self.by_service.get(service).into_iter().flatten());
        }
        of
    }

    /// Whether anybody watches endpoints.
    pub(super) fn of_endpoints_is_empty(&self) -> bool {
        self.rest.is_empty() && self.by_name.is_empty() && self.by_service.is_empty()
    }

    pub(super) fn of_services(&self) -> impl Iterator<Item = (WatcherId, &Watcher)> + '_ {
        self.all(&self.services)
    }

    pub(super) fn of_document(
        &self,
        uid: NetworkUid,
    ) -> impl Iterator<Item = (WatcherId, &Watcher)> + '_ {
        let ids = self.documents.get(&uid).into_iter();
        ids.flat_map(|ids| self.all(ids))
    }

    fn all<'a>(
        &'a self,
        ids: &'a BTreeSet<WatcherId>,
    ) -> impl Iterator<Item = (WatcherId, &'a Watcher)> + 'a {
        ids.iter().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// Watches of endpoints by identities of other trust domains.
    pub(super) fn of_others(&self) -> impl Iterator<Item = (WatcherId, &Watcher)> + '_ {
        let all = if self.foreign == 0 {
            None
        } else {
            Some(&self.watchers)
        };
        let all = all
            .into_iter()
            .flatten()
            .map(|(id, watcher)| (*id, watcher));
        all.filter(|(_, watcher)| {
            matches!(watcher.query, Query::Endpoints(_)) && self.caller(&watcher.peer).is_foreign()
        })
    }

    pub(super) fn get(&self, id: WatcherId) -> Option<&Watcher> {
        self.watchers.get(&id)
    }

    pub(super) fn set_rest(&mut self, id: WatcherId, rest: Option<Place>) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.rest = rest;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.watchers.len()
    }
}

fn keyed<K: Ord + Clone>(
    sets: &mut BTreeMap<K, BTreeSet<WatcherId>>,
    key: &K,
    change: impl FnOnce(&mut BTreeSet<WatcherId>),
) {
    let mut ids = sets.remove(key).unwrap_or_default();
    change(&mut ids);
    if !ids.is_empty() {
        sets.insert(key.clone(), ids);
    }
}
