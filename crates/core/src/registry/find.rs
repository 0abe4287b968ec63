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
use crate::ids::DomainName;
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
    /// Registered services, and the networks themselves unless somebody registered them.
    pub(super) fn find_services(&self, query: &ServiceQuery, peer: &Peer) -> Vec<Service> {
        if !self.is_own(&peer.id) {
            return Vec::new();
        }
        let of_network = |name: &str| Service {
            name: name.to_owned(),
            payload: PAYLOAD_DEFAULT.to_owned(),
            path_ids: vec![self.config.identity.to_string()],
            ..Service::default()
        };
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
        if let Some(view) = self.view(peer, now.wall) {
            let remote = self.remote_candidates(query, view);
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
        let Some(view) = self.view(peer, now.wall) else {
            return own;
        };
        let mut served = BTreeMap::new();
        let remote = remote.into_iter().filter_map(|(domain, remote)| {
            let uid = remote.uid;
            let served = served
                .entry(uid)
                .or_insert_with(|| self.network(uid, now.wall).is_ok());
            if !*served || !remote.packed.url().contains(&query.url) {
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
        view: View,
    ) -> Box<dyn Iterator<Item = OfDomain<'a>> + 'a> {
        let remotes = &self.objects.remotes;
        match (query.name.as_str(), query.services.first(), view) {
            ("", None, _) => Box::new(remotes.iter()),
            ("", Some(service), View::Router) => Box::new(remotes.offering(service)),
            ("", Some(service), View::Other) => match split(service) {
                Some((service, domain)) => Box::new(remotes.offering_in(&domain, service)),
                None => Box::new(core::iter::empty()),
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

    /// None: an identity of another domain, which finds endpoints of third ones at theirs.
    pub(super) fn view(&self, peer: &Peer, wall: Wall) -> Option<View> {
        let router = || self.is_router(&peer.id, wall);
        self.is_own(&peer.id)
            .then(|| if router() { View::Router } else { View::Other })
    }
}

/// `<name>@<domain>`, spelt as it is shown.
fn split(shown: &str) -> Option<(&str, DomainName)> {
    let (name, domain) = shown.rsplit_once('@')?;
    let parsed = DomainName::new(domain).ok()?;
    (parsed.as_str() == domain).then_some((name, parsed))
}
