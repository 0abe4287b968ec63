//! Which upstreams live, how fast they are, and how much they have to do (R3.3, R3.6, R3.7, R3.10).
//!
//! ```text
//!         overdue, failed            3 failures in a row, or
//!   up ------------------> suspect - refused and a failed probe --> down
//!    ^                        |                                      |
//!    +------- any reply ------+--------------- any reply -----------+
//! ```
//!
//! A suspect and a down upstream is probed every [`PROBE_PAUSE`]. A failure counts only when
//! nothing was heard since its query left: loss of one message in ten takes nobody down.
//!
//! Questions that others answered first tell nothing of who was asked beside them. One that was
//! asked and not heard for [`QUIET_LIMIT`] is probed, so that it is known to be down before a
//! question needs it; one that is merely slower answers the probe and stays up.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::resolution::{Manner, Query};
use super::rtt::Rtt;
use super::{Failure, Flags, Question, Upstream, UpstreamId};
use crate::deadlines::Deadlines;
use crate::machine::{Outbox, Ticket, TicketCounter};
use crate::time::{Mono, Now};

/// Failures in a row that take an upstream down.
pub const FAILURES_MAX: u8 = 3;
/// Time between two probes.
pub const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// An upstream that is asked and not heard for so long is probed.
const QUIET_LIMIT: Duration = PROBE_PAUSE;
/// A probe is waited for so long, so that a slow upstream is not taken for a dead one.
const PROBE_LIMIT: Duration = Duration::from_millis(1_500);
/// Fan-outs that may wait for one upstream (R3.10).
pub const IN_FLIGHT_MAX: u32 = 4_096;
/// How long an upstream that leads back to us is not asked (R4.2).
pub const LOOP_PAUSE: Duration = Duration::from_secs(30);
/// Replies in other letters than the question, in a row, after which names are sent as they are.
const CASE_FAILURES_MAX: u8 = 3;
/// After that time mixed case is tried again.
const CASE_PAUSE: Duration = Duration::from_secs(600);

/// Whether an upstream is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Up,
    /// Asked, and probed.
    Suspect,
    /// Probed only.
    Down,
    /// Leads back to us: not asked until then.
    Looping { until: Mono },
}

impl Condition {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Looping { .. } => "looping",
        }
    }

    pub const fn is_asked(self) -> bool {
        matches!(self, Self::Up | Self::Suspect)
    }
}

/// One upstream, for metrics and people.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    pub upstream: Arc<Upstream>,
    pub condition: Condition,
    /// `None` before the first reply.
    pub rtt: Option<Duration>,
    pub in_flight: u32,
    /// Queries without a reply in time.
    pub timed_out: u64,
    /// How often it was taken down.
    pub went_down: u64,
}

/// What health asks of its owner.
#[derive(Debug)]
pub(super) enum HealthEffect {
    Probe(Query),
    Forget(Ticket),
}

#[derive(Debug)]
struct State {
    upstream: Arc<Upstream>,
    condition: Condition,
    rtt: Option<Rtt>,
    failures: u8,
    /// The network said no; a failed probe makes it final.
    refused: bool,
    heard: Option<Mono>,
    /// When a query left whose reply nobody waits for.
    quiet_since: Option<Mono>,
    probes: Vec<(Ticket, Mono)>,
    probes_sent: usize,
    next_probe: Option<Mono>,
    in_flight: u32,
    case_failures: u8,
    plain_until: Option<Mono>,
    timed_out: u64,
    went_down: u64,
}

/// Of all upstreams of one view.
#[derive(Debug, Default)]
pub(super) struct Health {
    states: BTreeMap<UpstreamId, State>,
    probes: BTreeMap<Ticket, UpstreamId>,
    due: Deadlines<UpstreamId>,
    outside: usize,
    outside_down: usize,
}

impl Health {
    /// Follows a view: who stays keeps what is known of it.
    pub(super) fn follow<'a>(
        &mut self,
        upstreams: impl Iterator<Item = &'a Arc<Upstream>>,
        out: &mut Outbox<HealthEffect>,
    ) {
        let mut before = core::mem::take(&mut self.states);
        self.outside = 0;
        for upstream in upstreams {
            let mut state = before
                .remove(&upstream.id)
                .unwrap_or_else(|| State::new(Arc::clone(upstream)));
            state.upstream = Arc::clone(upstream);
            self.outside += usize::from(!upstream.is_owner());
            self.states.insert(upstream.id.clone(), state);
        }
        for (id, state) in before {
            self.due.set(&id, state.next_probe, None);
            for (ticket, _) in state.probes {
                self.probes.remove(&ticket);
                out.push(HealthEffect::Forget(ticket));
            }
        }
        self.count_down();
    }

    pub(super) fn condition(&self, id: &UpstreamId) -> Condition {
        self.states
            .get(id)
            .map_or(Condition::Up, |state| state.condition)
    }

    pub(super) fn is_full(&self, id: &UpstreamId) -> bool {
        self.states
            .get(id)
            .is_some_and(|state| state.in_flight >= IN_FLIGHT_MAX)
    }

    /// Whether no resolver that was configured is up (R3.7).
    pub(super) const fn is_outside_down(&self) -> bool {
        self.outside > 0 && self.outside == self.outside_down
    }

    pub(super) fn manner(&self, upstream: &Upstream, now: Now) -> Manner {
        let state = self.states.get(&upstream.id);
        let rtt = state.and_then(|state| state.rtt).unwrap_or_default();
        let is_plain = state
            .and_then(|state| state.plain_until)
            .is_some_and(|until| until > now.mono);
        Manner {
            try_limit: rtt.try_limit(),
            mixed_case: upstream.mixes_case() && !is_plain,
        }
    }

    pub(super) fn began(&mut self, id: &UpstreamId) {
        if let Some(state) = self.states.get_mut(id) {
            state.in_flight += 1;
        }
    }

    pub(super) fn ended(&mut self, id: &UpstreamId) {
        if let Some(state) = self.states.get_mut(id) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }

    /// A reply: the upstream lives. True when it was down.
    pub(super) fn heard(&mut self, id: &UpstreamId, rtt: Option<Duration>, now: Now) -> bool {
        let Some(state) = self.states.get_mut(id) else {
            return false;
        };
        state.heard = Some(now.mono);
        state.failures = 0;
        state.refused = false;
        if let Some(rtt) = rtt {
            state.rtt.get_or_insert_default().sample(rtt);
        }
        let was = state.condition;
        match was {
            Condition::Up | Condition::Looping { .. } => return false,
            Condition::Suspect | Condition::Down => state.condition = Condition::Up,
        }
        self.due.set(id, state.next_probe.take(), None);
        self.count_down();
        was == Condition::Down
    }

    /// A reply repeated the name in the letters that were sent (R3.3).
    pub(super) fn case_kept(&mut self, id: &UpstreamId) {
        if let Some(state) = self.states.get_mut(id) {
            state.case_failures = 0;
        }
    }

    /// Nobody waits any more for a query that left at `sent`: whether it would have been answered
    /// is not known.
    pub(super) fn left(&mut self, id: &UpstreamId, sent: Mono, now: Now) {
        let Some(state) = self.states.get_mut(id) else {
            return;
        };
        if state.condition != Condition::Up || state.is_quiet() || !state.is_silent_since(sent) {
            return;
        }
        state.quiet_since = Some(sent);
        // One that is set looks at what is quiet when it is due.
        if state.next_probe.is_none() {
            let due = (sent + QUIET_LIMIT).max(now.mono);
            self.due.set(id, None, Some(due));
            state.next_probe = Some(due);
        }
    }

    /// A query that left at `sent` is overdue.
    pub(super) fn overdue(&mut self, id: &UpstreamId, sent: Mono, now: Now) {
        if let Some(state) = self.states.get_mut(id)
            && state.is_silent_since(sent)
            && state.condition == Condition::Up
        {
            state.condition = Condition::Suspect;
            self.due.set(id, state.next_probe, Some(now.mono));
            state.next_probe = Some(now.mono);
        }
    }

    /// A query that left at `sent` failed.
    pub(super) fn failed(&mut self, id: &UpstreamId, failure: Failure, sent: Mono, now: Now) {
        let Some(state) = self.states.get_mut(id) else {
            return;
        };
        match failure {
            Failure::TimedOut => {
                state.timed_out += 1;
                if state.is_silent_since(sent) {
                    state.failures = state.failures.saturating_add(1);
                }
            }
            Failure::Network => state.refused = true,
            Failure::CaseChanged => {
                state.case_failures = state.case_failures.saturating_add(1);
                if state.case_failures >= CASE_FAILURES_MAX {
                    state.case_failures = 0;
                    state.plain_until = Some(now.mono + CASE_PAUSE);
                }
                return;
            }
            // Of this host, or of the name: nothing about the upstream.
            Failure::Local
            | Failure::Malformed
            | Failure::ErrorCode
            | Failure::Foreign
            | Failure::NobodyLive
            | Failure::Down
            | Failure::Overloaded => return,
        }
        self.judge(id, now);
    }

    /// Leads back to us (R4.2, R4.3).
    pub(super) fn loops(&mut self, id: &UpstreamId, now: Now) {
        if let Some(state) = self.states.get_mut(id) {
            let until = now.mono + LOOP_PAUSE;
            state.went_down += u64::from(state.condition.is_asked());
            state.condition = Condition::Looping { until };
            self.due.set(id, state.next_probe, Some(until));
            state.next_probe = Some(until);
            self.count_down();
        }
    }

    /// Whose number that is in our own marks (R4.2).
    pub(super) fn by_number(&self, number: u32) -> Option<UpstreamId> {
        self.states.keys().find(|id| id.number() == number).cloned()
    }

    /// A probe was answered: whose, and whether that one was down. `None` when it was no probe.
    pub(super) fn probe_heard(&mut self, ticket: Ticket, now: Now) -> Option<(UpstreamId, bool)> {
        let (id, sent) = self.take_probe(ticket)?;
        let recovered = self.heard(&id, Some(now.mono.saturating_since(sent)), now);
        Some((id, recovered))
    }

    /// A probe failed. False when it was none.
    pub(super) fn probe_failed(&mut self, ticket: Ticket, failure: Failure, now: Now) -> bool {
        let Some((id, sent)) = self.take_probe(ticket) else {
            return false;
        };
        if failure != Failure::Local
            && let Some(state) = self.states.get_mut(&id)
            && state.is_silent_since(sent)
        {
            state.failures = state.failures.saturating_add(1);
            state.probe_failed();
            self.judge(&id, now);
        }
        true
    }

    fn take_probe(&mut self, ticket: Ticket) -> Option<(UpstreamId, Mono)> {
        let id = self.probes.remove(&ticket)?;
        let state = self.states.get_mut(&id)?;
        let at = state
            .probes
            .iter()
            .position(|(known, _)| *known == ticket)?;
        let (_, sent) = state.probes.swap_remove(at);
        Some((id, sent))
    }

    /// Starts probing what failed, and takes down what failed too often.
    fn judge(&mut self, id: &UpstreamId, now: Now) {
        let Some(state) = self.states.get_mut(id) else {
            return;
        };
        if matches!(state.condition, Condition::Looping { .. }) {
            return;
        }
        if state.condition == Condition::Up {
            state.condition = Condition::Suspect;
            self.due.set(id, state.next_probe, Some(now.mono));
            state.next_probe = Some(now.mono);
        }
        if state.failures >= FAILURES_MAX && state.condition == Condition::Suspect {
            state.condition = Condition::Down;
            state.went_down += 1;
            self.count_down();
        }
    }

    /// Sends the probes that are due.
    pub(super) fn wake(
        &mut self,
        tickets: &mut TicketCounter,
        now: Now,
        out: &mut Outbox<HealthEffect>,
    ) -> Vec<UpstreamId> {
        let due: Vec<UpstreamId> = self.due.due(now.mono).cloned().collect();
        let mut released = Vec::new();
        for id in due {
            let Some(state) = self.states.get_mut(&id) else {
                continue;
            };
            if matches!(state.condition, Condition::Looping { .. }) {
                self.due.set(&id, state.next_probe.take(), None);
                state.condition = Condition::Up;
                released.push(id);
                self.count_down();
                continue;
            }
            // A probe that is out since the last turn is one failure.
            let silent = state
                .probes
                .iter()
                .any(|(_, sent)| state.is_silent_since(*sent));
            if silent {
                state.failures = state.failures.saturating_add(1);
                state.probe_failed();
                if state.condition == Condition::Up {
                    state.condition = Condition::Suspect;
                }
            } else if state.condition == Condition::Up {
                let due = state.quiet_until().filter(|due| *due > now.mono);
                if due.is_some() || !state.is_quiet() {
                    self.due.set(&id, state.next_probe, due);
                    state.next_probe = due;
                    continue;
                }
            }
            let old = state
                .probes
                .extract_if(.., |(_, sent)| *sent + PROBE_LIMIT <= now.mono);
            for (ticket, _) in old {
                self.probes.remove(&ticket);
                out.push(HealthEffect::Forget(ticket));
            }
            let next = now.mono + PROBE_PAUSE;
            self.due.set(&id, state.next_probe, Some(next));
            state.next_probe = Some(next);
            let query = state.probe(tickets, now);
            self.probes.insert(query.ticket, id.clone());
            out.push(HealthEffect::Probe(query));
            if silent {
                self.judge(&id, now);
            }
        }
        released
    }

    pub(super) fn next_wake(&self) -> Option<(Mono, &'static str)> {
        self.due.next().map(|at| (at, "probe an upstream"))
    }

    pub(super) fn rtt(&self, id: &UpstreamId) -> Option<Duration> {
        Some(self.states.get(id)?.rtt?.smoothed())
    }

    pub(super) fn status(&self) -> impl Iterator<Item = UpstreamStatus> {
        self.states.values().map(|state| UpstreamStatus {
            upstream: Arc::clone(&state.upstream),
            condition: state.condition,
            rtt: state.rtt.map(|rtt| rtt.smoothed()),
            in_flight: state.in_flight,
            timed_out: state.timed_out,
            went_down: state.went_down,
        })
    }

    fn count_down(&mut self) {
        let is_down = |state: &&State| !state.upstream.is_owner() && !state.condition.is_asked();
        self.outside_down = self.states.values().filter(is_down).count();
    }
}

impl State {
    const fn new(upstream: Arc<Upstream>) -> Self {
        Self {
            upstream,
            condition: Condition::Up,
            rtt: None,
            failures: 0,
            refused: false,
            heard: None,
            quiet_since: None,
            probes: Vec::new(),
            probes_sent: 0,
            next_probe: None,
            in_flight: 0,
            case_failures: 0,
            plain_until: None,
            timed_out: 0,
            went_down: 0,
        }
    }

    /// Whether nothing was heard since then.
    fn is_silent_since(&self, sent: Mono) -> bool {
        self.heard.is_none_or(|heard| heard <= sent)
    }

    /// Whether it was asked, and nothing was heard since.
    fn is_quiet(&self) -> bool {
        self.quiet_since
            .is_some_and(|since| self.is_silent_since(since))
    }

    /// When one that stays quiet is probed.
    fn quiet_until(&self) -> Option<Mono> {
        let since = self.quiet_since.filter(|_| self.is_quiet())?;
        Some(since + QUIET_LIMIT)
    }

    /// With a refusal before it, one failed probe is enough.
    const fn probe_failed(&mut self) {
        if self.refused {
            self.failures = FAILURES_MAX;
        }
    }

    /// The next probe; probes go through the server's addresses in turn.
    fn probe(&mut self, tickets: &mut TicketCounter, now: Now) -> Query {
        let turn = self
            .probes_sent
            .checked_rem(self.upstream.servers.len())
            .unwrap_or(0);
        self.probes_sent = self.probes_sent.wrapping_add(1);
        let ticket = tickets.issue();
        self.probes.push((ticket, now.mono));
        let upstream = &self.upstream;
        Query {
            ticket,
            server: upstream
                .servers
                .get(turn)
                .copied()
                .unwrap_or_else(unspecified),
            transport: upstream.transport,
            after: None,
            question: Arc::new(Question::clone(&upstream.probe)),
            flags: Flags {
                recursion_desired: upstream.recursion_desired(),
                ..Flags::default()
            },
            mixed_case: false,
            mark: None,
            probe: true,
            upstream: Arc::clone(upstream),
        }
    }
}

/// Upstreams in a view have an address; sending here fails.
fn unspecified() -> std::net::SocketAddr {
    (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
}
