//! What a router keeps on disk: one redb file with the newest of each record, and the private
//! key beside it. A record is durable when [`Store::append`] returns.

mod encoding;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use vl3_core::ids::InstanceId;
use vl3_core::router::{Record, State};

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// N reads N-1 and writes N; anything newer stops start-up.
const FORMAT: u32 = 1;

/// The router's disk, or its memory where there is none.
#[derive(Debug)]
pub(crate) struct Store {
    database: Option<Database>,
}

/// What does not change while a state directory lives.
pub(crate) struct Own {
    pub(crate) private_key: [u8; 32],
    pub(crate) instance: InstanceId,
}

impl Store {
    /// Without a directory everything is forgotten at the end.
    pub(crate) fn open(dir: Option<&Path>) -> anyhow::Result<(Self, Own, State)> {
        let Some(dir) = dir else {
            let own = Own {
                private_key: rand::random(),
                instance: InstanceId(rand::random()),
            };
            return Ok((Self { database: None }, own, State::default()));
        };
        let path = dir.join("router.redb");
        let database = Database::create(&path).with_context(|| {
            format!(
                "open {} (is another router running on this state_dir?)",
                path.display()
            )
        })?;
        let instance = prepare(&database).with_context(|| format!("read {}", path.display()))?;
        let state = load(&database).with_context(|| format!("read {}", path.display()))?;
        let private_key = private_key(&dir.join("private.key"))?;
        Ok((
            Self {
                database: Some(database),
            },
            Own {
                private_key,
                instance,
            },
            state,
        ))
    }

    /// Makes the records durable, all or none. Blocks on the disk.
    pub(crate) fn append(&self, records: &[Record]) -> anyhow::Result<()> {
        let Some(database) = &self.database else {
            return Ok(());
        };
        let transaction = database.begin_write()?;
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            for record in records {
                for (key, value) in encoding::encode(record)? {
                    match value {
                        Some(value) => entries.insert(key.as_str(), value.as_slice())?,
                        None => entries.remove(key.as_str())?,
                    };
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Checks the format, or writes it into a new file; returns the instance.
fn prepare(database: &Database) -> anyhow::Result<InstanceId> {
    let transaction = database.begin_write()?;
    let instance = {
        let mut meta = transaction.open_table(META)?;
        let _created = transaction.open_table(ENTRIES)?;
        let format = meta.get("format")?.map(|value| value.value().to_vec());
        match format {
            None => drop(meta.insert("format", FORMAT.to_be_bytes().as_slice())?),
            Some(found) if found == FORMAT.to_be_bytes() => {}
            Some(found) => bail!("the file has format {found:?}, this program reads {FORMAT}"),
        }
        let known = meta.get("instance")?.map(|value| value.value().to_vec());
        match known.map(|bytes| <[u8; 16]>::try_from(bytes.as_slice())) {
            Some(Ok(bytes)) => InstanceId(bytes),
            Some(Err(_)) => bail!("the instance is not 16 bytes"),
            None => {
                let fresh = InstanceId(rand::random());
                meta.insert("instance", fresh.0.as_slice())?;
                fresh
            }
        }
    };
    transaction.commit()?;
    Ok(instance)
}

fn load(database: &Database) -> anyhow::Result<State> {
    let transaction = database.begin_read()?;
    let entries = transaction.open_table(ENTRIES)?;
    let mut state = State::default();
    for entry in entries.iter()? {
        let (key, value) = entry?;
        let record = encoding::decode(key.value(), value.value())
            .with_context(|| format!("entry {:?}", key.value()))?;
        state.apply(&record);
    }
    Ok(state)
}

/// The WireGuard key: base64 in a file that only the owner reads, made on first start.
fn private_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    match std::fs::File::open(path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text)
                .with_context(|| format!("read {}", path.display()))?;
            let bytes = STANDARD
                .decode(text.trim())
                .ok()
                .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            bytes.with_context(|| {
                format!(
                    "{} must hold 44 characters of base64, an X25519 key",
                    path.display()
                )
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key: [u8; 32] = rand::random();
            write_secret(path, &STANDARD.encode(key))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Whole or not at all, and on disk before it is used.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let new: PathBuf = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::encoding::samples;

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let records = samples();
        let (instance, key) = {
            let (store, own, state) = Store::open(Some(dir.path())).unwrap();
            assert_eq!(state, State::default());
            store.append(&records).unwrap();
            (own.instance, own.private_key)
        };
        let (_, own, state) = Store::open(Some(dir.path())).unwrap();
        assert_eq!((own.instance, own.private_key), (instance, key));
        let mut wanted = State::default();
        records.iter().for_each(|record| wanted.apply(record));
        assert_eq!(state, wanted);
    }

    #[test]
    fn a_second_router_on_the_same_state_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(Some(dir.path())).unwrap();
        let error = Store::open(Some(dir.path())).err().unwrap();
        assert!(format!("{error:#}").contains("another router"), "{error:#}");
    }

    #[test]
    fn an_entry_of_an_unknown_kind_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, _) = Store::open(Some(dir.path())).unwrap();
        let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
        transaction
            .open_table(ENTRIES)
            .unwrap()
            .insert("future/x", b"{}".as_slice())
            .unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = format!("{:#}", Store::open(Some(dir.path())).err().unwrap());
        assert!(
            error.contains("future/x") && error.contains("unknown kind"),
            "{error}"
        );
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let (store, own, _) = Store::open(None).unwrap();
        store.append(&samples()).unwrap();
        let (_, other, state) = Store::open(None).unwrap();
        assert_ne!(own.private_key, other.private_key);
        assert_eq!(state, State::default());
    }
}
