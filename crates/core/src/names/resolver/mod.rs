//! All questions of one view: planning, the cache, sharing of identical questions in flight,
//! health of upstreams, limits.

mod ask;
mod conclude;
mod follow;
mod running;

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use self::follow::LoopProbe;
use self::running::Running;
use super::cache::{CACHE_OCTETS, Cache, CacheCounters, CacheSize, CacheStamp, STALE_MAX};
use super::explain::Trace;
use super::health::{Health, HealthEffect, UpstreamStatus};
use super::index::{HashKey, Index};
use super::limits::{ClientLimits, Clients};
use super::loops::LoopMark;
use super::memory::FailureMemory;
use super::resolution::{Query, ResolutionEffect, ResolutionInput};
use super::{
    ClientClass, Decision, Failure, Flags, Name, Question, Reading, Reply, UpstreamId, View,
};
use crate::deadlines::Deadlines;
use crate::machine::{Machine, Outbox, Ticket, TicketCounter};
use crate::rng::Rng;
use crate::time::{Mono, Now};

/// Askers waiting at one time (R3.10).
pub const WAITING_MAX: usize = 10_000;

/// What an operator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// Room for stored answers (R5.4); counts from the start only.
    pub cache_octets: usize,
    /// How long an expired answer may still be served (R5.3); counts from the start only.
    pub stale_max: Duration,
    pub clients: ClientLimits,
    /// How long an answer of another domain is used without asking again, whatever its TTL, from
    /// when it was asked for. Short where nobody tells of changes there by
    /// [`ResolverInput::Changed`]: a name that is gone is gone everywhere within a second, of which
    /// a fifth is for the word to come from the workload's end to its own domain's server.
    pub network_life_max: Duration,
    /// Likewise for "no": zero, since a live name is never denied, unless changes are told.
    pub network_denial_max: Duration,
}

impl ResolverSettings {
    pub const DEFAULT: Self = Self {
        cache_octets: CACHE_OCTETS,
        stale_max: STALE_MAX,
        clients: ClientLimits::DEFAULT,
        network_life_max: Duration::from_millis(800),
        network_denial_max: Duration::ZERO,
    };
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[derive(Clone, Debug)]
pub enum ResolverInput {
    /// A new state; questions in flight end by the one they began with (R3.9).
    View(Arc<View>),
    Settings(ResolverSettings),
    /// Names whose records changed elsewhere: stored answers about them go at once (R5.6).
    Changed(Vec<Name>),
    Ask(Asking),
    Reply {
        ticket: Ticket,
        reply: Reply,
    },
    Failed {
        ticket: Ticket,
        failure: Failure,
    },
}

/// One client's question.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The caller's own number, used once; comes back with the answer.
    pub asker: Ticket,
    pub source: IpAddr,
    pub question: Question,
    pub flags: Flags,
    /// What the question brought of its way here (R4.2).
    pub mark: LoopMark,
    /// Ask everybody anew, whatever is stored, and tell what happened (R7.3).
    pub explain: bool,
    /// Tell what happened, and change nothing by that (R7.3).
    pub log: bool,
}

impl Asking {
    /// A plain question of a client.
    pub fn new(asker: Ticket, source: IpAddr, question: Question, flags: Flags) -> Self {
        Self {
            asker,
            source,
            question,
            flags,
            mark: LoopMark::default(),
            explain: false,
            log: false,
        }
    }
}

/// The answer to one asker.
#[derive(Clone, Debug)]
pub struct Answered {
    pub asker: Ticket,
    pub reading: Reading,
    /// The message made of it may answer the same question again (same name, type, class, DO, CD
    /// and class of asker) as long as [`Resolver::reuse`] agrees.
    pub stamp: Option<CacheStamp>,
    /// Of a question that was to be explained or logged.
    pub trace: Option<Box<Trace>>,
}

#[derive(Clone, Debug)]
pub enum ResolverEffect {
    Query(Query),
    /// Nobody waits for this query any more.
    Forget(Ticket),
    Answer(Answered),
}

/// What happened, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolverCounters {
    /// Questions that joined one in flight (R2.11).
    pub coalesced: u64,
    /// Questions refused at [`WAITING_MAX`].
    pub shed: u64,
    /// Questions refused at the limits of their client (R6.6).
    pub limited: u64,
    /// Questions of nobody we serve.
    pub strangers: u64,
    /// Questions before the first state.
    pub not_ready: u64,
    /// Private addresses taken out of replies (R6.7).
    pub private_removed: u64,
    /// Questions that came back to us, and that went too far (R4.2, R4.3).
    pub loops: u64,
    /// Queries that were sent again because a reply was overdue (R3.6).
    pub repeated: u64,
    /// Queries of health (R3.7) and for loops (R4.3).
    pub probes: u64,
    /// Missing votes by reason.
    pub failures: BTreeMap<Failure, u64>,
    pub decisions: BTreeMap<Decision, u64>,
}

/// Whether a client may ask now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted(ClientClass),
    /// Not of this network.
    Stranger,
    /// Above its rate.
    Limited,
    /// There is no view yet.
    NotReady,
}

/// The resolver of one view (R1.1). Owns its fan-outs, which the shell or the simulation wakes
/// through it.
#[derive(Debug)]
pub struct Resolver {
    settings: ResolverSettings,
    view: Option<Arc<View>>,
    /// Changes with every view: what was answered from the view itself is valid for one of them.
    view_number: u32,
    /// Changes with every view and with all that is told of changes elsewhere.
    epoch: u64,
    /// The TTLs of own records shrink with their leases.
    has_leases: bool,
    rng: Rng,
    /// Our number in marks (R4.2).
    instance: u64,
    tickets: TicketCounter,
    cache: Cache,
    health: Health,
    memory: FailureMemory,
    clients: Clients,
    loop_probes: Vec<LoopProbe>,
    key: HashKey,
    running: Vec<Option<Running>>,
    free: Vec<u32>,
    by_question: Index,
    by_ticket: Index,
    wakes: Deadlines<u32>,
    turn: u32,
    waiting: usize,
    counters: ResolverCounters,
    /// Empty between two inputs; kept for its room.
    child: Outbox<ResolutionEffect>,
    probes: Outbox<HealthEffect>,
}

impl Resolver {
    /// The seed keys hashes and makes choices; no secret depends on it.
    pub fn new(seed: u64) -> Self {
        Self::with_settings(seed, ResolverSettings::default())
    }

    pub fn with_settings(seed: u64, settings: ResolverSettings) -> Self {
        let mut rng = Rng::new(seed);
        let mut key = || HashKey::new(rng.next_u64(), rng.next_u64());
        let (clients, memory, questions) = (key(), key(), key());
        let seeds = (rng.next_u64(), rng.next_u64());
        Self {
            settings,
            view: None,
            view_number: 0,
            epoch: 0,
            has_leases: false,
            instance: rng.next_u64(),
            rng,
            tickets: TicketCounter::default(),
            cache: Cache::new(settings.cache_octets, settings.stale_max, seeds),
            health: Health::default(),
            memory: FailureMemory::new(memory),
            clients: Clients::new(settings.clients, clients),
            loop_probes: Vec::new(),
            key: questions,
            running: Vec::new(),
            free: Vec::new(),
            by_question: Index::new(),
            by_ticket: Index::new(),
            wakes: Deadlines::default(),
            turn: 0,
            waiting: 0,
            counters: ResolverCounters::default(),
            child: Outbox::default(),
            probes: Outbox::default(),
        }
    }

    pub const fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref()
    }

    pub const fn settings(&self) -> ResolverSettings {
        self.settings
    }

    pub const fn counters(&self) -> &ResolverCounters {
        &self.counters
    }

    pub const fn cache_counters(&self) -> CacheCounters {
        self.cache.counters()
    }

    pub fn cache_size(&self) -> CacheSize {
        self.cache.size()
    }

    /// Askers that wait for an answer.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Fan-outs in flight.
    pub fn in_flight(&self) -> usize {
        self.running.len() - self.free.len()
    }

    pub fn rtt(&self, upstream: &UpstreamId) -> Option<Duration> {
        self.health.rtt(upstream)
    }

    /// Every upstream of the view, by name.
    pub fn upstreams(&self) -> impl Iterator<Item = UpstreamStatus> {
        self.health.status()
    }

    /// Our number in marks (R4.2): a question that carries it is our own.
    pub const fn instance(&self) -> u64 {
        self.instance
    }

    /// Counts one question against its client's rate (R6.6): for a shell that answers from
    /// messages it kept. An [`Asking`] counts by itself.
    pub fn admit(&mut self, source: IpAddr, now: Now) -> Admission {
        let Some(view) = &self.view else {
            return Admission::NotReady;
        };
        let Some(class) = view.client_class(source) else {
            return Admission::Stranger;
        };
        if self.clients.admit(source.to_canonical(), class, now) {
            Admission::Admitted(class)
        } else {
            Admission::Limited
        }
    }

    /// Whether the answer that `stamp` names still holds: how many seconds its TTLs have lost.
    /// Counts as a hit. `None`: ask.
    pub fn reuse(&mut self, stamp: CacheStamp, now: Now) -> Option<u32> {
        match stamp.of_view() {
            Some(number) => (number == self.view_number).then_some(0),
            None => self.cache.reuse(stamp, now),
        }
    }

    /// Sends what health wants to know.
    fn send_probes(&mut self, out: &mut Outbox<ResolverEffect>) {
        for effect in self.probes.drain() {
            out.push(match effect {
                HealthEffect::Probe(query) => {
                    self.counters.probes += 1;
                    ResolverEffect::Query(query)
                }
                HealthEffect::Forget(ticket) => ResolverEffect::Forget(ticket),
            });
        }
    }

    fn on_reply(
        &mut self,
        ticket: Ticket,
        reply: Reply,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        if let Some((upstream, recovered)) = self.health.probe_heard(ticket, now) {
            if recovered {
                self.memory.forgive_all(&upstream);
            }
            return;
        }
        if self.loop_probe_ended(ticket) {
            return;
        }
        self.completion(ticket, ResolutionInput::Reply { ticket, reply }, now, out);
    }

    fn on_failure(
        &mut self,
        ticket: Ticket,
        failure: Failure,
        now: Now,
        out: &mut Outbox<ResolverEffect>,
    ) {
        if self.health.probe_failed(ticket, failure, now) || self.loop_probe_ended(ticket) {
            return;
        }
        let input = ResolutionInput::Failed { ticket, failure };
        self.completion(ticket, input, now, out);
    }
}

impl Machine for Resolver {
    type Input = ResolverInput;
    type Effect = ResolverEffect;

    fn handle(&mut self, input: ResolverInput, now: Now, out: &mut Outbox<ResolverEffect>) {
        match input {
            ResolverInput::View(view) => self.follow(view, now, out),
            ResolverInput::Settings(settings) => {
                self.clients.set_limits(settings.clients);
                self.settings = settings;
            }
            ResolverInput::Changed(names) => {
                self.epoch += 1;
                for name in &names {
                    self.cache.remove_name(name);
                }
            }
            ResolverInput::Ask(asking) => self.ask(asking, now, out),
            ResolverInput::Reply { ticket, reply } => self.on_reply(ticket, reply, now, out),
            ResolverInput::Failed { ticket, failure } => {
                self.on_failure(ticket, failure, now, out);
            }
        }
        self.send_probes(out);
    }

    fn wake(&mut self, now: Now, out: &mut Outbox<ResolverEffect>) {
        let due: Vec<u32> = self.wakes.due(now.mono).copied().collect();
        for slot in due {
            self.wake_running(slot, now, out);
        }
        let released = self.health.wake(&mut self.tickets, now, &mut self.probes);
        for upstream in released {
            self.probe_loop(&upstream, now, out);
        }
        self.forget_loop_probes(now, out);
        self.send_probes(out);
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let running = self.wakes.first().map(|(at, slot)| {
            let wake = self.at(*slot).and_then(|running| running.wake);
            (at, wake.map_or("a question", |(_, reason)| reason))
        });
        let probes = self.loop_probes.iter().map(|probe| probe.until).min();
        let probes = probes.map(|at| (at, "end of a look for loops"));
        running
            .into_iter()
            .chain(self.health.next_wake())
            .chain(probes)
            .min()
    }
}
