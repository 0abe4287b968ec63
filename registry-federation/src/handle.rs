//! How services reach the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, mpsc, oneshot};

use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::registry::{Command, Peer, Query, Refusal, Reply, WatchEvent, WatcherId};
use vl3_runtime::{CancellationToken, clock};

use crate::limits::Gate;
use crate::operator::Question;
use crate::store::{Contents, StoreError};

/// Batches of events that a watcher may be behind before it is cut.
pub(crate) const WATCH_BATCHES: usize = 1024;

/// Batches of messages that a sync stream may be behind before it is cut.
pub(crate) const SYNC_BATCHES: usize = 256;

/// Readers of the whole store at once; more wait.
const READERS_MAX: usize = 2;

pub(crate) enum Message {
    Call {
        peer: Peer,
        command: Command,
        reply: oneshot::Sender<Result<Reply, Refusal>>,
    },
    Watch {
        watcher: WatcherId,
        peer: Peer,
        query: Query,
        events: mpsc::Sender<Result<Vec<WatchEvent>, Refusal>>,
    },
    /// A stream that somebody else dialled; answered with its number.
    SyncAccepted {
        peer: Peer,
        stream: Outgoing,
        id: oneshot::Sender<StreamId>,
    },
    SyncDialled {
        id: StreamId,
        peer: Peer,
        stream: Outgoing,
    },
    SyncReceived {
        id: StreamId,
        message: SyncMessage,
    },
    SyncClosed {
        id: StreamId,
        reason: String,
    },
    Status {
        reply: oneshot::Sender<serde_json::Value>,
    },
    /// Everything that is on disk.
    Keep {
        kept: oneshot::Sender<Result<Contents, StoreError>>,
    },
    /// An operator's.
    Ask {
        question: Question,
        reply: oneshot::Sender<Result<serde_json::Value, String>>,
    },
}

/// The sending half of a sync stream, and what ends its reading half.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) batches: mpsc::Sender<Vec<SyncMessage>>,
    pub(crate) closed: CancellationToken,
}

/// Cheap to clone. Every call waits for its turn; the queue is bounded.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    messages: mpsc::Sender<Message>,
    ends: mpsc::UnboundedSender<WatcherId>,
    next_watcher: Arc<AtomicU64>,
    gate: Gate,
    readers: Arc<Semaphore>,
}

/// The events of one watch; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    events: mpsc::Receiver<Result<Vec<WatchEvent>, Refusal>>,
    watcher: WatcherId,
    handle: Handle,
}

impl Watch {
    /// None when the watcher was cut.
    pub(crate) async fn next(&mut self) -> Option<Result<Vec<WatchEvent>, Refusal>> {
        self.events.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.ended(self.watcher);
    }
}

/// What a stopped registry answers.
fn stopped() -> Refusal {
    Refusal::Unavailable {
        reason: "the registry is stopping".to_owned(),
    }
}

impl Handle {
    pub(crate) fn new(
        messages: mpsc::Sender<Message>,
        ends: mpsc::UnboundedSender<WatcherId>,
        gate: Gate,
    ) -> Self {
        Self {
            messages,
            ends,
            next_watcher: Arc::default(),
            gate,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }

    pub(crate) async fn call(&self, peer: Peer, command: Command) -> Result<Reply, Refusal> {
        self.gate.admit(&peer, &command, clock::mono())?;
        let (reply, answer) = oneshot::channel();
        self.messages
            .send(Message::Call {
                peer,
                command,
                reply,
            })
            .await
            .map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Events until the receiver is dropped or the watcher is cut.
    pub(crate) async fn watch(&self, peer: Peer, query: Query) -> Result<Watch, Refusal> {
        self.gate.admit_watch(&peer, clock::mono())?;
        let (sender, events) = mpsc::channel(WATCH_BATCHES);
        let watcher = WatcherId(self.next_watcher.fetch_add(1, Ordering::Relaxed));
        let watch = Watch {
            events,
            watcher,
            handle: self.clone(),
        };
        let message = Message::Watch {
            watcher,
            peer,
            query,
            events: sender,
        };
        self.messages.send(message).await.map_err(|_| stopped())?;
        Ok(watch)
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Status { reply }).await.is_err() {
            return serde_json::Value::Null;
        }
        answer.await.unwrap_or_default()
    }

    pub(crate) async fn ask(&self, question: Question) -> Result<serde_json::Value, String> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.send(Message::Ask { question, reply }).await;
        sent.map_err(|_| stopped().to_string())?;
        answer.await.map_err(|_| stopped().to_string())?
    }

    /// Everything that is on disk.
    pub(crate) async fn kept(&self) -> Result<Contents, String> {
        // Err: never closed.
        let _permit = self.readers.acquire().await.map_err(|e| e.to_string())?;
        let (kept, answer) = oneshot::channel();
        let sent = self.messages.send(Message::Keep { kept }).await;
        sent.map_err(|_| stopped().to_string())?;
        let kept = answer.await.map_err(|_| stopped().to_string())?;
        kept.map_err(|error| error.to_string())
    }

    pub(crate) async fn sync_accepted(&self, peer: Peer, stream: Outgoing) -> Option<StreamId> {
        let (id, answer) = oneshot::channel();
        self.messages
            .send(Message::SyncAccepted { peer, stream, id })
            .await
            .ok()?;
        answer.await.ok()
    }

    /// False when the registry is stopping.
    pub(crate) async fn send(&self, message: Message) -> bool {
        self.messages.send(message).await.is_ok()
    }

    /// Tells that a watch ended; bounded by the number of watches.
    pub(crate) fn ended(&self, watcher: WatcherId) {
        // Err: the registry is stopping.
        let _stopping = self.ends.send(watcher);
    }
}
