//! An identity directory: read, checked as a set, watched by content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::{Error, Identity};

/// How often the three files are read. They are a few kilobytes; content comparison sees what
/// inotify misses (symlink swaps of mounted Secrets, files replaced inside another mount).
const POLL: Duration = Duration::from_secs(1);

/// Larger files are no identity.
const FILE_MAX: u64 = 1 << 20;

/// The three files as read.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    svid: Vec<u8>,
    key: Vec<u8>,
    bundle: Vec<u8>,
}

pub(crate) fn load(dir: &Path) -> Result<(Identity, Content), Error> {
    let content = read(dir)?;
    let identity = Identity::from_pem(&content.svid, &content.key, &content.bundle)
        .map_err(|error| Error::invalid(dir.display().to_string(), error))?;
    Ok((identity, content))
}

/// Replaces the identity whenever the files form another valid set. A set that is not valid is
/// reported once and waited out: the writer may be between two files.
pub(crate) async fn watch(dir: PathBuf, mut held: Content, sender: watch::Sender<Arc<Identity>>) {
    let mut reported: Option<String> = None;
    loop {
        tokio::time::sleep(POLL).await;
        let path = dir.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || read(&path)).await else {
            return;
        };
        let outcome = match read {
            Ok(content) if content == held => {
                reported = None;
                continue;
            }
            Ok(content) => Identity::from_pem(&content.svid, &content.key, &content.bundle)
                .map(|identity| (identity, content)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((identity, content)) => {
                tracing::info!(id = %identity.id, not_after = identity.not_after.unix_secs(), "identity rotated");
                held = content;
                reported = None;
                if sender.send(Arc::new(identity)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let text = error.to_string();
                if reported.as_ref() != Some(&text) {
                    tracing::warn!(dir = %dir.display(), error = text, "identity files are not usable; keeping the identity held");
                    reported = Some(text);
                }
            }
        }
    }
}

fn read(dir: &Path) -> Result<Content, Error> {
    let file = |name: &str| {
        let path = dir.join(name);
        let read = || {
            let length = std::fs::metadata(&path)?.len();
            if length > FILE_MAX {
                return Err(std::io::Error::other(format!(
                    "is {length} bytes long; at most {FILE_MAX} are allowed"
                )));
            }
            std::fs::read(&path)
        };
        read().map_err(|reason| Error::Read {
            path: path.clone(),
            reason,
        })
    };
    Ok(Content {
        svid: file("svid.pem")?,
        key: file("key.pem")?,
        bundle: file("bundle.pem")?,
    })
}
