//! Routes between routers: what is told on each stream, what is believed of what is heard,
//! and the table that comes of it.
//!
//! Between domains a router tells its prefix and, less preferred, its domain's block; host
//! routes stay among siblings. A route is believed only inside its announcer's blocks. What
//! was believed is stored and holds while the link does, stream or not.

mod accept;
mod stream;
mod table;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::ids::SpiffeId;
use crate::links::Links;
use crate::router::context::Context;
use crate::router::state::{Record, StoredRoute};
use crate::router::{Effect, RouterId, RoutesMessage, RoutesOpen, StreamId};
use crate::time::Mono;

pub use accept::{BLOCK, Disbelief, Judge, PREFIX};
pub use table::{Candidate, table};

use stream::{RouteMap, Stream, Took};

/// An idle stream says so that often.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A stream that says nothing for that long is dead.
const SILENT: Duration = Duration::from_secs(16);
/// Streams of one link; the oldest gives way.
const STREAMS_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Routes {
    streams: BTreeMap<StreamId, Stream>,
    started: u64,
    disbelieved: BTreeMap<Disbelief, u64>,
}

impl Routes {
    /// A stream whose opens are exchanged. Refused unless its speaker is the link's peer.
    pub(crate) fn started(
        &mut self,
        stream: StreamId,
        peer: &SpiffeId,
        open: &RoutesOpen,
        dialled: bool,
        ctx: &mut Context<'_>,
    ) -> bool {
        if let Err(reason) = admit(peer, open, ctx) {
            ctx.effect(Effect::CloseRoutes { stream, reason });
            return false;
        }
        self.started += 1;
        self.streams.insert(
            stream,
            Stream::new(open.router.clone(), dialled, self.started, ctx.now.mono),
        );
        let of_link = self
            .streams
            .iter()
            .filter(|(_, other)| other.router == open.router);
        if of_link.clone().count() > STREAMS_MAX
            && let Some(oldest) = of_link
                .min_by_key(|(_, other)| other.order)
                .map(|(id, _)| *id)
        {
            self.end(oldest, "too many streams of one link", ctx);
        }
        true
    }

    /// True when what is believed changed.
    pub(crate) fn message(
        &mut self,
        id: StreamId,
        message: &RoutesMessage,
        ctx: &mut Context<'_>,
    ) -> bool {
        let limit = ctx.config.limits.routes_per_link;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.ended) else {
            return false;
        };
        if let RoutesMessage::Announce {
            prefix, preference, ..
        } = message
        {
            // First of all, whatever is thought of the route: what is not believed is held too.
            if stream.inbound.len() >= limit && !stream.inbound.contains_key(prefix) {
                *self.disbelieved.entry(Disbelief::TooMany).or_default() += 1;
                self.end(id, "too many routes on one link", ctx);
                return false;
            }
            let verdict = judge(ctx).judge(&stream.router.domain, *prefix, *preference);
            if let Err(disbelief) = verdict {
                *self.disbelieved.entry(disbelief).or_default() += 1;
            }
        }
        match stream.take(message, ctx.now.mono) {
            Took::Nothing => false,
            Took::Changed => {
                let router = stream.router.clone();
                self.settle(&router, ctx)
            }
            Took::Gap => {
                self.end(id, "a change is missing", ctx);
                false
            }
        }
    }

    /// The stream is gone: the newest of the link's other streams counts; without one, what
    /// was believed holds. Yields whose it was, if we had opened it.
    pub(crate) fn ended(&mut self, id: StreamId, ctx: &mut Context<'_>) -> Option<RouterId> {
        let stream = self.streams.remove(&id)?;
        self.settle(&stream.router, ctx);
        stream.dialled.then_some(stream.router)
    }

    pub(crate) fn link_gone(&mut self, router: &RouterId, ctx: &mut Context<'_>) {
        let streams: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.router == *router)
            .map(|(id, _)| *id)
            .collect();
        for stream in streams {
            self.end(stream, "the link is gone", ctx);
        }
    }

    pub(crate) fn close_all(&mut self, ctx: &mut Context<'_>) {
        let streams: Vec<_> = self.streams.keys().copied().collect();
        for stream in streams {
            self.end(stream, "this router leaves", ctx);
        }
    }

    /// The document or the own lease changed: judge again what was believed.
    pub(crate) fn judge_again(&mut self, ctx: &mut Context<'_>) {
        let routers: BTreeSet<_> = ctx.state.routes.keys().cloned().collect();
        for router in routers {
            let has_stream = self
                .streams
                .values()
                .any(|stream| stream.router == router && stream.complete);
            if has_stream {
                self.settle(&router, ctx);
                continue;
            }
            let Some(held) = ctx.state.routes.get(&router).cloned() else {
                continue;
            };
            let judge = judge(ctx);
            let kept: Vec<_> = held
                .iter()
                .filter(|route| {
                    judge
                        .judge(&router.domain, route.prefix, route.preference)
                        .is_ok()
                })
                .cloned()
                .collect();
            if kept != held {
                ctx.record(Record::LinkRoutes {
                    router,
                    routes: kept,
                });
            }
        }
    }

    /// Believes what the newest complete stream of the link says. True on change.
    fn settle(&mut self, router: &RouterId, ctx: &mut Context<'_>) -> bool {
        let complete = self
            .streams
            .values()
            .filter(|stream| stream.router == *router && stream.complete);
        let Some(newest) = complete.max_by_key(|stream| stream.order) else {
            return false;
        };
        let judge = judge(ctx);
        let believed = newest
            .inbound
            .iter()
            .filter(|(prefix, (preference, _))| {
                judge.judge(&router.domain, **prefix, *preference).is_ok()
            })
            .map(|(prefix, (preference, mtu))| StoredRoute {
                prefix: *prefix,
                preference: *preference,
                mtu: *mtu,
            })
            .collect::<Vec<_>>();
        let held = ctx
            .state
            .routes
            .get(router)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if held == believed || !ctx.state.links.contains_key(router) {
            return false;
        }
        ctx.record(Record::LinkRoutes {
            router: router.clone(),
            routes: believed,
        });
        true
    }

    /// Tells every stream what it should know by now.
    pub(crate) fn announce(&mut self, hosts: &[IpNet], announcing: bool, ctx: &mut Context<'_>) {
        let to_sibling = wanted(true, hosts, announcing, ctx);
        let to_remote = wanted(false, hosts, announcing, ctx);
        let own = &ctx.config.router.domain;
        for (id, stream) in &mut self.streams {
            let wanted = if stream.router.domain == *own {
                &to_sibling
            } else {
                &to_remote
            };
            let messages = stream.update(wanted, ctx.now.mono);
            if !messages.is_empty() {
                ctx.effects.push(Effect::SendRoutes {
                    stream: *id,
                    messages,
                });
            }
        }
    }

    /// Streams that fell silent end; idle ones speak. Yields dialled ones that ended.
    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) -> Vec<(RouterId, StreamId)> {
        let now = ctx.now.mono;
        let dead: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.heard + SILENT <= now)
            .map(|(id, stream)| (*id, stream.router.clone(), stream.dialled))
            .collect();
        for (id, _, _) in &dead {
            self.end(*id, "silent", ctx);
        }
        for (id, stream) in &mut self.streams {
            if stream.spoke + KEEP_ALIVE <= now {
                let messages = vec![stream.keep_alive(now)];
                ctx.effects.push(Effect::SendRoutes {
                    stream: *id,
                    messages,
                });
            }
        }
        dead.into_iter()
            .filter(|(_, _, dialled)| *dialled)
            .map(|(id, router, _)| (router, id))
            .collect()
    }

    pub(crate) fn next_wake(&self) -> Option<(Mono, &'static str)> {
        self.streams
            .values()
            .flat_map(|stream| {
                [
                    (stream.heard + SILENT, "routes silent"),
                    (stream.spoke + KEEP_ALIVE, "routes keep-alive"),
                ]
            })
            .min()
    }

    fn end(&mut self, stream: StreamId, reason: &'static str, ctx: &mut Context<'_>) {
        if self.streams.contains_key(&stream) {
            // It stays listed until its end is reported, so that its opener hears of it.
            ctx.effect(Effect::CloseRoutes { stream, reason });
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.ended = true;
                stream.complete = false;
                stream.inbound.clear();
                stream.heard = ctx.now.mono;
            }
        }
    }

    /// Candidates for the table: what every live link's router was believed to say.
    pub(crate) fn candidates<'a>(links: &'a Links, ctx: &'a Context<'_>) -> Vec<Candidate<'a>> {
        let mut candidates = Vec::new();
        for (router, link) in links.iter().filter(|(_, link)| link.live) {
            let mtu = ctx
                .state
                .links
                .get(router)
                .map_or(ctx.config.mtu, |stored| stored.mtu);
            for route in ctx.state.routes.get(router).into_iter().flatten() {
                let route_mtu = if route.mtu == 0 {
                    mtu
                } else {
                    route.mtu.min(mtu)
                };
                candidates.push(Candidate {
                    route: crate::forward::Route {
                        prefix: route.prefix,
                        port: link.port,
                        class: link.class,
                        mtu: route_mtu,
                    },
                    router,
                    preference: route.preference,
                    up: link.data_up(),
                });
            }
        }
        candidates
    }

    pub(crate) fn disbelieved(&self) -> &BTreeMap<Disbelief, u64> {
        &self.disbelieved
    }

    /// Routes that are remembered, believed or not.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        let inbound = self.streams.values().map(|stream| stream.inbound.len());
        inbound.sum()
    }

    pub(crate) fn has_stream(&self, router: &RouterId) -> bool {
        self.streams
            .values()
            .any(|stream| stream.router == *router && stream.complete)
    }
}

/// Whether a stream may speak for a link of ours.
fn admit(peer: &SpiffeId, open: &RoutesOpen, ctx: &Context<'_>) -> Result<(), &'static str> {
    if open.uid != ctx.config.uid {
        return Err("another network");
    }
    if !Links::granted(peer, &open.router.domain, ctx) {
        return Err("the identity is no router of that domain");
    }
    let Some(link) = ctx.state.links.get(&open.router) else {
        return Err("no link to that router");
    };
    if link.peer != *peer {
        return Err("another identity holds the link");
    }
    if link.generation != open.generation {
        return Err("another generation than the link's");
    }
    Ok(())
}

fn judge<'a>(ctx: &'a Context<'_>) -> Judge<'a> {
    Judge {
        document: ctx.document,
        own_domain: &ctx.config.router.domain,
        own_lease: ctx.state.lease.as_ref(),
        wall: ctx.now.wall,
    }
}

/// What a router of the own or another domain should know from us.
fn wanted(sibling: bool, hosts: &[IpNet], announcing: bool, ctx: &Context<'_>) -> RouteMap {
    let mut wanted = RouteMap::new();
    if !announcing {
        return wanted;
    }
    let Some(lease) = &ctx.state.lease else {
        return wanted;
    };
    if sibling {
        // Workloads of another router's prefix that are served here.
        let outside = hosts
            .iter()
            .filter(|host| !lease.prefixes().any(|prefix| prefix.contains(*host)));
        wanted.extend(outside.map(|host| (*host, (PREFIX, 0))));
    } else if let Some(member) = ctx.own_member() {
        wanted.extend(member.blocks().map(|block| (block, (BLOCK, 0))));
    }
    wanted.extend(lease.prefixes().map(|prefix| (prefix, (PREFIX, 0))));
    wanted
}
