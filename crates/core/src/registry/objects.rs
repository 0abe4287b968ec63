//! Services and endpoints: own ones with owners and lifetimes, and what remote domains say.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::object::{Endpoint, Service};
use super::record::Record;
use crate::ids::{DomainName, NetworkUid, SpiffeId};
use crate::time::Mono;

/// Everything that can be found.
#[derive(Debug, Default)]
pub(super) struct Objects {
    services: BTreeMap<String, (Service, SpiffeId)>,
    own: BTreeMap<String, Own>,
    remote: BTreeMap<DomainName, BTreeMap<String, Remote>>,
}

/// An endpoint of the own domain.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) endpoint: Endpoint,
    pub(super) owner: SpiffeId,
    /// Not durable: starts anew with every restart.
    pub(super) deadline: Mono,
}

/// An endpoint of another domain, under its own name there.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) uid: NetworkUid,
    pub(super) endpoint: Endpoint,
    /// When it goes; None while its domain's stream vouches for it.
    pub(super) deadline: Option<Mono>,
}

impl Objects {
    /// Takes one record; own endpoints live `lifetime`, remote ones `grace` from `now` until
    /// their stream vouches for them. Records of other kinds are not ours.
    pub(super) fn apply(
        &mut self,
        record: &Record,
        lifetime: Duration,
        grace: Duration,
        now: Mono,
    ) {
        match record {
            Record::Service { service, owner } => {
                self.services
                    .insert(service.name.clone(), (service.clone(), owner.clone()));
            }
            Record::ServiceRemoved { name } => {
                self.services.remove(name);
            }
            Record::Endpoint { endpoint, owner } => {
                let own = Own {
                    endpoint: endpoint.clone(),
                    owner: owner.clone(),
                    deadline: now + lifetime,
                };
                self.own.insert(endpoint.name.clone(), own);
            }
            Record::EndpointRemoved { name } => {
                self.own.remove(name);
            }
            Record::Remote {
                uid,
                domain,
                endpoint,
            } => {
                let deadline = Some(now + grace);
                let remote = Remote {
                    uid: *uid,
                    endpoint: endpoint.clone(),
                    deadline,
                };
                self.remote
                    .entry(domain.clone())
                    .or_default()
                    .insert(endpoint.name.clone(), remote);
            }
            Record::RemoteRemoved { domain, name } => {
                if let Some(entries) = self.remote.get_mut(domain) {
                    entries.remove(name);
                    if entries.is_empty() {
                        self.remote.remove(domain);
                    }
                }
            }
            Record::Document { .. }
            | Record::Lease { .. }
            | Record::Name { .. }
            | Record::NameReleased { .. } => {}
        }
    }

    pub(super) fn snapshot(&self) -> Vec<Record> {
        let services = self
            .services
            .values()
            .map(|(service, owner)| Record::Service {
                service: service.clone(),
                owner: owner.clone(),
            });
        let own = self.own.values().map(|own| Record::Endpoint {
            endpoint: own.endpoint.clone(),
            owner: own.owner.clone(),
        });
        let remote = self.remotes().map(|(domain, remote)| Record::Remote {
            uid: remote.uid,
            domain: domain.clone(),
            endpoint: remote.endpoint.clone(),
        });
        services.chain(own).chain(remote).collect()
    }

    pub(super) fn service(&self, name: &str) -> Option<&(Service, SpiffeId)> {
        self.services.get(name)
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Service> + '_ {
        self.services.values().map(|(service, _)| service)
    }

    pub(super) fn services_owned(&self) -> impl Iterator<Item = (&Service, &SpiffeId)> + '_ {
        self.services
            .values()
            .map(|(service, owner)| (service, owner))
    }

    pub(super) fn own(&self, name: &str) -> Option<&Own> {
        self.own.get(name)
    }

    pub(super) fn owns(&self) -> impl Iterator<Item = &Own> + '_ {
        self.own.values()
    }

    pub(super) fn own_count(&self) -> usize {
        self.own.len()
    }

    pub(super) fn service_count(&self) -> usize {
        self.services.len()
    }

    pub(super) fn services_of(&self, owner: &SpiffeId) -> usize {
        let owners = self.services.values().map(|(_, owner)| owner);
        owners.filter(|other| *other == owner).count()
    }

    pub(super) fn endpoints_of(&self, owner: &SpiffeId) -> usize {
        let owners = self.own.values().map(|own| &own.owner);
        owners.filter(|other| *other == owner).count()
    }

    pub(super) fn remote(&self, domain: &DomainName, name: &str) -> Option<&Remote> {
        self.remote.get(domain)?.get(name)
    }

    pub(super) fn remotes(&self) -> impl Iterator<Item = (&DomainName, &Remote)> + '_ {
        self.remote
            .iter()
            .flat_map(|(domain, entries)| entries.values().map(move |entry| (domain, entry)))
    }

    pub(super) fn remotes_of(&self, domain: &DomainName) -> impl Iterator<Item = &Remote> + '_ {
        self.remote
            .get(domain)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    pub(super) fn remotes_count(&self) -> usize {
        self.remote.values().map(BTreeMap::len).sum()
    }

    pub(super) fn remote_count(&self, domain: &DomainName) -> usize {
        self.remote.get(domain).map_or(0, BTreeMap::len)
    }

    /// A refresh: no record, the deadline moves.
    pub(super) fn touch(&mut self, name: &str, deadline: Mono) {
        if let Some(own) = self.own.get_mut(name) {
            own.deadline = deadline;
        }
    }

    /// The domain's stream vouches for this entry.
    pub(super) fn vouch(&mut self, domain: &DomainName, name: &str) {
        if let Some(entry) = self
            .remote
            .get_mut(domain)
            .and_then(|entries| entries.get_mut(name))
        {
            entry.deadline = None;
        }
    }

    /// The domain's stream is lost: what it vouched for goes at `deadline`.
    pub(super) fn stale(&mut self, domain: &DomainName, deadline: Mono) {
        for entry in self
            .remote
            .get_mut(domain)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
        {
            entry.deadline.get_or_insert(deadline);
        }
    }

    /// The domain's entries that its complete snapshot did not name.
    pub(super) fn unnamed(&self, domain: &DomainName, named: &BTreeSet<String>) -> Vec<Record> {
        let entries = self.remote.get(domain).into_iter().flat_map(BTreeMap::keys);
        let removed = |name: &String| Record::RemoteRemoved {
            domain: domain.clone(),
            name: name.clone(),
        };
        entries
            .filter(|name| !named.contains(*name))
            .map(removed)
            .collect()
    }

    /// What is due to go.
    pub(super) fn expired(&self, now: Mono) -> Vec<Record> {
        let own = self.own.values().filter(|own| own.deadline <= now);
        let own = own.map(|own| Record::EndpointRemoved {
            name: own.endpoint.name.clone(),
        });
        let remote = self
            .remotes()
            .filter(|(_, entry)| entry.deadline.is_some_and(|at| at <= now));
        let remote = remote.map(|(domain, entry)| Record::RemoteRemoved {
            domain: domain.clone(),
            name: entry.endpoint.name.clone(),
        });
        own.chain(remote).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Mono> {
        let own = self.own.values().map(|own| own.deadline);
        own.chain(self.remotes().filter_map(|(_, entry)| entry.deadline))
            .min()
    }
}
