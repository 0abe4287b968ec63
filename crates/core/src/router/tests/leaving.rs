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
