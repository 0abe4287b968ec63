//! From what a router says about itself to a peer in the data plane.

use std::net::{IpAddr, SocketAddr};

use crate::forward::PortId;
use crate::heal::{DataHealth, Timing};
use crate::ids::{PublicKey, RouterName, SpiffeId};
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::state::{Record, StoredLink};
use crate::router::{
    Answer, CallId, ConnectionId, Effect, Endpoint, Hello, LinkAnswer, PeerSpec, Refusal, Request,
    RouterId,
};

use super::hold::Holds;
use super::{Install, Link, LinkEvent, Links, REPLACED};

/// Both sides keep the mapping of a NAT between them open (NSM's own value is 10 s).
const KEEPALIVE_SECONDS: u16 = 10;

impl Links {
    /// A Request of another router.
    pub(crate) fn request(
        &mut self,
        call: CallId,
        request: &Request,
        hello: &Hello,
        public_key: PublicKey,
        key_in_use: bool,
        ctx: &mut Context<'_>,
    ) -> Option<LinkEvent> {
        let checked = self.check_request(request, hello, public_key, key_in_use, ctx);
        let (router, stored) = match checked {
            Ok(checked) => checked,
            Err(refusal) => {
                ctx.refuse(call, refusal);
                return None;
            }
        };
        let until = ctx.now.mono + request.expires_in;
        let event = self.establish(&router, stored, false, ctx);
        self.hold(&router, &request.connection, &request.peer, until, ctx);
        let told = ctx.config.advertise.or(request.local);
        if let Some(link) = self.links.get_mut(&router) {
            link.told = told;
            link.waiting.push((call, request.connection.clone()));
            if link.live {
                self.answer_waiting(&router, ctx);
            }
        }
        event
    }

    fn check_request(
        &self,
        request: &Request,
        hello: &Hello,
        public_key: PublicKey,
        key_in_use: bool,
        ctx: &Context<'_>,
    ) -> Result<(RouterId, StoredLink), Refusal> {
        if ctx.fenced {
            let reason = "a newer instance serves under this router's name".to_owned();
            return Err(Refusal::Precondition { reason });
        }
        if ctx.state.lease.is_none() {
            return Err(Refusal::Unavailable {
                reason: "this router has no prefix lease yet".to_owned(),
            });
        }
        if ctx.config.advertise.is_none() && request.local.is_none() {
            let reason =
                "a link over a unix socket needs the router's `advertise` address".to_owned();
            return Err(Refusal::Unavailable { reason });
        }
        let owner = self
            .links
            .values()
            .find_map(|link| link.holds.accepted.get(&request.connection));
        if let Some((owner, _)) = owner.filter(|(owner, _)| *owner != request.peer) {
            let what = format!(
                "refresh connection {}, which {owner} opened",
                request.connection
            );
            return Err(Refusal::Denied {
                id: request.peer.clone(),
                what,
            });
        }
        self.check_peer(
            &request.peer,
            hello,
            public_key,
            key_in_use,
            None,
            request.mtu,
            ctx,
        )
    }

    /// What holds for either direction: the document grants the speaker, the generation does
    /// not go back, the key is its own.
    #[expect(clippy::too_many_arguments, reason = "one check for both directions")]
    pub(super) fn check_peer(
        &self,
        peer: &SpiffeId,
        hello: &Hello,
        public_key: PublicKey,
        key_in_use: bool,
        endpoint: Option<Endpoint>,
        mtu: u16,
        ctx: &Context<'_>,
    ) -> Result<(RouterId, StoredLink), Refusal> {
        ctx.check_hello(hello)?;
        let invalid = |field, value: &str, allowed: &str| Refusal::Invalid {
            field,
            value: value.to_owned(),
            allowed: allowed.to_owned(),
        };
        let name = RouterName::new(&hello.name)
            .map_err(|error| invalid("hello.name", &hello.name, error.allowed))?;
        let router = RouterId {
            name,
            domain: hello.domain.clone(),
        };
        if router == ctx.config.router {
            return Err(invalid(
                "hello.name",
                &hello.name,
                "another name than this router's own",
            ));
        }
        if !Self::granted(peer, &router.domain, ctx) {
            let what = format!(
                "act as a router of domain {} in this network",
                router.domain
            );
            return Err(Refusal::Denied {
                id: peer.clone(),
                what,
            });
        }
        let held = ctx.state.links.get(&router);
        if let Some(held) = held {
            if hello.generation < held.generation {
                let reason = format!(
                    "router {router} is linked with generation {}, not {}",
                    held.generation, hello.generation
                );
                return Err(Refusal::Precondition { reason });
            }
            if hello.generation == held.generation && *peer != held.peer {
                let what = format!("act as router {router}, which {} is", held.peer);
                return Err(Refusal::Denied {
                    id: peer.clone(),
                    what,
                });
            }
        }
        let limit = ctx.config.limits.links;
        if held.is_none() && self.links.len() >= limit {
            return Err(Refusal::Exhausted {
                what: "the number of links",
                limit,
            });
        }
        let others = ctx
            .state
            .links
            .iter()
            .any(|(other, link)| *other != router && link.public_key == public_key);
        if others || key_in_use || public_key == ctx.config.public_key {
            return Err(invalid(
                "public_key",
                &public_key.to_string(),
                "a key that nobody else uses",
            ));
        }
        if let Some(endpoint) = endpoint {
            check_endpoint(endpoint, ctx)?;
        }
        let mtu = if mtu == 0 {
            ctx.config.mtu
        } else {
            mtu.min(ctx.config.mtu)
        };
        let stored = StoredLink {
            peer: peer.clone(),
            generation: hello.generation,
            instance: hello.instance,
            public_key,
            endpoint,
            mtu,
        };
        Ok((router, stored))
    }

    /// Makes the link what `stored` says: nothing when it is, an addition, or one swap.
    pub(super) fn establish(
        &mut self,
        router: &RouterId,
        mut stored: StoredLink,
        renew: bool,
        ctx: &mut Context<'_>,
    ) -> Option<LinkEvent> {
        let before = ctx.state.links.get(router).cloned();
        let same = before
            .as_ref()
            .is_some_and(|before| before.public_key == stored.public_key);
        if same && self.links.contains_key(router) {
            // The endpoint that packets came from is better than the one that was told,
            // unless nothing comes from it.
            let learnt = before.as_ref().and_then(|before| before.endpoint);
            stored.endpoint = if renew {
                stored.endpoint.or(learnt)
            } else {
                learnt.or(stored.endpoint)
            };
            let moved = stored.endpoint != learnt;
            if before.as_ref() != Some(&stored) {
                ctx.record(Record::Link {
                    router: router.clone(),
                    link: Some(stored.clone()),
                });
            }
            if moved || renew {
                self.set_peer(router, &stored, None, ctx);
            }
            // A new life with the old key: the peer stays, what the old life said does not.
            let newer = before.is_some_and(|before| before.generation != stored.generation);
            return newer.then(|| LinkEvent::Replaced(router.clone()));
        }
        ctx.record(Record::Link {
            router: router.clone(),
            link: Some(stored.clone()),
        });
        let old = self.links.remove(router);
        let replaces = old.as_ref().map(|link| link.port);
        if let Some(old) = old {
            for connection in old.holds.accepted.into_keys() {
                ctx.effect(Effect::ConnectionClosed {
                    connection,
                    reason: REPLACED,
                });
            }
            for (call, _) in old.waiting {
                ctx.refuse(
                    call,
                    Refusal::Precondition {
                        reason: REPLACED.to_owned(),
                    },
                );
            }
        }
        self.install(router, &stored, Holds::default(), replaces, ctx);
        replaces.map(|_| LinkEvent::Replaced(router.clone()))
    }

    pub(super) fn install(
        &mut self,
        router: &RouterId,
        stored: &StoredLink,
        holds: Holds,
        replaces: Option<PortId>,
        ctx: &mut Context<'_>,
    ) {
        let port = ctx.port();
        let class = self.class(&router.domain, ctx);
        let times = &ctx.config.times;
        let timing = Timing {
            sample_every: times.sample_every,
            probe_idle: times.probe_idle,
            probe_fast: times.probe_fast,
            data_down_after: times.data_down_after,
            ..Timing::default()
        };
        let link = Link {
            port,
            class,
            live: false,
            holds,
            health: DataHealth::new(timing, ctx.now.mono),
            heard: ctx.now.mono,
            last_send: None,
            down_since: None,
            waiting: Vec::new(),
            told: None,
        };
        self.links.insert(router.clone(), link);
        self.set_peer(router, stored, replaces, ctx);
    }

    fn set_peer(
        &mut self,
        router: &RouterId,
        stored: &StoredLink,
        replaces: Option<PortId>,
        ctx: &mut Context<'_>,
    ) {
        let Some(link) = self.links.get(router) else {
            return;
        };
        let ticket = ctx.ticket();
        let peer = PeerSpec {
            port: link.port,
            class: link.class,
            public_key: stored.public_key,
            endpoint: stored.endpoint,
            persistent_keepalive: Some(KEEPALIVE_SECONDS),
            initiate: stored.endpoint.is_some(),
        };
        self.installs.insert(
            ticket,
            Install {
                router: router.clone(),
                port: link.port,
                replaces,
            },
        );
        ctx.effect(Effect::SetPeer { ticket, peer });
    }

    /// True when the ticket was a link's.
    pub(crate) fn installed(
        &mut self,
        ticket: Ticket,
        result: &Result<(), String>,
        ctx: &mut Context<'_>,
    ) -> Option<Vec<LinkEvent>> {
        let install = self.installs.remove(&ticket)?;
        let mut events = Vec::new();
        if let Some(port) = install.replaces {
            // The table swap that follows sends nothing to it any more.
            ctx.effect(Effect::RemovePort { port });
        }
        let Some(link) = self
            .links
            .get_mut(&install.router)
            .filter(|link| link.port == install.port)
        else {
            return Some(events);
        };
        match result {
            Ok(()) => {
                link.live = true;
                self.answer_waiting(&install.router, ctx);
            }
            Err(reason) => {
                for (call, _) in core::mem::take(&mut link.waiting) {
                    let reason = format!("the data plane refuses the peer: {reason}");
                    ctx.refuse(call, Refusal::Unavailable { reason });
                }
                events.extend(self.remove(&install.router, "the data plane refused the peer", ctx));
            }
        }
        Some(events)
    }

    fn answer_waiting(&mut self, router: &RouterId, ctx: &mut Context<'_>) {
        let Some(link) = self.links.get_mut(router) else {
            return;
        };
        let waiting: Vec<(CallId, ConnectionId)> = core::mem::take(&mut link.waiting);
        let told = link.told;
        let mtu = ctx
            .state
            .links
            .get(router)
            .map_or(ctx.config.mtu, |stored| stored.mtu);
        for (call, _) in waiting {
            let result = match told.or(ctx.config.advertise) {
                Some(address) => Ok(Answer::Link(LinkAnswer {
                    hello: ctx.hello(),
                    public_key: ctx.config.public_key,
                    address,
                    port: ctx.config.udp_port,
                    mtu,
                    router: ctx.own_addresses(),
                })),
                None => Err(Refusal::Unavailable {
                    reason: "no underlay address to tell".to_owned(),
                }),
            };
            ctx.effect(Effect::Answer { call, result });
        }
    }
}

/// Where a tunnel may lead: a unicast address outside the overlay itself.
fn check_endpoint(endpoint: Endpoint, ctx: &Context<'_>) -> Result<(), Refusal> {
    if !dialable(endpoint.remote, ctx) {
        return Err(Refusal::Invalid {
            field: "dst_ip",
            value: endpoint.remote.to_string(),
            allowed: "a unicast address outside the network's own pools, with a port".to_owned(),
        });
    }
    Ok(())
}

/// Outside the overlay that the connection is to carry, and one host's.
pub(super) fn dialable(address: SocketAddr, ctx: &Context<'_>) -> bool {
    let ip = address.ip();
    let overlay = match ip {
        IpAddr::V4(v4) => ctx.document.pool4.is_some_and(|pool| pool.contains(&v4)),
        IpAddr::V6(v6) => ctx.document.pool6.contains(&v6),
    };
    !(overlay || ip.is_unspecified() || ip.is_multicast() || address.port() == 0)
}
