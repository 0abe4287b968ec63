//! The store no longer confirms that this replica is active, and then does again.

use super::*;

#[test]
fn while_the_store_does_not_confirm_nothing_ends_and_then_everything_lives_once_more() {
    const WEEK: u64 = 7 * 86_400;
    let bench = Bench::new();
    let west = Record::Remote {
        uid: bench.chain.uid(),
        domain: domain("west"),
        endpoint: Packed::new(&bench.endpoint("west", 1)),
    };
    let mut store = journal(vec![vec![document(), west]]);
    let mut replica = Replica::start(&store, at(0));
    replica.promote(&mut store, at(0));
    replica.write(&mut store, at(0));
    let register = || Command::RegisterEndpoint {
        endpoint: plain("a", 1),
        lifetime: None,
    };
    replica.call(1, &router(), bench.acquire(1), at(1));
    replica.call(2, &router(), bench.claim("db", "db"), at(1));
    replica.call(3, &workload("a"), register(), at(1));
    while replica.writing.is_some() {
        replica.write(&mut store, at(1));
    }
    let counts = |replica: &Replica| {
        let counts = replica.machine.counts();
        (counts.leases, counts.names, counts.endpoints)
    };
    assert_eq!(counts(&replica), (1, 1, 2));
    replica.watch(1, at(1));
    replica.effects.clear();

    replica.confirm(false, at(30));
    replica.call(4, &workload("a"), register(), at(31));
    let refused = replica.reply(4).unwrap().unwrap_err();
    assert!(
        matches!(&refused, Refusal::Unavailable { reason } if reason.contains("does not confirm")),
        "{refused}"
    );
    let find = Command::FindEndpoints {
        query: EndpointQuery::default(),
        after: None,
    };
    replica.call(5, &workload("b"), find, at(31));
    assert!(matches!(replica.reply(5), Some(Ok(Reply::Endpoints(_)))));
    let back = 2 * WEEK;
    replica.wake(at(back));
    assert_eq!(counts(&replica), (1, 1, 2));
    assert!(replica.writing.is_none() && replica.delivered().is_empty());
    let next = replica.machine.next_wake();
    assert!(
        next.is_none_or(|(next, _)| next > at(back).mono),
        "{next:?}"
    );

    replica.confirm(true, at(back));
    for (lifetime, left) in [
        (60, (1, 1, 1)),
        (180, (1, 0, 1)),
        (3600, (1, 0, 0)),
        (WEEK, (0, 0, 0)),
    ] {
        let before = counts(&replica);
        replica.wake(at(back + lifetime - 1));
        assert_eq!(counts(&replica), before, "{lifetime} s after");
        replica.wake(at(back + lifetime));
        assert_eq!(counts(&replica), left, "{lifetime} s after");
        replica.write(&mut store, at(back + lifetime));
    }
    assert_eq!(replica.delivered(), [("a".to_owned(), true)]);
}

#[test]
fn a_confirmation_that_was_never_missed_moves_no_deadline() {
    let mut store = journal(vec![vec![document(), endpoint("a", 1)]]);
    let mut replica = Replica::start(&store, at(0));
    replica.promote(&mut store, at(0));
    replica.write(&mut store, at(0));
    replica.confirm(true, at(50));
    replica.wake(at(60));
    assert_eq!(replica.machine.endpoints().count(), 0);
}
