//! Services and endpoints: registered, refreshed, unregistered, by their owners only.

use core::time::Duration;
use std::sync::Arc;

use super::access::Takes;
use super::api::{Effect, FoundEndpoint, Peer, Refusal, Reply};
use super::find::PAYLOAD_DEFAULT;
use super::machine::RegistryMachine;
use super::object::{Endpoint, Marks, Service};
use super::record::Record;
use super::shown::Shown;
use crate::allocator;
use crate::ids::{RouterName, SpiffeId};
use crate::machine::Outbox;
use crate::time::{Now, Wall};

type Out<'a> = &'a mut Outbox<Effect>;

impl RegistryMachine {
    pub(super) fn register_service(
        &mut self,
        mut service: Service,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        self.must_be_own("network_service", peer)?;
        check_object_name(Takes::Service.field(), &service.name)?;
        self.check_size("network_service", service.size())?;
        let concerned = self.concerned_by_service(&service.name);
        let owner = self.owner(peer, &concerned, now.wall);
        self.may_take(Takes::Service, &service.name, &owner, now.wall)?;
        if service.payload.is_empty() {
            PAYLOAD_DEFAULT.clone_into(&mut service.payload);
        }
        match self.objects.service(&service.name) {
            // Several routers register the same service; only its owner may change it.
            Some((known, _)) if same_service(known, &service) => {
                return Ok(Reply::Service(known.clone()));
            }
            Some((_, first)) => {
                self.must_be_free(Takes::Service, &service.name, first, &owner, now.wall)?;
            }
            None => self.check_room(
                ["network services", "network services of one owner"],
                self.config.services_max,
                [
                    self.objects.service_count(),
                    self.objects.services_of(&owner),
                ],
            )?,
        }
        self.commit(
            vec![Record::Service {
                service: service.clone(),
                owner,
            }],
            now,
            out,
        );
        Ok(Reply::Service(service))
    }

    pub(super) fn unregister_service(
        &mut self,
        name: String,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        if let Some((_, first)) = self.objects.service(&name) {
            let owner = self.owner(peer, &self.concerned_by_service(&name), now.wall);
            must_own(Takes::Service, &name, first, &owner)?;
            self.commit(vec![Record::ServiceRemoved { name }], now, out);
        }
        Ok(Reply::Done)
    }

    pub(super) fn register_endpoint(
        &mut self,
        mut endpoint: Endpoint,
        lifetime: Option<Duration>,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        self.must_be_own("network_service_endpoint", peer)?;
        check_object_name(Takes::Endpoint.field(), &endpoint.name)?;
        for service in &endpoint.services {
            check_object_name(Takes::Offer.field(), service)?;
        }
        for service in endpoint.labels.keys() {
            check_object_name("network_service_endpoint.network_service_labels", service)?;
        }
        self.check_size("network_service_endpoint", endpoint.size())?;
        let concerned = self.concerned_by_endpoint(&endpoint);
        let owner = self.owner(peer, &concerned, now.wall);
        self.may_offer(&endpoint, &owner, now.wall)?;
        self.must_not_be_fenced(&endpoint)?;
        let known = self.objects.own(&endpoint.name);
        match known {
            Some(known) => {
                let (name, first) = (&endpoint.name, &known.owner);
                self.must_be_free(Takes::Endpoint, name, first, &owner, now.wall)?;
            }
            None => self.check_room(
                ["endpoints", "endpoints of one owner"],
                self.config.endpoints_max,
                [self.objects.own_count(), self.objects.endpoints_of(&owner)],
            )?,
        }
        // Kept for the name until it is unregistered or another one's.
        let known = known.filter(|known| known.owner == owner);
        let first = known.and_then(|known| known.endpoint.registered);
        endpoint.registered = first.or(endpoint.registered).or(Some(now.wall));
        let longest = self.config.endpoint_lifetime;
        let lifetime = lifetime.unwrap_or(longest).min(longest);
        let endpoint = match known.filter(|known| *known.endpoint == endpoint) {
            Some(known) => known.endpoint.clone(),
            None => {
                let endpoint = Arc::new(endpoint);
                let record = Record::Endpoint {
                    endpoint: endpoint.clone(),
                    owner,
                };
                self.commit(vec![record], now, out);
                endpoint
            }
        };
        self.objects.touch(&endpoint.name, now.mono + lifetime);
        Ok(Reply::Endpoint(FoundEndpoint {
            shown: Shown::own(endpoint),
            expires: now.wall + lifetime,
        }))
    }

    /// A router of an older round than its lease must not come back into view.
    fn must_not_be_fenced(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        let Some(marks) = Marks::of(endpoint) else {
            return Ok(());
        };
        let network = self.networks.get(&marks.uid);
        if let Some(network) = network {
            network.allocator.admit_generation(marks.generation)?;
        }
        let lease = network.and_then(|network| {
            let lease = network
                .allocator
                .lease(&RouterName::new(&marks.name).ok()?)?;
            (lease.router.as_str() == marks.name).then_some(lease)
        });
        let known = self
            .objects
            .own(&endpoint.name)
            .and_then(|own| Marks::of(&own.endpoint));
        let highest = lease
            .map(|lease| lease.generation)
            .max(known.map(|known| known.generation));
        match (highest, lease) {
            (Some(generation), Some(lease)) if marks.generation < generation => {
                let router = lease.router.clone();
                Err(allocator::Refusal::Fenced { router, generation }.into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn unregister_endpoint(
        &mut self,
        name: String,
        peer: &Peer,
        now: Now,
        out: Out<'_>,
    ) -> Result<Reply, Refusal> {
        if let Some(own) = self.objects.own(&name) {
            let concerned = self.concerned_by_endpoint(&own.endpoint);
            let owner = self.owner(peer, &concerned, now.wall);
            must_own(Takes::Endpoint, &name, &own.owner, &owner)?;
            self.commit(vec![Record::EndpointRemoved { name }], now, out);
        }
        Ok(Reply::Done)
    }

    /// Room for one more: of all, of this owner.
    fn check_room(
        &self,
        what: [&'static str; 2],
        limit: usize,
        held: [usize; 2],
    ) -> Result<(), Refusal> {
        let limits = [limit, self.config.per_owner_max];
        let full = what.into_iter().zip(limits).zip(held);
        full.map(|((what, limit), held)| (what, limit, held))
            .find(|(_, limit, held)| held >= limit)
            .map_or(Ok(()), |(what, limit, _)| {
                Err(Refusal::Limit { what, limit })
            })
    }

    pub(super) fn check_size(&self, field: &'static str, size: usize) -> Result<(), Refusal> {
        let limit = self.config.object_bytes_max;
        if size <= limit {
            return Ok(());
        }
        Err(Refusal::Invalid {
            field,
            value: format!("{size} bytes"),
            allowed: format!("at most {limit} bytes are"),
        })
    }

    /// A registered name is its owner's, unless that one may not have it (any more): the
    /// name became a router's or a network's since.
    fn must_be_free(
        &self,
        takes: Takes,
        name: &str,
        first: &SpiffeId,
        owner: &SpiffeId,
        wall: Wall,
    ) -> Result<(), Refusal> {
        if self.may_take(takes, name, first, wall).is_err() {
            return Ok(());
        }
        must_own(takes, name, first, owner)
    }
}

fn must_own(takes: Takes, name: &str, first: &SpiffeId, owner: &SpiffeId) -> Result<(), Refusal> {
    if first == owner {
        return Ok(());
    }
    Err(Refusal::Denied {
        what: takes.field(),
        peer: owner.clone(),
        reason: format!("{name} is registered by {first}"),
    })
}

/// Names with `@` are those of other domains.
fn check_object_name(field: &'static str, name: &str) -> Result<(), Refusal> {
    let ok = (1..=253).contains(&name.len())
        && !name.contains('@')
        && !name.chars().any(char::is_control);
    if ok {
        return Ok(());
    }
    let allowed = "1 to 253 bytes without '@' and control characters are".to_owned();
    Err(Refusal::Invalid {
        field,
        value: name.chars().take(64).collect(),
        allowed,
    })
}

fn same_service(a: &Service, b: &Service) -> bool {
    a.payload == b.payload && a.matches == b.matches
}
