//! Records on their way to the disk, and what waits for them.

use core::mem;

use super::api::{Alarm, Effect, Refusal};
use super::held::Held;
use super::machine::RegistryMachine;
use super::network::Network;
use super::record::Record;
use crate::machine::{Outbox, Ticket, TicketCounter};

/// What a record costs in memory beside what it carries, and one that carries little.
const RECORD_BYTES: usize = 256;

/// Records on their way to the disk, and what waits for them.
#[derive(Debug, Default)]
pub(super) struct Journal {
    tickets: TicketCounter,
    /// Applied, not handed over yet.
    pending: Vec<Record>,
    /// What they cost in memory.
    pending_bytes: usize,
    /// Rests on `pending`.
    held_next: Held,
    inflight: Option<Ticket>,
    /// Rests on what is in flight.
    held: Held,
    /// Journal records on disk; those of objects are kept by key and do not add up.
    length: usize,
}

impl Journal {
    /// One that holds these records already.
    pub(super) fn of(records: &[Record]) -> Self {
        let journal = records.iter().filter(|record| record.is_journal());
        Self {
            length: journal.count(),
            ..Self::default()
        }
    }
}

/// What a record costs in memory while it waits, about.
fn weight(record: &Record) -> usize {
    let carried = match record {
        Record::Remote { endpoint, .. } => endpoint.len(),
        Record::Endpoint { endpoint, .. } => endpoint.size(),
        Record::Service { service, .. } => service.size(),
        Record::Document { .. }
        | Record::Lease { .. }
        | Record::Name { .. }
        | Record::NameReleased { .. }
        | Record::ServiceRemoved { .. }
        | Record::EndpointRemoved { .. }
        | Record::RemoteRemoved { .. } => 0,
    };
    RECORD_BYTES + carried
}

impl RegistryMachine {
    /// Lets an effect out, or keeps it until the records before it are on disk.
    pub(super) fn say(&mut self, effect: Effect, out: &mut Outbox<Effect>) {
        if !self.journal.pending.is_empty() {
            self.journal.held_next.push(effect);
        } else if self.journal.inflight.is_some() {
            self.journal.held.push(effect);
        } else {
            out.push(effect);
        }
    }

    /// Whether too much waits for the disk already.
    pub(super) fn is_congested(&self) -> bool {
        self.waits_beyond(1)
    }

    /// The same for what other domains bring: the own domain has the other half.
    pub(super) fn is_congested_for_others(&self) -> bool {
        self.waits_beyond(2)
    }

    /// Whether so many times what waits is more than what may.
    fn waits_beyond(&self, times: usize) -> bool {
        let held = [&self.journal.held, &self.journal.held_next];
        let effects: usize = held.iter().map(|held| held.len()).sum();
        let messages: usize = held.iter().map(|held| held.messages()).sum();
        effects * times >= self.config.held_max
            || messages * times >= self.config.held_messages_max
            || self.journal.pending_bytes * times >= self.config.pending_bytes_max
    }

    /// Puts a record up for the next append.
    pub(super) fn put_up(&mut self, record: Record) {
        self.journal.pending_bytes += weight(&record);
        self.journal.pending.push(record);
    }

    /// Hands pending records over, unless an append is on its way already.
    pub(super) fn flush(&mut self, out: &mut Outbox<Effect>) {
        if self.halted.is_some()
            || self.journal.inflight.is_some()
            || self.journal.pending.is_empty()
        {
            return;
        }
        let records = mem::take(&mut self.journal.pending);
        self.journal.pending_bytes = 0;
        // Nothing is in flight, so nothing rests on it.
        self.journal.held = mem::take(&mut self.journal.held_next);
        let ticket = self.journal.tickets.issue();
        self.journal.inflight = Some(ticket);
        self.journal.length += records.iter().filter(|record| record.is_journal()).count();
        if self.journal.length > self.config.rewrite_after {
            let journal = self.journal_snapshot();
            self.journal.length = journal.len();
            // A state that is large in itself must not be rewritten with every command.
            self.config.rewrite_after = self.config.rewrite_after.max(2 * journal.len());
            out.push(Effect::Rewrite {
                ticket,
                records,
                journal,
            });
        } else {
            out.push(Effect::Append { ticket, records });
        }
    }

    pub(super) fn appended(&mut self, ticket: Ticket, out: &mut Outbox<Effect>) {
        if self.journal.inflight != Some(ticket) {
            return;
        }
        self.journal.inflight = None;
        let held = self.journal.held.take().into_iter();
        held.for_each(|effect| out.push(effect));
    }

    /// The journal starts from what the store holds.
    pub(super) fn start_journal(&mut self) {
        self.journal.length = self.journal_snapshot().len();
    }

    /// What waits for the disk is not going to be promised.
    pub(super) fn refuse_held(&mut self, reason: &str, out: &mut Outbox<Effect>) {
        let held = self.journal.held.take();
        let next = self.journal.held_next.take();
        for effect in held.into_iter().chain(next) {
            if let Effect::Reply { call, .. } = effect {
                let reason = reason.to_owned();
                let result = Err(Refusal::Unavailable { reason });
                out.push(Effect::Reply { call, result });
            }
        }
    }

    pub(super) fn append_failed(&mut self, reason: String, out: &mut Outbox<Effect>) {
        self.refuse_held("the journal failed", out);
        self.halted = Some(reason.clone());
        out.push(Effect::Alarm(Alarm::JournalFailed { reason }));
    }

    /// The part of [`Self::snapshot`] that the journal holds.
    pub(super) fn journal_snapshot(&self) -> Vec<Record> {
        let networks = self.networks.values().chain(self.dormant.values());
        networks.flat_map(Network::snapshot).collect()
    }
}
