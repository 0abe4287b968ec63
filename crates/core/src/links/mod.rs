//! Links to the other routers of the network: one WireGuard peer per (router, generation,
//! key), held by NSM connections from either side, gone with the last.
//!
//! The registry's watch says who is there; dialling is a preference ([`turn`]) with back-off,
//! for ever. What a peer says is believed as far as the document grants it: its TLS identity
//! must be a router of the domain it speaks for.

mod dial;
mod hold;
mod install;
mod preference;
mod watch;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::document::Role;
use crate::forward::{DomainIndex, PortClass, PortId};
use crate::heal::DataHealth;
use crate::ids::{DomainName, PublicKey, SpiffeId};
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::state::Record;
use crate::router::{CallId, ConnectionId, DialId, Effect, Endpoint, RouterId, StreamId};
use crate::time::Mono;

pub use preference::{Turn, turn};

use dial::Dialer;
use hold::Holds;
use watch::Known;

/// Every link of one router, and everybody it could link to.
#[derive(Debug, Default)]
pub(crate) struct Links {
    known: BTreeMap<RouterId, Known>,
    /// Grows with each change of who is known, and with each opening of the watch.
    pub(crate) changes: u64,
    /// A registry has shown everybody it knows, in this life.
    complete: bool,
    epoch: u64,
    /// End of the grace after the watch was opened.
    settles: Option<Mono>,
    dialers: BTreeMap<RouterId, Dialer>,
    links: BTreeMap<RouterId, Link>,
    installs: BTreeMap<Ticket, Install>,
    domains: BTreeMap<DomainName, DomainIndex>,
    next_dial: u64,
}

/// The running side of a stored link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) port: PortId,
    pub(crate) class: PortClass,
    pub(crate) live: bool,
    holds: Holds,
    health: DataHealth,
    heard: Mono,
    last_send: Option<Mono>,
    /// Since when there is a link but its data is down.
    down_since: Option<Mono>,
    waiting: Vec<(CallId, ConnectionId)>,
    /// Underlay address told to the peer.
    told: Option<std::net::IpAddr>,
}

#[derive(Debug)]
struct Install {
    router: RouterId,
    port: PortId,
    /// The peer that this one replaces, taken away in the same table swap.
    replaces: Option<PortId>,
}

/// What other parts of the router must know about a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// Gone: its routes and streams are void.
    Removed(RouterId),
    /// A newer life of the same router: routes of the older are void.
    Replaced(RouterId),
    /// Somebody newer acts under our own name.
    Fenced,
}

const REVOKED: &str = "identity is no longer granted";
const REPLACED: &str = "a higher generation of the router replaced it";

impl Links {
    /// Re-installs stored peers and initiates to each at once.
    pub(crate) fn start(&mut self, ctx: &mut Context<'_>) {
        let stored: Vec<_> = ctx
            .state
            .links
            .iter()
            .map(|(router, link)| (router.clone(), link.clone()))
            .collect();
        for (router, link) in stored {
            let until = ctx.now.mono + ctx.config.times.restored_life;
            let holds = Holds {
                restored_until: Some(until),
                ..Holds::default()
            };
            self.install(&router, &link, holds, None, ctx);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RouterId, &Link)> + '_ {
        self.links.iter()
    }

    /// Everybody of that domain who is linked or seen in the registry, live or not.
    pub(crate) fn routers_of<'a>(&'a self, domain: &'a DomainName) -> BTreeSet<&'a RouterId> {
        self.links
            .keys()
            .chain(self.known.keys())
            .filter(|router| router.domain == *domain)
            .collect()
    }

    /// Whether a watch of the registry was open before, in this life.
    pub(crate) const fn was_watched(&self) -> bool {
        self.epoch > 0
    }

    /// Whether whoever is not known can be said not to exist: the registry was asked, in this
    /// life.
    pub(crate) const fn knows_all(&self) -> bool {
        self.complete
    }

    pub(crate) fn uses_key(&self, key: PublicKey, ctx: &Context<'_>) -> bool {
        ctx.state.links.values().any(|link| link.public_key == key)
    }

    fn class(&mut self, domain: &DomainName, ctx: &Context<'_>) -> PortClass {
        if *domain == ctx.config.router.domain {
            return PortClass::Sibling;
        }
        let next = u16::try_from(self.domains.len()).unwrap_or(u16::MAX);
        PortClass::Remote(
            *self
                .domains
                .entry(domain.clone())
                .or_insert(DomainIndex(next)),
        )
    }

    /// Whether the document lets that identity act as a router of that domain.
    pub(crate) fn granted(peer: &SpiffeId, domain: &DomainName, ctx: &Context<'_>) -> bool {
        ctx.document
            .member(domain, ctx.now.wall)
            .is_some_and(|member| member.grants(Role::Router, peer))
    }

    /// Ends every link whose identity the document no longer grants.
    pub(crate) fn document_changed(&mut self, ctx: &mut Context<'_>) -> Vec<LinkEvent> {
        let revoked: Vec<_> = ctx
            .state
            .links
            .iter()
            .filter(|(router, link)| !Self::granted(&link.peer, &router.domain, ctx))
            .map(|(router, _)| router.clone())
            .collect();
        let events = revoked
            .iter()
            .filter_map(|router| self.remove(router, REVOKED, ctx))
            .collect();
        // Whoever became a member may be dialled now.
        for dialer in self.dialers.values_mut() {
            dialer.retry_now(ctx.now.mono);
        }
        events
    }

    /// Counters of one port; true when it is a link's.
    pub(crate) fn sampled(
        &mut self,
        port: PortId,
        last_send: Option<Mono>,
        last_receive: Option<Mono>,
        now: Mono,
    ) -> bool {
        let Some(link) = self.links.values_mut().find(|link| link.port == port) else {
            return false;
        };
        link.heard = link.heard.max(last_receive.unwrap_or_default());
        // A probe that waits for a session is no data packet sent yet, but nothing answers it.
        link.health
            .observe(last_send.max(link.last_send), last_receive, now);
        link.down_since = if link.health.is_up() {
            None
        } else {
            link.down_since.or(Some(now))
        };
        true
    }

    pub(crate) fn learned(
        &mut self,
        port: PortId,
        endpoint: Endpoint,
        ctx: &mut Context<'_>,
    ) -> bool {
        let Some((router, _)) = self.links.iter().find(|(_, link)| link.port == port) else {
            return false;
        };
        if let Some(stored) = ctx
            .state
            .links
            .get(router)
            .filter(|stored| stored.endpoint != Some(endpoint))
        {
            let mut link = stored.clone();
            link.endpoint = Some(endpoint);
            ctx.record(Record::Link {
                router: router.clone(),
                link: Some(link),
            });
        }
        true
    }

    /// The routes stream of a dialled link came, or ended.
    pub(crate) fn stream(
        &mut self,
        router: &RouterId,
        stream: StreamId,
        up: bool,
        ctx: &mut Context<'_>,
    ) {
        if let Some(dialer) = self.dialers.get_mut(router) {
            dialer.stream(stream, up, ctx);
        }
    }

    pub(crate) fn stream_failed(&mut self, dial: DialId, ctx: &mut Context<'_>) {
        if let Some(dialer) = self.dialers.values_mut().find(|dialer| dialer.is(dial)) {
            dialer.stream_failed(ctx);
        }
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) -> Vec<LinkEvent> {
        self.forget_unseen(ctx);
        let events = self.end_expired(ctx);
        self.probe(ctx);
        events
    }

    fn probe(&mut self, ctx: &mut Context<'_>) {
        let Some(own) = ctx.own_ips().into_iter().next_back() else {
            return;
        };
        for (router, link) in &mut self.links {
            let due = link.health.wake(ctx.now.mono, ctx.rng);
            if !due.probe || !link.live {
                continue;
            }
            let routes = ctx
                .state
                .routes
                .get(router)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let target = routes.iter().find(|route| {
                route.preference == 0 && route.prefix.addr().is_ipv6() == own.is_ipv6()
            });
            if let Some(target) = target {
                link.last_send = Some(ctx.now.mono);
                let destination = target.prefix.network();
                ctx.effects.push(Effect::Probe {
                    port: link.port,
                    source: own,
                    destination,
                });
            }
        }
    }

    pub(crate) fn next_wake(
        &self,
        ctx_times: (Duration, Duration),
    ) -> Option<(Mono, &'static str)> {
        let (stale_limit, silent_after) = ctx_times;
        let settle = self.settles.map(|at| (at, "watch grace"));
        let health = self.links.values().map(|link| link.health.next_wake());
        let ends = self
            .links
            .values()
            .map(|link| (link.end(stale_limit, silent_after), "link end"));
        let dials = self.dialers.values().filter_map(Dialer::next_wake);
        settle
            .into_iter()
            .chain(health)
            .chain(ends)
            .chain(dials)
            .min()
    }

    /// Takes a link away with everything that held it.
    fn remove(
        &mut self,
        router: &RouterId,
        reason: &'static str,
        ctx: &mut Context<'_>,
    ) -> Option<LinkEvent> {
        let link = self.links.remove(router)?;
        ctx.effect(Effect::RemovePort { port: link.port });
        for (call, _) in link.waiting {
            let reason = "the link was removed meanwhile".to_owned();
            ctx.refuse(call, crate::router::Refusal::Unavailable { reason });
        }
        for connection in link.holds.accepted.into_keys() {
            ctx.effect(Effect::ConnectionClosed { connection, reason });
        }
        if let Some(dialer) = self.dialers.get_mut(router) {
            dialer.close(ctx);
        }
        self.installs.retain(|_, install| install.router != *router);
        ctx.record(Record::Link {
            router: router.clone(),
            link: None,
        });
        Some(LinkEvent::Removed(router.clone()))
    }

    /// Closes every link: this router leaves.
    pub(crate) fn leave(&mut self, ctx: &mut Context<'_>) {
        let routers: Vec<_> = self.links.keys().cloned().collect();
        for router in routers {
            self.remove(&router, "the router leaves", ctx);
        }
        for dialer in self.dialers.values_mut() {
            dialer.close(ctx);
        }
        // Who is known stays: a sibling that is not asked is not unknown either.
        self.dialers.clear();
    }

    pub(crate) fn status(&self, ctx: &Context<'_>) -> Vec<LinkStatus> {
        let mut status: Vec<_> = self
            .links
            .iter()
            .filter_map(|(router, link)| {
                let stored = ctx.state.links.get(router)?;
                Some(LinkStatus {
                    router: router.clone(),
                    peer: Some(stored.peer.clone()),
                    generation: stored.generation.0,
                    port: Some(link.port),
                    endpoint: stored.endpoint,
                    mtu: stored.mtu,
                    data_up: link.data_up(),
                    dialled: self.dialers.get(router).is_some_and(Dialer::holds),
                    accepted: link.holds.accepted.len(),
                    last_error: self.dialers.get(router).and_then(Dialer::last_error),
                })
            })
            .collect();
        // Known but not linked: what an operator looks for first.
        let missing = self
            .known
            .iter()
            .filter(|(router, _)| !self.links.contains_key(*router));
        status.extend(missing.map(|(router, known)| LinkStatus {
            router: router.clone(),
            peer: None,
            generation: known.discovered.generation.0,
            port: None,
            endpoint: None,
            mtu: 0,
            data_up: false,
            dialled: false,
            accepted: 0,
            last_error: self.dialers.get(router).and_then(Dialer::last_error),
        }));
        status
    }
}

impl Link {
    /// Carries traffic as far as anybody can tell.
    pub(crate) fn data_up(&self) -> bool {
        self.live && self.health.is_up()
    }

    /// When nothing holds the link any more if nothing happens.
    fn end(&self, stale_limit: Duration, silent_after: Duration) -> Mono {
        let expires = self.holds.expires();
        (expires + stale_limit).min(expires.max(self.heard + silent_after))
    }
}

/// One link, or one router without a link, for people.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    pub router: RouterId,
    pub peer: Option<SpiffeId>,
    pub generation: u64,
    pub port: Option<PortId>,
    pub endpoint: Option<Endpoint>,
    pub mtu: u16,
    pub data_up: bool,
    pub dialled: bool,
    pub accepted: usize,
    pub last_error: Option<String>,
}
