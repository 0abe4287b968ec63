//! Telling watchers and other registries what a record changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::api::{Effect, FoundEndpoint, Peer, Place, Query, WatchEvent, WatcherId};
use super::machine::RegistryMachine;
use super::matching::EndpointQuery;
use super::object::{Endpoint, Service};
use super::packed::Packed;
use super::record::Record;
use super::shown::{Shown, View};
use crate::allocator::LeaseRecord;
use crate::ids::{DomainName, NetworkUid};
use crate::machine::Outbox;
use crate::time::{Now, Wall};

/// What was there before a record removed it.
#[derive(Debug)]
pub(super) enum LastKnown {
    Service(Service),
    /// With the network in which other domains see it.
    Own(Arc<Endpoint>, Option<NetworkUid>),
    Remote(Packed, NetworkUid),
}

impl RegistryMachine {
    /// The object that a record is about to remove: a deletion carries it.
    pub(super) fn last_known(&self, record: &Record) -> Option<LastKnown> {
        match record {
            Record::ServiceRemoved { name } => {
                let (service, _) = self.objects.service(name)?;
                Some(LastKnown::Service(service.clone()))
            }
            Record::Endpoint { endpoint, .. } => {
                let own = self.objects.own(&endpoint.name)?;
                Some(LastKnown::Own(own.endpoint.clone(), own.uid))
            }
            Record::EndpointRemoved { name } => {
                let own = self.objects.own(name)?;
                Some(LastKnown::Own(own.endpoint.clone(), own.uid))
            }
            Record::RemoteRemoved { domain, name } => {
                let remote = self.objects.remotes.get(domain, name)?;
                Some(LastKnown::Remote(remote.packed.clone(), remote.uid))
            }
            Record::Document { .. }
            | Record::Lease { .. }
            | Record::Service { .. }
            | Record::Remote { .. }
            | Record::Name { .. }
            | Record::NameReleased { .. } => None,
        }
    }

    /// Tells watchers and other registries.
    pub(super) fn announce(
        &mut self,
        record: &Record,
        before: Option<LastKnown>,
        now: Now,
        out: &mut Outbox<Effect>,
    ) {
        match record {
            Record::Document { chain } => self.document_changed(chain, now, out),
            Record::Lease {
                uid,
                record: LeaseRecord::Ended { router },
            } => {
                let released = self
                    .networks
                    .get(uid)
                    .map(|network| network.names.router_gone(*uid, router));
                self.commit(released.unwrap_or_default(), now, out);
            }
            Record::Lease { .. } | Record::Name { .. } | Record::NameReleased { .. } => {}
            Record::Service { service, .. } => self.tell_service(service, false, out),
            Record::ServiceRemoved { .. } => {
                if let Some(LastKnown::Service(service)) = before {
                    self.tell_service(&service, true, out);
                }
            }
            Record::Endpoint { endpoint, .. } => {
                let uid = self.objects.own(&endpoint.name).and_then(|own| own.uid);
                let expires = now.wall + self.config.endpoint_lifetime;
                self.tell_own(endpoint, uid, expires, false, now.wall, out);
                let left = match before {
                    Some(LastKnown::Own(_, before)) => before.filter(|before| uid != Some(*before)),
                    _ => None,
                };
                let lifetime = self.config.endpoint_lifetime;
                self.federate(now, out, |federation, events| {
                    if let Some(left) = left {
                        federation.remove(left, &endpoint.name, events);
                    }
                    if let Some(uid) = uid {
                        federation.upsert(uid, endpoint, lifetime, events);
                    }
                });
            }
            Record::EndpointRemoved { .. } => {
                let Some(LastKnown::Own(endpoint, uid)) = before else {
                    return;
                };
                self.tell_own(&endpoint, uid, now.wall, true, now.wall, out);
                if let Some(uid) = uid {
                    self.federate(now, out, |federation, events| {
                        federation.remove(uid, &endpoint.name, events)
                    });
                }
            }
            Record::Remote {
                uid,
                domain,
                endpoint,
            } => {
                // A removal is told even when it is due to the network's end.
                if self.network(*uid, now.wall).is_ok() {
                    let expires = now.wall + self.config.endpoint_lifetime;
                    self.tell_remote((domain, *uid), endpoint, expires, false, out);
                }
            }
            Record::RemoteRemoved { domain, .. } => {
                let Some(LastKnown::Remote(packed, uid)) = before else {
                    return;
                };
                self.tell_remote((domain, uid), &packed, now.wall, true, out);
            }
        }
    }

    fn tell_service(&mut self, service: &Service, deleted: bool, out: &mut Outbox<Effect>) {
        let matching = self.watchers.of_services().filter(|(_, watcher)| {
            self.is_own(&watcher.peer.id)
                && matches!(&watcher.query, Query::Services(query) if query.matches(service))
        });
        let told: Vec<_> = matching
            .map(|(watcher, _)| {
                let event = WatchEvent::Service {
                    service: service.clone(),
                    deleted,
                };
                (watcher, vec![event])
            })
            .collect();
        for (watcher, events) in told {
            self.deliver(watcher, events, out);
        }
    }

    fn tell_own(
        &mut self,
        endpoint: &Arc<Endpoint>,
        uid: Option<NetworkUid>,
        expires: Wall,
        deleted: bool,
        wall: Wall,
        out: &mut Outbox<Effect>,
    ) {
        if self.watchers.of_endpoints_is_empty() {
            return;
        }
        let services = endpoint.services.iter().map(String::as_str);
        let watchers = self.watchers.of_endpoint(&endpoint.name, services);
        let place = Place::Own(endpoint.name.as_str().into());
        self.tell(
            &place,
            watchers,
            expires,
            deleted,
            out,
            |machine, _, peer| {
                let seen = machine.sees_own(uid, peer, wall);
                seen.then(|| Shown::own(endpoint.clone()))
            },
        );
    }

    fn tell_remote(
        &mut self,
        (domain, uid): (&DomainName, NetworkUid),
        packed: &Packed,
        expires: Wall,
        deleted: bool,
        out: &mut Outbox<Effect>,
    ) {
        if self.watchers.of_endpoints_is_empty() {
            return;
        }
        let domain = Arc::new(domain.clone());
        let name = format!("{}@{domain}", packed.name());
        let there = packed
            .services()
            .map(|service| format!("{service}@{domain}"));
        let there: Vec<_> = there.collect();
        let services = packed.services().chain(there.iter().map(String::as_str));
        let watchers = self.watchers.of_endpoint(&name, services);
        let views = [View::Router, View::Other].map(|view| Shown::remote(packed, &domain, view));
        let [router, other] = &views;
        let place = Place::Remote(Arc::clone(&domain), packed.name().into());
        self.tell(
            &place,
            watchers,
            expires,
            deleted,
            out,
            |machine, query, peer| {
                Some(match machine.view(uid, query, peer)? {
                    View::Router => router.clone(),
                    View::Other => other.clone(),
                })
            },
        );
    }

    /// Of what stands on the pages to come of a watch's snapshot nothing is told: they show it
    /// as it is then.
    fn tell(
        &mut self,
        place: &Place,
        watchers: BTreeSet<WatcherId>,
        expires: Wall,
        deleted: bool,
        out: &mut Outbox<Effect>,
        shown: impl Fn(&Self, &EndpointQuery, &Peer) -> Option<Shown>,
    ) {
        for watcher in watchers {
            let Some(watch) = self.watchers.get(watcher) else {
                continue;
            };
            let Query::Endpoints(query) = &watch.query else {
                continue;
            };
            if watch.rest.as_ref().is_some_and(|read| place > read) {
                continue;
            }
            let Some(shown) = shown(self, query, &watch.peer)
                .filter(|shown| shown.matches(query, expires.unix_secs()))
            else {
                continue;
            };
            let found = FoundEndpoint { shown, expires };
            let events = vec![WatchEvent::Endpoint { found, deleted }];
            self.deliver(watcher, events, out);
        }
    }

    pub(super) fn deliver(
        &mut self,
        watcher: WatcherId,
        events: Vec<WatchEvent>,
        out: &mut Outbox<Effect>,
    ) {
        let effect = Effect::Deliver {
            watcher,
            events,
            rest: false,
        };
        self.say(effect, out);
    }
}
