//! The one thread that owns the engine. Jobs come one at a time (the machine gathers
//! records while one is under way), so every job is a group commit.

use std::collections::BTreeMap;
use std::sync::mpsc;

use tokio::sync::oneshot;
use vl3_core::registry::Record;

use super::codec::{decode, encode, object_key};
use super::{Object, Store, StoreError, Swap};

/// A job and where its outcome goes.
enum Job {
    Append(Vec<Record>, oneshot::Sender<Result<(), StoreError>>),
    Rewrite(Vec<Record>, oneshot::Sender<Result<(), StoreError>>),
}

/// The way to the writer thread; it ends when this is dropped, after its last job.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Reads everything that is kept: the journal in order, then the objects.
fn load(
    store: &mut dyn Store,
    revisions: &mut BTreeMap<String, u64>,
) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    let mut push = |position: u64, bytes: &[u8]| {
        records.push(decode(bytes).map_err(|source| StoreError::Record { position, source })?);
        Ok::<_, StoreError>(())
    };
    for (position, entry) in (0..).zip(store.replay()?) {
        push(position, &entry)?;
    }
    for Object {
        key,
        revision,
        value,
    } in store.list()?
    {
        push(revision, &value)?;
        revisions.insert(key, revision);
    }
    Ok(records)
}

impl Writer {
    /// Loads the records and starts the thread.
    pub(crate) fn start(mut store: Box<dyn Store>) -> Result<(Self, Vec<Record>), StoreError> {
        let mut revisions = BTreeMap::new();
        let records = load(&mut *store, &mut revisions)?;
        let (jobs, inbox) = mpsc::sync_channel(4);
        let thread = std::thread::Builder::new()
            .name("vl3-journal".to_owned())
            .spawn(move || serve(&mut *store, &mut revisions, &inbox))
            .map_err(|error| StoreError::Write(error.to_string()))?;
        Ok((
            Self {
                jobs: Some(jobs),
                thread: Some(thread),
            },
            records,
        ))
    }

    pub(crate) fn append(&self, records: Vec<Record>) -> oneshot::Receiver<Result<(), StoreError>> {
        self.send(|outcome| Job::Append(records, outcome))
    }

    pub(crate) fn rewrite(
        &self,
        records: Vec<Record>,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        self.send(|outcome| Job::Rewrite(records, outcome))
    }

    /// A receiver that fails at once where the thread is gone.
    fn send(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Job,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // The machine has at most one job under way, the channel room for four: never full.
            let _gone = jobs.try_send(job(sender));
        }
        receiver
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _panicked = thread.join();
        }
    }
}

fn serve(
    store: &mut dyn Store,
    revisions: &mut BTreeMap<String, u64>,
    inbox: &mpsc::Receiver<Job>,
) {
    while let Ok(job) = inbox.recv() {
        let (outcome, result) = match job {
            Job::Append(records, outcome) => (outcome, append(store, revisions, &records)),
            Job::Rewrite(records, outcome) => (outcome, rewrite(store, revisions, &records)),
        };
        // Err: the registry is stopping.
        let _gone = outcome.send(result);
    }
}

fn append(
    store: &mut dyn Store,
    revisions: &mut BTreeMap<String, u64>,
    records: &[Record],
) -> Result<(), StoreError> {
    let entries: Vec<_> = records
        .iter()
        .filter(|record| object_key(record).is_none())
        .filter_map(encode)
        .collect();
    if !entries.is_empty() {
        store.append(&entries)?;
    }
    swap(store, revisions, records)
}

fn rewrite(
    store: &mut dyn Store,
    revisions: &mut BTreeMap<String, u64>,
    records: &[Record],
) -> Result<(), StoreError> {
    let entries: Vec<_> = records
        .iter()
        .filter(|record| object_key(record).is_none())
        .filter_map(encode)
        .collect();
    store.rewrite(&entries)?;
    // What a snapshot does not name is gone.
    let named: std::collections::BTreeSet<_> = records.iter().filter_map(object_key).collect();
    let gone = revisions
        .iter()
        .filter(|(key, _)| !named.contains(key.as_str()));
    let gone: Vec<_> = gone
        .map(|(key, revision)| Swap {
            key: key.clone(),
            expected: Some(*revision),
            value: None,
        })
        .collect();
    carry_out(store, revisions, gone)?;
    swap(store, revisions, records)
}

/// The last word on each key is the one that is written.
fn swap(
    store: &mut dyn Store,
    revisions: &mut BTreeMap<String, u64>,
    records: &[Record],
) -> Result<(), StoreError> {
    let mut last = BTreeMap::new();
    for record in records {
        if let Some(key) = object_key(record) {
            last.insert(key, encode(record));
        }
    }
    let swaps = last.into_iter().map(|(key, value)| Swap {
        expected: revisions.get(&key).copied(),
        key,
        value,
    });
    // Removing what was never written is nothing.
    let swaps = swaps
        .filter(|swap| swap.value.is_some() || swap.expected.is_some())
        .collect();
    carry_out(store, revisions, swaps)
}

fn carry_out(
    store: &mut dyn Store,
    revisions: &mut BTreeMap<String, u64>,
    swaps: Vec<Swap>,
) -> Result<(), StoreError> {
    if swaps.is_empty() {
        return Ok(());
    }
    let results = store.swap(&swaps)?;
    for (swap, result) in swaps.into_iter().zip(results) {
        match result {
            Ok(revision) if swap.value.is_some() => drop(revisions.insert(swap.key, revision)),
            Ok(_) => drop(revisions.remove(&swap.key)),
            // Nobody else writes to an embedded store.
            Err(conflict) => {
                let reason = format!(
                    "{} has revision {:?}, another writer is at work",
                    swap.key, conflict.found
                );
                return Err(StoreError::Write(reason));
            }
        }
    }
    Ok(())
}
