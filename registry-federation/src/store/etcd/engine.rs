//! What the active replica writes with.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::{
    Compare, CompareOp, DeleteOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::OwnRuntime;
use super::entries::decode_entry;
use super::keys::{
    FORMAT, Head, Keys, check_format, damaged, decode_active, decode_head, encode_json, end_of,
    number,
};
use super::plan::{Part, Standing, plan};
use super::session::{PAUSE, Session, Trouble};
use crate::store::memory::FEED;
use crate::store::{
    Change, Conflict, Entry, Job, Journal, Object, Objects, Store, StoreError, Swap,
};

/// Tries of one transaction, in turns of all members, before the writer is told.
const TURNS: usize = 2;

/// [`Engine`] for callers that wait.
#[derive(Debug)]
pub(super) struct Writer {
    runtime: Arc<OwnRuntime>,
    engine: Engine,
    feed: broadcast::Sender<Change>,
    written: Arc<AtomicU64>,
}

/// One term of one replica.
#[derive(Debug)]
pub(super) struct Engine {
    session: Session,
    keys: Keys,
    /// The creation of `active`.
    term: i64,
    name: String,
    head: Head,
    /// The revision in which `head` was written.
    head_at: i64,
    /// A job of which not everything is known to be done.
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    id: u128,
    parts: VecDeque<Part>,
    revisions: Vec<u64>,
}

/// `format`, `head` and `active` at one moment.
struct Fence {
    format: Option<KeyValue>,
    head: Option<KeyValue>,
    active: Option<KeyValue>,
}

impl Fence {
    fn operations(keys: &Keys) -> Vec<TxnOp> {
        [keys.format(), keys.head(), keys.active()]
            .map(|key| TxnOp::get(key, None))
            .to_vec()
    }

    fn of(response: &TxnResponse) -> Self {
        let mut found = response.op_responses().into_iter().map(|one| match one {
            TxnOpResponse::Get(mut get) => get.take_kvs().pop(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Self {
            format: found.next().flatten(),
            head: found.next().flatten(),
            active: found.next().flatten(),
        }
    }

    /// Whether the term is still that one; else who is in our place.
    fn check(&self, term: i64) -> Result<(), StoreError> {
        match &self.active {
            Some(active) if active.create_revision() == term => Ok(()),
            Some(active) => {
                let by = decode_active(active).map_or_else(
                    || "somebody who does not say who".to_owned(),
                    |candidate| format!("{} at {}", candidate.name, candidate.address),
                );
                Err(StoreError::Fenced { by })
            }
            None => Err(StoreError::Fenced {
                by: "nobody: our claim lapsed".to_owned(),
            }),
        }
    }
}

impl Engine {
    /// Takes the head over: from then on nothing of an earlier term can be written.
    pub(super) async fn open(
        session: Session,
        keys: Keys,
        term: u64,
        name: String,
    ) -> Result<Self, StoreError> {
        let mut engine = Self {
            session,
            keys,
            term: i64::try_from(term).unwrap_or(i64::MAX),
            name,
            head: Head::default(),
            head_at: 0,
            under_way: None,
        };
        engine.take_over().await?;
        Ok(engine)
    }

    async fn fence(&mut self) -> Result<Fence, Trouble> {
        let operations = Fence::operations(&self.keys);
        let read = |client: etcd_client::Client| {
            let txn = Txn::new().and_then(operations.clone());
            async move { client.kv_client().txn(txn).await }
        };
        Ok(Fence::of(&self.session.retried(read).await?))
    }

    async fn take_over(&mut self) -> Result<(), StoreError> {
        let fence = self.fence().await?;
        fence.check(self.term)?;
        let mut operations = Vec::new();
        match &fence.format {
            Some(format) => check_format(format)?,
            None if fence.head.is_some() => {
                return Err(StoreError::Read(format!(
                    "{} is missing, and {} is there",
                    self.keys.format(),
                    self.keys.head()
                )));
            }
            None => {
                let format = FORMAT.to_string();
                operations.push(TxnOp::put(self.keys.format(), format, None));
            }
        }
        if let Some(head) = &fence.head {
            self.head = decode_head(head)?;
            self.head_at = head.mod_revision();
        }
        // What a job that was not finished left: parts of an entry, a generation, history.
        let generation = self.head.generation;
        let unfinished = self.keys.entry(generation, self.head.next);
        let rest = DeleteOptions::new().with_range(end_of(&self.keys.journal(generation)));
        operations.push(TxnOp::delete(unfinished, Some(rest)));
        let until = DeleteOptions::new().with_range(self.keys.journal(generation));
        operations.push(TxnOp::delete(self.keys.journals(), Some(until)));
        let journals = DeleteOptions::new().with_range(end_of(&self.keys.journals()));
        operations.push(TxnOp::delete(
            self.keys.journal(generation + 1),
            Some(journals),
        ));
        let history = DeleteOptions::new().with_range(end_of(&self.keys.history()));
        operations.push(TxnOp::delete(
            self.keys.replaced(self.head.first),
            Some(history),
        ));
        let part = Part {
            compares: Vec::new(),
            operations,
            head: Head {
                batch: format!("{:032x}", rand::random::<u128>()),
                part: 1,
                ..self.head.clone()
            },
            swaps: 0,
        };
        self.send(part).await?;
        Ok(())
    }

    /// One transaction, until it is known whether it was done; its revision.
    async fn send(&mut self, part: Part) -> Result<u64, StoreError> {
        let head = Head {
            writer: self.name.clone(),
            ..part.head
        };
        let mut compares = vec![
            Compare::create_revision(self.keys.active(), CompareOp::Equal, self.term),
            Compare::mod_revision(self.keys.head(), CompareOp::Equal, self.head_at),
        ];
        compares.extend(part.compares);
        let mut operations = part.operations;
        operations.push(TxnOp::put(self.keys.head(), encode_json(&head), None));
        let txn = Txn::new()
            .when(compares)
            .and_then(operations)
            .or_else(Fence::operations(&self.keys));
        let turns = TURNS * self.session.members();
        let begun = Instant::now();
        for turn in 1.. {
            let txn = txn.clone();
            let sent = self
                .session
                .call(|client| async move { client.kv_client().txn(txn).await });
            match sent.await {
                Ok(response) if response.succeeded() => {
                    let at = response.header().map_or(0, ResponseHeader::revision);
                    return Ok(self.moved(head, at));
                }
                Ok(response) => return self.refused(head, &Fence::of(&response)),
                Err(Trouble::Unavailable(reason)) if turn >= turns => {
                    let waited = begun.elapsed().as_secs_f32();
                    let reason = format!("{reason} (no member within {waited:.1} s)");
                    return Err(StoreError::Unavailable(reason));
                }
                // It may be done all the same: the next try finds the head moved by our batch.
                Err(Trouble::Unavailable(_)) => tokio::time::sleep(PAUSE).await,
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Err(StoreError::Unavailable("no member was asked".to_owned()))
    }

    fn moved(&mut self, head: Head, at: i64) -> u64 {
        self.head = head;
        self.head_at = at;
        u64::try_from(at).unwrap_or(0)
    }

    /// The comparison failed: an earlier try got through, or somebody else wrote.
    fn refused(&mut self, head: Head, found: &Fence) -> Result<u64, StoreError> {
        let Some(kv) = &found.head else {
            found.check(self.term)?;
            return Err(StoreError::Fenced {
                by: format!("{} is gone", self.keys.head()),
            });
        };
        let stands = decode_head(kv)?;
        if (&stands.batch, stands.part) == (&head.batch, head.part) {
            return Ok(self.moved(head, kv.mod_revision()));
        }
        found.check(self.term)?;
        let by = if kv.mod_revision() == self.head_at {
            "an object has another revision than expected".to_owned()
        } else {
            stands.writer
        };
        Err(StoreError::Fenced { by })
    }

    async fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        if self.under_way.as_ref().is_none_or(|it| it.id != job.id) {
            if self.under_way.take().is_some() {
                self.reread().await?;
            }
            let standing = match &job.rewrite {
                Some(_) => Some(self.standing().await?),
                None => None,
            };
            self.under_way = Some(UnderWay {
                id: job.id,
                parts: plan(&self.keys, &self.head, job, standing).into(),
                revisions: Vec::new(),
            });
        }
        loop {
            let next = self
                .under_way
                .as_ref()
                .and_then(|it| it.parts.front().cloned());
            let Some(part) = next else { break };
            let swaps = part.swaps;
            let revision = match self.send(part).await {
                Ok(revision) => revision,
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    self.under_way = None;
                    return Err(error);
                }
            };
            if let Some(under_way) = &mut self.under_way {
                under_way.parts.pop_front();
                under_way
                    .revisions
                    .extend(std::iter::repeat_n(revision, swaps));
            }
        }
        Ok(self
            .under_way
            .take()
            .map(|it| it.revisions)
            .unwrap_or_default())
    }

    /// After a job that was given up: how far it got.
    async fn reread(&mut self) -> Result<(), StoreError> {
        let fence = self.fence().await?;
        fence.check(self.term)?;
        if let Some(head) = &fence.head {
            self.head = decode_head(head)?;
            self.head_at = head.mod_revision();
        }
        Ok(())
    }

    async fn standing(&mut self) -> Result<Standing, StoreError> {
        Ok(Standing {
            journal: self
                .entries(&self.keys.journal(self.head.generation))
                .await?,
            history: self
                .entries(&self.keys.history())
                .await?
                .into_iter()
                .filter(|(number, _)| *number < self.head.first)
                .map(|(number, entry)| (number, entry.bytes.len()))
                .collect(),
        })
    }

    /// Numbers and entries directly below a prefix.
    async fn entries(&mut self, prefix: &str) -> Result<Vec<(u64, Entry)>, StoreError> {
        let (_, found) = self.session.range(prefix, 0).await?;
        let is_entry = |kv: &KeyValue| {
            !kv.key()
                .get(prefix.len()..)
                .unwrap_or_default()
                .contains(&b'/')
        };
        let entries = found.iter().enumerate().filter(|(_, kv)| is_entry(kv));
        let read = |(at, kv): (usize, &KeyValue)| {
            let after = found.get(at + 1..).unwrap_or_default();
            Ok((number(kv.key()), decode_entry(kv, after)?))
        };
        entries.map(read).collect()
    }

    async fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        let prefix = self.keys.objects();
        let (_, found) = self.session.range(&prefix, 0).await?;
        let object = |kv: KeyValue| {
            let key = kv.key_str().ok().and_then(|key| key.strip_prefix(&prefix));
            let key = key.ok_or_else(|| damaged(&kv, "no text"))?.to_owned();
            Ok(Object {
                key,
                revision: u64::try_from(kv.mod_revision()).unwrap_or(0),
                value: kv.value().to_vec(),
            })
        };
        found.into_iter().map(object).collect()
    }

    async fn found(&mut self, swap: &Swap) -> Result<Option<u64>, StoreError> {
        let key = self.keys.object(&swap.key);
        let get = |client: etcd_client::Client| {
            let key = key.clone();
            async move { client.kv_client().get(key, None).await }
        };
        let response = self.session.retried(get).await?;
        let found = response.kvs().first().map(KeyValue::mod_revision);
        Ok(found.map(|revision| u64::try_from(revision).unwrap_or(0)))
    }
}

impl Writer {
    pub(super) fn new(runtime: Arc<OwnRuntime>, engine: Engine, written: Arc<AtomicU64>) -> Self {
        Self {
            runtime,
            engine,
            written,
            feed: broadcast::Sender::new(FEED),
        }
    }

    /// As [`Store::commit`], for a job of this engine's own.
    fn write(&mut self, append: &[Entry], rewrite: Option<&[Entry]>) -> Result<u64, StoreError> {
        let job = Job {
            id: rand::random(),
            append: append.to_vec(),
            rewrite: rewrite.map(<[Entry]>::to_vec),
            swaps: Vec::new(),
        };
        self.runtime.wait(self.engine.commit(&job))??;
        Ok(self.note_written())
    }

    fn note_written(&self) -> u64 {
        let revision = u64::try_from(self.engine.head_at).unwrap_or(0);
        self.written.store(revision, Ordering::Release);
        revision
    }

    fn tell(&self, swap: &Swap, revision: u64) {
        // Err: nobody watches.
        let _unwatched = self.feed.send(Change {
            key: swap.key.clone(),
            revision,
            value: swap.value.clone(),
        });
    }
}

impl Journal for Writer {
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError> {
        let prefix = self.engine.keys.journal(self.engine.head.generation);
        let entries = self.runtime.wait(self.engine.entries(&prefix))??;
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.write(entries, None)
    }

    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.write(&[], Some(entries))
    }

    fn history(&mut self) -> Result<Vec<Entry>, StoreError> {
        let prefix = self.engine.keys.history();
        let first = self.engine.head.first;
        let entries = self.runtime.wait(self.engine.entries(&prefix))??;
        // Numbers above are of a rewrite that is not finished.
        let entries = entries.into_iter().filter(|(number, _)| *number < first);
        Ok(entries.map(|(_, entry)| entry).collect())
    }
}

impl Objects for Writer {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        self.runtime.wait(self.engine.list())?
    }

    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        let mut results = Vec::with_capacity(swaps.len());
        for swap in swaps {
            let found = self.runtime.wait(self.engine.found(swap))??;
            if found != swap.expected {
                results.push(Err(Conflict { found }));
                continue;
            }
            let job = Job {
                id: rand::random(),
                swaps: vec![swap.clone()],
                ..Job::default()
            };
            // Nobody writes between: the head would have moved.
            results.extend(self.commit(&job)?.into_iter().map(Ok));
        }
        Ok(results)
    }

    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.feed.subscribe()
    }
}

impl Store for Writer {
    /// What takes several transactions is written journal first: a crash between them leaves a
    /// beginning of it, of whole entries and objects.
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        let revisions = self.runtime.wait(self.engine.commit(job))??;
        self.note_written();
        for (swap, revision) in job.swaps.iter().zip(&revisions) {
            self.tell(swap, *revision);
        }
        Ok(revisions)
    }
}
