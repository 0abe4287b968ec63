//! What every engine must do, each test with a store that is opened anew where it says so.

use registry_federation::store::{
    Conflict, Entry, HISTORY_BYTES_MAX, Job, Store, StoreError, Swap,
};
use tokio::sync::broadcast::error::TryRecvError;
use vl3_core::Wall;
use vl3_proto::document::CHAIN_BYTES_MAX;

/// Opens the store again, after whatever had it before is dropped.
pub(crate) type Open<'a> = &'a dyn Fn() -> Box<dyn Store>;

pub(crate) fn entry(at: u64, bytes: impl AsRef<[u8]>) -> Entry {
    Entry {
        at: Wall(at),
        bytes: bytes.as_ref().to_vec(),
    }
}

pub(crate) fn set(key: impl ToString, expected: Option<u64>, value: impl AsRef<[u8]>) -> Swap {
    Swap {
        key: key.to_string(),
        expected,
        value: Some(value.as_ref().to_vec()),
    }
}

pub(crate) fn remove(key: impl ToString, expected: Option<u64>) -> Swap {
    Swap {
        key: key.to_string(),
        expected,
        value: None,
    }
}

/// Everything that can be read, for comparing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) journal: Vec<Entry>,
    pub(crate) history: Vec<Entry>,
    pub(crate) objects: Vec<(String, Vec<u8>)>,
}

pub(crate) fn content(store: &mut dyn Store) -> Content {
    let objects = store.list().expect("a list");
    Content {
        journal: store.replay().expect("a journal"),
        history: store.history().expect("a history"),
        objects: objects
            .into_iter()
            .map(|object| (object.key, object.value))
            .collect(),
    }
}

/// Runs all of it; `fresh` gives an empty store and the way to open it again.
pub(crate) fn every_engine(fresh: &dyn Fn() -> Box<dyn Fn() -> Box<dyn Store>>) {
    for case in [
        the_journal_is_kept_in_order_with_its_times,
        a_rewrite_replaces_the_journal_and_keeps_history,
        a_snapshot_of_nothing_leaves_nothing,
        history_drops_the_oldest_beyond_its_bytes,
        objects_are_swapped_where_the_revision_is_right,
        a_watch_tells_every_change_in_order,
        a_slow_watcher_is_told_and_lists_again,
        a_job_is_done_as_a_whole,
        a_job_with_a_conflict_is_not_done_at_all,
        a_large_job_is_done_as_a_whole,
        entries_of_the_largest_size_are_kept_beside_small_ones,
    ] {
        let open = fresh();
        case(&*open);
    }
}

fn the_journal_is_kept_in_order_with_its_times(open: Open<'_>) {
    let mut store = open();
    assert!(store.replay().expect("a journal").is_empty());
    let mut last = 0;
    for number in 0..20_u64 {
        let pair = [
            entry(number, [number as u8]),
            entry(number, [number as u8, 1]),
        ];
        let revision = store.append(&pair).expect("an append");
        assert!(revision > last);
        last = revision;
    }
    let expected: Vec<_> = (0..20_u64)
        .flat_map(|number| {
            [
                entry(number, [number as u8]),
                entry(number, [number as u8, 1]),
            ]
        })
        .collect();
    assert_eq!(store.replay().expect("a journal"), expected);
    drop(store);
    let mut store = open();
    assert_eq!(store.replay().expect("a journal"), expected);
    assert!(store.append(&[entry(21, "more")]).expect("an append") > last);
}

fn a_rewrite_replaces_the_journal_and_keeps_history(open: Open<'_>) {
    let mut store = open();
    let (a, b, c) = (entry(1, "a"), entry(2, "b"), entry(3, "c"));
    store.append(&[a.clone(), b.clone()]).expect("an append");
    let before = store.append(std::slice::from_ref(&c)).expect("an append");
    let after = store.rewrite(&[entry(9, "b"), entry(9, "d")]);
    assert!(after.expect("a rewrite") > before);
    store.append(&[entry(10, "e")]).expect("an append");
    let expected = Content {
        journal: vec![b.clone(), entry(9, "d"), entry(10, "e")],
        history: vec![a.clone(), c.clone()],
        objects: Vec::new(),
    };
    assert_eq!(content(&mut *store), expected);
    drop(store);
    let mut store = open();
    assert_eq!(content(&mut *store), expected);
    store.rewrite(&[entry(12, "e")]).expect("a rewrite");
    assert_eq!(store.replay().expect("a journal"), [entry(10, "e")]);
    assert_eq!(
        store.history().expect("a history"),
        [a, c, b, entry(9, "d")]
    );
}

fn a_snapshot_of_nothing_leaves_nothing(open: Open<'_>) {
    let mut store = open();
    store.rewrite(&[]).expect("a rewrite");
    store.append(&[entry(1, "a")]).expect("an append");
    store.rewrite(&[]).expect("a rewrite");
    drop(store);
    let mut store = open();
    assert!(store.replay().expect("a journal").is_empty());
    assert_eq!(store.history().expect("a history"), [entry(1, "a")]);
    store.append(&[entry(2, "b")]).expect("an append");
    assert_eq!(store.replay().expect("a journal"), [entry(2, "b")]);
}

fn history_drops_the_oldest_beyond_its_bytes(open: Open<'_>) {
    let mut store = open();
    let size = HISTORY_BYTES_MAX / 20;
    for number in 0..25_u8 {
        let mut bytes = vec![number; size];
        bytes[0] = number;
        store
            .append(&[entry(number.into(), bytes)])
            .expect("an append");
    }
    store.rewrite(&[]).expect("a rewrite");
    let history = store.history().expect("a history");
    let bytes: usize = history.iter().map(|entry| entry.bytes.len()).sum();
    assert_eq!((history.len(), bytes <= HISTORY_BYTES_MAX), (20, true));
    assert_eq!(history[0].bytes[0], 5);
    assert_eq!(history[19].bytes[0], 24);
}

fn objects_are_swapped_where_the_revision_is_right(open: Open<'_>) {
    let mut store = open();
    let first = store.swap(&[set("k", None, "1")]).expect("a swap")[0].expect("no conflict");
    let conflict = Conflict { found: Some(first) };
    let missing = Conflict { found: None };
    let results = store.swap(&[
        set("k", None, "2"),
        set("k", Some(first + 100), "2"),
        remove("absent", Some(first)),
        set("l", None, "3"),
    ]);
    let results = results.expect("a swap");
    assert_eq!(results[..3], [Err(conflict), Err(conflict), Err(missing)]);
    let second = results[3].expect("no conflict");
    assert!(second > first);
    drop(store);
    let mut store = open();
    let listed = store.list().expect("a list");
    let listed: Vec<_> = listed
        .iter()
        .map(|it| (it.key.as_str(), it.revision))
        .collect();
    assert_eq!(listed, [("k", first), ("l", second)]);
    let gone = store.swap(&[remove("k", Some(first))]).expect("a swap")[0];
    assert!(gone.expect("no conflict") > second);
    let again = store.swap(&[remove("k", Some(first))]).expect("a swap")[0];
    assert_eq!(again, Err(missing));
    assert_eq!(store.list().expect("a list").len(), 1);
}

fn a_watch_tells_every_change_in_order(open: Open<'_>) {
    let mut store = open();
    store.swap(&[set("before", None, "x")]).expect("a swap")[0].expect("no conflict");
    let mut watch = store.watch();
    let first = store.swap(&[set("k", None, "1")]).expect("a swap")[0].expect("no conflict");
    store.swap(&[set("k", None, "2")]).expect("a swap")[0].expect_err("a conflict");
    let job = Job {
        id: 7,
        append: vec![entry(1, "a")],
        rewrite: None,
        swaps: vec![set("k", Some(first), "3"), set("l", None, "4")],
    };
    let revisions = store.commit(&job).expect("a commit");
    store
        .swap(&[remove("k", Some(revisions[0]))])
        .expect("a swap")[0]
        .expect("no conflict");
    let told: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
    let what: Vec<_> = told
        .iter()
        .map(|change| (change.key.as_str(), change.value.as_deref()))
        .collect();
    let expected: [(&str, Option<&[u8]>); 4] = [
        ("k", Some(b"1")),
        ("k", Some(b"3")),
        ("l", Some(b"4")),
        ("k", None),
    ];
    assert_eq!(what, expected);
    assert!(told.is_sorted_by_key(|change| change.revision));
}

fn a_slow_watcher_is_told_and_lists_again(open: Open<'_>) {
    let mut store = open();
    let mut watch = store.watch();
    for round in 0..15_u8 {
        let swaps = (0..80)
            .map(|key| set(format!("{round}-{key}"), None, [round]))
            .collect();
        let job = Job {
            id: u128::from(round) + 1,
            swaps,
            ..Job::default()
        };
        store.commit(&job).expect("a commit");
    }
    let lagged = watch.try_recv();
    assert!(
        matches!(lagged, Err(TryRecvError::Lagged(missed)) if missed > 0),
        "{lagged:?}"
    );
    assert_eq!(store.list().expect("a list").len(), 1200);
}

fn a_job_is_done_as_a_whole(open: Open<'_>) {
    let mut store = open();
    store.append(&[entry(1, "a")]).expect("an append");
    let job = Job {
        id: 1,
        append: vec![entry(2, "b")],
        rewrite: Some(vec![entry(3, "a"), entry(3, "s")]),
        swaps: vec![set("k", None, "1"), set("l", None, "2")],
    };
    let revisions = store.commit(&job).expect("a commit");
    assert_eq!(revisions.len(), 2);
    let expected = Content {
        journal: vec![entry(1, "a"), entry(3, "s")],
        history: vec![entry(2, "b")],
        objects: vec![
            ("k".to_owned(), b"1".to_vec()),
            ("l".to_owned(), b"2".to_vec()),
        ],
    };
    assert_eq!(content(&mut *store), expected);
    drop(store);
    let mut store = open();
    assert_eq!(content(&mut *store), expected);
    let listed: Vec<_> = store
        .list()
        .expect("a list")
        .iter()
        .map(|it| it.revision)
        .collect();
    assert_eq!(listed, revisions);
}

fn a_job_with_a_conflict_is_not_done_at_all(open: Open<'_>) {
    let mut store = open();
    store.append(&[entry(1, "a")]).expect("an append");
    let before = content(&mut *store);
    let job = Job {
        id: 1,
        append: vec![entry(2, "b")],
        rewrite: None,
        swaps: vec![set("k", None, "1"), remove("absent", Some(1))],
    };
    let refused = store.commit(&job);
    assert!(
        matches!(refused, Err(StoreError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(content(&mut *store), before);
    drop(store);
    let mut store = open();
    assert_eq!(content(&mut *store), before);
    // The store is as good as before.
    let job = Job {
        id: 2,
        swaps: vec![set("k", None, "1")],
        ..job
    };
    store.commit(&job).expect("a commit");
}

/// More than fits into one transaction of any engine.
fn a_large_job_is_done_as_a_whole(open: Open<'_>) {
    let mut store = open();
    let old: Vec<_> = (0..700)
        .map(|number| entry(1, format!("old {number}")))
        .collect();
    store.append(&old).expect("an append");
    let snapshot: Vec<_> = (0..900)
        .map(|number| entry(3, format!("new {number}")))
        .collect();
    let big = vec![7; 300 * 1024];
    let mut swaps: Vec<_> = (0..300)
        .map(|key| set(format!("o{key:03}"), None, "x"))
        .collect();
    swaps.extend((0..6).map(|key| set(format!("p{key}"), None, &big)));
    let job = Job {
        id: 1,
        append: vec![entry(2, "last")],
        rewrite: Some(snapshot.clone()),
        swaps,
    };
    assert_eq!(store.commit(&job).expect("a commit").len(), 306);
    drop(store);
    let mut store = open();
    let kept = content(&mut *store);
    assert_eq!(kept.journal, snapshot);
    assert_eq!(kept.history.len(), 701);
    assert_eq!(kept.history[700], entry(2, "last"));
    assert_eq!(kept.objects.len(), 306);
    assert_eq!(kept.objects[305].1, big);
}

/// The chain of a network's documents, with what a record has around it.
fn entries_of_the_largest_size_are_kept_beside_small_ones(open: Open<'_>) {
    let large = |at: u64| {
        let bytes = (0..CHAIN_BYTES_MAX + 1024).map(|byte| (byte / 1000) as u8 ^ at as u8);
        entry(at, bytes.collect::<Vec<_>>())
    };
    let mut store = open();
    let job = |append: &[Entry], rewrite: Option<&[Entry]>| Job {
        id: u128::from(append[0].at.0),
        append: append.to_vec(),
        rewrite: rewrite.map(<[Entry]>::to_vec),
        swaps: Vec::new(),
    };
    let first = [entry(1, "a"), large(2), large(3), entry(4, "b")];
    store.commit(&job(&first, None)).expect("a commit");
    drop(store);
    let mut store = open();
    assert!(store.replay().expect("a journal") == first);
    // One stays, one becomes history, one comes.
    let snapshot = [large(3), entry(9, "c"), large(5)];
    store
        .commit(&job(&[large(5)], Some(&snapshot)))
        .expect("a commit");
    store.append(&[entry(10, "d")]).expect("an append");
    for _ in 0..2 {
        let kept = content(&mut *store);
        let journal = [large(3), entry(9, "c"), large(5), entry(10, "d")];
        assert!(kept.journal == journal, "{} entries", kept.journal.len());
        assert!(kept.history == [entry(1, "a"), large(2), entry(4, "b")]);
        drop(store);
        store = open();
    }
    // History has no room for more than four of them.
    store.rewrite(&[]).expect("a rewrite");
    for at in 20..24 {
        store.append(&[large(at)]).expect("an append");
    }
    store.rewrite(&[entry(30, "e")]).expect("a rewrite");
    let kept = content(&mut *store);
    assert_eq!(kept.journal, [entry(30, "e")]);
    let fitting = [entry(10, "d"), large(20), large(21), large(22), large(23)];
    assert!(kept.history == fitting, "{} entries", kept.history.len());
}
