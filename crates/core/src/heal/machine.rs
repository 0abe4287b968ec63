//! The attachment machine: join, refresh, heal, leave.

use std::collections::{BTreeMap, VecDeque};

use crate::backoff::Backoff;
use crate::ids::{Generation, RouterName};
use crate::machine::{Machine, Outbox, Ticket, TicketCounter};
use crate::rng::Rng;
use crate::time::{Mono, Now};

use super::health::DataHealth;
use super::verdict::{Heal, verdict};
use super::{
    Answer, AttachmentConfig, Candidate, Effect, Failure, Input, MonitorEvent, RequestKind,
    refresh_after,
};

/// Urls kept of one Find; the rest is found again when these have failed.
const TARGETS_MAX: usize = 16;
/// Router names whose generation is remembered; beyond it the first in order is forgotten.
const LIVES_MAX: usize = 64;
/// A router may ask for a refresh this often, not more.
const ASKED_REFRESH_GAP: core::time::Duration = core::time::Duration::from_millis(200);

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
    config: AttachmentConfig,
    rng: Rng,
    tickets: TicketCounter,
    goal: Goal,
    call: Option<Call>,
    held: Option<Held>,
    monitor: Option<Ticket>,
    /// Index of the candidate to try next, and how many are left before the round ends.
    cursor: usize,
    round_left: usize,
    /// Urls found at the registry and not tried yet.
    targets: VecDeque<String>,
    /// Tried last of what the next Find yields.
    avoid: Option<String>,
    had_connection: bool,
    both_down_since: Option<Mono>,
    remote_backoff: Backoff,
    local_backoff: Backoff,
    retry_at: Option<Mono>,
    lives: BTreeMap<RouterName, Generation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Idle,
    Attached,
    Stopping,
    Stopped,
}

#[derive(Debug)]
struct Call {
    ticket: Ticket,
    deadline: Mono,
    kind: CallKind,
}

#[derive(Debug)]
enum CallKind {
    Find,
    Request { url: String },
    Install,
    Close,
}

/// The connection as last answered.
#[derive(Debug)]
struct Held {
    url: String,
    answer: Answer,
    requested_at: Mono,
    refresh_at: Mono,
    control: bool,
    /// Unset until installed.
    data: Option<DataHealth>,
    healthy_since: Option<Mono>,
}

impl Held {
    fn data_up(&self) -> bool {
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

    fn close(&mut self, url: String, now: Now, out: &mut Outbox<Effect>) {
        self.stop_monitor(out);
        let ticket = self.call(CallKind::Close, self.config.timing.close_timeout, now);
        out.push(Effect::Close { ticket, url });
    }

    fn call(&mut self, kind: CallKind, timeout: core::time::Duration, now: Now) -> Ticket {
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

    fn stop_monitor(&mut self, out: &mut Outbox<Effect>) {
        if self.monitor.take().is_some() {
            out.push(Effect::StopMonitor);
        }
    }

    /// The next candidate is sought; addresses and interface stay until the next answer.
    fn forget_held(&mut self, out: &mut Outbox<Effect>) {
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

    /// Waits before the next try, less at a unix socket.
    fn pause(&mut self, local: bool, now: Now) {
        let backoff = if local {
            &mut self.local_backoff
        } else {
            &mut self.remote_backoff
        };
        self.retry_at = Some(now.mono + backoff.next(&mut self.rng));
    }

    /// The round goes on with the next candidate at once; after a whole round it pauses.
    fn candidate_failed(&mut self, now: Now) {
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

    fn found(&mut self, result: Result<Vec<String>, Failure>, now: Now) {
        let mut urls = result.unwrap_or_default();
        urls.dedup();
        if let Some(avoid) = self.avoid.take() {
            urls.sort_by_key(|url| *url == avoid);
        }
        urls.truncate(TARGETS_MAX);
        self.targets = urls.into();
        if self.targets.is_empty() {
            self.candidate_failed(now);
        }
    }

    fn answered(
        &mut self,
        url: String,
        result: Result<Answer, Failure>,
        now: Now,
        out: &mut Outbox<Effect>,
    ) {
        match result {
            Ok(answer) if self.is_older_life(&answer) => self.give_back(url, now, out),
            Ok(answer) => {
                self.remember_life(&answer);
                self.hold(url, answer, now);
                if self.goal == Goal::Attached {
                    let ticket =
                        self.call(CallKind::Install, self.config.timing.install_timeout, now);
                    out.push(Effect::Install { ticket });
                }
            }
            Err(Failure::BadAnswer) => self.give_back(url, now, out),
            Err(failure) => match &mut self.held {
                None => self.candidate_failed(now),
                Some(held) => {
                    held.control = false;
                    let data_up = held.data_up();
                    if failure == Failure::Refused && !data_up {
                        // The router lives and says no: it is not the one to wait for.
                        self.forget_held(out);
                    } else {
                        self.pause(is_local(&url), now);
                    }
                }
            },
        }
    }

    /// Closes a connection that is not to be used, and goes on elsewhere.
    fn give_back(&mut self, url: String, now: Now, out: &mut Outbox<Effect>) {
        if self.held.is_some() {
            self.forget_held(out);
        } else {
            self.candidate_failed(now);
        }
        self.close(url, now, out);
    }

    /// Makes `answer` the connection held; data health goes on when it is a refresh.
    fn hold(&mut self, url: String, answer: Answer, now: Now) {
        let refresh_at = now.mono + refresh_after(answer.lifetime, answer.segments);
        self.had_connection = true;
        let (data, healthy_since) = match self.held.take() {
            Some(held) if held.url == url && held.data_up() => (held.data, held.healthy_since),
            Some(_) | None => (None, None),
        };
        self.held = Some(Held {
            url,
            answer,
            requested_at: now.mono,
            refresh_at,
            control: true,
            data,
            healthy_since,
        });
    }

    /// No consumer moves to a lower generation of the same router.
    fn is_older_life(&self, answer: &Answer) -> bool {
        let known = self.lives.get(&answer.router.name).copied();
        answer
            .router
            .generation
            .is_some_and(|generation| known.is_some_and(|known| generation < known))
    }

    fn remember_life(&mut self, answer: &Answer) {
        let Some(generation) = answer.router.generation else {
            return;
        };
        if self.lives.len() >= LIVES_MAX && !self.lives.contains_key(&answer.router.name) {
            self.lives.pop_first();
        }
        self.lives.insert(answer.router.name.clone(), generation);
    }

    fn installed(&mut self, ok: bool, now: Now, out: &mut Outbox<Effect>) {
        let Some(held) = &mut self.held else { return };
        if !ok {
            held.control = false;
            if let Some(data) = &mut held.data {
                data.lost();
            }
            let local = is_local(&held.url);
            self.both_down_since.get_or_insert(now.mono);
            return self.pause(local, now);
        }
        if held.data.is_none() {
            held.data = Some(DataHealth::new(self.config.timing, now.mono));
        }
        self.round_left = self.config.candidates.len();
        if self.monitor.is_none() && self.goal == Goal::Attached {
            let ticket = self.tickets.issue();
            self.monitor = Some(ticket);
            out.push(Effect::Monitor {
                ticket,
                url: held.url.clone(),
            });
        }
    }

    /// A Close that reached nobody says that control is down too.
    fn closed(&mut self, ok: bool, now: Now, out: &mut Outbox<Effect>) {
        let attached = self.goal == Goal::Attached;
        if let Some(held) = &mut self.held {
            if attached && !ok {
                return self.control_lost(now);
            }
            let local = is_local(&held.url);
            self.forget_held(out);
            if attached {
                self.pause(local, now);
            }
        } else if attached && self.retry_at.is_none() {
            self.pause(false, now);
        }
    }

    fn monitored(&mut self, event: MonitorEvent, now: Now, out: &mut Outbox<Effect>) {
        let Some(held) = &mut self.held else { return };
        match event {
            MonitorEvent::Opened => {
                held.healthy_since.get_or_insert(now.mono);
            }
            MonitorEvent::RefreshRequested => {
                let soonest = held.requested_at + ASKED_REFRESH_GAP;
                held.refresh_at = held.refresh_at.min(soonest.max(now.mono));
            }
            MonitorEvent::ReselectRequested => {
                if let Some(data) = &mut held.data {
                    data.lost();
                }
            }
            MonitorEvent::Gone | MonitorEvent::Down => {
                self.stop_monitor(out);
                self.control_lost(now);
            }
            MonitorEvent::Ended => {
                self.monitor = None;
                self.control_lost(now);
            }
        }
    }

    /// A fault after a steady time starts the back-off anew; a flapping router is met with a
    /// growing one.
    fn control_lost(&mut self, now: Now) {
        let Some(held) = &mut self.held else { return };
        held.control = false;
        let steady = self.config.timing.steady_after;
        if held
            .healthy_since
            .take()
            .is_some_and(|since| now.mono.saturating_since(since) >= steady)
        {
            self.remote_backoff.reset();
            self.local_backoff.reset();
        }
        let local = is_local(&held.url);
        self.pause(local, now);
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
fn is_local(url: &str) -> bool {
    url.starts_with("unix:")
}
