//! The one thread that owns the engine. Jobs come one at a time (the machine gathers
//! records while one is under way), so every job is a group commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use vl3_core::registry::Record;
use vl3_runtime::clock;

use super::codec::{decode, encode};
use super::{Contents, Entry, Job, Object, Store, StoreError, Swap};

/// Between two tries of a job while the store is not available.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What is kept and where it goes.
type Reading = oneshot::Sender<Result<Contents, StoreError>>;

enum Task {
    Write(Order),
    Read(Reading),
}

/// Records and where their outcome goes.
struct Order {
    records: Vec<Record>,
    /// The snapshot that takes the place of the journal.
    journal: Option<Vec<Record>>,
    outcome: oneshot::Sender<Result<(), StoreError>>,
}

/// The way to the writer thread. Dropped, the thread ends after its last job; a store that
/// does not answer is given up then.
#[derive(Debug)]
pub(crate) struct Writer {
    orders: Option<mpsc::SyncSender<Task>>,
    thread: Option<std::thread::JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

/// The engine and what the thread knows about it.
struct Keeper {
    store: Box<dyn Store>,
    /// What stands under each key.
    revisions: BTreeMap<String, u64>,
    stopping: Arc<AtomicBool>,
}

impl Writer {
    /// Loads the records and starts the thread.
    pub(crate) fn start(store: Box<dyn Store>) -> Result<(Self, Vec<Record>), StoreError> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut keeper = Keeper {
            store,
            revisions: BTreeMap::new(),
            stopping: Arc::clone(&stopping),
        };
        let records = keeper.load()?;
        let (orders, inbox) = mpsc::sync_channel(4);
        let thread = std::thread::Builder::new()
            .name("vl3-journal".to_owned())
            .spawn(move || keeper.serve(&inbox))
            .map_err(|error| StoreError::Write(error.to_string()))?;
        Ok((
            Self {
                orders: Some(orders),
                thread: Some(thread),
                stopping,
            },
            records,
        ))
    }

    pub(crate) fn append(&self, records: Vec<Record>) -> oneshot::Receiver<Result<(), StoreError>> {
        self.send(records, None)
    }

    /// As [`Self::append`], and `journal` replaces the journal.
    pub(crate) fn rewrite(
        &self,
        records: Vec<Record>,
        journal: Vec<Record>,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        self.send(records, Some(journal))
    }

    /// A receiver that fails at once where the thread is gone.
    fn send(
        &self,
        records: Vec<Record>,
        journal: Option<Vec<Record>>,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (outcome, receiver) = oneshot::channel();
        if let Some(orders) = &self.orders {
            // The machine has at most one job under way, readers two, the channel room for four:
            // never full.
            let _gone = orders.try_send(Task::Write(Order {
                records,
                journal,
                outcome,
            }));
        }
        receiver
    }

    /// Everything that is kept, after the jobs before; fails where too many read.
    pub(crate) fn read(&self, kept: Reading) {
        if let Some(orders) = &self.orders {
            // Err: the answer is dropped, and whoever waits for it hears that.
            let _refused = orders.try_send(Task::Read(kept));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic was reported by the thread itself.
            let _panicked = thread.join();
        }
    }
}

impl Keeper {
    /// Reads everything that is kept: the journal in order, then the objects.
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        let mut push = |position: u64, bytes: &[u8]| {
            records.push(decode(bytes).map_err(|source| StoreError::Record { position, source })?);
            Ok::<_, StoreError>(())
        };
        for (position, entry) in (0..).zip(self.store.replay()?) {
            push(position, &entry.bytes)?;
        }
        for Object {
            key,
            revision,
            value,
        } in self.store.list()?
        {
            push(revision, &value)?;
            self.revisions.insert(key, revision);
        }
        Ok(records)
    }

    fn serve(&mut self, inbox: &mpsc::Receiver<Task>) {
        while let Ok(task) = inbox.recv() {
            let order = match task {
                Task::Write(order) => order,
                Task::Read(kept) => {
                    // Err: whoever asked is gone.
                    let _gone = kept.send(Contents::read(&mut *self.store));
                    continue;
                }
            };
            let result = self.carry_out(&order.records, order.journal.as_deref());
            // Err: the registry is stopping.
            let _gone = order.outcome.send(result);
        }
    }

    fn carry_out(
        &mut self,
        records: &[Record],
        journal: Option<&[Record]>,
    ) -> Result<(), StoreError> {
        let job = Job {
            id: rand::random(),
            append: entries(records),
            rewrite: journal.map(entries),
            swaps: self.swaps(records),
        };
        if job.append.is_empty() && job.rewrite.is_none() && job.swaps.is_empty() {
            return Ok(());
        }
        let revisions = self.commit(&job)?;
        for (swap, revision) in job.swaps.into_iter().zip(revisions) {
            match swap.value {
                Some(_) => drop(self.revisions.insert(swap.key, revision)),
                None => drop(self.revisions.remove(&swap.key)),
            }
        }
        Ok(())
    }

    /// Tries for as long as the store is not available: nobody can be told anything else.
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        let mut told = false;
        loop {
            match self.store.commit(job) {
                Err(StoreError::Unavailable(reason)) if !self.stopping.load(Ordering::Relaxed) => {
                    if !told {
                        tracing::warn!(reason, "the store is not available, trying on");
                        told = true;
                    }
                    std::thread::park_timeout(RETRY_PAUSE);
                }
                done => {
                    if told && done.is_ok() {
                        tracing::info!("the store is available again");
                    }
                    return done;
                }
            }
        }
    }

    /// The last word on each key is the one that is written.
    fn swaps(&self, records: &[Record]) -> Vec<Swap> {
        let mut last = BTreeMap::new();
        for record in records {
            if let Some(key) = record.object_key() {
                last.insert(key.to_string(), encode(record));
            }
        }
        let swaps = last.into_iter().map(|(key, value)| Swap {
            expected: self.revisions.get(&key).copied(),
            key,
            value,
        });
        // Removing what was never written is nothing.
        swaps
            .filter(|swap| swap.value.is_some() || swap.expected.is_some())
            .collect()
    }
}

/// The journal's part of the records.
fn entries(records: &[Record]) -> Vec<Entry> {
    let at = clock::wall();
    records
        .iter()
        .filter(|record| record.object_key().is_none())
        .filter_map(encode)
        .map(|bytes| Entry { at, bytes })
        .collect()
}
