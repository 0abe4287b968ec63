//! The driver's part where other replicas share the store: follow, take over, step back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use vl3_core::registry::{Effect, Input, Record, RegistryMachine};
use vl3_core::{Machine as _, Outbox};
use vl3_runtime::{ReadyItem, clock};

use super::Driver;
use crate::replica::{Role, Standing};
use crate::store::writer::Writer;
use crate::store::{Candidate, Claim, Followed, Shared, StoreError};

/// Between two tries to read the store as its active replica, and before it is read again
/// because it did not hold what was known of it.
const TAKE_OVER_PAUSE: Duration = Duration::from_millis(200);

/// A machine that follows, for each time that this replica starts to.
pub(crate) type Boot = Box<dyn FnMut() -> anyhow::Result<RegistryMachine> + Send>;

/// What comes of reading the store in a term.
type Taken = Result<(Writer, Vec<Record>), StoreError>;

pub(crate) struct Replica {
    shared: Arc<dyn Shared>,
    candidate: Candidate,
    claim: watch::Receiver<Claim>,
    /// Open while this replica follows.
    feed: Option<mpsc::Receiver<Followed>>,
    taking_over: Option<(u64, JoinHandle<Taken>)>,
    term: Option<u64>,
    /// Before the store is read in the next term.
    pause: Duration,
    /// Whether the machine holds what the store holds.
    loaded: bool,
    connected: bool,
    boot: Boot,
    standing: watch::Sender<Standing>,
    ready: ReadyItem,
}

/// What concerns the role of this replica.
pub(super) enum Event {
    Followed(Option<Followed>),
    Claimed(Claim),
    TakenOver(u64, Taken),
}

impl Replica {
    /// Stands for being active from now on, and follows.
    pub(crate) fn new(
        shared: Arc<dyn Shared>,
        candidate: Candidate,
        boot: Boot,
        standing: watch::Sender<Standing>,
        ready: ReadyItem,
    ) -> Self {
        let feed = Some(shared.follow());
        let mut claim = shared.campaign(candidate.clone());
        claim.mark_changed();
        standing.send_modify(|standing| standing.role = Role::Starting);
        Self {
            shared,
            candidate,
            claim,
            feed,
            taking_over: None,
            term: None,
            pause: Duration::ZERO,
            loaded: false,
            connected: false,
            boot,
            standing,
            ready,
        }
    }

    pub(super) const fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Nothing is lost where this is dropped while it waits.
    pub(super) async fn next(&mut self) -> Event {
        let feed = async {
            match &mut self.feed {
                Some(feed) => feed.recv().await,
                None => std::future::pending().await,
            }
        };
        let taken = async {
            match &mut self.taking_over {
                Some((term, reading)) => (*term, reading.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.claim.changed() => {
                match changed {
                    Ok(()) => Event::Claimed(self.claim.borrow_and_update().clone()),
                    Err(_) => Event::Followed(None),
                }
            }
            (term, taken) = taken => {
                self.taking_over = None;
                let panicked = |error: tokio::task::JoinError| {
                    Err(StoreError::Read(error.to_string()))
                };
                Event::TakenOver(term, taken.unwrap_or_else(panicked))
            }
            followed = feed => Event::Followed(followed),
        }
    }

    /// Reads everything in a term of ours; a thread may wait for the store.
    fn take_over(&mut self, term: u64, pause: Duration) {
        let shared = Arc::clone(&self.shared);
        let reading = tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            Writer::start(shared.writer(term)?)
        });
        self.taking_over = Some((term, reading));
    }

    fn holds(&self, term: u64) -> bool {
        *self.claim.borrow() == Claim::Active { term }
    }

    /// A write or the reading of a term was fenced although the claim is ours: the store does not
    /// hold what we know of it (a late transaction of our own, a key touched by hand). Nobody
    /// else may go on before the claim is given up, and we only in another term.
    fn stand_again(&mut self, term: u64) {
        if self.holds(term) {
            tracing::warn!(term, "replica: gives up its claim and stands for it again");
            self.shared.release();
            self.claim = self.shared.campaign(self.candidate.clone());
            self.claim.mark_changed();
            self.pause = TAKE_OVER_PAUSE;
        }
    }

    /// What was known of the store stands there.
    pub(super) const fn wrote(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// Says what holds: to the services, to probes, to people.
    fn show(&self) {
        let claim = self.claim.borrow().clone();
        let role = match (self.loaded, self.term, claim) {
            (false, ..) => Role::Starting,
            (true, Some(term), claim) => Role::Active {
                term,
                confirmed: claim == Claim::Active { term },
            },
            (true, None, Claim::Other { candidate, .. }) => Role::Following {
                active: Some(candidate),
            },
            (true, None, Claim::Active { .. } | Claim::Unknown) => Role::Following { active: None },
        };
        let ready = match &role {
            Role::Active { confirmed, .. } => *confirmed,
            Role::Following { .. } => self.connected,
            Role::Starting | Role::Sole => false,
        };
        self.ready.set(ready);
        self.standing.send_if_modified(|standing| {
            let changed = standing.role != role;
            if changed {
                say(&role);
            }
            standing.role = role;
            changed
        });
    }

    /// Lets others go on at once; the last thing.
    pub(super) fn leave(&self) {
        self.shared.release();
    }
}

fn say(role: &Role) {
    match role {
        Role::Sole | Role::Starting => tracing::info!("replica: reading the store"),
        Role::Following { active: None } => {
            tracing::info!("replica: following, nobody is known to be active");
        }
        Role::Following {
            active: Some(active),
        } => {
            let (name, address) = (&active.name, &active.address);
            tracing::info!(active = name, address, "replica: following");
        }
        Role::Active {
            term,
            confirmed: true,
        } => tracing::info!(term, "replica: active"),
        Role::Active {
            term,
            confirmed: false,
        } => tracing::warn!(
            term,
            "replica: active, but the store does not answer; nothing is accepted until it does"
        ),
    }
}

impl Driver {
    /// Messages wait until the machine holds what the store holds.
    pub(super) fn takes_messages(&self) -> bool {
        self.replica.as_ref().is_none_or(Replica::is_loaded)
    }

    /// An error ends the process: the store's content is damaged, or its engine is gone.
    pub(super) fn replica_event(
        &mut self,
        event: Event,
        out: &mut Outbox<Effect>,
    ) -> anyhow::Result<()> {
        match event {
            Event::Followed(None) => anyhow::bail!("the store's engine ended"),
            Event::Followed(Some(message)) => self.followed(message, out)?,
            Event::Claimed(claim) => self.claimed(claim, out)?,
            Event::TakenOver(term, taken) => self.taken_over(term, taken, out)?,
        }
        self.tell_confirmed(out);
        if let Some(reason) = self.machine.halted() {
            anyhow::bail!("the store's content makes no sense: {reason}");
        }
        self.show();
        Ok(())
    }

    /// The machine knows whether the claim on which it is active holds, before anybody else does.
    fn tell_confirmed(&mut self, out: &mut Outbox<Effect>) {
        let Some(replica) = &self.replica else { return };
        let Some(term) = replica.term else { return };
        let input = if replica.holds(term) {
            Input::Confirmed
        } else {
            Input::Unconfirmed
        };
        self.machine.handle(input, clock::now(), out);
    }

    pub(super) fn show(&self) {
        if let Some(replica) = &self.replica {
            replica.show();
            self.metrics.show_role(self.standing.borrow().role.word());
        }
    }

    fn followed(&mut self, message: Followed, out: &mut Outbox<Effect>) -> anyhow::Result<()> {
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        let now = clock::now();
        let revision = match message {
            Followed::Reload { revision, records } => {
                tracing::info!(records = records.len(), revision, "state read");
                self.machine.handle(Input::Reload { records }, now, out);
                (replica.loaded, replica.connected) = (true, true);
                revision
            }
            Followed::Batch { revision, records } => {
                self.machine.handle(Input::Followed { records }, now, out);
                revision
            }
            Followed::Connected => {
                replica.connected = true;
                return Ok(());
            }
            Followed::Disconnected { reason } => {
                if std::mem::take(&mut replica.connected) {
                    tracing::warn!(reason, "the store does not answer; what is known is served");
                }
                return Ok(());
            }
            Followed::Damaged(error) => {
                return Err(anyhow::Error::new(error).context("follow the store"));
            }
        };
        // Watchers get their events before anybody is told that they are there.
        self.carry_out(out);
        if let Some(replica) = &self.replica {
            replica
                .standing
                .send_modify(|standing| standing.revision = revision);
        }
        Ok(())
    }

    fn claimed(&mut self, claim: Claim, out: &mut Outbox<Effect>) -> anyhow::Result<()> {
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        let term = match claim {
            Claim::Unknown => return Ok(()),
            Claim::Active { term } => Some(term),
            Claim::Other { .. } => None,
        };
        if replica.term.is_some() && replica.term != term {
            self.step_back("another replica became active", out)?;
        }
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        let reading = replica.taking_over.as_ref().map(|(term, _)| *term);
        if let Some(term) = term.filter(|term| replica.term.is_none() && reading != Some(*term)) {
            replica.take_over(term, replica.pause);
        }
        Ok(())
    }

    fn taken_over(
        &mut self,
        term: u64,
        taken: Taken,
        out: &mut Outbox<Effect>,
    ) -> anyhow::Result<()> {
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        let held = replica.holds(term);
        match taken {
            Ok((writer, _)) if !held => {
                // Another one may be active. Where the claim is ours again, so is another turn.
                tracing::info!(term, "the claim went while the store was read");
                self.metrics.takeovers_late.inc();
                drop(tokio::task::spawn_blocking(move || drop(writer)));
            }
            Ok((writer, records)) => {
                let now = clock::now();
                self.metrics.takeovers.inc();
                self.machine.handle(Input::Promoted { records }, now, out);
                self.writer = Some(writer);
                (replica.term, replica.loaded, replica.feed) = (Some(term), true, None);
                self.machine.wake(now, out);
            }
            Err(StoreError::Fenced { by }) => {
                tracing::info!(term, by, "another replica was faster");
                replica.stand_again(term);
            }
            Err(StoreError::Unavailable(reason)) => {
                tracing::debug!(term, reason, held, "the store does not answer");
                if held {
                    replica.take_over(term, TAKE_OVER_PAUSE);
                }
            }
            Err(error) => return Err(error).context("read the store"),
        }
        Ok(())
    }

    /// Somebody else wrote, as far as the store can tell.
    pub(super) fn fenced(&mut self, by: &str, out: &mut Outbox<Effect>) -> anyhow::Result<()> {
        let term = self.replica.as_ref().and_then(|replica| replica.term);
        self.step_back(by, out)?;
        if let Some((replica, term)) = self.replica.as_mut().zip(term) {
            replica.stand_again(term);
        }
        Ok(())
    }

    /// Follows again, from what the store holds. Nothing that waits was promised.
    pub(super) fn step_back(&mut self, why: &str, out: &mut Outbox<Effect>) -> anyhow::Result<()> {
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        tracing::warn!(term = replica.term, why, "replica: steps back");
        self.metrics.stepped_back.inc();
        let reason = why.to_owned();
        self.machine
            .handle(Input::Deposed { reason }, clock::now(), out);
        self.appending = None;
        if let Some(writer) = self.writer.take() {
            // It may wait for the store.
            drop(tokio::task::spawn_blocking(move || drop(writer)));
        }
        self.carry_out(out);
        let streams: Vec<_> = self.streams.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.close(stream));
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        self.machine = (replica.boot)()?;
        (replica.term, replica.loaded) = (None, false);
        replica.feed = Some(replica.shared.follow());
        replica.show();
        Ok(())
    }
}
