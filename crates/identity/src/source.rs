//! Where the own identity comes from, and that it changes.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::{Error, Identity, files, workload};

/// The own identity, rotated live. Cheap to clone; the last clone ends the watching.
#[derive(Clone, Debug)]
pub struct Source {
    current: watch::Receiver<Arc<Identity>>,
    _watcher: Arc<Watcher>,
}

/// Ends the watching task with its last owner.
#[derive(Debug)]
struct Watcher(Option<AbortHandle>);

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Source {
    /// `svid.pem` (leaf first), `key.pem` (PKCS#8 P-256) and `bundle.pem` in a directory that
    /// is watched; a half-written or mismatched set keeps the identity held. Needs a tokio
    /// runtime.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let (first, content) = files::load(dir)?;
        let (sender, receiver) = watch::channel(Arc::new(first));
        let task = tokio::spawn(files::watch(dir.to_owned(), content, sender));
        Ok(Self::new(receiver, Some(task.abort_handle())))
    }

    /// The SPIFFE Workload API at `unix:///path` or `tcp://ip:port`.
    pub async fn from_workload_api(endpoint: &str) -> Result<Self, Error> {
        let (receiver, task) = workload::connect(endpoint).await?;
        Ok(Self::new(receiver, Some(task)))
    }

    /// One that never changes, for tests and short-lived tools.
    pub fn fixed(identity: impl Into<Arc<Identity>>) -> Self {
        let (_, receiver) = watch::channel(identity.into());
        Self::new(receiver, None)
    }

    fn new(current: watch::Receiver<Arc<Identity>>, task: Option<AbortHandle>) -> Self {
        Self {
            current,
            _watcher: Arc::new(Watcher(task)),
        }
    }

    pub fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.current.borrow())
    }

    /// Sees every rotation (`changed().await`).
    pub fn subscribe(&self) -> watch::Receiver<Arc<Identity>> {
        self.current.clone()
    }
}
