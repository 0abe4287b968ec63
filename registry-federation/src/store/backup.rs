//! A registry's state in one file that says itself whether it is whole.
//!
//! ```text
//! magic | version u32 | frames: kind u8, length u32, body | end frame | SHA-256 of all before
//! ```
//!
//! Numbers are big-endian. Kinds: 1 header, 2 replaced entry (history), 3 journal entry,
//! 4 object, 255 end with the number of frames. The header's body is a protobuf message, so
//! that fields can be added; frames of another kind are of a later version, and refused.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};
use vl3_core::Wall;

use super::{Entry, Store, StoreError};

const MAGIC: &[u8; 20] = b"vl3-registry-backup\n";
/// Format of the file. A newer one is refused.
pub const BACKUP_FORMAT: u32 = 1;

const HEADER: u8 = 1;
const HISTORY: u8 = 2;
const JOURNAL: u8 = 3;
const OBJECT: u8 = 4;
const END: u8 = 255;

const DIGEST_BYTES: usize = 32;
/// A registry of the largest size has a few tens of megabytes.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Everything that a store keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub journal: Vec<Entry>,
    /// What rewrites replaced.
    pub history: Vec<Entry>,
    /// Key and value.
    pub objects: Vec<(String, Vec<u8>)>,
}

/// What was kept, of whom, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Empty where nobody knew: a store does not say whose it is.
    pub domain: String,
    pub taken: Wall,
    pub kept: Contents,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(uint64, tag = "2")]
    taken: u64,
    /// Format of the store.
    #[prost(uint64, tag = "3")]
    store: u64,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no backup of a registry")]
    Foreign,
    #[error(
        "it has format {found}, this program reads {BACKUP_FORMAT}: it was written by a newer version"
    )]
    Newer { found: u64 },
    #[error("it is torn: {0}")]
    Torn(&'static str),
    #[error("it is damaged: its checksum does not fit")]
    Damaged,
    #[error("it is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
}

impl Contents {
    pub fn read(store: &mut dyn Store) -> Result<Self, StoreError> {
        let objects = store.list()?.into_iter();
        Ok(Self {
            journal: store.replay()?,
            history: store.history()?,
            objects: objects.map(|object| (object.key, object.value)).collect(),
        })
    }

    pub const fn is_empty(&self) -> bool {
        self.journal.is_empty() && self.objects.is_empty()
    }
}

impl Backup {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(BACKUP_FORMAT.to_be_bytes());
        let header = Header {
            domain: self.domain.clone(),
            taken: self.taken.0,
            store: super::FORMAT,
        };
        frame(&mut bytes, HEADER, &[&header.encode_to_vec()]);
        let kept = &self.kept;
        for (kind, entries) in [(HISTORY, &kept.history), (JOURNAL, &kept.journal)] {
            for entry in entries {
                let at = entry.at.0.to_be_bytes();
                frame(&mut bytes, kind, &[&at, &entry.bytes]);
            }
        }
        for (key, value) in &kept.objects {
            let length = u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes();
            frame(&mut bytes, OBJECT, &[&length, key.as_bytes(), value]);
        }
        let frames = 1 + kept.history.len() + kept.journal.len() + kept.objects.len();
        let frames = u64::try_from(frames).unwrap_or(u64::MAX);
        frame(&mut bytes, END, &[&frames.to_be_bytes()]);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(BackupError::Foreign)?;
        let (version, mut rest) = number(rest)?;
        if version != BACKUP_FORMAT {
            return Err(BackupError::Newer {
                found: version.into(),
            });
        }
        let mut backup = Self {
            domain: String::new(),
            taken: Wall(0),
            kept: Contents::default(),
        };
        let mut frames = 0_u64;
        let mut unknown = None;
        loop {
            let (kind, body, after) = next_frame(rest)?;
            rest = after;
            match kind {
                HEADER => {
                    let header = Header::decode(body).map_err(|_| BackupError::Damaged)?;
                    if header.store > super::FORMAT {
                        unknown = unknown.or(Some(header.store));
                    }
                    backup.domain = header.domain;
                    backup.taken = Wall(header.taken);
                }
                HISTORY => backup.kept.history.push(entry(body)?),
                JOURNAL => backup.kept.journal.push(entry(body)?),
                OBJECT => backup.kept.objects.push(object(body)?),
                END if body == frames.to_be_bytes() => break,
                END => return Err(BackupError::Torn("frames are missing")),
                _ => unknown = unknown.or(Some(u64::from(BACKUP_FORMAT) + 1)),
            }
            frames += 1;
        }
        match rest.len() {
            DIGEST_BYTES => {}
            0..DIGEST_BYTES => return Err(BackupError::Torn("its checksum is missing")),
            _ => return Err(BackupError::Damaged),
        }
        let (signed, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
        if Sha256::digest(signed).as_slice() != digest {
            return Err(BackupError::Damaged);
        }
        // Of a file that is whole.
        match unknown {
            Some(found) => Err(BackupError::Newer { found }),
            None => Ok(backup),
        }
    }

    pub fn load(path: &Path) -> Result<Self, BackupError> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(BackupError::TooLarge);
        }
        Self::decode(&bytes)
    }

    /// Whole or not at all: a temporary file beside it (mode 0600), synced and renamed.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".tmp-{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let written = write(&temporary, &self.encode()).and_then(|()| {
            std::fs::rename(&temporary, path)?;
            sync_parent(path)
        });
        if written.is_err() {
            // Err: it was not made, or is renamed.
            let _gone = std::fs::remove_file(&temporary);
        }
        written
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A rename is durable with its directory.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn frame(bytes: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    bytes.push(kind);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in parts {
        bytes.extend(*part);
    }
}

const TORN: BackupError = BackupError::Torn("it ends in the middle");

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), BackupError> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(TORN)?;
    Ok((u32::from_be_bytes(*number), rest))
}

/// Kind and body, and what comes after.
fn next_frame(bytes: &[u8]) -> Result<(u8, &[u8], &[u8]), BackupError> {
    let (kind, rest) = bytes.split_first().ok_or(TORN)?;
    let (length, rest) = number(rest)?;
    let length = usize::try_from(length).map_err(|_| TORN)?;
    let (body, rest) = rest.split_at_checked(length).ok_or(TORN)?;
    Ok((*kind, body, rest))
}

fn entry(body: &[u8]) -> Result<Entry, BackupError> {
    let (at, bytes) = body.split_first_chunk::<8>().ok_or(BackupError::Damaged)?;
    Ok(Entry {
        at: Wall(u64::from_be_bytes(*at)),
        bytes: bytes.to_vec(),
    })
}

fn object(body: &[u8]) -> Result<(String, Vec<u8>), BackupError> {
    let (length, rest) = number(body)?;
    let length = usize::try_from(length).map_err(|_| BackupError::Damaged)?;
    let (key, value) = rest.split_at_checked(length).ok_or(BackupError::Damaged)?;
    let key = String::from_utf8(key.to_vec()).map_err(|_| BackupError::Damaged)?;
    Ok((key, value.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn backup() -> Backup {
        let entry = |at: u64, text: &str| Entry {
            at: Wall(at),
            bytes: text.as_bytes().to_vec(),
        };
        Backup {
            domain: "east".to_owned(),
            taken: Wall(7),
            kept: Contents {
                journal: vec![entry(3, "b"), entry(4, "")],
                history: vec![entry(1, "a")],
                objects: vec![("service/x".to_owned(), b"value".to_vec())],
            },
        }
    }

    #[test]
    fn a_file_is_read_back_as_it_was_written_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("east.backup");
        backup().store(&path).unwrap();
        backup().store(&path).unwrap();
        assert_eq!(Backup::load(&path).unwrap(), backup());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1, "no temporary file is left");
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_refused() {
        let bytes = backup().encode();
        for length in 0..bytes.len() {
            let cut = Backup::decode(&bytes[..length]);
            let foreign = length < MAGIC.len();
            assert!(
                matches!(
                    (&cut, foreign),
                    (Err(BackupError::Foreign), true) | (Err(BackupError::Torn(_)), false)
                ),
                "{length}: {cut:?}"
            );
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(Backup::decode(&changed).is_err(), "{at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(matches!(Backup::decode(&longer), Err(BackupError::Damaged)));
    }

    #[test]
    fn a_newer_file_is_named_as_such() {
        let mut newer = backup().encode();
        newer[MAGIC.len() + 3] = 2;
        assert!(matches!(
            Backup::decode(&newer),
            Err(BackupError::Newer { found: 2 })
        ));
        assert!(matches!(
            Backup::decode(b"SQLite format 3\0 and more"),
            Err(BackupError::Foreign)
        ));
    }
}
