//! A workload's Request, first or refresh: checked wholly before anything changes.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::allocator::Lease;
use crate::forward::PortId;
use crate::ids::{PublicKey, SpiffeId};
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::state::{Assignment, Identity, Record, StoredMechanism, StoredWorkload};
use crate::router::{
    Answer, CallId, ConnectionId, Effect, MechanismAnswer, MechanismWish, Refusal, Request,
    WorkloadAnswer,
};
use crate::time::Mono;

use super::addresses::{Forbidden, choose, excluded, within};
use super::share::room;
use super::{Attach, Fd, Install, REPLACED, Served, carries, granted, set_peer, taken};

/// IPv6 needs it (RFC 8200, section 5).
const MTU_MIN: u16 = 1280;

/// What a checked Request will become.
struct Plan {
    identity: Identity,
    /// A reservation of the same SPIFFE ID that this one replaces.
    gives_way: Option<Identity>,
    addresses: Vec<IpAddr>,
    mechanism: StoredMechanism,
    mtu: u16,
}

/// The other end's place in the data plane, between two connections.
struct Kept {
    port: PortId,
    live: bool,
    heard: Mono,
    fd: Fd,
    /// What the data plane has not answered yet.
    installing: Vec<Ticket>,
}

impl Attach {
    pub(crate) fn request(
        &mut self,
        call: CallId,
        request: &Request,
        key_in_use: bool,
        ctx: &mut Context<'_>,
    ) {
        match self.check(request, key_in_use, ctx) {
            Ok(plan) => self.carry_out(call, request, plan, ctx),
            Err(refusal) => {
                *self.refused.entry(refusal.label()).or_default() += 1;
                ctx.refuse(call, refusal);
            }
        }
    }

    fn check(
        &self,
        request: &Request,
        key_in_use: bool,
        ctx: &Context<'_>,
    ) -> Result<Plan, Refusal> {
        let stored = ctx.state.workloads.get(&request.connection);
        if let Some(stored) = stored.filter(|stored| stored.owner != request.peer) {
            let what = format!(
                "refresh connection {}, which {} opened",
                request.connection, stored.owner
            );
            return Err(Refusal::Denied {
                id: request.peer.clone(),
                what,
            });
        }
        let id = workload_id(request, ctx)?;
        if let Some(hello) = &request.hello {
            ctx.check_hello(hello)?;
        }
        if ctx.fenced {
            let reason = "a newer instance serves under this router's name".to_owned();
            return Err(Refusal::Precondition { reason });
        }
        let Some(lease) = &ctx.state.lease else {
            return Err(Refusal::Unavailable {
                reason: "this router has no prefix lease yet".to_owned(),
            });
        };
        let limit = ctx.config.limits.workloads;
        if stored.is_none() && self.served.len() >= limit {
            return Err(Refusal::Exhausted {
                what: "this router",
                limit,
            });
        }
        if request.mtu != 0 && request.mtu < MTU_MIN {
            let allowed = format!("0 (unset) or at least {MTU_MIN}");
            return Err(Refusal::Invalid {
                field: "context.MTU",
                value: request.mtu.to_string(),
                allowed,
            });
        }
        let identity = Identity {
            id,
            name: request.name.clone(),
        };
        let mechanism = self.mechanism(request, &identity, key_in_use, ctx)?;
        let gives_way = room(&identity, &request.connection, lease, ctx)?;
        let addresses = addresses(request, &identity, gives_way.as_ref(), lease, ctx)?;
        let mtu = if request.mtu == 0 {
            ctx.config.mtu
        } else {
            request.mtu.min(ctx.config.mtu)
        };
        Ok(Plan {
            identity,
            gives_way,
            addresses,
            mechanism,
            mtu,
        })
    }

    fn mechanism(
        &self,
        request: &Request,
        identity: &Identity,
        key_in_use: bool,
        ctx: &Context<'_>,
    ) -> Result<StoredMechanism, Refusal> {
        let public_key = match request.mechanism {
            MechanismWish::Tun { .. } => return Ok(StoredMechanism::Tun),
            MechanismWish::WireGuard { public_key } => public_key,
        };
        if ctx.config.advertise.is_none() && request.local.is_none() {
            let reason =
                "WIREGUARD over a unix socket needs the router's `advertise` address".to_owned();
            return Err(Refusal::Unavailable { reason });
        }
        let other = ctx.state.workloads.iter().any(|(connection, workload)| {
            *connection != request.connection
                && workload.identity != *identity
                && matches!(&workload.mechanism, StoredMechanism::WireGuard { public_key: key, .. } if *key == public_key)
        });
        if other || key_in_use || public_key == ctx.config.public_key {
            let allowed = "a key that no other connection uses".to_owned();
            return Err(Refusal::Invalid {
                field: "src_public_key",
                value: public_key.to_string(),
                allowed,
            });
        }
        // The endpoint is learnt, and kept while the key stays.
        let endpoint =
            self.stored_of(request, identity, ctx)
                .and_then(|stored| match &stored.mechanism {
                    StoredMechanism::WireGuard {
                        public_key: key,
                        endpoint,
                    } if *key == public_key => *endpoint,
                    StoredMechanism::WireGuard { .. } | StoredMechanism::Tun => None,
                });
        Ok(StoredMechanism::WireGuard {
            public_key,
            endpoint,
        })
    }

    /// The connection that this Request continues: its own, else the identity's other one.
    fn stored_of<'a>(
        &self,
        request: &Request,
        identity: &Identity,
        ctx: &'a Context<'_>,
    ) -> Option<&'a StoredWorkload> {
        let own = ctx.state.workloads.get(&request.connection);
        own.or_else(|| {
            ctx.state
                .workloads
                .values()
                .find(|workload| workload.identity == *identity)
        })
    }

    fn carry_out(&mut self, call: CallId, request: &Request, plan: Plan, ctx: &mut Context<'_>) {
        let connection = &request.connection;
        let stored = ctx.state.workloads.get(connection).cloned();
        if let Some(stored) = stored.filter(|stored| stored.identity != plan.identity) {
            self.rename(connection, stored, &plan, ctx);
        }
        self.take_over(connection, &plan, ctx);
        if let Some(identity) = plan.gives_way {
            ctx.record(Record::Assigned {
                identity,
                assignment: None,
            });
        }
        let held = ctx.state.assignments.get(&plan.identity);
        let named = held.is_some_and(|held| held.named && held.addresses == plan.addresses);
        let assignment = Assignment {
            addresses: plan.addresses,
            reserved_until: None,
            named,
        };
        if held != Some(&assignment) {
            ctx.record(Record::Assigned {
                identity: plan.identity.clone(),
                assignment: Some(assignment),
            });
            bound_reservations(ctx);
        }
        let workload = StoredWorkload {
            owner: request.peer.clone(),
            identity: plan.identity.clone(),
            mechanism: plan.mechanism,
            mtu: plan.mtu,
        };
        let before = ctx.state.workloads.get(connection).cloned();
        if before.as_ref() != Some(&workload) {
            ctx.record(Record::Workload {
                connection: connection.clone(),
                workload: Some(workload.clone()),
            });
        }
        let served = self
            .served
            .entry(connection.clone())
            .or_insert_with(|| Served::new(ctx.now.mono));
        served.expires = ctx.now.mono + request.expires_in;
        served.told = ctx.config.advertise.or(request.local);
        self.names.want(&plan.identity, ctx);
        self.bring_up(
            call,
            request,
            before.as_ref().map(|stored| &stored.mechanism),
            &workload.mechanism,
            ctx,
        );
    }

    /// Another name under the same connection: the old one ends wholly, but the other end
    /// stays where it is in the data plane, which knows a key once.
    fn rename(
        &mut self,
        connection: &ConnectionId,
        stored: StoredWorkload,
        plan: &Plan,
        ctx: &mut Context<'_>,
    ) {
        let kept = self.lift(connection, &stored.mechanism, &plan.mechanism);
        self.end(connection, None, ctx);
        let Some(kept) = kept else {
            return;
        };
        self.set_down(connection, kept, ctx.now.mono);
        ctx.record(Record::Workload {
            connection: connection.clone(),
            workload: Some(StoredWorkload {
                identity: plan.identity.clone(),
                ..stored
            }),
        });
    }

    /// One identity has one connection: a newer one takes port and descriptor over.
    fn take_over(&mut self, connection: &ConnectionId, plan: &Plan, ctx: &mut Context<'_>) {
        let older = ctx
            .state
            .workloads
            .iter()
            .find(|(other, workload)| *other != connection && workload.identity == plan.identity)
            .map(|(other, workload)| (other.clone(), workload.clone()));
        let Some((other, workload)) = older else {
            return;
        };
        let kept = if self.served.contains_key(connection) {
            None
        } else {
            self.lift(&other, &workload.mechanism, &plan.mechanism)
        };
        if let Some(served) = self.served.remove(&other) {
            self.forget(&other, served, ctx);
        }
        if let Some(kept) = kept {
            // The client's end of `fd.sock` is another.
            let fd = Fd::default();
            self.set_down(connection, Kept { fd, ..kept }, ctx.now.mono);
            // The peer or descriptor is in place: it is the new connection's from here.
            ctx.record(Record::Workload {
                connection: connection.clone(),
                workload: Some(workload),
            });
        }
        ctx.record(Record::Workload {
            connection: other.clone(),
            workload: None,
        });
        ctx.effect(Effect::ConnectionClosed {
            connection: other,
            reason: REPLACED,
        });
    }

    /// Takes out of a connection what its successor wants as it is: the same descriptor, or the
    /// same peer, which may be on its way yet. The data plane knows a key once, so a peer that
    /// stays is never set beside itself.
    fn lift(
        &mut self,
        connection: &ConnectionId,
        held: &StoredMechanism,
        wanted: &StoredMechanism,
    ) -> Option<Kept> {
        let served = self.served.get_mut(connection)?;
        let is_peer = matches!(held, StoredMechanism::WireGuard { .. });
        if !same_end(held, wanted) || !(served.live || is_peer) {
            return None;
        }
        let port = served.port.take()?;
        let installing = self.installs.extract_if(
            ..,
            |_, install| matches!(install, Install::Peer { port: of, .. } if *of == port),
        );
        Some(Kept {
            port,
            live: served.live,
            heard: served.heard,
            fd: core::mem::take(&mut served.fd),
            installing: installing.map(|(ticket, _)| ticket).collect(),
        })
    }

    fn set_down(&mut self, connection: &ConnectionId, kept: Kept, now: Mono) {
        let port = kept.port;
        self.installs
            .extend(kept.installing.into_iter().map(|ticket| {
                let connection = connection.clone();
                (ticket, Install::Peer { connection, port })
            }));
        let served = Served {
            port: Some(port),
            live: kept.live,
            heard: kept.heard,
            fd: kept.fd,
            ..Served::new(now)
        };
        self.served.insert(connection.clone(), served);
    }

    /// Puts the other end into the data plane where it is not yet, and answers.
    fn bring_up(
        &mut self,
        call: CallId,
        request: &Request,
        before: Option<&StoredMechanism>,
        mechanism: &StoredMechanism,
        ctx: &mut Context<'_>,
    ) {
        let connection = &request.connection;
        let Some(served) = self.served.get_mut(connection) else {
            return;
        };
        let changed = before.is_some_and(|before| !same_end(before, mechanism));
        if changed {
            served.live = false;
            served.fd = Fd::default();
            if let Some(port) = served.port.take() {
                ctx.effect(Effect::RemovePort { port });
            }
        }
        match (mechanism, &request.mechanism) {
            (StoredMechanism::Tun, MechanismWish::Tun { secret }) => {
                // A connected client sees the value it knows, and so has no reason to attach
                // again; one that lost its end may use it all the same.
                let connected = served.live && served.fd.session.is_some();
                let value = served.fd.last.filter(|_| connected).unwrap_or(*secret);
                served.fd.last = Some(value);
                served.fd.ticket = Some((value, ctx.now.mono + ctx.config.times.ticket));
                self.answer(call, connection, ctx);
            }
            (StoredMechanism::WireGuard { .. }, _) if served.live => {
                self.answer(call, connection, ctx)
            }
            (
                StoredMechanism::WireGuard {
                    public_key,
                    endpoint,
                },
                _,
            ) => {
                served.waiting.push(call);
                if served.port.is_none() {
                    let port = *served.port.insert(ctx.port());
                    let ticket = set_peer(port, *public_key, *endpoint, ctx);
                    self.installs.insert(
                        ticket,
                        Install::Peer {
                            connection: connection.clone(),
                            port,
                        },
                    );
                }
            }
            (StoredMechanism::Tun, MechanismWish::WireGuard { .. }) => {}
        }
    }

    pub(super) fn answer(
        &mut self,
        call: CallId,
        connection: &ConnectionId,
        ctx: &mut Context<'_>,
    ) {
        let result = self.compose(connection, ctx).map(Answer::Workload);
        ctx.effect(Effect::Answer { call, result });
    }

    fn compose(
        &self,
        connection: &ConnectionId,
        ctx: &Context<'_>,
    ) -> Result<WorkloadAnswer, Refusal> {
        let gone = || Refusal::Unavailable {
            reason: "the connection was closed meanwhile".to_owned(),
        };
        let served = self.served.get(connection).ok_or_else(gone)?;
        let workload = ctx.state.workloads.get(connection).ok_or_else(gone)?;
        let assignment = ctx
            .state
            .assignments
            .get(&workload.identity)
            .ok_or_else(gone)?;
        let mechanism = match &workload.mechanism {
            StoredMechanism::Tun => MechanismAnswer::Tun {
                secret: served.fd.last.ok_or_else(gone)?,
            },
            StoredMechanism::WireGuard { .. } => MechanismAnswer::WireGuard {
                public_key: ctx.config.public_key,
                address: served.told.ok_or_else(gone)?,
                port: ctx.config.udp_port,
            },
        };
        let document = ctx.document;
        let v4 = ctx
            .state
            .lease
            .as_ref()
            .is_some_and(|lease| lease.prefix4.is_some());
        let pool4 = document.pool4.filter(|_| v4).map(IpNet::V4);
        Ok(WorkloadAnswer {
            addresses: assignment
                .addresses
                .iter()
                .copied()
                .map(IpNet::from)
                .collect(),
            router: ctx.own_addresses(),
            routes: pool4
                .into_iter()
                .chain([IpNet::V6(document.pool6)])
                .collect(),
            mtu: workload.mtu,
            dns_servers: ctx.own_ips(),
            search: document.zone.clone(),
            hello: ctx.hello(),
            mechanism,
        })
    }
}

/// Whose workload it is: the direct TLS peer's, or the claimed one behind an intermediary
/// that the document lists. Whoever read the path knew a version of the document as well, maybe
/// another: where the two differ nobody gets a name, least of all the intermediary itself.
fn workload_id(request: &Request, ctx: &Context<'_>) -> Result<SpiffeId, Refusal> {
    let denied = |what| {
        let id = request.peer.clone();
        Err(Refusal::Denied { id, what })
    };
    let candidate = match (&request.claimed, carries(&request.peer, ctx)) {
        (Some(claimed), true) => claimed,
        (None, false) => &request.peer,
        (Some(claimed), false) => {
            return denied(format!(
                "attach {claimed}: the network document does not list it as an intermediary"
            ));
        }
        (None, true) => {
            return denied(
                "attach as a workload: the network document lists it as an intermediary".to_owned(),
            );
        }
    };
    if granted(candidate, ctx) {
        return Ok(candidate.clone());
    }
    let what = format!(
        "attach as a workload of domain {} in this network",
        ctx.config.router.domain
    );
    Err(Refusal::Denied {
        id: candidate.clone(),
        what,
    })
}

/// The identity's addresses where they still fit, else the ones asked for, else the lowest.
fn addresses(
    request: &Request,
    identity: &Identity,
    gives_way: Option<&Identity>,
    lease: &Lease,
    ctx: &Context<'_>,
) -> Result<Vec<IpAddr>, Refusal> {
    let mut ranges = request.excluded.clone();
    ranges.extend(&ctx.document.policy.exclusions);
    ranges.extend(&ctx.config.exclusions);
    let mut wanted: Vec<IpAddr> = Vec::new();
    if let Some(held) = ctx.state.assignments.get(identity) {
        let fits = |address: &IpAddr| within(lease, *address) && !excluded(&ranges, *address);
        wanted.extend(held.addresses.iter().filter(|address| fits(address)));
    }
    wanted.extend(&request.addresses);
    let taken = taken(identity, gives_way, ctx);
    let forbidden = Forbidden {
        taken: &taken,
        excluded: &ranges,
    };
    choose(lease, &forbidden, &wanted).map_err(|prefix| {
        let hosts = match prefix {
            IpNet::V4(prefix) => prefix.hosts().count(),
            IpNet::V6(_) => usize::MAX,
        };
        Refusal::Exhausted {
            what: "the router's prefix, less exclusions and reservations,",
            limit: hosts,
        }
    })
}

fn same_end(a: &StoredMechanism, b: &StoredMechanism) -> bool {
    kind_or_key(a) == kind_or_key(b)
}

fn kind_or_key(mechanism: &StoredMechanism) -> Option<PublicKey> {
    match mechanism {
        StoredMechanism::Tun => None,
        StoredMechanism::WireGuard { public_key, .. } => Some(*public_key),
    }
}

/// Drops reservations that ended; above the limit the one that ends first gives way.
fn bound_reservations(ctx: &mut Context<'_>) {
    let mut reserved: Vec<_> = ctx
        .state
        .assignments
        .iter()
        .filter_map(|(identity, held)| Some((held.reserved_until?, identity.clone())))
        .collect();
    reserved.sort();
    let surplus = reserved.len().saturating_sub(ctx.config.limits.reserved);
    for (index, (until, identity)) in reserved.into_iter().enumerate() {
        if index < surplus || until <= ctx.now.wall {
            ctx.record(Record::Assigned {
                identity,
                assignment: None,
            });
        }
    }
}
