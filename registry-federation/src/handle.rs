//! How services reach the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, mpsc, oneshot};

use vl3_core::caller::Caller;
use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::registry::{Command, EndpointQuery, Peer, Query, Refusal, Reply, WatcherId};
use vl3_runtime::{CancellationToken, clock};

use crate::backlog::{Backlog, Handed};
use crate::limits::Gate;
use crate::operator::Question;
use crate::reading::{Batch, Found, Watch};
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
        watching: Watching,
    },
    /// The watch took a page of its snapshot and there is another one.
    WatchRest {
        watcher: WatcherId,
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

/// Where the events of a watch go, and on whose account.
#[derive(Debug)]
pub(crate) struct Watching {
    pub(crate) batches: mpsc::Sender<Result<Batch, Refusal>>,
    pub(crate) caller: Caller,
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
    backlog: Backlog,
    readers: Arc<Semaphore>,
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
        backlog: Backlog,
    ) -> Self {
        Self {
            messages,
            ends,
            next_watcher: Arc::default(),
            gate,
            backlog,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }

    pub(crate) async fn call(&self, peer: Peer, command: Command) -> Result<Reply, Refusal> {
        self.gate.admit(&peer, &command, clock::mono())?;
        self.ask_machine(peer, command).await
    }

    /// A call that was admitted.
    pub(crate) async fn ask_machine(&self, peer: Peer, command: Command) -> Result<Reply, Refusal> {
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

    /// What matches, page by page; it counts as one call.
    pub(crate) async fn find(&self, peer: Peer, query: EndpointQuery) -> Result<Found, Refusal> {
        self.gate.admit_find(&peer, clock::mono())?;
        Found::open(self.clone(), peer, query).await
    }

    /// Counts what a caller is handed until it took it.
    pub(crate) fn hand(&self, peer: &Peer, bytes: usize) -> Result<Handed, Refusal> {
        self.backlog.hand(&self.gate.caller(peer), bytes)
    }

    /// As [`Self::hand`].
    pub(crate) fn hand_to(&self, caller: &Caller, bytes: usize) -> Result<Handed, Refusal> {
        self.backlog.hand(caller, bytes)
    }

    /// Events until the receiver is dropped or the watcher is cut.
    pub(crate) async fn watch(&self, peer: Peer, query: Query) -> Result<Watch, Refusal> {
        self.gate.admit_find(&peer, clock::mono())?;
        let (batches, receiver) = mpsc::channel(WATCH_BATCHES);
        let watcher = WatcherId(self.next_watcher.fetch_add(1, Ordering::Relaxed));
        let watch = Watch::new(receiver, watcher, self.clone());
        let caller = self.gate.caller(&peer);
        let message = Message::Watch {
            watcher,
            peer,
            query,
            watching: Watching { batches, caller },
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
