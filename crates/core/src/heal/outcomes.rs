//! What the answers of calls and the monitor stream change.

use crate::machine::Outbox;
use crate::time::Now;

use super::health::DataHealth;
use super::machine::{
    ASKED_REFRESH_GAP, AttachmentMachine, CallKind, Goal, Held, LIVES_MAX, TARGETS_MAX, is_local,
};
use super::{Answer, Effect, Failure, MonitorEvent, refresh_after};

impl AttachmentMachine {
    pub(super) fn found(&mut self, result: Result<Vec<String>, Failure>, now: Now) {
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

    pub(super) fn answered(
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

    pub(super) fn installed(&mut self, ok: bool, now: Now, out: &mut Outbox<Effect>) {
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
    pub(super) fn closed(&mut self, ok: bool, now: Now, out: &mut Outbox<Effect>) {
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

    pub(super) fn monitored(&mut self, event: MonitorEvent, now: Now, out: &mut Outbox<Effect>) {
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
            self.local_pauses = 0;
        }
        let local = is_local(&held.url);
        self.pause(local, now);
    }
}
