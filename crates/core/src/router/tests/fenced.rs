//! What a router does no more once a newer one serves under its name.

use core::time::Duration;

use super::attach::{attach, request};
use super::*;

fn fenced() -> World {
    let mut world = World::new(&["east", "west"]);
    world.advance(Duration::from_secs(2));
    world.generation.insert("east".to_owned(), 5);
    world.show("east", "east");
    world.run();
    assert!(world.node("east").machine.is_fenced());
    world
}

#[test]
fn a_fenced_router_takes_no_workload() {
    let refused = attach(&mut fenced(), request("c1", "a", Some(100)));
    assert!(
        matches!(refused, Err(Refusal::Precondition { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_fenced_router_dials_nobody() {
    let mut world = fenced();
    let before = world.node("east").dials;
    world.show("east", "west");
    world.run();
    world.advance(Duration::from_secs(60));
    assert_eq!(world.node("east").dials, before);
}
