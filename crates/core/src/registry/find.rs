//! What a Find answers: what matches, as the caller may see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::{FoundEndpoint, Page, Peer, Place};
use super::machine::RegistryMachine;
use super::matching::{EndpointQuery, ServiceQuery};
use super::object::Service;
use super::objects::Own;
use super::remotes::{OfDomain, Remote, RemotePlace};
use super::shown::{Shown, View};
use crate::ids::{DomainName, NetworkUid};
use crate::time::{Mono, Now, Wall};

/// Payload of a service that states none (nsm-wire 4.1).
pub(super) const PAYLOAD_DEFAULT: &str = "IP";

/// How each network's endpoints of other domains are seen.
type Views = BTreeMap<NetworkUid, Option<View>>;

/// What may match.
#[derive(Clone, Copy)]
pub(super) enum Candidate<'a> {
    Own(&'a Arc<str>, &'a Own),
    Remote(&'a Arc<DomainName>, &'a Remote),
}

impl Candidate<'_> {
    fn place(self) -> Place {
        match self {
            Self::Own(name, _) => Place::Own(Arc::clone(name)),
            Self::Remote(domain, remote) => {
                Place::Remote(Arc::clone(domain), remote.packed.name().into())
            }
        }
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

    /// What matches after a place, as far as one page goes.
    pub(super) fn find_endpoints(
        &self,
        query: &EndpointQuery,
        after: Option<&Place>,
        peer: &Peer,
        now: Now,
    ) -> Page {
        let (found_max, looked_at_max) = (
            self.config.page_found_max.max(1),
            self.config.page_looked_at_max.max(1),
        );
        let mut page = Page::default();
        let mut views = Views::new();
        let (mut last, mut looked_at, mut bytes) = (None::<Candidate<'_>>, 0, 0);
        for candidate in self.candidates(query, after, peer) {
            let is_full =
                page.found.len() >= found_max || bytes >= self.config.page_bytes_max.max(1);
            if is_full || looked_at >= looked_at_max {
                page.next = last.map(Candidate::place);
                break;
            }
            let found = self.found(candidate, query, peer, &mut views, now);
            bytes += found.as_ref().map_or(0, |found| found.shown.bytes());
            page.found.extend(found);
            last = Some(candidate);
            looked_at += 1;
        }
        page
    }

    /// In order: own ones by name, then those of other domains by domain and name.
    fn candidates<'a>(
        &'a self,
        query: &'a EndpointQuery,
        after: Option<&'a Place>,
        peer: &Peer,
    ) -> impl Iterator<Item = Candidate<'a>> + use<'a> {
        let own = match after {
            None => Some(None),
            Some(Place::Own(name)) => Some(Some(&**name)),
            Some(Place::Remote(..)) => None,
        };
        let own = own.map(|after| self.objects.candidates(query, after));
        let own = own.into_iter().flatten();
        let may_match = || {
            let mut networks = self.networks.keys();
            query.asks_elsewhere() || networks.any(|uid| self.is_router_in(*uid, &peer.id))
        };
        let remote = (self.is_own(&peer.id) && may_match()).then(|| {
            let after = match after {
                Some(Place::Remote(domain, name)) => Some((&**domain, &**name)),
                Some(Place::Own(_)) | None => None,
            };
            self.remote_candidates(query, after)
        });
        let remote = remote.into_iter().flatten();
        own.map(|(name, own)| Candidate::Own(name, own))
            .chain(remote.map(|(domain, remote)| Candidate::Remote(domain, remote)))
    }

    /// The candidate if it matches, as `peer` may see it.
    pub(super) fn found(
        &self,
        candidate: Candidate<'_>,
        query: &EndpointQuery,
        peer: &Peer,
        views: &mut Views,
        now: Now,
    ) -> Option<FoundEndpoint> {
        let found = match candidate {
            Candidate::Own(_, own) => FoundEndpoint {
                shown: Shown::own(own.endpoint.clone()),
                expires: self.expires(Some(own.deadline), now),
            },
            Candidate::Remote(domain, remote) => {
                let uid = remote.uid;
                let view = *views.entry(uid).or_insert_with(|| {
                    self.network(uid, now.wall).ok()?;
                    self.view(uid, query, peer)
                });
                FoundEndpoint {
                    shown: Shown::remote(&remote.packed, domain, view?),
                    expires: self.expires(remote.deadline, now),
                }
            }
        };
        if !found.shown.matches(query, found.expires.unix_secs()) {
            return None;
        }
        let seen = match candidate {
            Candidate::Own(_, own) => self.sees_own(own.uid, peer, now.wall),
            Candidate::Remote(..) => true,
        };
        seen.then_some(found)
    }

    /// The endpoints of other domains among which all that match are.
    fn remote_candidates<'a>(
        &'a self,
        query: &'a EndpointQuery,
        after: Option<RemotePlace<'a>>,
    ) -> Box<dyn Iterator<Item = OfDomain<'a>> + 'a> {
        let remotes = &self.objects.remotes;
        match (query.name.as_str(), query.services.first()) {
            ("", None) => Box::new(remotes.after(after)),
            ("", Some(service)) => match split(service) {
                Some((service, domain)) => Box::new(remotes.offering_in(&domain, service, after)),
                None => Box::new(remotes.offering(service, after)),
            },
            (name, ..) => {
                let named = split(name).and_then(|(name, domain)| remotes.named(&domain, name));
                Box::new(named.filter(|_| after.is_none()).into_iter())
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
