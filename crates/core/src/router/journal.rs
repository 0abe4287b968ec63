//! Effects that rest on records leave after these are durable; records that arrive meanwhile
//! share the next append.

use std::collections::VecDeque;

use core::time::Duration;

use crate::backoff::Backoff;
use crate::machine::{Outbox, Ticket, TicketCounter};
use crate::rng::Rng;
use crate::router::state::Record;
use crate::router::{Effect, Refusal};
use crate::time::Mono;

/// Records waiting for the store, effects waiting for records.
#[derive(Debug)]
pub(crate) struct Journal {
    pending: Vec<Record>,
    in_flight: Option<(Ticket, Vec<Record>)>,
    /// Records handed over so far, and durable so far.
    taken: u64,
    durable: u64,
    waiting: VecDeque<(u64, Effect)>,
    backoff: Backoff,
    retry_at: Option<Mono>,
    last_error: Option<String>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            pending: Vec::new(),
            in_flight: None,
            taken: 0,
            durable: 0,
            waiting: VecDeque::new(),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            retry_at: None,
            last_error: None,
        }
    }
}

impl Journal {
    /// Takes what one input brought.
    pub(crate) fn push(
        &mut self,
        records: Vec<Record>,
        effects: Vec<Effect>,
        out: &mut Outbox<Effect>,
    ) {
        self.taken += u64::try_from(records.len()).unwrap_or(u64::MAX);
        self.pending.extend(records);
        for effect in effects {
            if let (Some(reason), Some(_)) = (&self.last_error, self.retry_at) {
                without_promise(effect, reason, out);
            } else if rests_on_records(&effect)
                && (self.durable < self.taken || !self.waiting.is_empty())
            {
                self.waiting.push_back((self.taken, effect));
            } else {
                out.push(effect);
            }
        }
    }

    /// Starts an append when one is due. Last in every input.
    pub(crate) fn flush(
        &mut self,
        now: Mono,
        tickets: &mut TicketCounter,
        out: &mut Outbox<Effect>,
    ) {
        if self.in_flight.is_some()
            || self.pending.is_empty()
            || self.retry_at.is_some_and(|at| at > now)
        {
            return;
        }
        self.retry_at = None;
        let ticket = tickets.issue();
        let records = core::mem::take(&mut self.pending);
        out.push(Effect::Append {
            ticket,
            records: records.clone(),
        });
        self.in_flight = Some((ticket, records));
    }

    pub(crate) fn appended(
        &mut self,
        ticket: Ticket,
        result: Result<(), String>,
        now: Mono,
        rng: &mut Rng,
        out: &mut Outbox<Effect>,
    ) {
        let Some((expected, records)) = self.in_flight.take() else {
            return;
        };
        if expected != ticket {
            self.in_flight = Some((expected, records));
            return;
        }
        match result {
            Ok(()) => {
                self.backoff.reset();
                self.last_error = None;
                self.durable += u64::try_from(records.len()).unwrap_or(u64::MAX);
                while self
                    .waiting
                    .front()
                    .is_some_and(|(needs, _)| *needs <= self.durable)
                {
                    out.push(self.waiting.pop_front().expect("the front was just seen").1);
                }
            }
            Err(reason) => {
                // Packets must not wait for a disk: everything goes on but the promises.
                let mut records = records;
                records.append(&mut self.pending);
                self.pending = records;
                self.retry_at = Some(now + self.backoff.next(rng));
                for (_, effect) in self.waiting.drain(..) {
                    without_promise(effect, &reason, out);
                }
                self.last_error = Some(reason);
            }
        }
    }

    /// The next append does not wait: somebody asks again.
    pub(crate) fn retry_now(&mut self) {
        self.retry_at = None;
    }

    pub(crate) fn is_full(&self, limit: usize) -> bool {
        self.pending.len() >= limit
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub(crate) fn next_wake(&self) -> Option<(Mono, &'static str)> {
        if self.in_flight.is_some() || self.pending.is_empty() {
            return None;
        }
        self.retry_at.map(|at| (at, "append retry"))
    }
}

/// What would be a broken promise after a crash.
const fn rests_on_records(effect: &Effect) -> bool {
    match effect {
        Effect::Answer { .. }
        | Effect::SetPeer { .. }
        | Effect::SetTun { .. }
        | Effect::RemovePort { .. }
        | Effect::SetRoutes { .. }
        | Effect::SetOwnAddresses { .. }
        | Effect::AnswerFd { .. }
        | Effect::ConnectionClosed { .. }
        | Effect::ClaimName { .. }
        | Effect::ReleaseName { .. }
        | Effect::ReleaseLease { .. }
        | Effect::Register { .. }
        | Effect::Unregister
        | Effect::CedeRegistration
        | Effect::SendRoutes { .. }
        | Effect::Publish { .. } => true,
        Effect::Append { .. }
        | Effect::Dial { .. }
        | Effect::CloseDial { .. }
        | Effect::OpenRoutes { .. }
        | Effect::CloseRoutes { .. }
        | Effect::AcquireLease { .. }
        | Effect::RenewLease { .. }
        | Effect::Probe { .. }
        | Effect::ReadPorts => false,
    }
}

/// What goes out all the same. What is given back may be another's at once, while this router's
/// next life would still find it on its disk: silence ends it instead.
fn without_promise(effect: Effect, reason: &str, out: &mut Outbox<Effect>) {
    match effect {
        Effect::Answer {
            call,
            result: Ok(_),
        } => {
            let reason = format!("the state store does not take records: {reason}");
            let result = Err(Refusal::Unavailable { reason });
            out.push(Effect::Answer { call, result });
        }
        Effect::ReleaseLease { .. } | Effect::ReleaseName { .. } => {}
        effect => out.push(effect),
    }
}
