//! The engine for several replicas: one etcd, whose transactions are the fence.
//!
//! Below the prefix: `format`, `head` (generation and place of the journal, the last batch, its
//! writer), `journal/GENERATION/NUMBER`, `history/NUMBER`, the parts of large ones of both below
//! them (`entries.rs`), `objects/KEY`, and `active`, which hangs on a lease of the active replica. Every transaction that changes anything compares
//! `active` (still ours) and `head` (as we left it) and writes `head`. Revisions are etcd's.

mod claim;
mod engine;
mod entries;
mod feed;
mod keys;
mod plan;
mod session;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, watch};
use vl3_runtime::CancellationToken;

use self::claim::Campaign;
use self::engine::Engine;
use self::keys::Keys;
use self::session::Session;
use super::{Candidate, Claim, EtcdConfig, Followed, Shared, Store, StoreError};

/// What a release may take at the end of a process.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// One replica's way to an etcd.
pub struct Etcd {
    config: Arc<EtcdConfig>,
    runtime: Arc<OwnRuntime>,
    standing: Mutex<Option<Standing>>,
    /// The revision of our last write.
    written: Arc<AtomicU64>,
    /// Ends what follows.
    gone: CancellationToken,
}

/// A campaign that runs.
struct Standing {
    candidate: Candidate,
    cancel: CancellationToken,
    /// Cancelled when the claim was given up.
    given_up: CancellationToken,
    /// Answers then, for those who cannot wait otherwise.
    ended: std_mpsc::Receiver<()>,
}

/// A thread for connections and timers, whoever calls: engines are synchronous.
#[derive(Debug)]
pub(super) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start() -> Result<Arc<Self>, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("vl3-etcd")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Read(format!("start the etcd thread: {error}")))?;
        Ok(Arc::new(Self(Some(runtime))))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.0 {
            runtime.spawn(task);
        }
    }

    /// Blocks the caller's thread, which may be one of another runtime.
    fn wait<T: Send>(&self, future: impl Future<Output = T> + Send) -> Result<T, StoreError> {
        let stopped = || StoreError::Unavailable("the etcd thread is gone".to_owned());
        let runtime = self.0.as_ref().ok_or_else(stopped)?;
        if Handle::try_current().is_err() {
            return Ok(runtime.block_on(future));
        }
        // A runtime may not be entered from within another one.
        let waiting = || runtime.block_on(future);
        std::thread::scope(|scope| scope.spawn(waiting).join()).map_err(|_| stopped())
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting is not allowed on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Etcd({})", self.config.endpoints.join(", "))
    }
}

impl Etcd {
    /// Nothing is dialled yet.
    pub fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        Ok(Self {
            config: Arc::new(config),
            runtime: OwnRuntime::start()?,
            standing: Mutex::new(None),
            written: Arc::default(),
            gone: CancellationToken::new(),
        })
    }

    fn keys(&self) -> Keys {
        Keys::new(&self.config.prefix)
    }

    fn session(&self) -> Session {
        Session::new(Arc::clone(&self.config))
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Option<Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared for Etcd {
    fn follow(&self) -> mpsc::Receiver<Followed> {
        let (changes, receiver) = mpsc::channel(feed::BEHIND);
        let (session, keys, gone) = (self.session(), self.keys(), self.gone.clone());
        self.runtime.spawn(async move {
            tokio::select! {
                () = gone.cancelled() => {}
                () = feed::follow(session, keys, changes) => {}
            }
        });
        receiver
    }

    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Claim> {
        let (claim, receiver) = watch::channel(Claim::Unknown);
        let cancel = CancellationToken::new();
        let (done, ended) = std_mpsc::channel();
        let campaign = Campaign::new(
            self.session(),
            self.keys(),
            candidate.clone(),
            self.config.ttl,
            claim,
        );
        let given_up = CancellationToken::new();
        let (stopping, stopped) = (cancel.clone(), given_up.clone());
        let standing = Standing {
            candidate,
            cancel,
            given_up,
            ended,
        };
        let before = self.standing().replace(standing);
        self.runtime.spawn(async move {
            // A claim of the one before would be taken for another replica's.
            if let Some(before) = before {
                before.cancel.cancel();
                before.given_up.cancelled().await;
            }
            campaign.run(stopping).await;
            stopped.cancel();
            // Err: nobody waits.
            let _unheard = done.send(());
        });
        receiver
    }

    fn writer(&self, term: u64) -> Result<Box<dyn Store>, StoreError> {
        let name = self
            .standing()
            .as_ref()
            .map_or_else(String::new, |standing| standing.candidate.name.clone());
        let runtime = Arc::clone(&self.runtime);
        let opened = Engine::open(self.session(), self.keys(), term, name);
        let engine = self.runtime.wait(opened)??;
        let written = Arc::clone(&self.written);
        Ok(Box::new(engine::Writer::new(runtime, engine, written)))
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn release(&self) {
        if let Some(standing) = &*self.standing() {
            standing.cancel.cancel();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.gone.cancel();
        if let Some(standing) = self.standing().take() {
            standing.cancel.cancel();
            // Err: it lapses by itself.
            let _lapses = standing.ended.recv_timeout(RELEASE_WAIT);
        }
    }
}
