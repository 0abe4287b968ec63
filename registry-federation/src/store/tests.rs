use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;

use vl3_core::Wall;
use vl3_core::allocator::{Lease, LeaseRecord};
use vl3_core::document::{AdminSecret, Chain, Document, Policy};
use vl3_core::ids::{Generation, InstanceId, NetworkUid, RouterName, SpiffeId};
use vl3_core::registry::{Claim, Endpoint, Packed, Record, Service};
use vl3_proto::document::sign;

use super::writer::Writer;
use super::{
    Change, CodecError, Conflict, Entry, FORMAT, Job, Journal, Memory, Object, Objects, Redb,
    Store, StoreError, Swap, decode, encode,
};

fn chain() -> Chain {
    let secret = AdminSecret::from_bytes(&[1; 32]);
    let admin_keys = BTreeSet::from([secret.public()]);
    let nonce = vec![1; 32];
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: "red".parse().unwrap(),
        zone: "red.vl3".to_owned(),
        pool6: "fd00:1:2:3::/64".parse().unwrap(),
        pool4: None,
        admin_keys,
        members: BTreeMap::new(),
        policy: Policy::default(),
    };
    Chain::verify(vec![sign(document, &[&secret])]).unwrap()
}

fn entry(at: u64, bytes: &[u8]) -> Entry {
    Entry {
        at: Wall(at),
        bytes: bytes.to_vec(),
    }
}

/// Those of [`records`] that the journal keeps.
fn journal() -> Vec<Record> {
    let records = records().into_iter();
    records
        .filter(|record| record.object_key().is_none())
        .collect()
}

/// One record of every kind that has bytes.
fn records() -> Vec<Record> {
    let chain = chain();
    let uid = chain.uid();
    let id: SpiffeId = "spiffe://east.test/vl3/router/red-east".parse().unwrap();
    let router = RouterName::new("red-east").unwrap();
    let lease = Lease {
        uid,
        router: router.clone(),
        instance: InstanceId([3; 16]),
        generation: Generation(7),
        prefix4: Some("10.80.4.0/24".parse().unwrap()),
        prefix6: "fd00:1:2:3:1::/96".parse().unwrap(),
    };
    let range = "10.80.5.0/26".parse().unwrap();
    let endpoint = Endpoint {
        name: "red-east".to_owned(),
        url: "tcp://192.0.2.1:1".to_owned(),
        ..Endpoint::default()
    };
    let claim = Claim {
        name: "web".parse().unwrap(),
        workload: "spiffe://east.test/workload/a".parse().unwrap(),
        addresses: vec!["10.80.4.9".parse().unwrap()],
        router: router.clone(),
    };
    let of_lease = |record| Record::Lease { uid, record };
    vec![
        Record::Document { chain },
        of_lease(LeaseRecord::Granted {
            lease,
            holder: id.clone(),
            exclusions: vec![range],
        }),
        of_lease(LeaseRecord::Ended { router }),
        of_lease(LeaseRecord::Floor {
            generation: Generation(9),
        }),
        of_lease(LeaseRecord::Excluded { range }),
        of_lease(LeaseRecord::Included { range }),
        of_lease(LeaseRecord::Restored { floor: None }),
        of_lease(LeaseRecord::Restored {
            floor: Some(Generation(7)),
        }),
        of_lease(LeaseRecord::Readopted),
        Record::Name {
            uid,
            claim,
            by: id.clone(),
        },
        Record::NameReleased {
            uid,
            name: "web".parse().unwrap(),
        },
        Record::Endpoint {
            endpoint: endpoint.clone().into(),
            owner: id.clone(),
        },
        Record::Remote {
            uid,
            domain: "west".parse().unwrap(),
            endpoint: Packed::new(&endpoint),
        },
        Record::Service {
            service: Service {
                name: "s".to_owned(),
                ..Service::default()
            },
            owner: id,
        },
    ]
}

#[test]
fn every_record_reads_back_as_it_was_written() {
    for record in records() {
        assert_eq!(decode(&encode(&record).unwrap()).unwrap(), record);
    }
    let removal = Record::EndpointRemoved {
        name: "x".to_owned(),
    };
    assert_eq!(encode(&removal), None);
}

#[test]
fn a_record_of_a_newer_version_is_named() {
    // Field 1, kind 99.
    let newer = [0x08, 99];
    assert!(matches!(
        decode(&newer),
        Err(CodecError::UnknownKind { kind: 99 })
    ));
    assert!(matches!(decode(&[0xff]), Err(CodecError::Decode(_))));
    let mut memory = Memory::default();
    memory.append(&[entry(1, &newer)]).unwrap();
    let error = Writer::start(Box::new(memory)).err().unwrap();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(
        text.contains("record 0") && text.contains("newer version"),
        "{text}"
    );
}

/// Memory that does not answer for a while.
struct Silent {
    memory: Memory,
    silent: Arc<AtomicUsize>,
    tried: Arc<Mutex<Vec<u128>>>,
}

impl Journal for Silent {
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.memory.replay()
    }
    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.memory.append(entries)
    }
    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.memory.rewrite(entries)
    }
    fn history(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.memory.history()
    }
}

impl Objects for Silent {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        self.memory.list()
    }
    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        self.memory.swap(swaps)
    }
    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.memory.watch()
    }
}

impl Store for Silent {
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        self.tried.lock().unwrap().push(job.id);
        let less = |left: usize| left.checked_sub(1);
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        match self.silent.fetch_update(set, fetch, less) {
            Ok(_) => Err(StoreError::Unavailable("silent".to_owned())),
            Err(_) => self.memory.commit(job),
        }
    }
}

#[tokio::test]
async fn the_writer_tries_the_same_job_until_the_store_answers_or_it_is_dropped() {
    let (memory, tried) = (Memory::default(), Arc::new(Mutex::new(Vec::new())));
    let silent = Arc::new(AtomicUsize::new(2));
    let store = Silent {
        memory: memory.clone(),
        silent: Arc::clone(&silent),
        tried: Arc::clone(&tried),
    };
    let (writer, _) = Writer::start(Box::new(store)).unwrap();
    writer.append(records()).await.unwrap().unwrap();
    let ids = std::mem::take(&mut *tried.lock().unwrap());
    assert_eq!(ids, [ids[0]; 3]);
    assert_eq!(memory.clone().replay().unwrap().len(), journal().len());
    silent.store(usize::MAX, Ordering::SeqCst);
    let outcome = writer.append(records());
    drop(writer);
    let given_up = outcome.await.unwrap();
    assert!(matches!(given_up, Err(StoreError::Unavailable(_))));
    assert_eq!(memory.clone().replay().unwrap().len(), journal().len());
}

#[tokio::test]
async fn what_the_writer_kept_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let open = || Writer::start(Box::new(Redb::open(&path).unwrap())).unwrap();
    let (writer, found) = open();
    assert!(found.is_empty());
    writer.append(records()).await.unwrap().unwrap();
    let removed = vec![Record::EndpointRemoved {
        name: "red-east".to_owned(),
    }];
    writer.append(removed).await.unwrap().unwrap();
    drop(writer);
    let (writer, found) = open();
    let mut expected: Vec<_> = records()
        .into_iter()
        .filter(|record| !matches!(record, Record::Endpoint { .. }))
        .collect();
    assert_eq!(found, expected);
    // A snapshot replaces the journal, not the objects.
    let snapshot = vec![expected[0].clone()];
    expected.retain(|record| record.object_key().is_some() || *record == snapshot[0]);
    writer.rewrite(Vec::new(), snapshot).await.unwrap().unwrap();
    drop(writer);
    assert_eq!(open().1, expected);
    let history = Redb::open(&path).unwrap().history().unwrap();
    let history: Vec<_> = history
        .iter()
        .map(|entry| decode(&entry.bytes).unwrap())
        .collect();
    assert_eq!(history, journal()[1..]);
}

/// As the first release wrote it: without times, without history.
fn write_first_layout(path: &std::path::Path) {
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let journal = redb::TableDefinition::<u64, &[u8]>::new("journal");
    let objects = redb::TableDefinition::<&str, (u64, &[u8])>::new("objects");
    let database = redb::Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(meta).unwrap();
        for (key, value) in [("format", 1), ("next", 9), ("revision", 5)] {
            meta.insert(key, value).unwrap();
        }
        let mut journal = transaction.open_table(journal).unwrap();
        journal.insert(7, &b"a"[..]).unwrap();
        journal.insert(8, &b"b"[..]).unwrap();
        let mut objects = transaction.open_table(objects).unwrap();
        objects.insert("k", (4, &b"v"[..])).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn a_file_of_the_first_release_opens_and_stays_readable_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    write_first_layout(&path);
    let mut store = Redb::open(&path).unwrap();
    assert_eq!(store.replay().unwrap(), [entry(0, b"a"), entry(0, b"b")]);
    assert_eq!(store.list().unwrap()[0].revision, 4);
    assert_eq!(store.append(&[entry(3, b"c")]).unwrap(), 6);
    store.rewrite(&[entry(4, b"b"), entry(4, b"c")]).unwrap();
    drop(store);
    let mut store = Redb::open(&path).unwrap();
    assert_eq!(store.replay().unwrap(), [entry(0, b"b"), entry(3, b"c")]);
    assert_eq!(store.history().unwrap(), [entry(0, b"a")]);
    drop(store);
    let database = redb::Database::create(&path).unwrap();
    let journal = redb::TableDefinition::<u64, &[u8]>::new("journal");
    let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
    let journal = transaction.open_table(journal).unwrap();
    let rows = redb::ReadableTable::iter(&journal).unwrap();
    let rows: Vec<_> = rows.map(|row| row.unwrap().1.value().to_vec()).collect();
    assert_eq!(rows, [b"b", b"c"]);
}

#[test]
fn a_newer_format_a_damaged_file_and_a_second_process_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let store = Redb::open(&path).unwrap();
    let second = Redb::open(&path).err().unwrap().to_string();
    assert!(second.contains("x.redb"), "{second}");
    store.set_format(FORMAT + 1);
    drop(store);
    assert!(matches!(Redb::open(&path), Err(StoreError::Newer { found }) if found == FORMAT + 1));
    let torn = dir.path().join("torn.redb");
    std::fs::write(&torn, b"this is no database, whatever it was once").unwrap();
    let error = Redb::open(&torn).err().unwrap();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
}
