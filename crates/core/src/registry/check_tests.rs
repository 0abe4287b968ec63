use std::collections::BTreeSet;
use std::sync::Arc;

use super::bench::{Bench, router};
use super::object::{Endpoint, LABEL_GENERATION, Marks, Service};
use super::packed::Packed;
use super::record::Record;
use super::{Report, Violation, check};
use crate::allocator::{Lease, LeaseRecord};
use crate::document::fixture::{admin, chain, document, domain, id, next, signed};
use crate::document::{Chain, Document, DocumentStore, Offer};
use crate::ids::{DomainName, Generation, NetworkUid, RouterName, SpiffeId};

/// A lease, an endpoint, a name; one lease that ended and came again.
fn used() -> Bench {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), bench.register(1)).unwrap();
    bench.call(&router(), bench.claim("web", "a")).unwrap();
    bench.call(&router(), bench.acquire(2)).unwrap();
    bench
}

fn own() -> DomainName {
    domain("east")
}

fn named(found: &[Violation]) -> Vec<&'static str> {
    found.iter().map(|found| found.rule).collect()
}

fn rules(report: &Report) -> Vec<&'static str> {
    named(&report.violations)
}

fn lease(bench: &Bench) -> Lease {
    bench.machine.leases().next().unwrap().clone()
}

fn granted(lease: Lease) -> Record {
    held(lease, "east", &[])
}

fn held(lease: Lease, by: &str, exclusions: &[&str]) -> Record {
    Record::Lease {
        uid: lease.uid,
        record: LeaseRecord::Granted {
            lease,
            holder: id(by, "vl3/router/x"),
            exclusions: exclusions
                .iter()
                .map(|range| range.parse().unwrap())
                .collect(),
        },
    }
}

/// Another router's lease in these prefixes.
fn lies(bench: &Bench, prefix4: &str, prefix6: &str) -> Lease {
    Lease {
        router: RouterName::new("red-east-x").unwrap(),
        prefix4: Some(prefix4.parse().unwrap()),
        prefix6: prefix6.parse().unwrap(),
        ..lease(bench)
    }
}

/// Rules that are broken, and what is worth a look, with these records on top.
fn with(bench: &Bench, more: Vec<Record>, own: Option<&DomainName>) -> [Vec<&'static str>; 2] {
    let mut records = bench.disk.clone();
    records.extend(more);
    let report = check(&records, own);
    [named(&report.violations), named(&report.notices)]
}

#[test]
fn what_the_machine_writes_is_clean_and_counted() {
    let bench = used();
    for records in [&bench.disk, &bench.machine.snapshot()] {
        let report = check(records, Some(&own()));
        assert_eq!(rules(&report), [""; 0]);
        assert_eq!(report.notices, vec![]);
        let counts = [
            report.networks,
            report.leases,
            report.names,
            report.endpoints,
        ];
        assert_eq!(counts, [1, 1, 1, 1]);
    }
}

#[test]
fn every_broken_rule_is_named() {
    let bench = used();
    let held = lease(&bench);
    let other = || {
        let router = RouterName::new("red-east-x").unwrap();
        Lease {
            router,
            ..held.clone()
        }
    };
    let found = |more: Vec<Record>| {
        let mut records = bench.disk.clone();
        records.extend(more);
        rules(&check(&records, Some(&own())))
    };
    assert_eq!(
        found(vec![granted(other())]),
        ["leases never overlap", "leases never overlap"],
        "one for each family"
    );
    let older = Lease {
        generation: Generation(1),
        ..held.clone()
    };
    assert_eq!(
        found(vec![granted(older.clone())]),
        ["a router's generation never falls"]
    );
    let ended = Record::Lease {
        uid: held.uid,
        record: LeaseRecord::Ended {
            router: held.router.clone(),
        },
    };
    assert_eq!(
        found(vec![ended.clone()]),
        ["a name lives as long as its router's lease"]
    );
    assert_eq!(
        found(vec![ended, granted(older)]),
        ["a new lease stands above those that ended"]
    );
    let outside = Lease {
        prefix4: Some("192.0.2.0/30".parse().unwrap()),
        ..held.clone()
    };
    assert_eq!(
        found(vec![granted(outside)]),
        ["leases lie in the network's pools"]
    );
    let misshapen = Lease {
        prefix6: "fd00:1:2:3:1::/90".parse().unwrap(),
        ..held.clone()
    };
    assert_eq!(found(vec![granted(misshapen)]), ["leases are well-formed"]);
    let nowhere = check(&[granted(held)], None);
    assert_eq!(rules(&nowhere), ["a record belongs to a known network"]);
}

#[test]
fn a_mark_of_a_restore_ends_by_itself_and_survives_a_restart() {
    let mut bench = used();
    let uid = lease(&bench).uid;
    bench.disk.push(Record::Lease {
        uid,
        record: LeaseRecord::Restored { floor: None },
    });
    bench.restart();
    assert_eq!(check(&bench.machine.snapshot(), None).readopting, 1);
    bench.now = super::bench::at(600);
    bench.restart();
    bench.wake();
    assert_eq!(
        check(&bench.machine.snapshot(), None).readopting,
        1,
        "a period anew"
    );
    bench.now = super::bench::at(600 + 1200);
    bench.wake();
    bench.write();
    bench.restart();
    assert_eq!(check(&bench.machine.snapshot(), None).readopting, 0);
    assert_eq!(check(&bench.disk, None).readopting, 0);
    assert_eq!(rules(&check(&bench.disk, None)), [""; 0]);
}

#[test]
fn a_document_only_grows_and_each_version_has_one_content() {
    let first = chain(&["east", "west"]);
    let forked = Chain::verify(vec![signed(document(&["east"]), &[1])]).unwrap();
    let [second, fork] = [1, 2].map(|limit| {
        next(&first, |document| {
            document.policy.stale_limit_seconds = limit
        })
    });
    let third = next(&second, |_| {});
    let found = |chains: &[&Chain]| {
        let records = chains.iter().map(|chain| Record::Document {
            chain: Chain::clone(chain),
        });
        let report = check(&records.collect::<Vec<_>>(), None);
        [named(&report.violations), named(&report.notices)]
    };
    let one_content = "a document version has one content";
    for (chains, broken) in [
        (vec![&first, &second, &second, &third], vec![]),
        (vec![&second, &first], vec!["document versions only grow"]),
        (vec![&second, &fork], vec![one_content]),
        (vec![&first, &forked], vec![one_content]),
    ] {
        assert_eq!(found(&chains), [broken, vec![]]);
    }
    // Whoever holds version 3 cannot know that it stands on another version 2.
    let mut keys = Document::clone(first.document());
    (keys.version, keys.admin_keys) = (2, BTreeSet::from([admin(2).public()]));
    let fourth = Document {
        version: 4,
        ..keys.clone()
    };
    let fork = first.extend(signed(keys, &[1])).unwrap();
    let fork = fork.extend(signed(fourth, &[2])).unwrap();
    let offer = DocumentStore::new(third.clone()).decide(&fork);
    assert!(matches!(offer, Offer::Newer(_)), "{offer:?}");
    let chains = [&first, &second, &third, &fork];
    assert_eq!(found(&chains), [vec![], vec![one_content]]);
}

#[test]
fn a_lease_is_of_the_own_domain_and_lies_in_its_blocks() {
    let bench = used();
    let west = |by| held(lies(&bench, "10.80.8.0/24", "fd00:1:2:3:2::/96"), by, &[]);
    let placed = "leases lie in the domain's own blocks";
    let foreign = "leases are held by routers of the own domain";
    let mixed = "leases are held by identities of one trust domain";
    assert_eq!(
        with(&bench, vec![west("east")], Some(&own())),
        [vec![], vec![placed, placed]]
    );
    assert_eq!(
        with(&bench, vec![west("west")], Some(&own())),
        [vec![foreign, mixed], vec![placed, placed]]
    );
    // Where the own domain is not known, it is one at least.
    assert_eq!(
        with(&bench, vec![west("west")], None),
        [vec![mixed], vec![]]
    );
    let clean: [Vec<&str>; 2] = [vec![], vec![]];
    assert_eq!(with(&bench, vec![west("east")], None), clean);
    let nobodys = lies(&bench, "10.80.200.0/24", "fd00:1:2:3:1:1::/96");
    for (own, rule) in [
        (Some(&own()), placed),
        (None, "leases lie in a member's block"),
    ] {
        let found = with(&bench, vec![granted(nobodys.clone())], own);
        assert_eq!(found, [vec![], vec![rule]]);
    }
}

#[test]
fn a_lease_in_an_excluded_range_is_worth_a_look() {
    let bench = used();
    let uid = bench.chain.uid();
    let range = "10.80.4.128/25".parse().unwrap();
    let excluded = |record| Record::Lease { uid, record };
    let other = lies(&bench, "10.80.5.0/24", "fd00:1:2:3:1:1::/96");
    let policy = next(&bench.chain, |document| {
        document.policy.exclusions = vec!["10.80.4.0/25".parse().unwrap()];
    });
    let avoid = "leases avoid exclusions";
    for (more, rules) in [
        (vec![excluded(LeaseRecord::Excluded { range })], vec![avoid]),
        (
            vec![
                excluded(LeaseRecord::Excluded { range }),
                excluded(LeaseRecord::Included { range }),
            ],
            vec![],
        ),
        (
            vec![held(other.clone(), "east", &["10.80.4.0/26"])],
            vec![avoid],
        ),
        (vec![held(other, "east", &["10.80.5.0/26"])], vec![]),
        (
            vec![Record::Document { chain: policy }],
            vec!["leases avoid the document's exclusions"],
        ),
    ] {
        assert_eq!(with(&bench, more, Some(&own())), [vec![], rules]);
    }
}

#[test]
fn own_endpoints_are_marked_as_what_they_are() {
    let bench = used();
    let marked = |owner: SpiffeId, edit: &dyn Fn(&mut Marks)| {
        let mut endpoint = bench.endpoint("east", 2);
        let mut marks = Marks::of(&endpoint).unwrap();
        edit(&mut marks);
        endpoint.labels = [("red".to_owned(), marks.labels())].into();
        Record::Endpoint {
            endpoint: Arc::new(endpoint),
            owner,
        }
    };
    let (east, west) = (router().id, id("west", "vl3/router/r"));
    let mut cut = bench.endpoint("east", 2);
    cut.labels.get_mut("red").unwrap().remove(LABEL_GENERATION);
    let incomplete = Record::Endpoint {
        endpoint: Arc::new(cut),
        owner: east.clone(),
    };
    let as_west = |marks: &mut Marks| marks.domain = domain("west");
    for (record, known, unknown) in [
        (marked(east.clone(), &|_| {}), vec![], vec![]),
        (incomplete, vec!["incomplete"], vec!["incomplete"]),
        (
            marked(west.clone(), &as_west),
            vec!["red-east of east is marked as one of west"],
            vec![],
        ),
        (
            marked(east.clone(), &as_west),
            vec!["marked as one of west", "which is not of west.test"],
            vec!["which is not of west.test"],
        ),
        (
            marked(west, &|_| {}),
            vec!["registered by spiffe://west.test/vl3/router/r"],
            vec!["registered by spiffe://west.test/vl3/router/r"],
        ),
        (
            marked(east.clone(), &|marks| marks.domain = domain("mars")),
            vec!["of east is marked as one of mars", "no member"],
            vec!["no member"],
        ),
        (
            marked(east.clone(), &|marks| marks.uid = NetworkUid([7; 16])),
            vec!["which is unknown"],
            vec!["which is unknown"],
        ),
        (
            marked(east, &|marks| marks.name = "red-east-2".to_owned()),
            vec!["red-east is marked as red-east-2"],
            vec!["red-east is marked as red-east-2"],
        ),
    ] {
        for (own, expected) in [(Some(&own()), known), (None, unknown)] {
            let mut records = bench.disk.clone();
            records.push(record.clone());
            let found = check(&records, own).violations;
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.rule, "own endpoints are marked as what they are");
                assert!(found.what.contains(expected), "{found:?}");
            }
        }
    }
    // Whichever the own domain is.
    let mut elsewhere = bench.endpoint("west", 1);
    elsewhere.name = "red-west".to_owned();
    let owner = id("west", "vl3/router/r");
    let more = Record::Endpoint {
        endpoint: Arc::new(elsewhere),
        owner,
    };
    assert_eq!(
        with(&bench, vec![more], None),
        [vec!["own endpoints are of one domain"], vec![]]
    );
}

#[test]
fn objects_have_names_of_the_own_domain_and_remote_ones_are_members() {
    let bench = used();
    let uid = bench.chain.uid();
    let well_formed = "objects are well-formed";
    let owner = || id("east", "workload/a");
    for name in ["", "red@west", &"x".repeat(254)] {
        let name = name.to_owned();
        let service = Service {
            name: name.clone(),
            ..Service::default()
        };
        let endpoint = Endpoint {
            name,
            ..Endpoint::default()
        };
        let service = Record::Service {
            service,
            owner: owner(),
        };
        let endpoint = Record::Endpoint {
            endpoint: Arc::new(endpoint),
            owner: owner(),
        };
        let found = with(&bench, vec![service, endpoint], Some(&own()));
        assert_eq!(found, [vec![well_formed; 2], vec![]]);
    }
    let said = |by: &str| Record::Remote {
        uid,
        domain: domain(by),
        endpoint: Packed::new(&bench.endpoint(by, 1)),
    };
    let members = "endpoints of other domains are members'";
    for (by, known, unknown) in [
        ("west", vec![], vec![]),
        ("mars", vec![members], vec![members]),
        ("east", vec![members], vec![]),
    ] {
        for (own, rules) in [(Some(&own()), known), (None, unknown)] {
            assert_eq!(with(&bench, vec![said(by)], own), [rules, vec![]], "{by}");
        }
    }
}
