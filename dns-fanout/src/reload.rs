//! Watches the configuration file: SIGHUP and a changed file make the server read it again, whole
//! or not at all (R7.4).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use vl3_runtime::CancellationToken;
use vl3_runtime::config::Invalid;

use crate::Config;
use crate::standing::Views;

/// Between two looks at the file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How the configuration is read again.
#[derive(Clone)]
pub struct Reload {
    /// The file, where there is one.
    pub file: Option<PathBuf>,
    /// Reads it as at the start: environment and flags over it.
    pub read: Arc<dyn Fn() -> Result<Config, Invalid> + Send + Sync>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// What tells one content of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    modified: Option<SystemTime>,
    octets: u64,
}

impl Reload {
    /// The file as it is at the start: what changes from here on is read again.
    pub(crate) fn seen(&self) -> Option<Seen> {
        Some(seen(&std::fs::metadata(self.file.as_deref()?).ok()?))
    }
}

/// Runs until shutdown; `seen` is the file that is in force.
pub(crate) async fn run(
    reload: Reload,
    mut seen: Option<Seen>,
    views: Views,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = hangups.recv() => {}
            _ = looks.tick() => {
                let now = look(reload.file.as_deref()).await;
                // A file that is being replaced may be absent for a moment.
                if now == seen || now.is_none() {
                    continue;
                }
            }
        }
        seen = look(reload.file.as_deref()).await;
        let read = Arc::clone(&reload.read);
        let config = tokio::task::spawn_blocking(move || read())
            .await
            .context("read the configuration again")?;
        let outcome = match config {
            Ok(config) => views.reload(&config).await,
            Err(invalid) => Err(invalid.to_string()),
        };
        match outcome {
            Ok(()) => tracing::info!("the configuration was read again and is in force"),
            Err(error) => tracing::error!(
                error,
                "the configuration was read again and is refused; the one before stays"
            ),
        }
    }
}

async fn look(file: Option<&Path>) -> Option<Seen> {
    Some(seen(&tokio::fs::metadata(file?).await.ok()?))
}

fn seen(metadata: &std::fs::Metadata) -> Seen {
    Seen {
        modified: metadata.modified().ok(),
        octets: metadata.len(),
    }
}
