//! Workloads that a listed intermediary carries.

use core::time::Duration;

use super::attach::{attach, close, request, workload};
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

#[test]
fn an_intermediary_is_not_counted_but_whom_it_carries_is() {
    let forwarder = workload("forwarder");
    let mut world = with_intermediary(&forwarder);
    let by = |number: usize, claimed: Option<&str>| {
        let name = format!("w{number}");
        Request {
            peer: forwarder.clone(),
            claimed: claimed.map(workload),
            ..request(&name, &name, None)
        }
    };
    for number in 0..200 {
        attach(&mut world, by(number, None)).unwrap();
    }
    for number in 0..200 {
        close(&mut world, &format!("w{number}"), forwarder.clone()).unwrap();
    }
    // Its reservations end, so that the prefix is empty again.
    world.advance(Duration::from_secs(3601));
    for number in 0..190 {
        attach(&mut world, by(number, Some("mallory"))).unwrap();
    }
    assert_eq!(
        attach(&mut world, by(190, Some("mallory"))),
        Err(Refusal::Share {
            id: workload("mallory"),
            limit: 190
        })
    );
    attach(&mut world, by(190, Some("other"))).unwrap();
}
