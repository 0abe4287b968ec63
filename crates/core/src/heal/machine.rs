//! The attachment machine: join, refresh, heal, leave.

use std::collections::{BTreeMap, VecDeque};

use crate::backoff::Backoff;
use crate::ids::{Generation, RouterName};
use crate::machine::{Machine, Outbox, Ticket, TicketCounter};
use crate::rng::Rng;
use crate::time::{Mono, Now};

use super::health::DataHealth;
use super::verdict::{Heal, verdict};
use super::{Answer, AttachmentConfig, Candidate, Effect, Failure, Input, RequestKind};

/// Urls kept of one Find; the rest is found again when these have failed.
pub(super) const TARGETS_MAX: usize = 16;
/// Router names whose generation is remembered; beyond it the first in order is forgotten.
pub(super) const LIVES_MAX: usize = 64;
/// About 15 seconds of short pauses at a unix socket.
pub(super) const LOCAL_PAUSES_MAX: u32 = 60;
/// A router may ask for a refresh this often, not more.
pub(super) const ASKED_REFRESH_GAP: core::time::Duration = core::time::Duration::from_millis(200);

/// What the attachment is doing, for status and readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Idle,
    /// No connection yet, or looking for another router.
    Joining,
    Up,
    /// A connection is held, and at least one of the facts is down.
    Healing {
        control: bool,
        data: bool,
    },
    Stopping,
    Stopped,
}

/// One attachment of one workload to one network. Owned by its shell task, woken by it.
#[derive(Debug)]
pub struct AttachmentMachine {
    pub(super) config: AttachmentConfig,
    pub(super) rng: Rng,
    pub(super) tickets: TicketCounter,
    pub(super) goal: Goal,
    pub(super) call: Option<Call>,
    pub(super) held: Option<Held>,
    pub(super) monitor: Option<Ticket>,
    /// Index of the candidate to try next, and how many are left before the round ends.
    pub(super) cursor: usize,
    pub(super) round_left: usize,
    /// Urls found at the registry and not tried yet.
    pub(super) targets: VecDeque<String>,
    /// Tried last of what the next Find yields.
    pub(super) avoid: Option<String>,
    pub(super) had_connection: bool,
    pub(super) both_down_since: Option<Mono>,
    pub(super) remote_backoff: Backoff,
    pub(super) local_backoff: Backoff,
    /// Pauses at a unix socket since the last steady connection.
    pub(super) local_pauses: u32,
    pub(super) retry_at: Option<Mono>,
    pub(super) lives: BTreeMap<RouterName, Generation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Idle,
    Attached,
    Stopping,
    Stopped,
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) ticket: Ticket,
    pub(super) deadline: Mono,
    pub(super) kind: CallKind,
}

#[derive(Debug)]
pub(super) enum CallKind {
    Find,
    Request { url: String },
    Install,
    Close,
}

/// The connection as last answered.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) url: String,
    pub(super) answer: Answer,
    pub(super) requested_at: Mono,
    pub(super) refresh_at: Mono,
    pub(super) control: bool,
    /// Unset until installed.
    pub(super) data: Option<DataHealth>,
    pub(super) healthy_since: Option<Mono>,
}

impl Held {
    pub(super) fn data_up(&self) -> bool {
        self.data.as_ref().is_some_and(DataHealth::is_up)
    }

    fn verdict(&self) -> Heal {
        verdict(self.control, self.data_up())
    }
}

impl AttachmentMachine {
    pub fn new(config: AttachmentConfig) -> Self {
        assert!(
            !config.candidates.is_empty(),
            "an attachment needs a candidate"
        );
        let timing = config.timing;
        Self {
            rng: Rng::new(config.seed),
            tickets: TicketCounter::default(),
            goal: Goal::Idle,
            call: None,
            held: None,
            monitor: None,
            cursor: 0,
            round_left: config.candidates.len(),
            targets: VecDeque::new(),
            avoid: None,
            had_connection: false,
            both_down_since: None,
            remote_backoff: Backoff::new(timing.retry_first, timing.retry_max),
            local_backoff: Backoff::new(timing.local_retry_first, timing.local_retry_max),
            local_pauses: 0,
            retry_at: None,
            lives: BTreeMap::new(),
            config,
        }
    }

    pub fn state(&self) -> State {
        match (self.goal, &self.held) {
            (Goal::Idle, _) => State::Idle,
            (Goal::Stopping, _) => State::Stopping,
            (Goal::Stopped, _) => State::Stopped,
            (Goal::Attached, Some(held)) if held.data.is_some() => match held.verdict() {
                Heal::Nothing => State::Up,
                Heal::Refresh | Heal::Reselect | Heal::ReselectWithBackoff => State::Healing {
                    control: held.control,
                    data: held.data_up(),
                },
            },
            (Goal::Attached, _) => State::Joining,
        }
    }

    /// The connection as last answered, and where.
    pub fn held(&self) -> Option<(&str, &Answer)> {
        self.held
            .as_ref()
            .map(|held| (held.url.as_str(), &held.answer))
    }

    /// Starts what the state asks for, unless a call is outstanding.
    fn advance(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if self.call.is_some() {
            return;
        }
        match self.goal {
            Goal::Idle | Goal::Stopped => return,
            Goal::Stopping => return self.leave(now, out),
            Goal::Attached => {}
        }
        if self.retry_at.is_some_and(|at| at > now.mono) {
            return;
        }
        let Some(held) = &self.held else {
            self.retry_at = None;
            return self.try_candidate(now, out);
        };
        let url = held.url.clone();
        match held.verdict() {
            Heal::Nothing => {
                self.both_down_since = None;
                self.retry_at = None;
                if held.refresh_at <= now.mono {
                    self.request(url, RequestKind::Refresh, now, out);
                }
            }
            Heal::Refresh => {
                self.both_down_since = None;
                self.retry_at = None;
                self.request(url, RequestKind::Refresh, now, out);
            }
            Heal::Reselect => {
                self.retry_at = None;
                self.close(url, now, out);
            }
            Heal::ReselectWithBackoff => {
                self.retry_at = None;
                let since = *self.both_down_since.get_or_insert(now.mono);
                if now.mono.saturating_since(since) < self.config.timing.sticky {
                    self.request(url, RequestKind::Reselect, now, out);
                } else {
                    self.forget_held(out);
                    self.try_candidate(now, out);
                }
            }
        }
    }

    /// Closes what is held, then ends.
    fn leave(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if let Some(held) = &self.held {
            let url = held.url.clone();
            return self.close(url, now, out);
        }
        self.stop_monitor(out);
        self.retry_at = None;
        self.targets.clear();
        self.goal = Goal::Stopped;
        out.push(Effect::Uninstall);
    }

    fn try_candidate(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if let Some(url) = self.targets.pop_front() {
            return self.request(url, self.join_kind(), now, out);
        }
        match &self.config.candidates[self.cursor % self.config.candidates.len()] {
            Candidate::Url(url) => {
                let url = url.clone();
                self.request(url, self.join_kind(), now, out);
            }
            Candidate::Registry => {
                let ticket = self.call(CallKind::Find, self.config.timing.find_timeout, now);
                out.push(Effect::Find { ticket });
            }
        }
    }

    const fn join_kind(&self) -> RequestKind {
        if self.had_connection {
            RequestKind::Reselect
        } else {
            RequestKind::First
        }
    }

    fn request(&mut self, url: String, kind: RequestKind, now: Now, out: &mut Outbox<Effect>) {
        if let Some(held) = &mut self.held {
            held.requested_at = now.mono;
        }
        let timeout = self.config.timing.request_timeout;
        let ticket = self.call(CallKind::Request { url: url.clone() }, timeout, now);
        out.push(Effect::Request { ticket, url, kind });
    }

    pub(super) fn close(&mut self, url: String, now: Now, out: &mut Outbox<Effect>) {
        self.stop_monitor(out);
        let ticket = self.call(CallKind::Close, self.config.timing.close_timeout, now);
        out.push(Effect::Close { ticket, url });
    }

    pub(super) fn call(
        &mut self,
        kind: CallKind,
        timeout: core::time::Duration,
        now: Now,
    ) -> Ticket {
        let ticket = self.tickets.issue();
        self.call = Some(Call {
            ticket,
            deadline: now.mono + timeout,
            kind,
        });
        ticket
    }

    /// Takes the outstanding call if `ticket` names it; late answers name none.
    fn complete(&mut self, ticket: Ticket) -> Option<CallKind> {
        self.call
            .take_if(|call| call.ticket == ticket)
            .map(|call| call.kind)
    }

    pub(super) fn stop_monitor(&mut self, out: &mut Outbox<Effect>) {
        if self.monitor.take().is_some() {
            out.push(Effect::StopMonitor);
        }
    }

    /// The next candidate is sought; addresses and interface stay until the next answer.
    pub(super) fn forget_held(&mut self, out: &mut Outbox<Effect>) {
        self.stop_monitor(out);
        self.both_down_since = None;
        if let Some(held) = self.held.take() {
            self.avoid = Some(held.url);
            if self.targets.is_empty() {
                self.cursor = (self.cursor + 1) % self.config.candidates.len();
            }
            self.round_left = self.config.candidates.len();
        }
    }

    /// Waits before the next try, less at a unix socket, where a router restarts: one that stays
    /// away is sought as seldom as any other.
    pub(super) fn pause(&mut self, local: bool, now: Now) {
        let backoff = if local && self.local_pauses < LOCAL_PAUSES_MAX {
            self.local_pauses += 1;
            &mut self.local_backoff
        } else {
            &mut self.remote_backoff
        };
        self.retry_at = Some(now.mono + backoff.next(&mut self.rng));
    }

    /// The round goes on with the next candidate at once; after a whole round it pauses.
    pub(super) fn candidate_failed(&mut self, now: Now) {
        if !self.targets.is_empty() {
            return;
        }
        self.cursor = (self.cursor + 1) % self.config.candidates.len();
        self.round_left = self.round_left.saturating_sub(1);
        if self.round_left == 0 {
            self.round_left = self.config.candidates.len();
            let local = self
                .config
                .candidates
                .iter()
                .any(|candidate| matches!(candidate, Candidate::Url(url) if is_local(url)));
            self.pause(local, now);
        }
    }

    fn stop(&mut self, now: Now) {
        if matches!(self.goal, Goal::Stopping | Goal::Stopped) {
            return;
        }
        self.goal = Goal::Stopping;
        self.retry_at = None;
        let latest = now.mono + self.config.timing.close_timeout;
        match &mut self.call {
            Some(Call {
                kind: CallKind::Find,
                ..
            }) => self.call = None,
            // An answer on its way opens a connection that must be closed.
            Some(call) => call.deadline = call.deadline.min(latest),
            None => {}
        }
    }

    fn call_timed_out(&mut self, now: Now, out: &mut Outbox<Effect>) {
        match self.call.take().map(|call| call.kind) {
            None => {}
            Some(CallKind::Find) => self.found(Err(Failure::Unreachable), now),
            Some(CallKind::Request { url }) => {
                self.answered(url, Err(Failure::Unreachable), now, out);
            }
            Some(CallKind::Install) => self.installed(false, now, out),
            Some(CallKind::Close) => self.closed(false, now, out),
        }
    }
}

impl Machine for AttachmentMachine {
    type Input = Input;
    type Effect = Effect;

    fn handle(&mut self, input: Input, now: Now, out: &mut Outbox<Effect>) {
        match input {
            Input::Start => {
                if self.goal == Goal::Idle {
                    self.goal = Goal::Attached;
                }
            }
            Input::Found { ticket, result } => {
                if let Some(CallKind::Find) = self.complete(ticket) {
                    self.found(result, now);
                }
            }
            Input::Answered { ticket, result } => {
                if let Some(CallKind::Request { url }) = self.complete(ticket) {
                    self.answered(url, result, now, out);
                }
            }
            Input::Installed { ticket, ok } => {
                if let Some(CallKind::Install) = self.complete(ticket) {
                    self.installed(ok, now, out);
                }
            }
            Input::Closed { ticket, ok } => {
                if let Some(CallKind::Close) = self.complete(ticket) {
                    self.closed(ok, now, out);
                }
            }
            Input::Monitor { ticket, event } => {
                if self.monitor == Some(ticket) {
                    self.monitored(event, now, out);
                }
            }
            Input::Traffic {
                last_send,
                last_receipt,
            } => {
                if let Some(data) = self.held.as_mut().and_then(|held| held.data.as_mut()) {
                    data.observe(last_send, last_receipt, now.mono);
                }
            }
            Input::DataPathLost => {
                if let Some(data) = self.held.as_mut().and_then(|held| held.data.as_mut()) {
                    data.lost();
                }
            }
            Input::Stop => self.stop(now),
        }
        self.advance(now, out);
    }

    fn wake(&mut self, now: Now, out: &mut Outbox<Effect>) {
        if self
            .call
            .as_ref()
            .is_some_and(|call| call.deadline <= now.mono)
        {
            self.call_timed_out(now, out);
        }
        if self.goal == Goal::Attached
            && let Some(data) = self.held.as_mut().and_then(|held| held.data.as_mut())
        {
            let due = data.wake(now.mono, &mut self.rng);
            if due.sample {
                out.push(Effect::Sample);
            }
            if due.probe {
                out.push(Effect::Probe);
            }
        }
        self.advance(now, out);
    }

    fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let call = self
            .call
            .as_ref()
            .map(|call| (call.deadline, "call deadline"));
        let attached = self.goal == Goal::Attached;
        let health = self
            .held
            .as_ref()
            .filter(|_| attached)
            .and_then(|held| held.data.as_ref())
            .map(DataHealth::next_wake);
        let idle = attached && call.is_none();
        let retry = self.retry_at.filter(|_| idle).map(|at| (at, "retry"));
        let refresh = self
            .held
            .as_ref()
            .filter(|held| idle && retry.is_none() && held.verdict() == Heal::Nothing)
            .map(|held| (held.refresh_at, "refresh"));
        [call, health, retry, refresh].into_iter().flatten().min()
    }
}

/// A unix socket: trying again is cheap.
pub(super) fn is_local(url: &str) -> bool {
    url.starts_with("unix:")
}
