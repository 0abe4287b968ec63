//! Who may write, who follows.

use std::sync::Arc;

use registry_federation::store::{
    Claim, Entry, Etcd, Followed, Job, Shared as _, Store as _, StoreError, encode,
};
use vl3_core::Wall;
use vl3_core::allocator::LeaseRecord;
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkUid};
use vl3_core::registry::{Endpoint, Record};

use crate::bench::{Bench, Replica, candidate, eventually_active, next};
use crate::suite::{entry, remove, set};

pub(crate) fn floor(generation: u64) -> Record {
    Record::Lease {
        uid: NetworkUid([7; 16]),
        record: LeaseRecord::Floor {
            generation: Generation(generation),
        },
    }
}

fn endpoint(name: &str) -> Record {
    Record::Endpoint {
        endpoint: Arc::new(Endpoint {
            name: name.to_owned(),
            ..Endpoint::default()
        }),
        owner: "spiffe://east.test/vl3/router/red".parse().expect("an id"),
    }
}

pub(crate) fn kept(record: &Record) -> Entry {
    entry(1, encode(record).expect("bytes"))
}

pub(crate) fn job(append: &[Record]) -> Job {
    Job {
        id: rand::random(),
        append: append.iter().map(kept).collect(),
        ..Job::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_is_active_and_the_next_fences_it() {
    let bench = Bench::start(1).await;
    let first = Etcd::new(bench.config("fence")).expect("a thread");
    let second = Etcd::new(bench.config("fence")).expect("a thread");
    let mut first_claim = first.campaign(candidate("first"));
    let term = eventually_active(&mut first_claim).await;
    let mut store = first.writer(term).expect("a writer");
    store.commit(&job(&[floor(1)])).expect("a commit");

    let standing = candidate("second");
    let mut second_claim = second.campaign(standing.clone());
    let other = second_claim
        .wait_for(|claim| matches!(claim, Claim::Other { .. }))
        .await;
    match &*other.expect("a campaign") {
        Claim::Other {
            candidate,
            term: of,
        } => {
            assert_eq!((candidate.name.as_str(), *of), ("first", term));
            assert_eq!(candidate.address, "tcp://first.test:5002");
        }
        claim => panic!("{claim:?}"),
    }
    // Not of its term: nothing is given out.
    let early = second.writer(term + 1).err().expect("not active");
    assert!(matches!(early, StoreError::Fenced { .. }), "{early}");

    first.release();
    let next_term = eventually_active(&mut second_claim).await;
    assert!(next_term > term);
    assert_eq!(*first_claim.borrow_and_update(), Claim::Unknown);
    let refused = store.commit(&job(&[floor(2)])).expect_err("deposed");
    match &refused {
        StoreError::Fenced { by } => assert_eq!(by, "second at tcp://second.test:5002"),
        error => panic!("{error}"),
    }
    let mut store = second.writer(next_term).expect("a writer");
    assert_eq!(store.replay().expect("a journal"), [kept(&floor(1))]);
    store.commit(&job(&[floor(3)])).expect("a commit");
    assert_eq!(store.replay().expect("a journal").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_one_term_do_not_both_write() {
    let bench = Bench::start(1).await;
    let mut first = Replica::active(bench.config("twins"));
    let mut second = first.etcd.writer(first.term).expect("a writer");
    second.commit(&job(&[floor(1)])).expect("a commit");
    let refused = first.commit(&job(&[floor(2)])).expect_err("deposed");
    assert!(matches!(refused, StoreError::Fenced { .. }), "{refused}");
    second.commit(&job(&[floor(3)])).expect("a commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hears_every_change_once_and_in_order() {
    let bench = Bench::start(1).await;
    let follower = Etcd::new(bench.config("feed")).expect("a thread");
    let mut feed = follower.follow();
    match next(&mut feed).await {
        Followed::Reload { records, .. } => assert_eq!(records, []),
        message => panic!("{message:?}"),
    }
    let mut writer = Replica::active(bench.config("feed"));
    let object = encode(&endpoint("red-east")).expect("bytes");
    let both = Job {
        swaps: vec![set("endpoint/red-east", None, &object)],
        ..job(&[floor(1), floor(2)])
    };
    let revision = writer.commit(&both).expect("a commit")[0];
    let rewrite = Job {
        rewrite: Some(vec![kept(&floor(2))]),
        swaps: vec![remove("endpoint/red-east", Some(revision))],
        ..job(&[floor(3)])
    };
    writer.commit(&rewrite).expect("a commit");
    writer.commit(&job(&[floor(4)])).expect("a commit");
    let mut told = Vec::new();
    let mut last = 0;
    while told.len() < 3 {
        match next(&mut feed).await {
            Followed::Batch { revision, records } => {
                assert!(revision > last);
                last = revision;
                if !records.is_empty() {
                    told.push(records);
                }
            }
            message => panic!("{message:?}"),
        }
    }
    let removed = Record::EndpointRemoved {
        name: "red-east".to_owned(),
    };
    assert_eq!(
        told,
        [
            vec![floor(1), floor(2), endpoint("red-east")],
            vec![floor(3), removed],
            vec![floor(4)]
        ]
    );
    // Somebody who comes later finds the same.
    let mut late = follower.follow();
    match next(&mut late).await {
        Followed::Reload { revision, records } => {
            assert_eq!(records, [floor(2), floor(4)]);
            assert_eq!(revision, last);
        }
        message => panic!("{message:?}"),
    }
    assert_eq!(kept(&floor(2)).at, Wall(1));
}

/// A document that takes almost all that one may take.
fn large_document() -> Record {
    let secret = AdminSecret::from_bytes(&[1; 32]);
    let admin_keys = [secret.public()].into();
    let nonce = vec![1; 32];
    let members = (1..=45).map(|number: u16| {
        let domain = DomainName::new(&format!("site-{number}")).expect("a name");
        let trust_domain = format!("site-{number}.test");
        let member = Member {
            domain: domain.clone(),
            roles: RoleIds::defaults(&trust_domain),
            trust_domain,
            bundle: vec![b'x'; 63 * 1024],
            contacts: Vec::new(),
            block4: None,
            block6: format!("fd00:1:2:3:{number}::/80")
                .parse()
                .expect("a block"),
            generation: Generation(1),
            not_after: None,
            revoked: false,
            dials_only: false,
        };
        (domain, member)
    });
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: "red".parse().expect("a name"),
        zone: "red.vl3".to_owned(),
        pool6: "fd00:1:2:3::/64".parse().expect("a pool"),
        pool4: None,
        admin_keys,
        members: members.collect(),
        policy: Policy::default(),
    };
    let chain = Chain::verify(vec![vl3_proto::document::sign(document, &[&secret])]);
    Record::Document {
        chain: chain.expect("a chain"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hears_of_a_large_document_at_once_and_after_a_gap() {
    let bench = Bench::start(1).await;
    let mut writer = Replica::active(bench.config("large"));
    let mut feed = writer.etcd.follow();
    assert!(matches!(next(&mut feed).await, Followed::Reload { .. }));
    let large = large_document();
    let small = [floor(1), floor(2)];
    let records = [small[0].clone(), large, small[1].clone()];
    writer.commit(&job(&records)).expect("a commit");
    let mut told = Vec::new();
    while told.len() < 3 {
        match next(&mut feed).await {
            Followed::Batch { records, .. } => told.extend(records),
            message => panic!("{message:?}"),
        }
    }
    assert!(told == records);
    match next(&mut writer.etcd.follow()).await {
        Followed::Reload { records: found, .. } => assert!(found == records),
        message => panic!("{message:?}"),
    }
}
