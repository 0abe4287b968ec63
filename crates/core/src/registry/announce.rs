//! Telling watchers and other registries what a record changed.

use super::api::{Effect, FoundEndpoint, Query, WatchEvent};
use super::machine::RegistryMachine;
use super::object::{Endpoint, Marks, Service};
use super::record::Record;
use crate::allocator::LeaseRecord;
use crate::ids::{DomainName, NetworkUid};
use crate::machine::Outbox;
use crate::time::{Now, Wall};

/// What was there before a record removed it.
#[derive(Debug)]
pub(super) enum LastKnown {
    Service(Service),
    /// With its network.
    Endpoint(Endpoint, Option<NetworkUid>),
}

impl RegistryMachine {
    /// The object that a record is about to remove: a deletion carries it.
    pub(super) fn last_known(&self, record: &Record) -> Option<LastKnown> {
        match record {
            Record::ServiceRemoved { name } => {
                let (service, _) = self.objects.service(name)?;
                Some(LastKnown::Service(service.clone()))
            }
            Record::EndpointRemoved { name } => {
                let own = self.objects.own(name)?;
                let uid = Marks::of(&own.endpoint).map(|marks| marks.uid);
                Some(LastKnown::Endpoint(own.endpoint.clone(), uid))
            }
            Record::RemoteRemoved { domain, name } => {
                let remote = self.objects.remote(domain, name)?;
                let uid = Some(remote.uid);
                Some(LastKnown::Endpoint(remote.endpoint.clone(), uid))
            }
            Record::Document { .. }
            | Record::Lease { .. }
            | Record::Service { .. }
            | Record::Endpoint { .. }
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
                let expires = now.wall + self.config.endpoint_lifetime;
                self.tell_endpoint(None, None, endpoint, expires, false, now.wall, out);
                if let Some(marks) = Marks::of(endpoint) {
                    let lifetime = self.config.endpoint_lifetime;
                    self.federate(now, out, |federation, events| {
                        federation.upsert(marks.uid, endpoint, lifetime, events);
                    });
                }
            }
            Record::EndpointRemoved { .. } => {
                let Some(LastKnown::Endpoint(endpoint, uid)) = before else {
                    return;
                };
                self.tell_endpoint(None, None, &endpoint, now.wall, true, now.wall, out);
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
                let expires = now.wall + self.config.endpoint_lifetime;
                self.tell_endpoint(
                    Some(domain),
                    Some(*uid),
                    endpoint,
                    expires,
                    false,
                    now.wall,
                    out,
                );
            }
            Record::RemoteRemoved { domain, .. } => {
                let Some(LastKnown::Endpoint(endpoint, uid)) = before else {
                    return;
                };
                self.tell_endpoint(Some(domain), uid, &endpoint, now.wall, true, now.wall, out);
            }
        }
    }

    fn tell_service(&mut self, service: &Service, deleted: bool, out: &mut Outbox<Effect>) {
        let matching = self.watchers.iter().filter(|(_, watcher)| {
            self.is_own(&watcher.peer.id)
                && matches!(&watcher.query, Query::Services(query) if query.matches(service))
        });
        let effects: Vec<_> = matching
            .map(|(watcher, _)| {
                let event = WatchEvent::Service {
                    service: service.clone(),
                    deleted,
                };
                Effect::Deliver {
                    watcher,
                    events: vec![event],
                }
            })
            .collect();
        effects.into_iter().for_each(|effect| self.say(effect, out));
    }

    #[expect(clippy::too_many_arguments, reason = "one event in its parts")]
    fn tell_endpoint(
        &mut self,
        domain: Option<&DomainName>,
        uid: Option<NetworkUid>,
        endpoint: &Endpoint,
        expires: Wall,
        deleted: bool,
        wall: Wall,
        out: &mut Outbox<Effect>,
    ) {
        let mut effects = Vec::new();
        for (watcher, watch) in self.watchers.iter() {
            let Query::Endpoints(query) = &watch.query else {
                continue;
            };
            let shown = match (domain, uid) {
                (Some(domain), Some(uid)) => {
                    self.show_remote(domain, uid, endpoint, &watch.peer, wall, deleted)
                }
                _ => self.show_own(endpoint, &watch.peer, wall),
            };
            let Some(endpoint) = shown.filter(|shown| query.matches(shown, expires.unix_secs()))
            else {
                continue;
            };
            let found = FoundEndpoint { endpoint, expires };
            effects.push(Effect::Deliver {
                watcher,
                events: vec![WatchEvent::Endpoint { found, deleted }],
            });
        }
        effects.into_iter().for_each(|effect| self.say(effect, out));
    }
}
