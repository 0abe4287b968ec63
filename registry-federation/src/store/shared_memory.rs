//! A shared store in memory, for tests of several replicas in one process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, mpsc, watch};
use vl3_core::registry::Record;

use super::{
    Candidate, Change, Claim, CodecError, Conflict, Entry, Followed, Job, Journal, Memory, Object,
    Objects, Shared, Store, StoreError, Swap, decode, decode_removal,
};

/// Changes that a reader of the feed may be behind before it has to load everything again.
const FEED: usize = 256;

/// The store itself; clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedMemory(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    kept: Memory,
    revision: u64,
    term: u64,
    /// Who is active in this term.
    holder: Option<u64>,
    standing: BTreeMap<u64, Standing>,
    feeds: Vec<Feed>,
    next: u64,
    paused: bool,
}

#[derive(Debug)]
struct Standing {
    candidate: Candidate,
    claim: watch::Sender<Claim>,
    /// Its claim lapsed and it has not heard of it.
    deaf: bool,
}

#[derive(Debug)]
struct Feed {
    sender: mpsc::Sender<Followed>,
    behind: bool,
}

/// One replica's way to it.
#[derive(Debug)]
struct Replica {
    store: SharedMemory,
    number: u64,
    written: Arc<AtomicU64>,
}

/// What one replica writes in one term.
#[derive(Debug)]
struct Term {
    store: SharedMemory,
    number: u64,
    term: u64,
    written: Arc<AtomicU64>,
}

impl SharedMemory {
    /// A way for one more replica.
    pub fn replica(&self) -> Arc<dyn Shared> {
        let mut content = self.content();
        content.next += 1;
        Arc::new(Replica {
            store: self.clone(),
            number: content.next,
            written: Arc::default(),
        })
    }

    /// The active replica's claim lapses: another one is active. As where it was cut off, it
    /// hears of that only when it wants to write.
    pub fn lapse(&self) {
        let mut content = self.content();
        if let Some(former) = content.holder.take()
            && let Some(standing) = content.standing.get_mut(&former)
        {
            standing.deaf = true;
        }
        content.choose();
    }

    /// As [`Self::lapse`], and it knows that its claim lapsed, but not who has it.
    pub fn cut_off(&self) {
        self.lapse();
        let content = self.content();
        let deaf = content.standing.values().filter(|standing| standing.deaf);
        for standing in deaf {
            standing.claim.send_replace(Claim::Unknown);
        }
    }

    /// The store answers nobody until [`Self::resume`].
    pub fn pause(&self) {
        let mut content = self.content();
        content.paused = true;
        let reason = "paused".to_owned();
        content.tell(|| Followed::Disconnected {
            reason: reason.clone(),
        });
        content.tell_claims();
    }

    pub fn resume(&self) {
        let mut content = self.content();
        content.paused = false;
        content.tell(|| Followed::Connected);
        content.choose();
    }

    /// Somebody writes the value of a key again by hand, past every replica; whether it is there.
    pub fn touch(&self, key: &str) -> Result<bool, StoreError> {
        let mut kept = self.content().kept.clone();
        let Some(object) = kept.list()?.into_iter().find(|object| object.key == key) else {
            return Ok(false);
        };
        let swap = Swap {
            key: object.key,
            expected: Some(object.revision),
            value: Some(object.value),
        };
        Ok(kept.swap(&[swap])?.iter().all(Result::is_ok))
    }

    /// The name of the active replica.
    pub fn active(&self) -> Option<String> {
        let content = self.content();
        let standing = content.standing.get(&content.holder?)?;
        Some(standing.candidate.name.clone())
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Somebody is active, where anybody stands for it.
    fn choose(&mut self) {
        if self.holder.is_none() && !self.paused {
            let mut hearing = self.standing.iter().filter(|(_, standing)| !standing.deaf);
            self.holder = hearing.next().map(|(number, _)| *number);
            self.term += 1;
        }
        self.tell_claims();
    }

    fn tell_claims(&self) {
        let holder = self.holder.and_then(|number| {
            let standing = self.standing.get(&number)?;
            Some((number, standing.candidate.clone()))
        });
        let hearing = self.standing.iter().filter(|(_, standing)| !standing.deaf);
        for (number, standing) in hearing {
            let claim = match &holder {
                None => Claim::Unknown,
                Some(_) if self.paused => Claim::Unknown,
                Some((holder, _)) if holder == number => Claim::Active { term: self.term },
                Some((_, candidate)) => Claim::Other {
                    candidate: candidate.clone(),
                    term: self.term,
                },
            };
            standing.claim.send_replace(claim);
        }
    }

    fn tell(&mut self, message: impl Fn() -> Followed) {
        let mut feeds = std::mem::take(&mut self.feeds);
        feeds.retain_mut(|feed| {
            let message = if feed.behind { self.all() } else { message() };
            match feed.sender.try_send(message) {
                Ok(()) => feed.behind = false,
                Err(mpsc::error::TrySendError::Full(_)) => feed.behind = true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
            }
            true
        });
        self.feeds = feeds;
    }

    fn all(&mut self) -> Followed {
        let revision = self.revision;
        match self.records() {
            Ok(records) => Followed::Reload { revision, records },
            Err(error) => Followed::Damaged(error),
        }
    }

    fn records(&mut self) -> Result<Vec<Record>, StoreError> {
        let entries = self.kept.replay()?.into_iter().map(|entry| entry.bytes);
        let objects = self.kept.list()?.into_iter().map(|object| object.value);
        let bytes: Vec<_> = entries.chain(objects).collect();
        changes(bytes.iter().map(|bytes| decode(bytes)))
    }
}

fn changes(
    records: impl Iterator<Item = Result<Record, CodecError>>,
) -> Result<Vec<Record>, StoreError> {
    let position = |(position, record): (u64, Result<_, _>)| {
        record.map_err(|source| StoreError::Record { position, source })
    };
    (0..).zip(records).map(position).collect()
}

impl Shared for Replica {
    fn follow(&self) -> mpsc::Receiver<Followed> {
        let (sender, receiver) = mpsc::channel(FEED);
        let mut content = self.store.content();
        // The first message in an empty channel: there is room.
        let _full = sender.try_send(content.all());
        let behind = false;
        content.feeds.push(Feed { sender, behind });
        receiver
    }

    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Claim> {
        let (claim, receiver) = watch::channel(Claim::Unknown);
        let mut content = self.store.content();
        let standing = Standing {
            candidate,
            claim,
            deaf: false,
        };
        content.standing.insert(self.number, standing);
        content.choose();
        receiver
    }

    fn writer(&self, term: u64) -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(Term {
            store: self.store.clone(),
            number: self.number,
            term,
            written: Arc::clone(&self.written),
        }))
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn release(&self) {
        let mut content = self.store.content();
        content.standing.remove(&self.number);
        if content.holder == Some(self.number) {
            content.holder = None;
        }
        content.choose();
    }
}

impl Term {
    fn content(&self) -> Result<MutexGuard<'_, Content>, StoreError> {
        let mut content = self.store.content();
        if content.paused {
            return Err(StoreError::Unavailable("it is paused".to_owned()));
        }
        if content.term != self.term || content.holder != Some(self.number) {
            if let Some(standing) = content.standing.get_mut(&self.number) {
                standing.deaf = false;
            }
            content.tell_claims();
            let by = format!("term {} began", content.term);
            return Err(StoreError::Fenced { by });
        }
        Ok(content)
    }
}

impl Journal for Term {
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.content()?.kept.replay()
    }

    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.content()?.kept.append(entries)
    }

    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.content()?.kept.rewrite(entries)
    }

    fn history(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.content()?.kept.history()
    }
}

impl Objects for Term {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        self.content()?.kept.list()
    }

    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        self.content()?.kept.swap(swaps)
    }

    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.store.content().kept.watch()
    }
}

impl Store for Term {
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        let mut content = self.content()?;
        let revisions = content.kept.commit(job)?;
        content.revision += 1;
        let revision = content.revision;
        self.written.store(revision, Ordering::Release);
        let entries = job.append.iter().map(|entry| decode(&entry.bytes));
        let objects = job.swaps.iter().map(|swap| match &swap.value {
            Some(value) => decode(value),
            None => decode_removal(&swap.key),
        });
        let records = changes(entries.chain(objects))?;
        content.tell(|| Followed::Batch {
            revision,
            records: records.clone(),
        });
        Ok(revisions)
    }
}
