use super::bench::{Bench, router};
use super::record::Record;
use super::{Report, check};
use crate::allocator::{Lease, LeaseRecord};
use crate::document::fixture::id;
use crate::ids::{Generation, RouterName};

/// A lease, an endpoint, a name; one lease that ended and came again.
fn used() -> Bench {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), bench.register(1)).unwrap();
    bench.call(&router(), bench.claim("web", "a")).unwrap();
    bench.call(&router(), bench.acquire(2)).unwrap();
    bench
}

fn rules(report: &Report) -> Vec<&'static str> {
    report.violations.iter().map(|found| found.rule).collect()
}

fn lease(bench: &Bench) -> Lease {
    bench.machine.leases().next().unwrap().clone()
}

fn granted(lease: Lease) -> Record {
    Record::Lease {
        uid: lease.uid,
        record: LeaseRecord::Granted {
            lease,
            holder: id("east", "vl3/router/x"),
            exclusions: Vec::new(),
        },
    }
}

#[test]
fn what_the_machine_writes_is_clean_and_counted() {
    let bench = used();
    for records in [&bench.disk, &bench.machine.snapshot()] {
        let report = check(records);
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
        rules(&check(&records))
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
    let nowhere = check(&[granted(held)]);
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
    assert_eq!(check(&bench.machine.snapshot()).readopting, 1);
    bench.now = super::bench::at(600);
    bench.restart();
    bench.wake();
    assert_eq!(
        check(&bench.machine.snapshot()).readopting,
        1,
        "a period anew"
    );
    bench.now = super::bench::at(600 + 1200);
    bench.wake();
    bench.write();
    bench.restart();
    assert_eq!(check(&bench.machine.snapshot()).readopting, 0);
    assert_eq!(check(&bench.disk).readopting, 0);
    assert_eq!(rules(&check(&bench.disk)), [""; 0]);
}
