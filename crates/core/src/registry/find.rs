//! What a Find answers: what matches, as the caller may see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::{FoundEndpoint, Peer};
use super::machine::RegistryMachine;
use super::matching::{EndpointQuery, ServiceQuery};
use super::object::{Endpoint, Service};
use super::objects::Own;
use super::packed::Packed;
use super::remotes::Remote;
use crate::ids::{DomainName, NetworkUid};
use crate::time::{Mono, Now, Wall};

/// Payload of a service that states none (nsm-wire 4.1).
pub(super) const PAYLOAD_DEFAULT: &str = "IP";

type OfDomain<'a> = (&'a DomainName, &'a Remote);

/// As whom somebody of the own domain sees endpoints of other domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Under the network's own name.
    Router,
    /// Under `<network>@D`.
    Other,
}

impl View {
    pub(super) fn of(self, packed: &Packed, domain: &DomainName) -> Arc<Endpoint> {
        Arc::new(match self {
            Self::Router => packed.for_routers(domain),
            Self::Other => packed.for_others(domain),
        })
    }
}

impl RegistryMachine {
    /// Registered services, and the networks themselves unless somebody registered them: under
    /// their names, and as `<network>@D` for each other member where the query asks for it.
    pub(super) fn find_services(
        &self,
        query: &ServiceQuery,
        peer: &Peer,
        now: Now,
    ) -> Vec<Service> {
        if !self.is_own(&peer.id) {
            return Vec::new();
        }
        let of_network = |name: &str| Service {
            name: name.to_owned(),
            payload: PAYLOAD_DEFAULT.to_owned(),
            path_ids: vec![self.config.identity.to_string()],
            ..Service::default()
        };
        if query.name.contains('@') {
            let elsewhere = split(&query.name).is_some_and(|(name, domain)| {
                let mut common = self.networks.keys().filter_map(|uid| {
                    let (_, document, _) = self.network(*uid, now.wall).ok()?;
                    (document.name.as_str() == name).then_some(document)
                });
                common.any(|document| document.member(&domain, now.wall).is_some())
            });
            let service = elsewhere.then(|| of_network(&query.name));
            let service = service.filter(|service| query.matches(service));
            return service.into_iter().collect();
        }
        let networks = self
            .networks
            .values()
            .map(|network| network.store.document().name.as_str());
        let implied = networks
            .filter(|name| self.objects.service(name).is_none())
            .map(of_network)
            .filter(|service| query.matches(service));
        let registered: Vec<_> = if query.name.is_empty() {
            self.objects.services().collect()
        } else {
            let named = self.objects.service(&query.name);
            named.map(|(service, _)| service).into_iter().collect()
        };
        let registered = registered
            .into_iter()
            .filter(|service| query.matches(service))
            .cloned();
        registered.chain(implied).collect()
    }

    pub(super) fn find_endpoints(
        &self,
        query: &EndpointQuery,
        peer: &Peer,
        now: Now,
    ) -> Vec<FoundEndpoint> {
        let own = self.objects.candidates(query);
        let mut found = self.found(own, Vec::new(), query, peer, now);
        let may_match = || {
            let mut networks = self.networks.keys();
            query.asks_elsewhere() || networks.any(|uid| self.is_router_in(*uid, &peer.id))
        };
        if self.is_own(&peer.id) && may_match() {
            let remote = self.remote_candidates(query);
            found.append(&mut self.found([], remote, query, peer, now));
        }
        found
    }

    /// Those of the given ones that match, as `peer` may see them.
    pub(super) fn found<'a>(
        &self,
        own: impl IntoIterator<Item = &'a Own>,
        remote: impl IntoIterator<Item = OfDomain<'a>>,
        query: &EndpointQuery,
        peer: &Peer,
        now: Now,
    ) -> Vec<FoundEndpoint> {
        let matching =
            |found: &FoundEndpoint| query.matches(&found.endpoint, found.expires.unix_secs());
        let own = own.into_iter().filter_map(|own| {
            let found = FoundEndpoint {
                endpoint: own.endpoint.clone(),
                expires: self.expires(Some(own.deadline), now),
            };
            (matching(&found) && self.sees_own(own.uid, peer, now.wall)).then_some(found)
        });
        let own: Vec<_> = own.collect();
        let mut views = BTreeMap::new();
        let remote = remote.into_iter().filter_map(|(domain, remote)| {
            let uid = remote.uid;
            let view = *views.entry(uid).or_insert_with(|| {
                self.network(uid, now.wall).ok()?;
                self.view(uid, query, peer)
            });
            let view = view?;
            if !remote.packed.url().contains(&query.url) {
                return None;
            }
            let endpoint = view.of(&remote.packed, domain);
            let expires = self.expires(remote.deadline, now);
            Some(FoundEndpoint { endpoint, expires }).filter(matching)
        });
        own.into_iter().chain(remote).collect()
    }

    /// The endpoints of other domains among which all that match are.
    fn remote_candidates<'a>(
        &'a self,
        query: &'a EndpointQuery,
    ) -> Box<dyn Iterator<Item = OfDomain<'a>> + 'a> {
        let remotes = &self.objects.remotes;
        match (query.name.as_str(), query.services.first()) {
            ("", None) => Box::new(remotes.iter()),
            ("", Some(service)) => match split(service) {
                Some((service, domain)) => Box::new(remotes.offering_in(&domain, service)),
                None => Box::new(remotes.offering(service)),
            },
            (name, ..) => {
                let named = split(name).and_then(|(name, domain)| remotes.named(&domain, name));
                Box::new(named.into_iter())
            }
        }
    }

    /// A deadline as a wire shows it. Refreshes are known to the active replica alone.
    fn expires(&self, deadline: Option<Mono>, now: Now) -> Wall {
        let left = deadline
            .filter(|_| !self.is_following())
            .map_or(self.config.endpoint_lifetime, |at| {
                at.saturating_since(now.mono)
            });
        now.wall + left
    }

    /// None: an identity of another domain, which finds endpoints of third ones at theirs; or a
    /// query that names no domain, of somebody who is no router of that network: a stock client
    /// must not take them for endpoints of its own domain.
    pub(super) fn view(&self, uid: NetworkUid, query: &EndpointQuery, peer: &Peer) -> Option<View> {
        if !self.is_own(&peer.id) {
            None
        } else if self.is_router_in(uid, &peer.id) {
            Some(View::Router)
        } else {
            query.asks_elsewhere().then_some(View::Other)
        }
    }
}

/// `<name>@<domain>`, spelt as it is shown.
fn split(shown: &str) -> Option<(&str, DomainName)> {
    let (name, domain) = shown.rsplit_once('@')?;
    let parsed = DomainName::new(domain).ok()?;
    (parsed.as_str() == domain).then_some((name, parsed))
}
