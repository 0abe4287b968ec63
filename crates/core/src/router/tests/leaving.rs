//! What a router gives back when it leaves for good.

use core::time::Duration;

use super::attach::{attach, request};
use super::*;

#[test]
fn a_router_that_leaves_keeps_no_peer_route_or_record_of_others() {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    attach(&mut world, request("c1", "a", Some(100))).unwrap();
    assert_eq!(world.node("east").peers.len(), 2, "a link and the workload");
    let left = world.call("east", |call| Input::Leave { call });
    assert_eq!(left, Ok(Answer::Closed));
    let node = world.node("east");
    assert!(node.peers.is_empty() && node.routes.is_empty());
    assert_eq!(node.closed.len(), 1, "the workload's client is told");
    let disk = &node.disk;
    assert!(disk.lease.is_none() && disk.workloads.is_empty() && disk.links.is_empty());
    assert!(node.machine.next_wake().is_none(), "nothing is tried again");
    assert!(world.node("west").peers.is_empty(), "the other end as well");
    let again = attach(&mut world, request("c2", "b", Some(101)));
    assert!(
        matches!(again, Err(Refusal::Unavailable { .. })),
        "{again:?}"
    );
}

/// What was given back may be granted to another router: not before it is off the disk.
#[test]
fn a_router_whose_disk_fails_keeps_its_lease_until_it_has_left() {
    let mut world = World::new(&["east"]);
    attach(&mut world, request("c1", "a", Some(100))).unwrap();
    let lease = world.node("east").machine.state().lease.clone().unwrap();
    let leave = |world: &mut World| world.call("east", |call| Input::Leave { call });
    world.store_fails = true;
    for _ in 0..2 {
        let failed = leave(&mut world);
        assert!(
            matches!(&failed, Err(Refusal::Unavailable { reason }) if reason.contains("disk full")),
            "{failed:?}"
        );
    }
    assert_eq!(world.node("east").disk.lease.as_ref(), Some(&lease));
    assert!(world.node("east").released.is_empty());
    world.store_fails = false;
    assert_eq!(leave(&mut world), Ok(Answer::Closed), "tried at once");
    let node = world.node("east");
    assert_eq!(node.released, [lease]);
    assert!(node.disk.lease.is_none() && node.disk.workloads.is_empty());
    assert!(node.machine.next_wake().is_none());
}

#[test]
fn a_disk_that_works_again_takes_what_leaving_left_behind() {
    let mut world = World::new(&["east"]);
    let leave = |world: &mut World| world.call("east", |call| Input::Leave { call });
    world.store_fails = true;
    assert!(leave(&mut world).is_err());
    world.store_fails = false;
    world.advance(Duration::from_secs(6));
    assert!(world.node("east").disk.lease.is_none());
    assert!(
        world.node("east").released.is_empty(),
        "nobody said so again"
    );
    assert_eq!(leave(&mut world), Ok(Answer::Closed));
    assert_eq!(world.node("east").released.len(), 1);
}

#[test]
fn an_answer_of_the_registry_that_comes_after_leaving_brings_no_lease_back() {
    let mut world = World::new(&["east"]);
    world.advance(Duration::from_secs(600));
    let (now, node) = (world.now, world.nodes.get_mut("east").unwrap());
    let mut out = Outbox::default();
    let mut machine = RouterMachine::new(config("east"), node.disk.clone(), document());
    machine.handle(Input::Start, now, &mut out);
    let asked = out.take().into_iter().find_map(|effect| match effect {
        Effect::AcquireLease { ticket, .. } => Some(ticket),
        _ => None,
    });
    let call = CallId(1_000);
    machine.handle(Input::Leave { call }, now, &mut out);
    let answer = LeaseAnswer {
        lease: lease(&config("east"), 1),
        renew_after: Duration::from_secs(600),
    };
    let (ticket, result) = (asked.unwrap(), Ok(answer));
    machine.handle(Input::Lease { ticket, result }, now, &mut out);
    assert!(machine.state().lease.is_none());
}
