//! The one task that owns the machine: messages and time in, effects out.

mod replica;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::ids::DomainName;
use vl3_core::rate::{Buckets, Rate};
use vl3_core::registry::{
    Alarm, CallId, Effect, Input, Refusal, RegistryMachine, Reply, WatchEvent, WatcherId,
};
use vl3_core::{Machine, Outbox, Ticket};
use vl3_runtime::{CancellationToken, ReadyItem, clock};

use crate::dialler::Dialler;
use crate::handle::{Handle, Message, Outgoing, Watching};
use crate::metrics::RegistryMetrics;
use crate::operator;
use crate::reading::Batch;
use crate::replica::Standing;
use crate::status::status;
use crate::store::StoreError;
use crate::store::writer::Writer;

pub(crate) use replica::Replica;

/// For the append that is under way when the registry stops.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Messages taken before effects are looked at again: they share the next append.
const BATCH: usize = 256;

/// Lines about one domain in the log. `registry_alarms` counts all.
const DISBELIEF_LOGGED: Rate = Rate {
    per_second: 1,
    burst: 16,
};

/// Domains whose lines are counted apart.
const DOMAINS_MAX: usize = 1024;

type Outcome = Result<Result<(), StoreError>, oneshot::error::RecvError>;

/// Where the state is kept.
pub(crate) enum Keeper {
    /// In a store of our own.
    Sole(Writer, ReadyItem),
    /// In one that several replicas share.
    Shared(Replica),
}

pub(crate) struct Driver {
    machine: RegistryMachine,
    /// While this process decides.
    writer: Option<Writer>,
    /// Where others share the store.
    replica: Option<Replica>,
    /// Met as long as the task lives.
    _ready: Option<ReadyItem>,
    standing: watch::Sender<Standing>,
    dialler: Dialler,
    metrics: RegistryMetrics,
    /// To hand to watchers and dialled streams.
    handle: Handle,
    messages: mpsc::Receiver<Message>,
    ends: mpsc::UnboundedReceiver<WatcherId>,
    calls: BTreeMap<CallId, oneshot::Sender<Result<Reply, Refusal>>>,
    watchers: BTreeMap<WatcherId, Watching>,
    streams: BTreeMap<StreamId, Outgoing>,
    appending: Option<(Ticket, oneshot::Receiver<Result<(), StoreError>>)>,
    /// What is logged of domains that are not believed.
    disbelief: Buckets<DomainName>,
    next_id: u64,
}

impl Driver {
    #[expect(clippy::too_many_arguments, reason = "its parts, put together once")]
    pub(crate) fn new(
        machine: RegistryMachine,
        keeper: Keeper,
        standing: watch::Sender<Standing>,
        dialler: Dialler,
        metrics: RegistryMetrics,
        handle: Handle,
        messages: mpsc::Receiver<Message>,
        ends: mpsc::UnboundedReceiver<WatcherId>,
    ) -> Self {
        let (writer, replica, ready) = match keeper {
            Keeper::Sole(writer, ready) => (Some(writer), None, Some(ready)),
            Keeper::Shared(replica) => (None, Some(replica), None),
        };
        metrics.show_role(standing.borrow().role.word());
        Self {
            machine,
            writer,
            replica,
            _ready: ready,
            standing,
            dialler,
            metrics,
            handle,
            messages,
            ends,
            calls: BTreeMap::new(),
            watchers: BTreeMap::new(),
            streams: BTreeMap::new(),
            appending: None,
            disbelief: Buckets::new(DISBELIEF_LOGGED, DOMAINS_MAX),
            next_id: 0,
        }
    }

    /// Runs until shutdown, then waits for the append that is under way: leases stay.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut out = Outbox::default();
        self.machine.wake(clock::now(), &mut out);
        self.carry_out(&mut out);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                (ticket, outcome) = next_append(&mut self.appending) => self.appended(ticket, outcome, &mut out)?,
                event = next_event(&mut self.replica) => self.replica_event(event, &mut out)?,
                Some(watcher) = self.ends.recv() => {
                    self.watchers.remove(&watcher);
                    self.machine.handle(Input::Unwatch { watcher }, clock::now(), &mut out);
                }
                message = self.messages.recv(), if self.takes_messages() => {
                    let Some(message) = message else { break };
                    self.take(message, &mut out);
                    for _ in 0..BATCH {
                        let Ok(message) = self.messages.try_recv() else { break };
                        self.take(message, &mut out);
                    }
                }
                () = clock::sleep_until(self.machine.next_wake().map(|(at, _)| at)) => {
                    self.machine.wake(clock::now(), &mut out);
                }
            }
            self.carry_out(&mut out);
        }
        if let Some((_, outcome)) = self.appending.take() {
            // Whether it failed or not: nobody was told that it succeeded. A store that does
            // not answer is not waited for.
            let _outcome = tokio::time::timeout(STOP_WAIT, outcome).await;
        }
        if let Some(replica) = &self.replica {
            replica.leave();
        }
        // Watches end with this task, and so does the writer; streams are told.
        for outgoing in self.streams.values() {
            outgoing.closed.cancel();
        }
        Ok(())
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn take(&mut self, message: Message, out: &mut Outbox<Effect>) {
        let now = clock::now();
        let input = match message {
            Message::Call {
                peer,
                command,
                reply,
            } => {
                let call = CallId(self.id());
                self.calls.insert(call, reply);
                Input::Call {
                    call,
                    peer,
                    command,
                }
            }
            Message::Watch {
                watcher,
                peer,
                query,
                watching,
            } => {
                self.watchers.insert(watcher, watching);
                Input::Watch {
                    watcher,
                    peer,
                    query,
                }
            }
            Message::WatchRest { watcher } => Input::WatchRest { watcher },
            Message::SyncAccepted { peer, stream, id } => {
                let number = StreamId::Accepted(self.id());
                self.streams.insert(number, stream);
                if id.send(number).is_err() {
                    self.streams.remove(&number);
                    return;
                }
                Input::SyncOpened {
                    stream: number,
                    peer,
                }
            }
            Message::SyncDialled { id, peer, stream } => {
                self.streams.insert(id, stream);
                Input::SyncOpened { stream: id, peer }
            }
            Message::SyncReceived { id, message } => Input::SyncReceived {
                stream: id,
                message,
            },
            Message::SyncClosed { id, reason } => {
                self.close(id);
                tracing::debug!(stream = ?id, reason, "sync stream ended");
                Input::SyncClosed { stream: id, reason }
            }
            Message::Keep { kept } => {
                match &self.writer {
                    Some(writer) => writer.read(kept),
                    None => {
                        let reason =
                            "this replica follows another one: ask the active one".to_owned();
                        // Err: whoever asked is gone.
                        let _gone = kept.send(Err(StoreError::Unavailable(reason)));
                    }
                }
                return;
            }
            Message::Ask { question, reply } => {
                // Err: whoever asked is gone.
                let _gone = reply.send(operator::answer(&self.machine, &question, now));
                return;
            }
            Message::Status { reply } => {
                // Err: whoever asked is gone.
                let standing = self.standing.borrow().clone();
                let _gone = reply.send(status(&self.machine, &standing, now));
                return;
            }
        };
        self.machine.handle(input, now, out);
    }

    fn appended(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        out: &mut Outbox<Effect>,
    ) -> anyhow::Result<()> {
        let failed = match outcome {
            Ok(Ok(())) => {
                if let Some(replica) = &mut self.replica {
                    replica.wrote();
                }
                self.machine
                    .handle(Input::Appended { ticket }, clock::now(), out);
                return Ok(());
            }
            Ok(Err(StoreError::Fenced { by })) if self.replica.is_some() => {
                self.fenced(&by, out)?;
                self.show();
                return Ok(());
            }
            Ok(Err(error)) => anyhow::Error::new(error),
            Err(_) => anyhow::anyhow!("the journal's thread is gone"),
        };
        let reason = format!("{failed:#}");
        self.machine
            .handle(Input::AppendFailed { ticket, reason }, clock::now(), out);
        self.carry_out(out);
        // What is in memory is ahead of the disk: only a restart makes them equal again.
        Err(failed.context("keep the registry's state"))
    }

    fn carry_out(&mut self, out: &mut Outbox<Effect>) {
        for effect in out.take() {
            match effect {
                Effect::Append { ticket, records } => {
                    self.metrics.count_records(records.len());
                    self.metrics.appends.inc();
                    if let Some(writer) = &self.writer {
                        self.appending = Some((ticket, writer.append(records)));
                    }
                }
                Effect::Rewrite {
                    ticket,
                    records,
                    journal,
                } => {
                    self.metrics.count_records(records.len());
                    self.metrics.rewrites.inc();
                    if let Some(writer) = &self.writer {
                        self.appending = Some((ticket, writer.rewrite(records, journal)));
                    }
                }
                Effect::Reply { call, result } => {
                    self.metrics.count_reply(&result);
                    if let Some(reply) = self.calls.remove(&call) {
                        // Err: the caller went away.
                        let _gone = reply.send(result);
                    }
                }
                Effect::Deliver {
                    watcher,
                    events,
                    rest,
                } => self.deliver(watcher, events, rest),
                Effect::EndWatch { watcher, refusal } => {
                    self.metrics.met.count(&refusal);
                    if let Some(watching) = self.watchers.remove(&watcher) {
                        // Err: full or gone, the stream ends either way.
                        let _ended = watching.batches.try_send(Err(refusal));
                    }
                }
                Effect::Dial {
                    stream,
                    domain,
                    contacts,
                } => {
                    let documents = self.machine.documents().cloned().collect();
                    self.dialler
                        .dial(stream, domain, contacts, documents, self.handle.clone());
                }
                Effect::Send { stream, messages } => self.send(stream, messages),
                Effect::CloseStream { stream, reason } => {
                    tracing::info!(?stream, reason, "sync stream closed");
                    self.close(stream);
                }
                Effect::DocumentChanged { chain } => {
                    let document = chain.document();
                    tracing::info!(network = %document.name, version = document.version, "document changed");
                    self.dialler.trust(document);
                }
                Effect::Alarm(alarm) => self.alarm(&alarm),
            }
        }
        self.metrics.observe(&self.machine);
    }

    /// A watch that is too slow ends; it is opened again and gets a snapshot.
    fn deliver(&mut self, watcher: WatcherId, events: Vec<WatchEvent>, rest: bool) {
        let Some(watching) = self.watchers.get(&watcher) else {
            return;
        };
        let bytes = events.iter().map(WatchEvent::bytes).sum();
        let sent = match self.handle.hand_to(&watching.caller, bytes) {
            Ok(handed) => watching.batches.try_send(Ok(Batch {
                events,
                rest,
                handed,
            })),
            Err(refusal) => {
                // Err: full or gone, the stream ends either way.
                let _ended = watching.batches.try_send(Err(refusal));
                return self.cut(watcher);
            }
        };
        if sent.is_err() {
            self.cut(watcher);
        }
    }

    fn cut(&mut self, watcher: WatcherId) {
        self.metrics.watches_cut.inc();
        self.watchers.remove(&watcher);
        self.handle.ended(watcher);
    }

    fn send(&mut self, stream: StreamId, messages: Vec<SyncMessage>) {
        let Some(outgoing) = self.streams.get(&stream) else {
            return;
        };
        if outgoing.batches.try_send(messages).is_err() {
            // The reader's end reports the end.
            tracing::warn!(?stream, "sync stream is too slow, closed");
            self.close(stream);
        }
    }

    fn close(&mut self, stream: StreamId) {
        if let Some(outgoing) = self.streams.remove(&stream) {
            outgoing.closed.cancel();
        }
        self.dialler.forget(stream);
    }

    fn alarm(&mut self, alarm: &Alarm) {
        self.metrics.alarms.inc();
        match alarm {
            Alarm::NotBelieved { domain, .. } | Alarm::DomainTooFast { domain, .. } => {
                if self.disbelief.admit(domain, clock::now().mono) {
                    tracing::warn!("{alarm}");
                }
            }
            Alarm::DomainLimited { .. } => tracing::warn!("{alarm}"),
            Alarm::DocumentConflict { .. }
            | Alarm::Contradiction { .. }
            | Alarm::ExclusionOverLease { .. }
            | Alarm::JournalFailed { .. } => {
                tracing::error!("{alarm}");
            }
        }
    }
}

/// What concerns the role of this replica; never where there are no others.
async fn next_event(replica: &mut Option<Replica>) -> replica::Event {
    match replica {
        Some(replica) => replica.next().await,
        None => std::future::pending().await,
    }
}

/// The end of the append that is under way; never when there is none.
async fn next_append(
    appending: &mut Option<(Ticket, oneshot::Receiver<Result<(), StoreError>>)>,
) -> (Ticket, Outcome) {
    match appending {
        Some((ticket, outcome)) => {
            let (ticket, outcome) = (*ticket, outcome.await);
            *appending = None;
            (ticket, outcome)
        }
        None => std::future::pending().await,
    }
}
