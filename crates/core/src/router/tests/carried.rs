//! Workloads that a listed intermediary carries.

use super::attach::{attach, request, workload};
use super::*;

/// The world of one router whose domain lists `forwarder` as an intermediary.
fn with_intermediary(forwarder: &SpiffeId) -> World {
    let mut world = World::new(&["east"]);
    list(&mut world, 2, vec![forwarder.to_string()]);
    world
}

fn list(world: &mut World, version: u64, intermediaries: Vec<String>) {
    let mut listed = document();
    let east = listed.members.get_mut(&"east".parse().unwrap()).unwrap();
    east.roles.intermediary = intermediaries;
    listed.version = version;
    world.input(
        "east",
        Input::Document {
            document: Box::new(listed),
            bytes: Vec::new(),
        },
    );
    world.run();
}

#[test]
fn an_intermediary_that_is_no_longer_listed_takes_along_whom_it_carries() {
    let forwarder = workload("forwarder");
    let mut world = with_intermediary(&forwarder);
    let carried = Request {
        peer: forwarder,
        claimed: Some(workload("a")),
        ..request("c1", "a", Some(100))
    };
    attach(&mut world, carried.clone()).unwrap();
    attach(&mut world, request("c2", "b", Some(101))).unwrap();
    list(&mut world, 3, Vec::new());
    let node = world.node("east");
    assert_eq!(node.closed.len(), 1, "{:?}", node.closed);
    assert_eq!(node.closed[0].0, carried.connection);
    let left: Vec<_> = node.peers.values().map(|peer| peer.public_key).collect();
    assert_eq!(left, [PublicKey([101; 32])]);
}

/// Who reads the path and who attaches may know different versions of the document.
#[test]
fn a_claim_counts_from_an_intermediary_only_and_an_intermediary_only_by_a_claim() {
    let forwarder = workload("forwarder");
    let ask = |world: &mut World, claimed: Option<&str>| {
        let request = Request {
            peer: forwarder.clone(),
            claimed: claimed.map(workload),
            ..request("c1", "a", Some(100))
        };
        attach(world, request)
    };
    let denied = |answer: Result<WorkloadAnswer, Refusal>| {
        let denied = matches!(&answer, Err(Refusal::Denied { id, .. }) if *id == forwarder);
        assert!(denied, "{answer:?}");
    };
    let mut world = World::new(&["east"]);
    denied(ask(&mut world, Some("a")));
    list(&mut world, 2, vec![forwarder.to_string()]);
    denied(ask(&mut world, None));
    assert!(world.node("east").disk.assignments.is_empty());
    ask(&mut world, Some("a")).unwrap();
    let assigned: Vec<_> = world.node("east").disk.assignments.keys().collect();
    assert_eq!(assigned[0].id, workload("a"));
}

#[test]
fn whom_an_intermediary_carries_is_counted_each() {
    let forwarder = workload("forwarder");
    let mut world = with_intermediary(&forwarder);
    let by = |number: usize, claimed: &str| {
        let name = format!("w{number}");
        Request {
            peer: forwarder.clone(),
            claimed: Some(workload(claimed)),
            ..request(&name, &name, None)
        }
    };
    for number in 0..190 {
        attach(&mut world, by(number, "mallory")).unwrap();
    }
    assert_eq!(
        attach(&mut world, by(190, "mallory")),
        Err(Refusal::Share {
            id: workload("mallory"),
            limit: 190
        })
    );
    attach(&mut world, by(190, "other")).unwrap();
}
