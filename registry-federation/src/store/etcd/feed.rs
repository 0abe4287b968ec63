//! The changes of the store in their order, for replicas that follow.

use std::time::Duration;

use etcd_client::{Event, EventType, KeyValue, ResponseHeader, WatchOptions, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use vl3_core::registry::Record;

use super::entries::{decode_entry, in_parts};
use super::keys::{Head, Keys, Place, check_format, decode_head, removal};
use super::session::{MESSAGE_MAX, Session, Trouble, is_too_long};
use crate::store::codec::decode;
use crate::store::{Followed, StoreError};

/// Messages that a reader may be behind before it gets everything anew.
pub(super) const BEHIND: usize = 1024;

/// Between two looks whether the store still answers: as a watch, a dead one is silent.
const LOOK: Duration = Duration::from_millis(500);

/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the feed goes on otherwise.
enum Turn {
    /// The reader is gone.
    Over,
    Lost(String),
    /// From the beginning: compacted, or the reader was too slow.
    Reload,
    Damaged(StoreError),
}

impl From<Trouble> for Turn {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unavailable(reason) => Self::Lost(reason),
            Trouble::Compacted => Self::Reload,
            Trouble::TooLong(reason) => Self::Lost(reason),
            // An operator may give us the right to read while we ask on.
            Trouble::Refused(error) => Self::Lost(error.to_string()),
        }
    }
}

struct Feed {
    session: Session,
    keys: Keys,
    changes: mpsc::Sender<Followed>,
    /// What was told last; None: nothing yet, or a reload is due.
    revision: Option<i64>,
    generation: u64,
    /// What the reader believes.
    connected: bool,
}

/// Runs until the reader is gone or nothing can be read.
pub(super) async fn follow(session: Session, keys: Keys, changes: mpsc::Sender<Followed>) {
    let mut feed = Feed {
        session,
        keys,
        changes,
        revision: None,
        generation: 0,
        connected: true,
    };
    loop {
        match feed.run().await {
            Turn::Over => return,
            Turn::Reload => feed.revision = None,
            Turn::Damaged(error) => {
                // Err: the reader is gone.
                let _gone = feed.changes.send(Followed::Damaged(error)).await;
                return;
            }
            Turn::Lost(reason) => {
                if feed.connected {
                    feed.connected = false;
                    tracing::warn!(reason, "the store does not answer");
                    if feed
                        .changes
                        .send(Followed::Disconnected { reason })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                feed.session.next_member();
                if timeout(PAUSE, feed.changes.closed()).await.is_ok() {
                    return;
                }
            }
        }
    }
}

impl Feed {
    /// Until something is wrong.
    async fn run(&mut self) -> Turn {
        let turn = async {
            if self.revision.is_none() {
                self.reload().await?;
            }
            self.watch().await
        };
        match turn.await {
            Ok(never) => match never {},
            Err(turn) => turn,
        }
    }

    async fn tell(&mut self, message: Followed) -> Result<(), Turn> {
        let sent = self.changes.send(message).await;
        sent.map_err(|_| Turn::Over)
    }

    async fn answers(&mut self) -> Result<(), Turn> {
        if !self.connected {
            self.connected = true;
            tracing::info!("the store answers again");
            self.tell(Followed::Connected).await?;
        }
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), Turn> {
        let (revision, kvs) = self.session.range(&self.keys.all(), 0).await?;
        let key = |key: String| kvs.iter().find(move |kv| kv.key() == key.as_bytes());
        if let Some(format) = key(self.keys.format()) {
            check_format(format).map_err(Turn::Damaged)?;
        }
        let head = key(self.keys.head()).map(decode_head).transpose();
        let head: Head = head.map_err(Turn::Damaged)?.unwrap_or_default();
        self.generation = head.generation;
        let mut records = Vec::new();
        for (at, kv) in kvs.iter().enumerate() {
            let after = kvs.get(at + 1..).unwrap_or_default();
            let record = self.record(kv, after, EventType::Put);
            records.extend(record.map_err(Turn::Damaged)?);
        }
        self.answers().await?;
        let revision_told = u64::try_from(revision).unwrap_or(0);
        self.tell(Followed::Reload {
            revision: revision_told,
            records,
        })
        .await?;
        self.revision = Some(revision);
        Ok(())
    }

    /// What a key says to those who follow: entries of the journal that counts, and objects.
    /// `after` has its parts.
    fn record(
        &self,
        kv: &KeyValue,
        after: &[KeyValue],
        kind: EventType,
    ) -> Result<Option<Record>, StoreError> {
        let position = u64::try_from(kv.mod_revision()).unwrap_or(0);
        let read = |bytes: &[u8]| {
            decode(bytes)
                .map(Some)
                .map_err(|source| StoreError::Record { position, source })
        };
        match (self.keys.place(kv.key()), kind) {
            (Place::Journal { generation }, EventType::Put) if generation == self.generation => {
                read(&decode_entry(kv, after)?.bytes)
            }
            (Place::Object(_), EventType::Put) => read(kv.value()),
            (Place::Object(key), EventType::Delete) => Ok(removal(key)),
            (Place::Journal { .. } | Place::Head | Place::Other, _) => Ok(None),
        }
    }

    async fn watch(&mut self) -> Result<std::convert::Infallible, Turn> {
        let mut stream = self.open_watch().await?;
        self.answers().await?;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A look that found a newer head than the watch told, and when.
        let mut behind: Option<(i64, Instant)> = None;
        loop {
            tokio::select! {
                biased;
                () = self.changes.closed() => return Err(Turn::Over),
                message = stream.message() => {
                    let message = message.map_err(|error| {
                        // It would be so again: pages are shorter.
                        if is_too_long(&error) { Turn::Reload } else { Turn::Lost(error.to_string()) }
                    })?;
                    let Some(message) = message else {
                        return Err(Turn::Lost("the watch ended".to_owned()));
                    };
                    if message.compact_revision() > 0 {
                        return Err(Turn::Reload);
                    }
                    if message.canceled() {
                        return Err(Turn::Lost(message.cancel_reason().to_owned()));
                    }
                    self.take(message.events()).await?;
                }
                _ = looks.tick() => {
                    let head = self.look().await?;
                    match behind {
                        _ if self.revision.is_some_and(|told| told >= head) => behind = None,
                        Some((at, since)) if self.revision.is_some_and(|told| told < at) => {
                            if since.elapsed() > 2 * LOOK + self.session.timeout() {
                                return Err(Turn::Lost("the watch stands still".to_owned()));
                            }
                        }
                        _ => behind = Some((head, Instant::now())),
                    }
                }
            }
        }
    }

    async fn open_watch(&mut self) -> Result<WatchStream, Turn> {
        let from = self.revision.unwrap_or(0) + 1;
        let key = self.keys.all();
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let opened = self.session.call(|client| async move {
            let mut watch = client.watch_client().max_decoding_message_size(MESSAGE_MAX);
            watch.watch(key, Some(options)).await
        });
        Ok(opened.await?)
    }

    /// The revision of the head, asked from the same member by way of the leader.
    async fn look(&mut self) -> Result<i64, Turn> {
        let key = self.keys.head();
        let looked = self
            .session
            .call(|client| async move { client.kv_client().get(key, None).await });
        let response = looked.await?;
        let head = response.kvs().first().map(KeyValue::mod_revision);
        Ok(head.unwrap_or_else(|| response.header().map_or(0, ResponseHeader::revision).min(0)))
    }

    /// What an entry consists of, as it stood at that revision: earlier events told of it, when
    /// nobody could know yet that it would be an entry.
    async fn parts(
        &mut self,
        kv: &KeyValue,
        kind: EventType,
        revision: i64,
    ) -> Result<Vec<KeyValue>, Turn> {
        let is_entry = matches!(self.keys.place(kv.key()), Place::Journal { generation } if generation == self.generation);
        if !is_entry || kind != EventType::Put || in_parts(kv).map_err(Turn::Damaged)?.is_none() {
            return Ok(Vec::new());
        }
        let prefix = Keys::parts(kv.key_str().unwrap_or_default());
        Ok(self.session.range(&prefix, revision).await?.1)
    }

    /// Events come in the order of their revisions; those of one transaction are one batch.
    async fn take(&mut self, events: &[Event]) -> Result<(), Turn> {
        let revision = |event: &Event| event.kv().map_or(0, KeyValue::mod_revision);
        for batch in events.chunk_by(|a, b| revision(a) == revision(b)) {
            let at = batch.first().map_or(0, revision);
            // A watch begins after what was told, and never tells twice.
            let (mut records, mut ours) = (Vec::new(), false);
            for event in batch {
                let Some(kv) = event.kv() else { continue };
                let put = event.event_type() == EventType::Put;
                match self.keys.place(kv.key()) {
                    Place::Head if put => {
                        let head = decode_head(kv).map_err(Turn::Damaged)?;
                        (self.generation, ours) = (head.generation, true);
                    }
                    Place::Head => return Err(Turn::Reload),
                    Place::Journal { .. } | Place::Object(_) | Place::Other => {
                        let parts = self.parts(kv, event.event_type(), at).await?;
                        let record = self.record(kv, &parts, event.event_type());
                        records.extend(record.map_err(Turn::Damaged)?);
                    }
                }
            }
            if ours || !records.is_empty() {
                let message = Followed::Batch {
                    revision: u64::try_from(at).unwrap_or(0),
                    records,
                };
                match self.changes.try_send(message) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => return Err(Turn::Reload),
                    Err(mpsc::error::TrySendError::Closed(_)) => return Err(Turn::Over),
                }
            }
            self.revision = Some(at);
        }
        Ok(())
    }
}
