//! The workloads that one router serves: who may attach, which addresses they get, how their
//! packets come, when they end.
//!
//! ```text
//!             Request                 peer or descriptor in the data plane
//!   (none) -----------> admitted ------------------------------------------> live
//!     ^                                                        Request = refresh |
//!     |    Close, revoked, replaced; expired and silent for too long            |
//!     +--------------------------------------------------------------------------+
//! ```
//!
//! An expired connection is stale: it keeps its traffic while its other end is alive in the
//! data plane, for at most the network's stale limit.

pub mod addresses;
mod fd;
mod names;
mod request;
mod sample;
mod share;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::document::Role;
use crate::forward::{PortClass, PortId, Route};
use crate::ids::{PublicKey, SpiffeId, WorkloadName};
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::state::{Assignment, Identity, Record, StoredMechanism, StoredWorkload};
use crate::router::{
    Answer, CallId, ConnectionId, Effect, Endpoint, FdGrant, FdSession, NameAnswer, PeerSpec,
    Refusal,
};
use crate::time::Mono;

use names::Names;

/// Every workload of one router.
#[derive(Debug, Default)]
pub(crate) struct Attach {
    served: BTreeMap<ConnectionId, Served>,
    names: Names,
    installs: BTreeMap<Ticket, Install>,
    /// Counts whatever changed what is live.
    pub(crate) changes: u64,
    /// Requests of workloads that were refused, by [`Refusal::label`].
    pub(crate) refused: BTreeMap<&'static str, u64>,
}

/// What a running connection has beyond its stored part.
#[derive(Debug)]
struct Served {
    /// Set once something is, or is about to be, in the data plane.
    port: Option<PortId>,
    /// The data plane has it.
    live: bool,
    /// End of the client's token.
    expires: Mono,
    /// Last sign of life: installed, or authentic receipt.
    heard: Mono,
    fd: Fd,
    /// Calls that wait for the installation.
    waiting: Vec<CallId>,
    /// Underlay address told to the client.
    told: Option<IpAddr>,
}

impl Served {
    /// Not in the data plane, and to be refreshed at once.
    fn new(now: Mono) -> Self {
        Self {
            port: None,
            live: false,
            expires: now,
            heard: now,
            fd: Fd::default(),
            waiting: Vec::new(),
            told: None,
        }
    }
}

/// The client's side of `fd.sock`.
#[derive(Debug, Default)]
struct Fd {
    session: Option<FdSession>,
    ticket: Option<([u8; 16], Mono)>,
    /// The value last answered.
    last: Option<[u8; 16]>,
}

#[derive(Debug)]
enum Install {
    Peer {
        connection: ConnectionId,
        port: PortId,
    },
    Tun {
        connection: ConnectionId,
        port: PortId,
        session: FdSession,
    },
}

/// Why a connection ended; for monitors and logs.
const EXPIRED: &str = "expired and silent";
const STALE: &str = "expired, stale limit reached";
const REVOKED: &str = "identity is no longer granted";
const REPLACED: &str = "replaced by a newer connection of the same identity";

impl Attach {
    /// Re-installs what was stored.
    pub(crate) fn start(&mut self, ctx: &mut Context<'_>) {
        let stored: Vec<_> = ctx
            .state
            .workloads
            .iter()
            .map(|(id, w)| (id.clone(), w.clone()))
            .collect();
        for (connection, workload) in stored {
            let expires = ctx.now.mono + ctx.config.times.restored_life;
            let mut served = Served {
                expires,
                ..Served::new(ctx.now.mono)
            };
            if let StoredMechanism::WireGuard {
                public_key,
                endpoint,
            } = workload.mechanism
            {
                let port = ctx.port();
                served.port = Some(port);
                let ticket = set_peer(port, public_key, endpoint, ctx);
                self.installs.insert(
                    ticket,
                    Install::Peer {
                        connection: connection.clone(),
                        port,
                    },
                );
            }
            self.served.insert(connection, served);
            self.names.want(&workload.identity, ctx);
        }
    }

    pub(crate) fn serves(&self, connection: &ConnectionId) -> bool {
        self.served.contains_key(connection)
    }

    pub(crate) fn uses_key(&self, key: PublicKey, ctx: &Context<'_>) -> bool {
        ctx.state.workloads.values().any(|w| matches!(&w.mechanism, StoredMechanism::WireGuard { public_key, .. } if *public_key == key))
    }

    pub(crate) fn close(
        &mut self,
        call: CallId,
        connection: &ConnectionId,
        peer: &SpiffeId,
        ctx: &mut Context<'_>,
    ) {
        match ctx.state.workloads.get(connection) {
            Some(workload) if workload.owner != *peer => {
                let what = format!("close connection {connection}, which another identity opened");
                ctx.refuse(
                    call,
                    Refusal::Denied {
                        id: peer.clone(),
                        what,
                    },
                );
            }
            _ => {
                self.end(connection, None, ctx);
                ctx.effect(Effect::Answer {
                    call,
                    result: Ok(Answer::Closed),
                });
            }
        }
    }

    /// True when the ticket was one of this part's.
    pub(crate) fn installed(
        &mut self,
        ticket: Ticket,
        result: &Result<(), String>,
        ctx: &mut Context<'_>,
    ) -> bool {
        let Some(install) = self.installs.remove(&ticket) else {
            return false;
        };
        self.changes += 1;
        match install {
            Install::Peer { connection, port } => {
                let Some(served) = self
                    .served
                    .get_mut(&connection)
                    .filter(|s| s.port == Some(port))
                else {
                    return true;
                };
                let waiting = core::mem::take(&mut served.waiting);
                match result {
                    Ok(()) => {
                        served.live = true;
                        served.heard = ctx.now.mono;
                        for call in waiting {
                            self.answer(call, &connection, ctx);
                        }
                    }
                    Err(reason) => {
                        served.port = None;
                        for call in waiting {
                            let reason = format!("the data plane refuses the peer: {reason}");
                            ctx.refuse(call, Refusal::Unavailable { reason });
                        }
                        self.end(&connection, Some("the data plane refused the peer"), ctx);
                    }
                }
            }
            Install::Tun {
                connection,
                port,
                session,
            } => self.tun_installed(&connection, port, session, result, ctx),
        }
        true
    }

    /// True when the served names changed.
    pub(crate) fn named(
        &mut self,
        ticket: Ticket,
        answer: NameAnswer,
        ctx: &mut Context<'_>,
    ) -> bool {
        self.names.answered(ticket, answer, ctx)
    }

    /// A workload's endpoint is never dialled before it spoke, so it is stored when learnt.
    pub(crate) fn learned(
        &mut self,
        port: PortId,
        learned: Endpoint,
        ctx: &mut Context<'_>,
    ) -> bool {
        let Some(connection) = self.of_port(port) else {
            return false;
        };
        Self::learned_of(&connection, learned, ctx);
        true
    }

    fn learned_of(connection: &ConnectionId, learned: Endpoint, ctx: &mut Context<'_>) {
        let Some(stored) = ctx.state.workloads.get(connection) else {
            return;
        };
        if let StoredMechanism::WireGuard {
            public_key,
            endpoint,
        } = stored.mechanism
            && endpoint != Some(learned)
        {
            let mut workload = stored.clone();
            workload.mechanism = StoredMechanism::WireGuard {
                public_key,
                endpoint: Some(learned),
            };
            ctx.record(Record::Workload {
                connection: connection.clone(),
                workload: Some(workload),
            });
        }
    }

    pub(crate) fn port_failed(&mut self, port: PortId, ctx: &mut Context<'_>) {
        if let Some(connection) = self.of_port(port) {
            self.failed(&connection, ctx);
        }
    }

    fn failed(&mut self, connection: &ConnectionId, ctx: &mut Context<'_>) {
        self.changes += 1;
        if let Some(served) = self.served.get_mut(connection)
            && let Some(port) = served.port.take()
        {
            served.live = false;
            ctx.effect(Effect::RemovePort { port });
        }
    }

    /// Ends what the document no longer grants.
    pub(crate) fn document_changed(&mut self, ctx: &mut Context<'_>) {
        let revoked: Vec<_> = ctx
            .state
            .workloads
            .iter()
            .filter(|(_, workload)| {
                let carried = workload.owner != workload.identity.id;
                !granted(&workload.identity.id, ctx) || carried && !carries(&workload.owner, ctx)
            })
            .map(|(connection, _)| connection.clone())
            .collect();
        for connection in revoked {
            self.end(&connection, Some(REVOKED), ctx);
        }
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) {
        self.names.wake(ctx);
        let now = ctx.now.mono;
        let due: Vec<_> = self
            .served
            .iter()
            .filter_map(|(connection, served)| {
                let (deadline, reason) = end_of(served, ctx);
                (deadline <= now).then(|| (connection.clone(), reason))
            })
            .collect();
        for (connection, reason) in due {
            self.end(&connection, Some(reason), ctx);
        }
        for served in self.served.values_mut() {
            if served.fd.ticket.is_some_and(|(_, until)| until <= now) {
                served.fd.ticket = None;
            }
        }
    }

    /// Whether the data plane is to be looked at, to tell who is alive and where.
    pub(crate) fn needs_samples(&self, now: Mono) -> bool {
        let ends = |served: &Served| served.expires <= now && served.fd.session.is_none();
        self.served
            .values()
            .any(|served| served.port.is_some() || ends(served))
    }

    pub(crate) fn next_wake(
        &self,
        stale_limit: Duration,
        silent_after: Duration,
    ) -> Option<(Mono, &'static str)> {
        let ends = self.served.values().map(|served| {
            (
                deadline(served, stale_limit, silent_after).0,
                "connection end",
            )
        });
        let tickets = self
            .served
            .values()
            .filter_map(|served| Some((served.fd.ticket?.1, "ticket end")));
        let names = self.names.next_wake().map(|at| (at, "name claim"));
        ends.chain(tickets).chain(names).min()
    }

    /// Closes for good: nothing of the connection is left but the reservation of its address.
    fn end(
        &mut self,
        connection: &ConnectionId,
        reason: Option<&'static str>,
        ctx: &mut Context<'_>,
    ) {
        let Some(served) = self.served.remove(connection) else {
            return;
        };
        self.forget(connection, served, ctx);
        let Some(workload) = ctx.state.workloads.get(connection).cloned() else {
            return;
        };
        self.names.drop_claim(&workload.identity, ctx);
        if let Some(assignment) = ctx.state.assignments.get(&workload.identity) {
            let reserved_until = Some(ctx.now.wall + ctx.config.times.claim_grace);
            let assignment = Assignment {
                reserved_until,
                named: false,
                ..assignment.clone()
            };
            ctx.record(Record::Assigned {
                identity: workload.identity.clone(),
                assignment: Some(assignment),
            });
        }
        ctx.record(Record::Workload {
            connection: connection.clone(),
            workload: None,
        });
        if let Some(reason) = reason {
            ctx.effect(Effect::ConnectionClosed {
                connection: connection.clone(),
                reason,
            });
        }
    }

    /// Takes the runtime side away: port, waiting calls, outstanding installs.
    fn forget(&mut self, connection: &ConnectionId, served: Served, ctx: &mut Context<'_>) {
        for call in served.waiting {
            ctx.refuse(
                call,
                Refusal::Unavailable {
                    reason: "the connection was closed meanwhile".to_owned(),
                },
            );
        }
        if let Some(port) = served.port {
            ctx.effect(Effect::RemovePort { port });
        }
        self.installs.retain(|_, install| {
            let (Install::Peer { connection: of, .. } | Install::Tun { connection: of, .. }) =
                install;
            of != connection
        });
    }

    fn of_port(&self, port: PortId) -> Option<ConnectionId> {
        self.served
            .iter()
            .find(|(_, served)| served.port == Some(port))
            .map(|(connection, _)| connection.clone())
    }

    /// Lines of the table: live workloads only.
    pub(crate) fn routes(&self, ctx: &Context<'_>) -> Vec<Route> {
        let mut routes = Vec::new();
        for (connection, served) in &self.served {
            let (Some(port), true) = (served.port, served.live) else {
                continue;
            };
            let Some(workload) = ctx.state.workloads.get(connection) else {
                continue;
            };
            let Some(assignment) = ctx.state.assignments.get(&workload.identity) else {
                continue;
            };
            routes.extend(assignment.addresses.iter().map(|address| Route {
                prefix: IpNet::from(*address),
                port,
                class: PortClass::Member,
                mtu: workload.mtu,
            }));
        }
        routes
    }

    /// Names that this router may answer for: granted, and their workload attached.
    pub(crate) fn local_names(&self, ctx: &Context<'_>) -> BTreeMap<WorkloadName, Vec<IpAddr>> {
        let mut names = BTreeMap::new();
        for connection in self.served.keys() {
            let Some(workload) = ctx.state.workloads.get(connection) else {
                continue;
            };
            let Some(assignment) = ctx.state.assignments.get(&workload.identity) else {
                continue;
            };
            if let (Some(name), true) = (&workload.identity.name, assignment.named) {
                names.insert(name.clone(), assignment.addresses.clone());
            }
        }
        names
    }

    /// Ends every connection: this router leaves.
    pub(crate) fn leave(&mut self, ctx: &mut Context<'_>) {
        let connections: Vec<_> = self.served.keys().cloned().collect();
        for connection in connections {
            self.end(&connection, Some("the router leaves"), ctx);
        }
    }

    pub(crate) fn status(&self, ctx: &Context<'_>) -> Vec<WorkloadStatus> {
        let status = |(connection, served): (&ConnectionId, &Served)| {
            let workload: &StoredWorkload = ctx.state.workloads.get(connection)?;
            let assignment = ctx.state.assignments.get(&workload.identity);
            Some(WorkloadStatus {
                connection: connection.clone(),
                owner: workload.owner.clone(),
                name: workload.identity.name.clone(),
                named: assignment.is_some_and(|held| held.named),
                name_held_by: self.names.held_by(&workload.identity).map(str::to_owned),
                addresses: assignment
                    .map(|held| held.addresses.clone())
                    .unwrap_or_default(),
                mechanism: match &workload.mechanism {
                    StoredMechanism::Tun => "TUN",
                    StoredMechanism::WireGuard { .. } => "WIREGUARD",
                },
                port: served.port,
                live: served.live,
                stale: served.expires <= ctx.now.mono,
            })
        };
        self.served.iter().filter_map(status).collect()
    }
}

/// One workload, for people.
#[derive(Clone, Debug)]
pub struct WorkloadStatus {
    pub connection: ConnectionId,
    pub owner: SpiffeId,
    pub name: Option<WorkloadName>,
    pub named: bool,
    pub name_held_by: Option<String>,
    pub addresses: Vec<IpAddr>,
    pub mechanism: &'static str,
    pub port: Option<PortId>,
    pub live: bool,
    pub stale: bool,
}

fn end_of(served: &Served, ctx: &Context<'_>) -> (Mono, &'static str) {
    deadline(served, stale_limit(ctx), ctx.config.times.silent_after)
}

pub(crate) fn stale_limit(ctx: &Context<'_>) -> Duration {
    Duration::from_secs(u64::from(ctx.document.policy.stale_limit_seconds))
}

/// When the connection ends if nothing happens: after its token, as soon as its other end is
/// silent, at the stale limit at the latest.
fn deadline(
    served: &Served,
    stale_limit: Duration,
    silent_after: Duration,
) -> (Mono, &'static str) {
    let limit = (served.expires + stale_limit, STALE);
    if served.fd.session.is_some() {
        return limit;
    }
    let silent = (served.expires.max(served.heard + silent_after), EXPIRED);
    limit.min(silent)
}

/// A workload of this router's own domain.
fn granted(id: &SpiffeId, ctx: &Context<'_>) -> bool {
    ctx.own_member()
        .is_some_and(|member| member.grants(Role::Workload, id))
}

/// Listed to speak for workloads of this router's own domain.
fn carries(id: &SpiffeId, ctx: &Context<'_>) -> bool {
    ctx.own_member()
        .is_some_and(|member| member.grants(Role::Intermediary, id))
}

fn set_peer(
    port: PortId,
    public_key: PublicKey,
    endpoint: Option<Endpoint>,
    ctx: &mut Context<'_>,
) -> Ticket {
    let ticket = ctx.ticket();
    let peer = PeerSpec {
        port,
        class: PortClass::Member,
        public_key,
        endpoint,
        persistent_keepalive: None,
        initiate: endpoint.is_some(),
    };
    ctx.effect(Effect::SetPeer { ticket, peer });
    ticket
}

/// Addresses that are bound to somebody now; reservations that ended are not.
fn taken(except: &Identity, gives_way: Option<&Identity>, ctx: &Context<'_>) -> BTreeSet<IpAddr> {
    ctx.state
        .assignments
        .iter()
        .filter(|(identity, held)| {
            *identity != except
                && Some(*identity) != gives_way
                && held.reserved_until.is_none_or(|end| end > ctx.now.wall)
        })
        .flat_map(|(_, held)| held.addresses.iter().copied())
        .chain(ctx.own_ips())
        .collect()
}

fn fd_reply(session: FdSession, result: Result<FdGrant, String>, ctx: &mut Context<'_>) {
    ctx.effect(Effect::AnswerFd { session, result });
}
