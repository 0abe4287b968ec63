//! One resolv.conf: read, edited and written under a lock, so that clients share it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use vl3_runtime::Retry;

use super::process::Process;
use super::text::{Entries, Owner, ResolvText};

/// What is longer is no resolv.conf.
const OCTETS_MAX: usize = 64 << 10;
/// Somebody else may hold the lock, or write, so long; it is tried again with the next check.
const BUSY_MAX: Duration = Duration::from_secs(2);
const AGAIN_FIRST: Duration = Duration::from_millis(5);
const AGAIN_MAX: Duration = Duration::from_millis(100);

/// Where systemd-resolved keeps what resolv.conf may link to (systemd-resolved.service(8)).
const RESOLVED_DIR: &str = "/run/systemd/resolve";
const RESOLVED_STATIC: &str = "/usr/lib/systemd/resolv.conf";
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Why the file is not as it should be. What it held is still in it, unless the error says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} must be {allowed}; nothing is changed in it", path.display())]
    Refused {
        path: PathBuf,
        allowed: &'static str,
    },
    #[error("{} is written by somebody else all the time", path.display())]
    Busy { path: PathBuf },
    #[error("write {}; what it held is untouched", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("write {}, and write back what it held: {text:?}", path.display())]
    Torn {
        path: PathBuf,
        text: String,
        source: io::Error,
    },
}

/// What became of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) changed: bool,
    /// Servers for which there was no room.
    pub(crate) left_out: Vec<IpAddr>,
}

/// A file, for one client.
#[derive(Clone, Debug)]
pub(crate) struct ResolvConf {
    path: PathBuf,
    owner: Owner,
}

impl ResolvConf {
    /// `client` is the name of the client, which finds what an earlier process left.
    pub(crate) fn new(path: PathBuf, client: &str) -> io::Result<Self> {
        let owner = Owner {
            name: client.to_owned(),
            process: Process::current()?,
        };
        Ok(Self { path, owner })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts these in place of what this client has there, and takes out what clients that are
    /// gone left.
    pub(crate) async fn set(&self, entries: &Entries) -> Result<Done, FileError> {
        let until = Instant::now() + BUSY_MAX;
        let mut retry = Retry::new(AGAIN_FIRST, AGAIN_MAX);
        loop {
            match self.try_set(entries) {
                Err(FileError::Busy { .. }) if Instant::now() < until => retry.pause().await,
                outcome => return outcome,
            }
        }
    }

    fn try_set(&self, entries: &Entries) -> Result<Done, FileError> {
        let Some((path, made)) = self.target(entries.is_empty())? else {
            return Ok(Done::default());
        };
        let (file, current) = open_locked(&path)?;
        let mut text = ResolvText::parse(&current);
        text.made |= made;
        text.owners.retain(|owner, _| !self.outlives(owner));
        if entries.is_empty() {
            text.owners.remove(&self.owner);
        } else {
            text.owners.insert(self.owner.clone(), entries.clone());
        }
        if text.is_to_be_removed() {
            std::fs::remove_file(&path).map_err(write_failed(&path))?;
            return Ok(Done {
                changed: true,
                left_out: Vec::new(),
            });
        }
        let written = text.written(host_domain().as_deref());
        let changed = written.text != current;
        if changed && let Err(error) = write(&path, &file, &current, &written.text) {
            if made && current.is_empty() {
                // Empty as it was made; where that fails, the next try says more.
                let _left = std::fs::remove_file(&path);
            }
            return Err(error);
        }
        Ok(Done {
            changed,
            left_out: written.left_out,
        })
    }

    /// Whether another's lines are to go: its process ended, or it was this client in a container
    /// that is out of sight.
    fn outlives(&self, other: &Owner) -> bool {
        let own = &self.owner;
        own.process.sees_gone(&other.process)
            || own.name == other.name && !own.process.sees(&other.process)
    }

    /// The file behind links, and whether it was made just now; none where there is nothing to do.
    fn target(&self, nothing_wanted: bool) -> Result<Option<(PathBuf, bool)>, FileError> {
        let path = &self.path;
        let found = match std::fs::canonicalize(path) {
            Ok(found) => found,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(read_failed(path)(error));
            }
            Err(_) if path.is_symlink() => {
                return Err(refused(
                    path,
                    "a file, and is a link to one that is not there",
                ));
            }
            Err(_) if nothing_wanted => return Ok(None),
            Err(_) => {
                let created = OpenOptions::new().write(true).create_new(true).open(path);
                return match created {
                    Ok(_) => Ok(Some((path.clone(), true))),
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                        Err(FileError::Busy { path: path.clone() })
                    }
                    Err(source) => Err(write_failed(path)(source)),
                };
            }
        };
        if found.starts_with(RESOLVED_DIR) || found == Path::new(RESOLVED_STATIC) {
            return Err(refused(
                path,
                "a file that is not systemd-resolved's own (with resolved = true, --resolved, that is told directly)",
            ));
        }
        Ok(Some((found, false)))
    }
}

/// Opens, locks and reads a file that still is the one at its path.
fn open_locked(path: &Path) -> Result<(File, String), FileError> {
    // Before it is opened: the other end of a pipe may never come.
    let metadata = std::fs::metadata(path).map_err(read_failed(path))?;
    if !metadata.is_file() || metadata.len() > OCTETS_MAX as u64 {
        return Err(refused(path, "a file of at most 64 KiB"));
    }
    let file = File::open(path).map_err(read_failed(path))?;
    match file.try_lock() {
        // A file system without locks has none to wait for.
        Ok(()) | Err(TryLockError::Error(_)) => {}
        Err(TryLockError::WouldBlock) => return Err(busy(path)),
    }
    if !is_at(&file, path) {
        return Err(busy(path));
    }
    let mut octets = Vec::new();
    (&file)
        .take(OCTETS_MAX as u64)
        .read_to_end(&mut octets)
        .map_err(read_failed(path))?;
    match String::from_utf8(octets) {
        Ok(text) => Ok((file, text)),
        Err(_) => Err(refused(path, "UTF-8 text")),
    }
}

/// Whether the path still leads to this file: clients rename new ones over it.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |one: &std::fs::Metadata, other: &std::fs::Metadata| {
        one.dev() == other.dev() && one.ino() == other.ino()
    };
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(one), Ok(other)) if same(&one, &other))
}

/// As one step where the directory allows it, else in place.
fn write(path: &Path, file: &File, current: &str, text: &str) -> Result<(), FileError> {
    let unchanged =
        || is_at(file, path) && std::fs::read(path).is_ok_and(|now| now == current.as_bytes());
    if !unchanged() {
        return Err(busy(path));
    }
    match replace(path, file, text, unchanged) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ResourceBusy && !unchanged() => Err(busy(path)),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not replaced but written in place");
            in_place(path, current, text)
        }
    }
}

/// Renames a complete file over the old one: readers see one or the other, and so does the next
/// boot. Its name is of the file it replaces, which is locked, so nobody else uses it.
fn replace(path: &Path, file: &File, text: &str, unchanged: impl Fn() -> bool) -> io::Result<()> {
    let metadata = file.metadata()?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let fresh = dir.join(format!(
        ".{}.vl3-{:x}-{:x}",
        name.to_string_lossy(),
        metadata.dev(),
        metadata.ino()
    ));
    match std::fs::remove_file(&fresh) {
        // One that a killed client left.
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let written = (|| {
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&fresh)?;
        let own = new.metadata()?;
        if metadata.nlink() > 1 || own.uid() != metadata.uid() || own.gid() != metadata.gid() {
            // Another name of the file, or its owner, would get lost.
            return Err(io::Error::from(ErrorKind::Unsupported));
        }
        new.set_permissions(metadata.permissions())?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        if !unchanged() {
            return Err(ErrorKind::ResourceBusy.into());
        }
        std::fs::rename(&fresh, path)
    })();
    if written.is_err() {
        // Gone, or never made.
        let _gone = std::fs::remove_file(&fresh);
    }
    written
}

/// Writes a file that nothing can be renamed over (a bind mount). It is made long enough first, so
/// that a full disk is found out before anything of the host's is overwritten; line ends at the
/// end of a resolv.conf mean nothing.
fn in_place(path: &Path, current: &str, text: &str) -> Result<(), FileError> {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(write_failed(path))?;
    let (old, new) = (current.as_bytes(), text.as_bytes());
    let (old_len, new_len) = (old.len() as u64, new.len() as u64);
    if new.len() > old.len() {
        let growth = vec![b'\n'; new.len() - old.len()];
        if let Err(source) = file.write_all_at(&growth, old_len) {
            return Err(match file.set_len(old_len) {
                Ok(()) => write_failed(path)(source),
                Err(_) => torn(path, current, source),
            });
        }
    }
    let mut whole = new.to_vec();
    whole.resize(old.len().max(new.len()), b'\n');
    let written = file
        .write_all_at(&whole, 0)
        .and_then(|()| file.set_len(new_len))
        .and_then(|()| file.sync_all());
    written.map_err(|source| {
        let back = file
            .write_all_at(old, 0)
            .and_then(|()| file.set_len(old_len));
        match back {
            Ok(()) => write_failed(path)(source),
            Err(_) => torn(path, current, source),
        }
    })
}

/// What stands behind the first dot of the host's name.
fn host_domain() -> Option<String> {
    let name = std::fs::read_to_string(HOST_NAME).ok()?;
    let (_, domain) = name.trim().split_once('.')?;
    (!domain.is_empty()).then(|| domain.to_owned())
}

fn refused(path: &Path, allowed: &'static str) -> FileError {
    FileError::Refused {
        path: path.to_owned(),
        allowed,
    }
}

fn busy(path: &Path) -> FileError {
    FileError::Busy {
        path: path.to_owned(),
    }
}

fn read_failed(path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| FileError::Read {
        path: path.to_owned(),
        source,
    }
}

fn write_failed(path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| FileError::Write {
        path: path.to_owned(),
        source,
    }
}

fn torn(path: &Path, text: &str, source: io::Error) -> FileError {
    FileError::Torn {
        path: path.to_owned(),
        text: text.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
