//! Services and endpoints: own ones with owners and lifetimes, and what remote domains say.

use core::ops::Bound;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::{ByService, Tally, beyond};
use super::matching::EndpointQuery;
use super::object::{Endpoint, Marks, Service};
use super::record::Record;
use super::remotes::Remotes;
use crate::deadlines::Deadlines;
use crate::ids::{DomainName, NetworkUid, SpiffeId};
use crate::time::Mono;

/// Everything that can be found.
#[derive(Debug, Default)]
pub(super) struct Objects {
    services: BTreeMap<String, (Service, SpiffeId)>,
    own: BTreeMap<Arc<str>, Own>,
    by_service: ByService,
    deadlines: Deadlines<Arc<str>>,
    service_owners: Tally<SpiffeId>,
    endpoint_owners: Tally<SpiffeId>,
    pub(super) remotes: Remotes,
}

/// An endpoint of the own domain.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) endpoint: Arc<Endpoint>,
    /// Of its marks: the network in which other domains see it.
    pub(super) uid: Option<NetworkUid>,
    pub(super) owner: SpiffeId,
    /// Not durable: starts anew with every restart.
    pub(super) deadline: Mono,
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
                self.remove_service(&service.name);
                self.service_owners.add(owner);
                self.services
                    .insert(service.name.clone(), (service.clone(), owner.clone()));
            }
            Record::ServiceRemoved { name } => self.remove_service(name),
            Record::Endpoint { endpoint, owner } => {
                self.insert(endpoint.clone(), owner.clone(), now + lifetime);
            }
            Record::EndpointRemoved { name } => self.remove(name),
            Record::Remote {
                uid,
                domain,
                endpoint,
            } => self
                .remotes
                .insert(domain, *uid, endpoint.clone(), now + grace),
            Record::RemoteRemoved { domain, name } => self.remotes.remove(domain, name),
            Record::Document { .. }
            | Record::Lease { .. }
            | Record::Name { .. }
            | Record::NameReleased { .. } => {}
        }
    }

    fn remove_service(&mut self, name: &str) {
        if let Some((_, owner)) = self.services.remove(name) {
            self.service_owners.subtract(&owner);
        }
    }

    fn insert(&mut self, endpoint: Arc<Endpoint>, owner: SpiffeId, deadline: Mono) {
        self.remove(&endpoint.name);
        let name: Arc<str> = endpoint.name.as_str().into();
        let services = endpoint.services.iter().map(String::as_str);
        self.by_service.insert(&name, services);
        self.deadlines.set(&name, None, Some(deadline));
        self.endpoint_owners.add(&owner);
        let uid = Marks::of(&endpoint).map(|marks| marks.uid);
        let own = Own {
            endpoint,
            uid,
            owner,
            deadline,
        };
        self.own.insert(name, own);
    }

    fn remove(&mut self, name: &str) {
        let Some((name, own)) = self.own.remove_entry(name) else {
            return;
        };
        let services = own.endpoint.services.iter().map(String::as_str);
        self.by_service.remove(&name, services);
        self.deadlines.set(&name, Some(own.deadline), None);
        self.endpoint_owners.subtract(&own.owner);
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
        let remote = self.remotes.iter().map(|(domain, remote)| Record::Remote {
            uid: remote.uid,
            domain: DomainName::clone(domain),
            endpoint: remote.packed.clone(),
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

    /// The own endpoints among which all that match are, in the order of their names; those
    /// after a name only.
    pub(super) fn candidates<'a>(
        &'a self,
        query: &EndpointQuery,
        after: Option<&str>,
    ) -> Box<dyn Iterator<Item = (&'a Arc<str>, &'a Own)> + 'a> {
        match (query.name.as_str(), query.services.first()) {
            ("", None) => {
                let range = (beyond(after), Bound::Unbounded);
                Box::new(self.own.range::<str, _>(range))
            }
            ("", Some(service)) => {
                let names = self.by_service.names(service, after);
                Box::new(names.filter_map(|name| self.own.get_key_value(name)))
            }
            (name, _) => {
                let named = self.own.get_key_value(name);
                Box::new(
                    named
                        .filter(|_| after.is_none_or(|after| after < name))
                        .into_iter(),
                )
            }
        }
    }

    pub(super) fn own_count(&self) -> usize {
        self.own.len()
    }

    pub(super) fn service_count(&self) -> usize {
        self.services.len()
    }

    pub(super) fn services_of(&self, owner: &SpiffeId) -> usize {
        self.service_owners.of(owner)
    }

    pub(super) fn endpoints_of(&self, owner: &SpiffeId) -> usize {
        self.endpoint_owners.of(owner)
    }

    /// A refresh: no record, the deadline moves.
    pub(super) fn touch(&mut self, name: &str, deadline: Mono) {
        let key = self.own.get_key_value(name).map(|(key, _)| key.clone());
        if let Some((key, own)) = key.zip(self.own.get_mut(name)) {
            self.deadlines.set(&key, Some(own.deadline), Some(deadline));
            own.deadline = deadline;
        }
    }

    /// Own endpoints go at `own`, remote ones that nobody vouches for at `remote`.
    pub(super) fn postpone(&mut self, own: Mono, remote: Mono) {
        let names: Vec<_> = self.own.keys().cloned().collect();
        for name in names {
            self.touch(&name, own);
        }
        self.remotes.postpone(remote);
    }

    /// What is due to go.
    pub(super) fn expired(&self, now: Mono) -> Vec<Record> {
        let own = self.deadlines.due(now);
        let own = own.map(|name| Record::EndpointRemoved {
            name: name.to_string(),
        });
        own.chain(self.remotes.expired(now)).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Mono> {
        let of_both = [self.deadlines.next(), self.remotes.next_expiry()];
        of_both.into_iter().flatten().min()
    }
}
