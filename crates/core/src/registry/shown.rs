//! An endpoint as somebody sees it, shared with the registry: nothing of it is copied before
//! its reader takes it.

use core::fmt;
use std::sync::Arc;

use super::matching::EndpointQuery;
use super::object::Endpoint;
use super::packed::Packed;
use crate::ids::DomainName;

/// What one costs who holds it, beside the endpoint.
const PLACE_BYTES: usize = 64;

/// As whom somebody of the own domain sees endpoints of other domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Under the network's own name.
    Router,
    /// Under `<network>@D`.
    Other,
}

/// Cheap to clone and to hold; equal when what is seen is.
#[derive(Clone)]
pub struct Shown(Kind);

#[derive(Clone)]
enum Kind {
    Own(Arc<Endpoint>),
    Remote {
        packed: Packed,
        domain: Arc<DomainName>,
        view: View,
    },
}

impl Shown {
    pub(super) const fn own(endpoint: Arc<Endpoint>) -> Self {
        Self(Kind::Own(endpoint))
    }

    pub(super) fn remote(packed: &Packed, domain: &Arc<DomainName>, view: View) -> Self {
        Self(Kind::Remote {
            packed: packed.clone(),
            domain: Arc::clone(domain),
            view,
        })
    }

    /// Made anew where it is of another domain.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        match &self.0 {
            Kind::Own(endpoint) => Arc::clone(endpoint),
            Kind::Remote { .. } => Arc::new(self.clone().into_endpoint()),
        }
    }

    /// Copies only what somebody else still holds.
    pub fn into_endpoint(self) -> Endpoint {
        match self.0 {
            Kind::Own(endpoint) => Arc::unwrap_or_clone(endpoint),
            Kind::Remote {
                packed,
                domain,
                view,
            } => match view {
                View::Router => packed.for_routers(&domain),
                View::Other => packed.for_others(&domain),
            },
        }
    }

    /// Bytes that it may keep in memory, its endpoint included.
    pub fn bytes(&self) -> usize {
        PLACE_BYTES
            + match &self.0 {
                Kind::Own(endpoint) => endpoint.size(),
                Kind::Remote { packed, .. } => packed.len(),
            }
    }

    /// As [`EndpointQuery::matches`]; made without a copy for what most ask.
    pub(super) fn matches(&self, query: &EndpointQuery, expires_unix_secs: u64) -> bool {
        let (packed, domain, view) = match &self.0 {
            Kind::Own(endpoint) => return query.matches(endpoint, expires_unix_secs),
            Kind::Remote {
                packed,
                domain,
                view,
            } => (packed, domain, view),
        };
        let there = |shown: &str, name: &str| {
            let rest = shown.strip_suffix(domain.as_str());
            rest.and_then(|rest| rest.strip_suffix('@')) == Some(name)
        };
        let offers = |wanted: &String| {
            packed.services().any(|service| match view {
                View::Router => service == wanted,
                View::Other => there(wanted, service),
            })
        };
        packed.url().contains(&query.url)
            && (query.name.is_empty() || there(&query.name, packed.name()))
            && query.services.iter().all(offers)
            && query
                .expires_unix_secs
                .is_none_or(|wanted| wanted == expires_unix_secs)
            && (query.labels.is_empty() || query.matches(&self.endpoint(), expires_unix_secs))
    }
}

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint() == other.endpoint()
    }
}

impl Eq for Shown {}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint().fmt(f)
    }
}
