//! Connections that break, space that runs out, members that die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, TlsOptions};
use registry_federation::store::{
    Claim, Etcd, EtcdConfig, Followed, Job, Journal as _, Shared as _, Store, StoreError,
};
use vl3_core::registry::Record;

use crate::bench::{Bench, Replica, candidate, eventually_active, next};
use crate::fence::{floor, job, kept};
use crate::relay::Relay;
use crate::suite::{Content, content, entry, set};

fn options_of(config: &EtcdConfig) -> ConnectOptions {
    let read = |file: &Option<std::path::PathBuf>| {
        std::fs::read(file.as_ref().expect("a file")).expect("a file")
    };
    let identity = etcd_client::Identity::from_pem(read(&config.cert), read(&config.key));
    let tls = TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(read(&config.ca)))
        .identity(identity);
    ConnectOptions::new().with_tls(tls)
}

/// What an operator's own client sees.
async fn operator(config: &EtcdConfig) -> Client {
    let client = Client::connect(config.endpoints.clone(), Some(options_of(config))).await;
    client.expect("a client")
}

/// Takes several transactions, each kind of operation among them.
fn large_job() -> Job {
    Job {
        id: rand::random(),
        append: (0..150)
            .map(|number| entry(2, format!("appended {number}")))
            .collect(),
        rewrite: Some(
            (0..130)
                .map(|number| entry(3, format!("snapshot {number}")))
                .collect(),
        ),
        swaps: (0..120)
            .map(|key| set(format!("o{key:03}"), None, [7; 40]))
            .collect(),
    }
}

/// Whether this is what stands after a beginning of the job.
fn is_beginning(found: &Content, before: &Content, job: &Job) -> bool {
    let snapshot = job.rewrite.as_deref().unwrap_or_default();
    if found.journal == snapshot {
        let replaced = before
            .journal
            .iter()
            .chain(&job.append)
            .cloned()
            .collect::<Vec<_>>();
        return found.history == replaced && found.objects.len() == job.swaps.len();
    }
    let Some(appended) = found.journal.strip_prefix(before.journal.as_slice()) else {
        return false;
    };
    let objects_late = found.objects.is_empty() || appended.len() == job.append.len();
    job.append.starts_with(appended) && objects_late && found.history == before.history
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_anywhere_leaves_a_beginning_and_the_next_try_ends_it() {
    let bench = Bench::start(1).await;
    let relay = Relay::start(&bench.cluster.endpoints()[0]).await;
    let mut cuts = 0;
    for round in 0..40 {
        let name = format!("cut-{round}");
        let owner = Replica::active(bench.config(&name));
        let config = bench.config_to(vec![relay.endpoint.clone()], &name);
        relay.repair();
        let cut_off = Etcd::new(config).expect("a thread");
        let mut store = cut_off.writer(owner.term).expect("a writer");
        store
            .append(&[entry(1, "before"), entry(1, "too")])
            .expect("an append");
        let before = content(&mut *store);
        // Even rounds lose questions, odd ones answers; a few kilobytes more each time.
        let bytes = 200 + i64::from(round) * 1300;
        if round % 2 == 0 {
            relay.questions(bytes);
        } else {
            relay.answers(bytes / 20);
        }
        let job = large_job();
        match store.commit(&job) {
            Ok(_) => continue,
            Err(StoreError::Unavailable(_)) => cuts += 1,
            Err(error) => panic!("round {round}: {error}"),
        }
        relay.repair();
        if round % 4 < 2 {
            // The same job again: done once, whatever got through.
            store.commit(&job).expect("the store answers again");
        } else {
            // Another writer comes instead, and finds a beginning.
            let mut other = owner.etcd.writer(owner.term).expect("a writer");
            let found = content(&mut *other);
            assert!(
                is_beginning(&found, &before, &job),
                "round {round}: {found:?}"
            );
            let whole = found.journal == *job.rewrite.as_ref().expect("a snapshot");
            match store.commit(&job) {
                Ok(_) => assert!(whole, "round {round}: a success that is none"),
                Err(StoreError::Fenced { .. }) => {}
                Err(error) => panic!("round {round}: {error}"),
            }
            continue;
        }
        let found = content(&mut *store);
        assert_eq!(Some(&found.journal), job.rewrite.as_ref());
        assert!(
            is_beginning(&found, &before, &job),
            "round {round}: {found:?}"
        );
    }
    assert!(cuts >= 20, "{cuts} cuts only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_within_a_large_entry_leaves_nothing_of_it() {
    let bench = Bench::start(1).await;
    let relay = Relay::start(&bench.cluster.endpoints()[0]).await;
    let large = Job {
        id: 1,
        append: vec![entry(1, vec![7; 3 * 1024 * 1024])],
        ..Job::default()
    };
    for megabyte_tenths in [1, 8, 15, 22, 29] {
        let name = format!("large-{megabyte_tenths}");
        let owner = Replica::active(bench.config(&name));
        relay.repair();
        let config = bench.config_to(vec![relay.endpoint.clone()], &name);
        let cut_off = Etcd::new(config).expect("a thread");
        let mut store = cut_off.writer(owner.term).expect("a writer");
        store.append(&[entry(1, "before")]).expect("an append");
        relay.questions(megabyte_tenths * 100_000);
        let cut = store.commit(&large).expect_err("cut");
        assert!(matches!(cut, StoreError::Unavailable(_)), "{cut}");
        relay.repair();
        if megabyte_tenths % 2 == 0 {
            store.commit(&large).expect("the store answers again");
        }
        let mut other = owner.etcd.writer(owner.term).expect("a writer");
        other.append(&[entry(2, "after")]).expect("an append");
        let whole = if megabyte_tenths % 2 == 0 { 3 } else { 2 };
        let journal = other.replay().expect("a journal");
        assert_eq!(journal.len(), whole, "{megabyte_tenths}");
        assert!(whole == 2 || journal[1] == large.append[0]);
        // Nor is any part of it left.
        let mut operator = operator(&bench.config(&name)).await;
        let options = etcd_client::GetOptions::new()
            .with_prefix()
            .with_keys_only();
        let keys = operator
            .get(format!("/vl3/{name}/journal/"), Some(options))
            .await;
        let parts = if whole == 3 { 7 } else { 0 };
        assert_eq!(keys.expect("keys").kvs().len(), whole + parts);
    }
}

/// Of one key as long as it takes: a limit below what the engine counts on.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_etcd_never_takes_is_refused_and_not_tried_for_ever() {
    let limit = 200 * 1024;
    let bench = Bench::start_with(1, &["--max-request-bytes", &limit.to_string()]).await;
    // Below the limit of its gRPC, which is half a megabyte above, and beyond it.
    for (name, size) in [("above", limit + 1024), ("beyond", limit + 600 * 1024)] {
        let mut writer = Replica::active(bench.config(name));
        let object = Job {
            id: 1,
            swaps: vec![set("k", None, vec![7; size])],
            ..Job::default()
        };
        let refused = writer.commit(&object).expect_err("too large");
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        assert!(refused.to_string().contains("large"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_cut_off_knows_when_its_claim_lapsed() {
    let bench = Bench::start(1).await;
    let relay = Relay::start(&bench.cluster.endpoints()[0]).await;
    let config = bench.config_to(vec![relay.endpoint.clone()], "lapse");
    let first = Etcd::new(config).expect("a thread");
    let mut claim = first.campaign(candidate("first"));
    let term = eventually_active(&mut claim).await;
    let mut store = first.writer(term).expect("a writer");
    let second = Etcd::new(bench.config("lapse")).expect("a thread");
    let mut second_claim = second.campaign(candidate("second"));
    let other = second_claim
        .wait_for(|claim| matches!(claim, Claim::Other { .. }))
        .await;
    drop(other.expect("a campaign"));
    relay.cut();
    let lapsed = claim.wait_for(|claim| *claim == Claim::Unknown).await;
    drop(lapsed.expect("a campaign"));
    let next_term = eventually_active(&mut second_claim).await;
    assert!(next_term > term);
    relay.repair();
    let refused = loop {
        match store.commit(&job(&[floor(1)])) {
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => break error,
            Ok(_) => panic!("a deposed replica wrote"),
        }
    };
    assert!(matches!(refused, StoreError::Fenced { .. }), "{refused}");
    let known = claim
        .wait_for(|claim| matches!(claim, Claim::Other { .. }))
        .await;
    assert!(
        matches!(&*known.expect("a campaign"), Claim::Other { term, .. } if *term == next_term)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_goes_on_after_a_cut_and_begins_anew_after_a_compaction() {
    let bench = Bench::start(1).await;
    let relay = Relay::start(&bench.cluster.endpoints()[0]).await;
    let mut writer = Replica::active(bench.config("gap"));
    let config = bench.config_to(vec![relay.endpoint.clone()], "gap");
    let follower = Etcd::new(config.clone()).expect("a thread");
    let mut feed = follower.follow();
    assert!(matches!(next(&mut feed).await, Followed::Reload { .. }));
    for compacted in [false, true] {
        relay.cut();
        while !matches!(next(&mut feed).await, Followed::Disconnected { .. }) {}
        writer.commit(&job(&[floor(1)])).expect("a commit");
        writer.commit(&job(&[floor(2)])).expect("a commit");
        let revision = writer.append(&[kept(&floor(3))]).expect("an append");
        if compacted {
            let mut operator = operator(&bench.config("gap")).await;
            let revision = i64::try_from(revision).expect("small");
            operator
                .compact(revision, None)
                .await
                .expect("a compaction");
        }
        relay.repair();
        assert!(matches!(next(&mut feed).await, Followed::Connected));
        let mut told = Vec::new();
        while told.len() < if compacted { 6 } else { 3 } {
            match next(&mut feed).await {
                Followed::Batch { records, .. } if !compacted => told.extend(records),
                Followed::Reload { records, .. } if compacted => told = records,
                message => panic!("compacted {compacted}: {message:?}"),
            }
        }
        let three = [floor(1), floor(2), floor(3)];
        assert_eq!(told[told.len() - 3..], three);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_too_slow_begins_anew() {
    let bench = Bench::start(1).await;
    let mut writer = Replica::active(bench.config("slow"));
    let mut feed = writer.etcd.follow();
    assert!(matches!(next(&mut feed).await, Followed::Reload { .. }));
    let many = 1200;
    for number in 1..=many {
        writer.commit(&job(&[floor(number)])).expect("a commit");
    }
    let mut seen: Vec<Record> = Vec::new();
    let mut anew = 0;
    while seen.len() < usize::try_from(many).expect("small") {
        match next(&mut feed).await {
            Followed::Batch { records, .. } => seen.extend(records),
            Followed::Reload { records, .. } => (seen, anew) = (records, anew + 1),
            message => panic!("{message:?}"),
        }
    }
    assert_eq!(seen, (1..=many).map(floor).collect::<Vec<_>>());
    assert!(anew >= 1, "it was never told");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_without_space_is_named_and_the_job_is_done_when_there_is_room() {
    let bench = Bench::start_with(1, &["--quota-backend-bytes", "4194304"]).await;
    let config = bench.config("full");
    let mut writer = Replica::active(config.clone());
    let mut revision = None;
    let mut jobs = 0;
    let (job, reason) = loop {
        jobs += 1;
        let job = Job {
            id: rand::random(),
            append: vec![kept(&floor(1))],
            swaps: vec![set("k", revision, vec![7; 300_000])],
            ..Job::default()
        };
        match writer.commit(&job) {
            Ok(done) => revision = Some(done[0]),
            Err(StoreError::Unavailable(reason)) => break (job, reason),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(reason.contains("etcd's space quota is used up"), "{reason}");
    // etcd may have done the job that it refused; either way it is done once.
    let entries = writer.replay().expect("it still reads").len();
    assert!(
        entries == jobs || entries == jobs - 1,
        "{entries} of {jobs}"
    );
    let mut operator = operator(&config).await;
    let physical = etcd_client::CompactionOptions::new().with_physical();
    let revision = i64::try_from(revision.expect("some fitted")).expect("small");
    operator
        .compact(revision, Some(physical))
        .await
        .expect("a compaction");
    let status = operator.status().await.expect("a status");
    let member = status.header().expect("a header").member_id();
    operator.defragment().await.expect("a defragmentation");
    let mut of_member = etcd_client::AlarmOptions::new();
    of_member.with_member(member);
    let (action, alarm) = (
        etcd_client::AlarmAction::Deactivate,
        etcd_client::AlarmType::Nospace,
    );
    operator
        .alarm(action, alarm, Some(of_member))
        .await
        .expect("no alarm");
    writer.commit(&job).expect("there is room");
    assert_eq!(writer.replay().expect("a journal").len(), jobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_and_damage_are_named_and_left_alone() {
    let bench = Bench::start(1).await;
    let config = bench.config("newer");
    let mut writer = Replica::active(config.clone());
    writer.append(&[kept(&floor(1))]).expect("an append");
    let mut operator = operator(&config).await;
    let put = operator.put("/vl3/newer/format", "2", None).await;
    put.expect("a put");
    let error = writer.etcd.writer(writer.term).err().expect("newer");
    assert!(matches!(error, StoreError::Newer { found: 2 }), "{error}");
    let damaged = next(&mut writer.etcd.follow()).await;
    assert!(
        matches!(damaged, Followed::Damaged(StoreError::Newer { found: 2 })),
        "{damaged:?}"
    );
    operator
        .put("/vl3/newer/format", "1", None)
        .await
        .expect("a put");
    let key = "/vl3/newer/journal/00000000000000000000/00000000000000000000";
    operator.put(key, "torn", None).await.expect("a put");
    let error = writer.replay().expect_err("damaged").to_string();
    assert!(error.contains(key), "{error}");
    let damaged = next(&mut writer.etcd.follow()).await;
    assert!(
        matches!(damaged, Followed::Damaged(StoreError::Read(_))),
        "{damaged:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_refuses_us_says_so_until_it_lets_us_in() {
    let bench = Bench::start(1).await;
    let config = bench.config("refused");
    let mut operator = operator(&config).await;
    // The built-in CA's certificates are of that name, which is the user.
    operator.role_add("root").await.expect("a role");
    for user in ["root", "vL3"] {
        let options = etcd_client::UserAddOptions::new();
        let added = operator.user_add(user, "secret", Some(options)).await;
        added.expect("a user");
    }
    operator
        .user_grant_role("root", "root")
        .await
        .expect("a grant");
    operator.role_add("gateway").await.expect("a role");
    operator
        .user_grant_role("vL3", "gateway")
        .await
        .expect("a grant");
    operator.auth_enable().await.expect("authentication");

    let etcd = Etcd::new(config.clone()).expect("a thread");
    let mut feed = etcd.follow();
    match next(&mut feed).await {
        Followed::Disconnected { reason } => {
            assert!(reason.contains("permission denied"), "{reason}");
        }
        message => panic!("{message:?}"),
    }
    let error = etcd.writer(1).err().expect("refused");
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    let mut claim = etcd.campaign(candidate("refused"));
    assert_eq!(*claim.borrow_and_update(), Claim::Unknown);

    let options = options_of(&config).with_user("root", "secret");
    let mut root = Client::connect(config.endpoints.clone(), Some(options))
        .await
        .expect("root");
    let all = etcd_client::Permission::read_write("/vl3/refused/").with_prefix();
    root.role_grant_permission("gateway", all)
        .await
        .expect("a grant");
    assert!(matches!(next(&mut feed).await, Followed::Connected));
    assert!(matches!(next(&mut feed).await, Followed::Reload { .. }));
    let term = eventually_active(&mut claim).await;
    let mut store = etcd.writer(term).expect("a writer");
    store.commit(&job(&[floor(1)])).expect("a commit");
}

/// Writes 1, 2, 3 ... each as a job of its own, through whatever happens; every number that
/// was acknowledged, in order.
fn writes(etcd: &Etcd, stop: &AtomicBool, done: &AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let mut claim = etcd.campaign(candidate("writer"));
    let mut number = 1;
    'terms: while !stop.load(Ordering::SeqCst) {
        let term = runtime.block_on(eventually_active(&mut claim));
        let Ok(mut store) = etcd.writer(term) else {
            continue;
        };
        let Ok(entries) = store.replay() else {
            continue;
        };
        // What was not acknowledged may be there.
        if entries.last() == Some(&kept(&floor(number))) {
            done.store(number, Ordering::SeqCst);
            number += 1;
        }
        while !stop.load(Ordering::SeqCst) {
            let job = job(&[floor(number)]);
            loop {
                match store.commit(&job) {
                    Ok(_) => break,
                    Err(StoreError::Unavailable(_)) => {}
                    Err(StoreError::Fenced { .. }) => continue 'terms,
                    Err(error) => panic!("{number}: {error}"),
                }
            }
            done.store(number, Ordering::SeqCst);
            number += 1;
        }
    }
}

async fn eventually_beyond(done: &AtomicU64, number: u64) {
    for _ in 0..600 {
        if done.load(Ordering::SeqCst) > number {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nothing was written for a minute after {number}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_and_silent_members_lose_nothing_and_repeat_nothing() {
    let mut bench = Bench::start(3).await;
    let etcd = Etcd::new(bench.config("three")).expect("a thread");
    let follower = Etcd::new(bench.config("three")).expect("a thread");
    let mut feed = follower.follow();
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (stopping, counter) = (Arc::clone(&stop), Arc::clone(&done));
    let writer = std::thread::spawn(move || {
        writes(&etcd, &stopping, &counter);
        etcd
    });
    let told = tokio::spawn(async move {
        let (mut told, mut anew): (Vec<Record>, usize) = (Vec::new(), 0);
        while let Some(message) = feed.recv().await {
            match message {
                Followed::Reload { records, .. } => (told, anew) = (records, anew + 1),
                Followed::Batch { records, .. } => told.extend(records),
                Followed::Connected | Followed::Disconnected { .. } => {}
                Followed::Damaged(error) => panic!("{error}"),
            }
        }
        (told, anew)
    });
    eventually_beyond(&done, 20).await;

    let leader = bench.cluster.leader().expect("a leader");
    bench.cluster.kill(leader).await.expect("a dead leader");
    let before = done.load(Ordering::SeqCst);
    eventually_beyond(&done, before + 20).await;
    bench.cluster.start_member(leader).expect("it starts again");
    bench
        .cluster
        .eventually_healthy()
        .await
        .expect("three members");

    // All of it silent for longer than the claim lives.
    for member in 0..3 {
        bench.cluster.pause(member).expect("a silent member");
    }
    eventually_passed(Duration::from_secs(5)).await;
    for member in 0..3 {
        bench.cluster.resume(member).expect("it goes on");
    }
    let before = done.load(Ordering::SeqCst);
    eventually_beyond(&done, before + 20).await;

    // One silent member: the others serve.
    bench.cluster.pause(0).expect("a silent member");
    let before = done.load(Ordering::SeqCst);
    eventually_beyond(&done, before + 20).await;
    bench.cluster.resume(0).expect("it goes on");

    stop.store(true, Ordering::SeqCst);
    let etcd = tokio::task::spawn_blocking(|| writer.join()).await;
    drop(etcd.expect("a thread").expect("a writer"));
    let last = done.load(Ordering::SeqCst);
    let mut after = Replica::active(bench.config("three"));
    let journal = after.replay().expect("a journal");
    let numbers: Vec<_> = (1..=last).map(|number| kept(&floor(number))).collect();
    assert!(
        journal == numbers,
        "{last} acknowledged, {} found",
        journal.len()
    );
    after.append(&[kept(&floor(last + 1))]).expect("an append");
    eventually_passed(Duration::from_secs(1)).await;
    drop(follower);
    let (told, anew) = told.await.expect("a follower");
    let all: Vec<_> = (1..=last + 1).map(floor).collect();
    assert!(told == all, "{} of {} told", told.len(), all.len());
    assert_eq!(anew, 1, "no gap that had to be filled");
    let distinct: BTreeSet<_> = journal.iter().map(|entry| &entry.bytes).collect();
    assert_eq!(distinct.len(), journal.len());
}

async fn eventually_passed(time: Duration) {
    tokio::time::sleep(time).await;
}
