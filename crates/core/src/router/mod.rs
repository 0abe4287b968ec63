//! The router's machine: serves workloads, links to other routers, believes and announces
//! routes, keeps its lease. It owns the parts ([`crate::attach`], [`crate::links`],
//! [`crate::routes`]) and drains them; they do not know each other.
//!
//! Records are applied when they are decided; whatever rests on them (answers, peers, table)
//! leaves after they are durable. A crash is "drop the machine, keep the disk".

pub mod call;
pub mod config;
pub(crate) mod context;
pub mod io;
mod journal;
mod lease;
mod own;
mod parts;
mod publish;
pub mod state;
#[cfg(test)]
mod tests;

pub use call::*;
pub use config::{Config, Limits, Times};
pub use io::*;
pub use publish::{Counts, Status};
pub use state::{Record, State};

use ipnet::IpNet;

use crate::allocator::Lease;
use crate::attach::Attach;
use crate::document::Document;
use crate::forward::{PortClass, PortId, Route};
use crate::ids::Generation;
use crate::links::Links;
use crate::machine::{Machine, Outbox, TicketCounter};
use crate::rng::Rng;
use crate::routes::{Routes, table};
use crate::time::{Mono, Now};

use context::{Context, PortCounter, own_addresses};
use journal::Journal;
use lease::{LeaseClient, LeaseEvent};
use own::OwnAddresses;
use parts::Parts;

/// The router's own address: the shell's descriptor, set before [`Input::Start`].
pub const OWN_PORT: PortId = PortId(0);

/// The whole router of one network in one domain.
#[derive(Debug)]
pub struct RouterMachine {
    config: Config,
    document: Document,
    state: State,
    attach: Attach,
    links: Links,
    routes: Routes,
    lease: LeaseClient,
    journal: Journal,
    tickets: TicketCounter,
    ports: PortCounter,
    rng: Rng,
    started: bool,
    fenced: bool,
    left: bool,
    /// What leaving gives back, until the process ends: a store that fails keeps it from that.
    giving_back: Option<Lease>,
    /// Last look at the data plane's counters.
    sampled: Mono,
    /// What was last handed over, so that equal values are not handed over again.
    table: Vec<Route>,
    view: ResolverView,
    registration: Option<Registration>,
    own: OwnAddresses,
    basis: Basis,
    /// Live members when the document was last looked at: membership ends by time as well.
    members: usize,
    /// More inputs of the same batch follow.
    holding: bool,
    /// What the batch brought so far.
    unsettled: (Vec<Record>, Vec<Effect>),
}

/// What the derived values rested on, records apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Basis {
    /// Changes among workloads.
    workloads: u64,
    /// Changes among known routers.
    known: u64,
    fenced: bool,
    /// Which links carried traffic.
    up: Vec<(PortId, bool)>,
}

impl RouterMachine {
    /// From what is stored (empty for a first start). `document` is the decoded form of
    /// `state.document`, or the one from the configuration.
    pub fn new(config: Config, state: State, document: Document) -> Self {
        let rng = Rng::new(config.seed);
        Self {
            config,
            document,
            state,
            attach: Attach::default(),
            links: Links::default(),
            routes: Routes::default(),
            lease: LeaseClient::default(),
            journal: Journal::default(),
            tickets: TicketCounter::default(),
            ports: PortCounter(OWN_PORT.0),
            rng,
            started: false,
            fenced: false,
            left: false,
            giving_back: None,
            sampled: Mono::default(),
            table: Vec::new(),
            view: ResolverView::default(),
            registration: None,
            own: OwnAddresses::default(),
            basis: Basis::default(),
            members: 0,
            holding: false,
            unsettled: (Vec::new(), Vec::new()),
        }
    }

    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What the records so far add up to.
    pub const fn state(&self) -> &State {
        &self.state
    }

    pub const fn document(&self) -> &Document {
        &self.document
    }

    /// The table as last handed to the data plane.
    pub fn table(&self) -> &[Route] {
        &self.table
    }

    /// Whether this NSM connection is served here, a workload's or a link's.
    pub fn knows(&self, connection: &ConnectionId) -> bool {
        self.attach.serves(connection) || self.links.serves(connection)
    }

    /// Which life of each linked router this one uses.
    pub fn link_generations(&self) -> impl Iterator<Item = (&RouterId, Generation)> + '_ {
        self.state
            .links
            .iter()
            .map(|(router, link)| (router, link.generation))
    }

    /// First message of every routes stream, as the accepting side sends it.
    pub fn routes_open(&self) -> RoutesOpen {
        RoutesOpen {
            uid: self.config.uid,
            router: self.config.router.clone(),
            instance: self.config.instance,
            generation: self
                .state
                .lease
                .as_ref()
                .map(|lease| lease.generation)
                .unwrap_or_default(),
        }
    }

    /// The next thing that is due for an attached workload; nothing once all have closed.
    pub fn attachment_timer(&self) -> Option<(Mono, &'static str)> {
        self.attach
            .next_wake(self.stale_limit(), self.config.times.silent_after)
    }

    fn stale_limit(&self) -> core::time::Duration {
        core::time::Duration::from_secs(u64::from(self.document.policy.stale_limit_seconds))
    }

    /// Whether a newer life of this router's name was seen.
    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// As [`Machine::handle`] one after the other, but what follows from all of them (table,
    /// announcements, view) is derived once at the end: it costs as much as there are workloads.
    pub fn handle_all(
        &mut self,
        inputs: impl IntoIterator<Item = Input>,
        now: Now,
        out: &mut Outbox<Effect>,
    ) {
        self.holding = true;
        for input in inputs {
            self.handle(input, now, out);
        }
        self.holding = false;
        let (records, effects) = &self.unsettled;
        if !(records.is_empty() && effects.is_empty() && self.basis() == self.basis) {
            self.step(now, out, |_, _| {});
        }
    }

    /// Runs one step of the parts over the shared state, then everything that follows from it.
    fn step(
        &mut self,
        now: Now,
        out: &mut Outbox<Effect>,
        act: impl FnOnce(&mut Parts<'_>, &mut Context<'_>),
    ) {
        let (mut records, mut effects) = core::mem::take(&mut self.unsettled);
        let mut ctx = Context {
            config: &self.config,
            document: &self.document,
            state: &mut self.state,
            tickets: &mut self.tickets,
            ports: &mut self.ports,
            rng: &mut self.rng,
            records: &mut records,
            effects: &mut effects,
            fenced: self.fenced,
            now,
        };
        let mut parts = Parts {
            attach: &mut self.attach,
            links: &mut self.links,
            routes: &mut self.routes,
            lease: &mut self.lease,
            own: &mut self.own,
            full: self.journal.is_full(self.config.limits.pending_records),
            fence: false,
        };
        act(&mut parts, &mut ctx);
        let fence = parts.fence;
        if fence && !self.fenced {
            self.fenced = true;
            ctx.fenced = true;
            self.links.leave(&mut ctx);
            self.routes.close_all(&mut ctx);
        }
        if self.started && !self.left {
            self.links.dial_due(&mut ctx);
        }
        // A removal settles at once: what comes after it in the batch may use its key again.
        let removes = |effect: &Effect| matches!(effect, Effect::RemovePort { .. });
        if self.holding && !effects.iter().any(removes) {
            self.unsettled = (records, effects);
            return;
        }
        let basis = self.basis();
        if self.started && !(records.is_empty() && effects.is_empty() && basis == self.basis) {
            self.basis = basis;
            self.follow(now, &mut records, &mut effects);
        }
        self.journal.push(records, effects, out);
        self.journal.flush(now.mono, &mut self.tickets, out);
    }

    /// What is derived rests on records, on what is live, on who is known and on which links carry
    /// traffic; most samples change none of them.
    fn basis(&self) -> Basis {
        let up = self.links.iter();
        Basis {
            workloads: self.attach.changes,
            known: self.links.changes,
            fenced: self.fenced,
            up: up.map(|(_, link)| (link.port, link.data_up())).collect(),
        }
    }

    /// Derives table, announcements, registration and resolver view from what is true by now,
    /// and hands over what changed.
    fn follow(&mut self, now: Now, records: &mut Vec<Record>, effects: &mut Vec<Effect>) {
        let fresh = lease::fresh(
            self.state.lease_confirmed,
            self.config.times.lease_silent_max,
            now,
        );
        let mut ctx = Context {
            config: &self.config,
            document: &self.document,
            state: &mut self.state,
            tickets: &mut self.tickets,
            ports: &mut self.ports,
            rng: &mut self.rng,
            records,
            effects,
            fenced: self.fenced,
            now,
        };
        let own = ctx.own_addresses();
        self.own.follow(&own, &mut ctx);
        let workloads = self.attach.routes(&ctx);
        let hosts: Vec<IpNet> = workloads.iter().map(|route| route.prefix).collect();
        let own_routes = own.iter().map(|prefix| Route {
            prefix: *prefix,
            port: OWN_PORT,
            class: PortClass::Own,
            mtu: self.config.mtu,
        });
        let table = table(
            workloads.into_iter().chain(own_routes),
            Routes::candidates(&self.links, &ctx),
        );
        if table != self.table {
            ctx.effect(Effect::SetRoutes {
                routes: table.clone(),
            });
            self.table = table;
        }
        let announcing = fresh && !self.fenced && !self.left;
        self.routes.announce(&hosts, announcing, &mut ctx);
        let registration = ctx
            .state
            .lease
            .as_ref()
            .filter(|_| announcing)
            .map(|lease| Registration {
                router: self.config.router.clone(),
                uid: self.config.uid,
                generation: lease.generation,
                dials_only: self.config.dials_only,
            });
        if registration != self.registration {
            match registration.clone() {
                Some(registration) => ctx.effect(Effect::Register { registration }),
                None if self.fenced => ctx.effect(Effect::CedeRegistration),
                None => ctx.effect(Effect::Unregister),
            }
            self.registration = registration;
        }
        let is_current = !self.fenced && !self.left;
        let view = publish::view(&self.attach, &self.links, is_current, &ctx);
        if view != self.view {
            ctx.effect(Effect::Publish {
                view: Box::new(view.clone()),
            });
            self.view = view;
        }
        // RemovePort of a replaced peer follows the table that no longer names it.
        ctx.effects
            .sort_by_key(|effect| matches!(effect, Effect::RemovePort { .. }));
    }

    fn start(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if self.started {
            return;
        }
        self.started = true;
        self.members = self.document.live_members(now.wall).count();
        self.sampled = now.mono;
        self.step(now, out, |parts, ctx| {
            parts.links.start(ctx);
            parts.attach.start(ctx);
            parts.lease.wake(ctx);
            // Memberships end by time as well, also while this router does not run.
            parts.members_changed(ctx);
        });
    }

    fn take_document(
        &mut self,
        document: Document,
        bytes: Vec<u8>,
        now: Now,
        out: &mut Outbox<Effect>,
    ) {
        let newer = document.uid == self.config.uid
            && (document.version > self.document.version || self.state.document.is_none());
        if !newer {
            return;
        }
        self.document = document;
        self.step(now, out, |parts, ctx| {
            ctx.record(Record::Document { bytes });
            parts.members_changed(ctx);
        });
    }

    /// Gives back what this router holds. Where the store fails the call is refused and may be
    /// repeated; meanwhile nothing is served, and nothing given back.
    fn leave(&mut self, call: CallId, now: Now, out: &mut Outbox<Effect>) {
        self.left = true;
        self.lease.stop();
        self.journal.retry_now();
        let held = self.state.lease.clone();
        let lease = held.clone().or_else(|| self.giving_back.take());
        self.giving_back.clone_from(&lease);
        self.step(now, out, |parts, ctx| {
            parts.links.leave(ctx);
            parts.routes.close_all(ctx);
            parts.attach.leave(ctx);
            if held.is_some() {
                ctx.record(Record::Lease {
                    lease: None,
                    confirmed: ctx.now.wall,
                });
            }
            if let Some(lease) = lease {
                ctx.effect(Effect::ReleaseLease { lease });
            }
            ctx.effect(Effect::Answer {
                call,
                result: Ok(Answer::Closed),
            });
        });
    }

    fn wants_samples(&self, now: Mono) -> bool {
        self.links.iter().next().is_some() || self.attach.needs_samples(now)
    }
}

impl Machine for RouterMachine {
    type Input = Input;
    type Effect = Effect;

    fn handle(&mut self, input: Input, now: Now, out: &mut Outbox<Effect>) {
        match input {
            Input::Start => self.start(now, out),
            Input::Document { document, bytes } => self.take_document(*document, bytes, now, out),
            Input::Leave { call } => self.leave(call, now, out),
            Input::Appended { ticket, result } => {
                self.journal
                    .appended(ticket, result, now.mono, &mut self.rng, out);
                self.journal.flush(now.mono, &mut self.tickets, out);
            }
            Input::Request { call, request } => {
                self.step(now, out, |parts, ctx| parts.request(call, &request, ctx))
            }
            Input::Close {
                call,
                connection,
                peer,
            } => {
                self.step(now, out, |parts, ctx| {
                    parts.close(call, &connection, &peer, ctx)
                });
            }
            Input::Watch(event) => {
                // A registry that comes back may have lost what it knew.
                if event == WatchEvent::Opened && self.links.was_watched() {
                    self.registration = None;
                }
                self.step(now, out, |parts, ctx| {
                    let event = parts.links.watch(event, ctx);
                    parts.linked(event, ctx);
                })
            }
            Input::Dialled { ticket, result } => self.step(now, out, |parts, ctx| {
                let keys: Vec<_> = result.iter().map(|answer| answer.public_key).collect();
                let in_use = keys.iter().any(|key| parts.attach.uses_key(*key, ctx));
                let event = parts.links.dialled(ticket, result, |_| in_use, ctx);
                parts.linked(event, ctx);
            }),
            Input::Dial { dial, event } => self.step(now, out, |parts, ctx| {
                let event = parts.links.dial_event(dial, event, ctx);
                parts.linked(event, ctx);
            }),
            Input::Routes { stream, event } => {
                self.step(now, out, |parts, ctx| {
                    parts.routes_event(stream, event, ctx)
                });
            }
            Input::RoutesFailed { dial, .. } => {
                self.step(now, out, |parts, ctx| parts.links.stream_failed(dial, ctx))
            }
            Input::Fd { session, event } => {
                self.step(now, out, |parts, ctx| parts.attach.fd(session, event, ctx))
            }
            Input::Installed { ticket, result } => {
                self.step(now, out, |parts, ctx| parts.installed(ticket, &result, ctx));
            }
            Input::Lease { ticket, result } => self.step(now, out, |parts, ctx| {
                match parts.lease.answered(ticket, result, ctx) {
                    LeaseEvent::Nothing => {}
                    LeaseEvent::Changed => parts.routes.judge_again(ctx),
                    LeaseEvent::Fenced => parts.fence = true,
                }
            }),
            Input::Name { ticket, answer } => self.step(now, out, |parts, ctx| {
                parts.attach.named(ticket, answer, ctx);
            }),
            Input::Ports(samples) => self.step(now, out, |parts, ctx| parts.sampled(&samples, ctx)),
            Input::EndpointLearned { port, endpoint } => self.step(now, out, |parts, ctx| {
                if !parts.links.learned(port, endpoint, ctx) {
                    parts.attach.learned(port, endpoint, ctx);
                }
            }),
            Input::PortFailed { port } => {
                self.step(now, out, |parts, ctx| parts.attach.port_failed(port, ctx))
            }
        }
        self.wake(now, out);
    }

    fn wake(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if self.left {
            return self.journal.flush(now.mono, &mut self.tickets, out);
        }
        if !self.started {
            return;
        }
        // Nothing due is the common case: then nothing is derived anew.
        if self.next_wake().is_some_and(|(at, _)| at > now.mono) {
            return;
        }
        if self.wants_samples(now.mono) && self.sampled + self.config.times.sample_every <= now.mono
        {
            self.sampled = now.mono;
            out.push(Effect::ReadPorts);
        }
        let members = self.document.live_members(now.wall).count();
        let changed = core::mem::replace(&mut self.members, members) != members;
        self.step(now, out, |parts, ctx| {
            if changed {
                parts.members_changed(ctx);
            }
            parts.wake(ctx);
        });
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        if self.left {
            return self.journal.next_wake();
        }
        if !self.started {
            return None;
        }
        let times = &self.config.times;
        let stale_limit = self.stale_limit();
        let lease = (!self.fenced).then(|| self.lease.next_wake());
        let attach = self.attachment_timer();
        let links = self.links.next_wake((stale_limit, times.silent_after));
        let sample_at = self.sampled + times.sample_every;
        let sample = self
            .wants_samples(sample_at)
            .then_some((sample_at, "sample"));
        [
            lease,
            attach,
            links,
            self.routes.next_wake(),
            self.journal.next_wake(),
            self.own.next_wake(),
            sample,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The router's own addresses as they stand in the state.
pub fn addresses_of(state: &State) -> Vec<IpNet> {
    own_addresses(state)
}
