//! Who may do what, by the documents of the networks and the own trust domain.

use std::collections::BTreeSet;

use super::api::{Peer, Refusal};
use super::machine::RegistryMachine;
use super::network::Network;
use super::object::{Endpoint, Marks};
use crate::document::{Document, Member, Role};
use crate::ids::{NetworkUid, RouterName, SpiffeId};
use crate::time::Wall;

/// Endpoint labels of our own kind start with this.
pub(super) const OWN_LABELS: &str = "vl3/";

/// What a registration wants a name for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Service,
    Endpoint,
    /// An endpoint's list of services.
    Offer,
}

impl Takes {
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Service => "network_service.name",
            Self::Endpoint => "network_service_endpoint.name",
            Self::Offer => "network_service_endpoint.network_service_names",
        }
    }
}

/// The networks whose intermediaries count for an object.
#[derive(Debug)]
pub(super) struct Concerned(Vec<NetworkUid>);

/// For whom a name is kept.
#[derive(Debug)]
enum Kept<'a> {
    /// The network's routers of the own domain.
    Routers(&'a Document),
    /// The router that leased under it.
    Holder(&'a SpiffeId),
}

impl Kept<'_> {
    fn reason(&self, name: &str) -> String {
        match self {
            Self::Routers(document) => {
                format!(
                    "{name} is kept for the routers of network {}",
                    document.name
                )
            }
            Self::Holder(holder) => format!("{name} is a router that {holder} leased"),
        }
    }
}

impl RegistryMachine {
    /// The network, if it is served and the own domain is a live member.
    pub(super) fn network(
        &self,
        uid: NetworkUid,
        wall: Wall,
    ) -> Result<(&Network, &Document, &Member), Refusal> {
        let network = self
            .networks
            .get(&uid)
            .ok_or(Refusal::UnknownNetwork { uid })?;
        let document = network.store.document();
        let member =
            document
                .member(&self.config.domain, wall)
                .ok_or_else(|| Refusal::Unavailable {
                    reason: format!(
                        "{} is no live member of network {}",
                        self.config.domain, document.name
                    ),
                })?;
        Ok((network, document, member))
    }

    /// Our own routers lease and claim.
    pub(super) fn must_be_router(
        &self,
        what: &'static str,
        peer: &Peer,
        member: &Member,
    ) -> Result<(), Refusal> {
        if member.grants(Role::Router, &peer.id) {
            return Ok(());
        }
        let reason = format!(
            "routers of {} may ({})",
            member.domain,
            member.roles.router.join(", ")
        );
        Err(Refusal::Denied {
            what,
            peer: peer.id.clone(),
            reason,
        })
    }

    /// Whether an identity counts in a network: it is of the own trust domain, or the
    /// network's document vouches for it.
    pub(super) fn counts_in(&self, peer: &Peer, uid: NetworkUid) -> bool {
        self.is_own(&peer.id) || peer.vouched.contains(&uid)
    }

    pub(super) fn is_own(&self, id: &SpiffeId) -> bool {
        id.trust_domain() == self.config.identity.trust_domain()
    }

    pub(super) fn must_be_own(&self, what: &'static str, peer: &Peer) -> Result<(), Refusal> {
        if self.is_own(&peer.id) {
            return Ok(());
        }
        let reason = format!("identities of {} may", self.config.identity.trust_domain());
        Err(Refusal::Denied {
            what,
            peer: peer.id.clone(),
            reason,
        })
    }

    /// Whom a registration belongs to: the TLS peer, or whom a listed intermediary names as
    /// its caller, and so on back. What stands in the path before somebody who is no
    /// intermediary was verified by nobody.
    pub(super) fn owner(&self, peer: &Peer, of: &Concerned, wall: Wall) -> SpiffeId {
        let mut owner = &peer.id;
        for caller in &peer.claimed {
            if !self.is_intermediary(owner, of, wall) {
                break;
            }
            owner = caller;
        }
        owner.clone()
    }

    /// In what concerns networks, all of them must list it. In what concerns none, those that
    /// list any: none of them opens to its intermediaries what another one guards.
    fn is_intermediary(&self, id: &SpiffeId, of: &Concerned, wall: Wall) -> bool {
        let listed = |uid: NetworkUid| {
            let network = self.network(uid, wall).ok();
            network.map(|(_, _, member)| member)
        };
        let grants = |member: &Member| member.grants(Role::Intermediary, id);
        if !of.0.is_empty() {
            return of.0.iter().all(|uid| listed(*uid).is_some_and(grants));
        }
        let members = self.networks.keys().filter_map(|uid| listed(*uid));
        let mut members = members
            .filter(|member| !member.roles.intermediary.is_empty())
            .peekable();
        members.peek().is_some() && members.all(grants)
    }

    /// The networks that a service of that name concerns.
    pub(super) fn concerned_by_service(&self, name: &str) -> Concerned {
        self.concerned(|_, network| self.kept(network, Takes::Service, name).is_some())
    }

    /// The networks that an endpoint concerns, and the one that has its name.
    pub(super) fn concerned_by_endpoint(&self, endpoint: &Endpoint) -> Concerned {
        let held = self.objects.own(&endpoint.name);
        let held = held.map(|own| &*own.endpoint);
        let both = || held.into_iter().chain([endpoint]);
        let marked: Vec<_> = both()
            .filter_map(Marks::of)
            .map(|marks| marks.uid)
            .collect();
        self.concerned(|uid, network| {
            let offers = |service| self.kept(network, Takes::Offer, service).is_some();
            marked.contains(&uid)
                || self
                    .kept(network, Takes::Endpoint, &endpoint.name)
                    .is_some()
                || both().any(|one| one.services.iter().any(|service| offers(service)))
        })
    }

    fn concerned(&self, by: impl Fn(NetworkUid, &Network) -> bool) -> Concerned {
        let networks = self.networks.iter();
        let concerned = networks.filter(|(uid, network)| by(**uid, network));
        Concerned(concerned.map(|(uid, _)| *uid).collect())
    }

    /// Whether it is a router of the own domain in that network. Also after the membership's
    /// end: removals are told in the form in which the object was shown.
    pub(super) fn is_router_in(&self, uid: NetworkUid, id: &SpiffeId) -> bool {
        let network = self.networks.get(&uid);
        let own = network.and_then(|network| {
            let document = network.store.document();
            document.members.get(&self.config.domain)
        });
        own.is_some_and(|member| member.grants(Role::Router, id))
    }

    /// Who ends others' leases and changes what may be leased: the admin socket, which
    /// speaks with the registry's own identity.
    pub(super) fn must_be_operator(&self, what: &'static str, peer: &Peer) -> Result<(), Refusal> {
        if peer.id == self.config.identity {
            return Ok(());
        }
        Err(Refusal::Denied {
            what,
            peer: peer.id.clone(),
            reason: "the registry's operator may, on its admin socket".to_owned(),
        })
    }

    /// Names of networks and of their routers are for routers of the own domain, and a leased
    /// router name for its holder, whether they came first or not.
    pub(super) fn may_take(
        &self,
        takes: Takes,
        name: &str,
        id: &SpiffeId,
        wall: Wall,
    ) -> Result<(), Refusal> {
        let mut refused = None;
        for network in self.networks.values() {
            let Some(kept) = self.kept(network, takes, name) else {
                continue;
            };
            let own = network.store.document().member(&self.config.domain, wall);
            let router = own.is_some_and(|member| member.grants(Role::Router, id));
            match kept {
                Kept::Routers(_) if router => return Ok(()),
                Kept::Holder(holder) if router && holder == id => return Ok(()),
                Kept::Routers(_) | Kept::Holder(_) => {
                    refused.get_or_insert_with(|| kept.reason(name));
                }
            }
        }
        refused.map_or(Ok(()), |reason| {
            Err(Refusal::Denied {
                what: takes.field(),
                peer: id.clone(),
                reason,
            })
        })
    }

    /// For whom this network keeps a name.
    fn kept<'a>(&self, network: &'a Network, takes: Takes, name: &str) -> Option<Kept<'a>> {
        let document = network.store.document();
        if name == document.name.as_str() {
            return Some(Kept::Routers(document));
        }
        if takes != Takes::Endpoint {
            return None;
        }
        let leased = RouterName::new(name)
            .ok()
            .and_then(|name| network.allocator.holder(&name));
        if let Some((holder, _)) = leased {
            return Some(Kept::Holder(holder));
        }
        let usual = format!("{}-{}", document.name, self.config.domain);
        name.strip_prefix(&usual)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            .then_some(Kept::Routers(document))
    }

    /// A network is offered by its routers only, and marks only by those of that network.
    pub(super) fn may_offer(
        &self,
        endpoint: &Endpoint,
        id: &SpiffeId,
        wall: Wall,
    ) -> Result<(), Refusal> {
        let denied = |reason: String| Refusal::Denied {
            what: "network_service_endpoint",
            peer: id.clone(),
            reason,
        };
        let marked = endpoint
            .labels
            .values()
            .any(|labels| labels.keys().any(|key| key.starts_with(OWN_LABELS)));
        if marked {
            let Some(marks) = Marks::of(endpoint) else {
                return Err(Refusal::Invalid {
                    field: "network_service_labels",
                    value: "an incomplete set of vl3/ labels".to_owned(),
                    allowed: "vl3/{proto,role,uid,domain,name,gen} together are".to_owned(),
                });
            };
            let (_, document, member) = self.network(marks.uid, wall)?;
            if !member.grants(Role::Router, id) {
                return Err(denied(format!(
                    "it is no router of {} in network {}",
                    member.domain, document.name
                )));
            }
            let wrong = |field, value: &str, right: &str| Refusal::Invalid {
                field,
                value: value.to_owned(),
                allowed: format!("{right} is"),
            };
            if marks.domain != self.config.domain {
                return Err(wrong(
                    "vl3/domain",
                    marks.domain.as_str(),
                    self.config.domain.as_str(),
                ));
            }
            if marks.service != document.name.as_str() {
                return Err(wrong(
                    "network_service_labels",
                    &marks.service,
                    document.name.as_str(),
                ));
            }
            if marks.name != endpoint.name {
                return Err(wrong("vl3/name", &marks.name, &endpoint.name));
            }
        }
        endpoint
            .services
            .iter()
            .try_for_each(|service| self.may_take(Takes::Offer, service, id, wall))?;
        self.may_take(Takes::Endpoint, &endpoint.name, id, wall)
    }

    /// Whether `peer` may see an own endpoint, which has marks of network `uid`. Members of
    /// another domain see what belongs to networks they are in.
    pub(super) fn sees_own(&self, uid: Option<NetworkUid>, peer: &Peer, wall: Wall) -> bool {
        self.is_own(&peer.id)
            || uid.is_some_and(|uid| {
                let trust_domain = peer.id.trust_domain();
                self.counts_in(peer, uid)
                    && self.network(uid, wall).is_ok_and(|(_, document, _)| {
                        document
                            .live_members(wall)
                            .any(|member| member.trust_domain == trust_domain)
                    })
            })
    }

    /// The networks whose own endpoints somebody of another domain sees.
    pub(super) fn shown_to(&self, peer: &Peer, wall: Wall) -> BTreeSet<NetworkUid> {
        let vouched = peer.vouched.iter().copied();
        vouched
            .filter(|uid| !self.is_own(&peer.id) && self.sees_own(Some(*uid), peer, wall))
            .collect()
    }

    /// Documents are for members.
    pub(super) fn may_read_document(
        &self,
        uid: NetworkUid,
        peer: &Peer,
        wall: Wall,
    ) -> Result<(), Refusal> {
        let network = self
            .networks
            .get(&uid)
            .ok_or(Refusal::UnknownNetwork { uid })?;
        let trust_domain = peer.id.trust_domain();
        let member = network
            .store
            .document()
            .live_members(wall)
            .any(|member| member.trust_domain == trust_domain);
        if member && self.counts_in(peer, uid) {
            return Ok(());
        }
        let reason = format!(
            "its trust domain is no live member's of network {}",
            network.store.document().name
        );
        Err(Refusal::Denied {
            what: "the document",
            peer: peer.id.clone(),
            reason,
        })
    }
}
