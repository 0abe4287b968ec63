//! What a reply says and whether it may (R2.1, R2.7, R2.12).

use super::world::*;
use crate::names::{
    Data, Failure, Flags, Owner, Policy, Question, Rcode, Reading, Record, RecordType, Reply,
    Upstream, Vote, Voter, classify,
};

use RecordType as T;

fn west() -> Upstream {
    let owner = Owner {
        domain: domain("west"),
        router: "red-west".parse().unwrap(),
        sibling: false,
    };
    Upstream::overlay(owner, vec![socket("172.16.4.1")], &name(ZONE))
}

fn vote(question: &Question, reply: &Reply) -> Vote {
    classify(&view(), question, Flags::default(), &west(), reply).vote
}

fn opaque(owner: &str, rtype: u16) -> Record {
    record(
        owner,
        Data::Opaque {
            rtype: RecordType(rtype),
            data: vec![1, 2],
        },
    )
}

#[test]
fn r2_1_replies_are_classed() {
    let asked = question("db.west.red.test", T::A);
    let found = positive(vec![address("db.west.red.test", "172.16.4.9")]);
    assert!(matches!(vote(&asked, &found), Vote::Positive(_)));
    assert_eq!(vote(&asked, &code(Rcode::NO_ERROR)), Vote::no_data());
    assert_eq!(vote(&asked, &code(Rcode::NX_DOMAIN)), Vote::nx_domain());
    for rcode in [Rcode::REFUSED, Rcode::NOT_AUTH, Rcode::NOT_IMP] {
        assert_eq!(vote(&asked, &code(rcode)), Vote::NoOpinion);
    }
    for rcode in [Rcode::SERV_FAIL, Rcode::FORM_ERR, Rcode(11), Rcode(4095)] {
        assert_eq!(vote(&asked, &code(rcode)), Vote::Failed(Failure::ErrorCode));
    }
    let referral = Reply {
        authority: vec![opaque("west.red.test", 2)],
        ..code(Rcode::NO_ERROR)
    };
    assert_eq!(vote(&asked, &referral), Vote::NoOpinion);
    let other_type = positive(vec![address("db.west.red.test", "fd77::2:0:0:9")]);
    assert_eq!(vote(&asked, &other_type), Vote::no_data());
}

#[test]
fn r2_1_aliases_are_followed_within_the_message() {
    let asked = question("a.west.red.test", T::A);
    let alias = |from: &str, to: &str| record(from, Data::Cname(name(to)));
    let whole = positive(vec![
        address("c.west.red.test", "172.16.4.9"),
        alias("b.west.red.test", "c.west.red.test"),
        alias("a.west.red.test", "b.west.red.test"),
    ]);
    let Vote::Positive(found) = vote(&asked, &whole) else {
        panic!("positive")
    };
    let types: Vec<T> = found
        .records
        .iter()
        .map(|record| record.data.rtype())
        .collect();
    assert_eq!(
        types,
        [T::CNAME, T::CNAME, T::A],
        "aliases first, in the order they are followed"
    );
    let dangling = positive(vec![alias("a.west.red.test", "b.west.red.test")]);
    assert_eq!(vote(&asked, &dangling), Vote::no_data());
    assert!(matches!(
        vote(&question("a.west.red.test", T::CNAME), &dangling),
        Vote::Positive(_)
    ));
    let circle = positive(vec![
        alias("a.west.red.test", "b.west.red.test"),
        alias("b.west.red.test", "a.west.red.test"),
    ]);
    assert_eq!(vote(&asked, &circle), Vote::Failed(Failure::Malformed));
}

#[test]
fn r2_12_names_and_addresses_belong_to_the_answering_domain() {
    let asked = question("db.red.test", T::ANY);
    let foreign = [
        address("db.red.test", "172.16.8.9"),
        address("db.red.test", "fd77::1:0:0:5"),
        address("db.red.test", "8.8.8.8"),
        address("other.red.test", "172.16.4.9"),
        address("db.north.red.test", "172.16.4.9"),
        record("db.red.test", Data::Cname(name("db.north.red.test"))),
        record("db.red.test", Data::Cname(name("db.red.test"))),
        record(
            "db.red.test",
            Data::Srv {
                priority: 0,
                weight: 0,
                port: 1,
                target: name("db.example.com"),
            },
        ),
        record("db.red.test", Data::Ptr(name("west.red.test"))),
        opaque("db.red.test", 15),
        opaque("db.red.test", 64),
    ];
    for record in foreign {
        let mixed = positive(vec![address("db.red.test", "172.16.4.9"), record.clone()]);
        assert_eq!(
            vote(&asked, &mixed),
            Vote::Failed(Failure::Foreign),
            "{record:?}"
        );
    }
    let own = [
        address("db.red.test", "fd77::2:0:0:9"),
        record("db.red.test", Data::Cname(name("x.kiosk.west.red.test"))),
        opaque("db.red.test", 16),
        opaque("db.red.test", 65_280),
    ];
    for record in own {
        assert!(
            matches!(
                vote(&asked, &positive(vec![record.clone()])),
                Vote::Positive(_)
            ),
            "{record:?}"
        );
    }
    let pointer = question("9.4.16.172.in-addr.arpa", T::PTR);
    let to = |target: &str| {
        positive(vec![record(
            "9.4.16.172.in-addr.arpa",
            Data::Ptr(name(target)),
        )])
    };
    assert!(matches!(
        vote(&pointer, &to("db.west.red.test")),
        Vote::Positive(_)
    ));
    assert_eq!(
        vote(&pointer, &to("web.east.red.test")),
        Vote::Failed(Failure::Foreign)
    );
}

#[test]
fn r5_1_lives_from_others_are_capped() {
    let asked = question("db.west.red.test", T::A);
    let lives = |ttl| {
        let long = Record {
            ttl,
            ..address("db.west.red.test", "172.16.4.9")
        };
        match vote(&asked, &positive(vec![long])) {
            Vote::Positive(found) => found.records[0].ttl,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((lives(10), lives(86_400), lives(u32::MAX)), (10, 300, 0));
}

#[test]
fn r2_7_a_union_has_no_doubles_one_ttl_the_own_records_first_and_an_end() {
    let view = view();
    let records = |block: u8, count: u8, ttl: u32| {
        let records = (0..count).map(|host| Record {
            ttl,
            ..address("db.red.test", &format!("172.16.{block}.{host}"))
        });
        let doubled = records.chain([address("db.red.test", "172.16.4.0")]);
        Vote::positive(doubled.collect())
    };
    let votes = [
        (Voter::Local, records(0, 1, 20)),
        (Voter::Upstream(west().into()), records(4, 3, 7)),
    ];
    let merge = |votes: &[_]| merged(&view, "db.red.test", Policy::Union, votes);
    let merged = merge(&votes);
    assert_eq!(
        addresses(&merged),
        ["172.16.0.0", "172.16.4.0", "172.16.4.1", "172.16.4.2"]
    );
    assert!(merged.answers.iter().all(|record| record.ttl == 7));
    assert!(!merged.authoritative);
    let turned = Reading {
        turn: 1,
        ..Reading::new(merged.clone())
    }
    .to_answer();
    assert_ne!(
        addresses(&turned),
        addresses(&merged),
        "another order next time"
    );
    assert_eq!(addresses(&turned).len(), 4);
    let many = [
        (Voter::Local, records(0, 60, 30)),
        (Voter::Upstream(west().into()), records(4, 60, 30)),
    ];
    let cut = merge(&many);
    assert_eq!(cut.answers.len(), 64);
    assert_eq!(
        addresses(&cut)
            .iter()
            .filter(|text| text.starts_with("172.16.0."))
            .count(),
        60,
        "the own class stays"
    );
}
