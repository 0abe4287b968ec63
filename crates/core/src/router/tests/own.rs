//! The router's own addresses.

use super::*;

#[test]
fn own_addresses_that_could_not_be_set_are_set_again() {
    let mut world = World::new(&[]);
    world.generation.insert("east".to_owned(), 1);
    world.own_fails = true;
    world.boot("east", State::default());
    let now = world.now;
    let machine = &mut world.nodes.get_mut("east").unwrap().machine;
    assert!(!machine.counts().own_set);
    let status = machine.status(now);
    assert!(status.lease.is_some() && status.own_addresses.is_empty());
    assert_eq!(status.own_error.as_deref(), Some("netlink: no buffer"));
    // Nothing else happens: no lease changes, nobody calls.
    world.own_fails = false;
    world.advance(Duration::from_secs(1));
    let node = world.nodes.get_mut("east").unwrap();
    assert_eq!(node.own.len(), 2);
    assert!(node.machine.counts().own_set);
    let status = node.machine.status(now);
    assert_eq!(
        (status.own_addresses, status.own_error),
        (node.own.clone(), None)
    );
}

#[test]
fn own_addresses_are_tried_ever_more_slowly_and_one_at_a_time() {
    let mut world = World::new(&[]);
    world.generation.insert("east".to_owned(), 1);
    world.own_fails = true;
    world.boot("east", State::default());
    let count = |world: &World| world.nodes["east"].own_tries;
    world.advance(Duration::from_secs(60));
    let early = count(&world);
    assert!((4..20).contains(&early), "{early}");
    world.advance(Duration::from_secs(60));
    assert!(count(&world) - early <= 9, "{early}, {}", count(&world));
}
