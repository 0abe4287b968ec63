use core::time::Duration;

use proptest::prelude::*;

use super::bench::{Bench, at, config, router, workload};
use super::*;
use crate::allocator;
use crate::document::fixture::{chain, domain, id, next};
use crate::ids::{Generation, SpiffeId};
use crate::machine::Machine;
use crate::time::Now;

#[test]
fn a_reply_leaves_after_its_append_and_what_comes_meanwhile_shares_the_next_one() {
    let mut bench = Bench::new();
    let first = bench.send(&router(), bench.acquire(1));
    assert!(bench.reply(first).is_none());
    let second = bench.send(&router(), bench.register(1));
    let third = bench.send(
        &workload("a"),
        Command::FindEndpoints {
            query: EndpointQuery::default(),
            after: None,
        },
    );
    let (ticket, records, _) = bench.writing.take().unwrap();
    assert_eq!(records.len(), 1);
    bench.handle(Input::Appended { ticket });
    assert!(bench.reply(first).is_some());
    assert!(bench.reply(second).is_none() && bench.reply(third).is_none());
    let (ticket, ..) = bench.writing.take().unwrap();
    bench.handle(Input::Appended { ticket });
    assert!(bench.reply(second).is_some() && bench.reply(third).is_some());
    assert!(bench.writing.is_none());
}

#[test]
fn a_journal_that_fails_promises_nothing_any_more() {
    let mut bench = Bench::new();
    let call = bench.send(&router(), bench.acquire(1));
    let (ticket, ..) = bench.writing.take().unwrap();
    bench.handle(Input::AppendFailed {
        ticket,
        reason: "no space".to_owned(),
    });
    assert!(matches!(
        bench.reply(call),
        Some(Err(Refusal::Unavailable { .. }))
    ));
    assert!(
        bench
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Alarm(Alarm::JournalFailed { .. })))
    );
    let call = bench.send(&router(), bench.acquire(1));
    assert!(matches!(
        bench.reply(call),
        Some(Err(Refusal::Unavailable { .. }))
    ));
    assert_eq!(bench.machine.next_wake(), None);
}

#[test]
fn a_refresh_is_no_record_and_after_a_restart_everything_has_one_full_lifetime() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), bench.register(1)).unwrap();
    let written = bench.disk.len();
    bench.now = at(50);
    bench.call(&router(), bench.register(1)).unwrap();
    bench.call(&router(), bench.acquire(1)).unwrap();
    assert_eq!(bench.disk.len(), written);
    bench.restart();
    bench.now = at(60);
    bench.wake();
    assert_eq!(bench.machine.endpoints().count(), 1);
    bench.now = at(61);
    bench.wake();
    assert_eq!(bench.machine.endpoints().count(), 0);
}

#[test]
fn a_lease_lives_one_lifetime_from_its_last_sign_of_life() {
    let mut short = config();
    short.allocator.lifetime = Duration::from_secs(60);
    let mut bench = Bench::boot(short, chain(&["east", "west"]), Vec::new());
    let leases = |bench: &mut Bench, secs| {
        bench.now = at(secs);
        bench.wake();
        bench.write();
        bench.machine.leases().count()
    };
    bench.call(&router(), bench.acquire(1)).unwrap();
    let lease = bench.machine.leases().next().unwrap().clone();
    assert_eq!(leases(&mut bench, 60), 1);
    bench.call(&router(), Command::Renew { lease }).unwrap();
    assert_eq!(leases(&mut bench, 119), 1);
    bench.call(&router(), bench.acquire(1)).unwrap();
    assert_eq!(leases(&mut bench, 178), 1);
    assert_eq!(leases(&mut bench, 179), 0);
}

#[test]
fn a_newer_document_of_the_configuration_is_recorded_once_and_an_older_one_not() {
    let Bench {
        chain: older, disk, ..
    } = Bench::new();
    let newer = next(&older, |document| document.policy.stale_limit_seconds = 5);
    let recorded = [older.clone(), newer.clone()].map(|chain| Record::Document { chain });
    let mut disk = disk;
    for configured in [&newer, &newer, &older] {
        let bench = Bench::boot(config(), configured.clone(), disk);
        assert_eq!(bench.machine.document(older.uid()), Some(&newer));
        assert_eq!(bench.disk, recorded);
        disk = bench.disk;
    }
}

#[test]
fn a_restored_registry_says_so_in_its_journal_and_leases_nothing_new() {
    let kept = Bench::new();
    let boot = Boot {
        documents: vec![kept.chain.clone()],
        records: kept.disk.clone(),
        restored: true,
        ..Boot::default()
    };
    let machine = RegistryMachine::boot(config(), boot, at(1)).unwrap();
    let mut bench = Bench { machine, ..kept };
    bench.wake();
    bench.write();
    for _ in 0..2 {
        let refused = bench.call(&router(), bench.acquire(1));
        let expected = matches!(
            refused,
            Err(Refusal::Lease(allocator::Refusal::ReadoptOnly { .. }))
        );
        assert!(expected, "{refused:?}");
        // The mark is of the journal, not of the process.
        bench.restart();
    }
}

#[test]
fn a_fenced_router_does_not_come_back_into_view() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), bench.acquire(2)).unwrap();
    assert!(matches!(
        bench.call(&router(), bench.register(1)),
        Err(Refusal::Lease(_))
    ));
    bench.call(&router(), bench.register(2)).unwrap();
}

/// DNS rule R1.10: the first identity holds the name, as long as it is claimed.
#[test]
fn a_name_ends_with_its_last_claim_or_with_the_lease() {
    let mut bench = Bench::new();
    assert!(matches!(
        bench.call(&router(), bench.claim("web", "a")),
        Err(Refusal::Lease(_))
    ));
    bench.call(&router(), bench.acquire(1)).unwrap();
    let granted = Ok(Reply::Name { held_by: None });
    assert_eq!(bench.call(&router(), bench.claim("web", "a")), granted);
    let held = bench.call(&router(), bench.claim("web", "b"));
    assert_eq!(
        held,
        Ok(Reply::Name {
            held_by: Some(id("east", "workload/a"))
        })
    );
    bench.now = at(100);
    assert_eq!(bench.call(&router(), bench.claim("web", "a")), granted);
    bench.now = at(279);
    bench.wake();
    assert_eq!(bench.machine.names().count(), 1);
    bench.now = at(280);
    bench.wake();
    bench.write();
    assert_eq!(bench.call(&router(), bench.claim("web", "b")), granted);
    let lease = bench.machine.leases().next().unwrap().clone();
    bench.call(&router(), Command::Release { lease }).unwrap();
    assert_eq!(bench.machine.names().count(), 0);
}

/// What somebody of another domain was shown must not stay with it when one of the two domains
/// is a member no more: the watch ends, and the next one shows what may still be seen.
#[test]
fn a_watch_of_another_domain_ends_with_either_membership() {
    for leaves in ["west", "east"] {
        let mut bench = Bench::new();
        bench.call(&router(), bench.register(1)).unwrap();
        let uid = bench.chain.uid();
        let watch = |watcher, peer: &Peer| Input::Watch {
            watcher: WatcherId(watcher),
            peer: peer.clone(),
            query: Query::Endpoints(EndpointQuery::default()),
        };
        let west = Peer::vouched(id("west", "vl3/router/red-west"), [uid].into());
        bench.handle(watch(1, &west));
        bench.handle(watch(2, &workload("a")));
        assert_eq!(bench.delivered(1), [("red-east".to_owned(), false)]);
        let second = next(&bench.chain, |document| {
            document.members.get_mut(&domain(leaves)).unwrap().revoked = true;
        });
        bench
            .call(&workload("a"), Command::Publish { chain: second })
            .unwrap();
        let ended = bench.effects.iter().filter_map(|effect| match effect {
            Effect::EndWatch { watcher, .. } => Some(*watcher),
            _ => None,
        });
        assert_eq!(ended.collect::<Vec<_>>(), [WatcherId(1)], "{leaves} leaves");
        bench.handle(watch(3, &west));
        assert_eq!(bench.delivered(3), []);
    }
}

#[test]
fn a_watch_has_a_snapshot_then_changes_and_ends_with_the_right_to_it() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.register(1)).unwrap();
    let watch = |watcher, peer, query| Input::Watch {
        watcher: WatcherId(watcher),
        peer,
        query,
    };
    let uid = bench.chain.uid();
    let west = Peer::vouched(id("west", "vl3/router/red-west"), [uid].into());
    bench.handle(watch(
        1,
        workload("a"),
        Query::Endpoints(EndpointQuery::default()),
    ));
    bench.handle(watch(2, west, Query::Document(uid)));
    bench.handle(watch(
        3,
        Peer::own(id("mars", "workload/x")),
        Query::Document(uid),
    ));
    let unvouched = Peer::own(id("west", "vl3/router/red-west"));
    bench.handle(watch(4, unvouched, Query::Document(uid)));
    assert_eq!(bench.delivered(1), [("red-east".to_owned(), false)]);
    assert_eq!(bench.delivered(2), [("1".to_owned(), false)]);
    for refused in [3, 4] {
        let ended = |effect: &Effect| matches!(effect, Effect::EndWatch { watcher, .. } if *watcher == WatcherId(refused));
        assert!(bench.effects.iter().any(ended), "{refused}");
    }
    let second = next(&bench.chain, |document| {
        document.members.get_mut(&domain("west")).unwrap().revoked = true;
    });
    bench
        .call(&workload("a"), Command::Publish { chain: second })
        .unwrap();
    assert_eq!(bench.delivered(2), []);
    assert!(bench.effects.iter().any(|effect| matches!(
        effect,
        Effect::EndWatch {
            watcher: WatcherId(2),
            ..
        }
    )));
    bench
        .call(
            &router(),
            Command::UnregisterEndpoint {
                name: "red-east".to_owned(),
            },
        )
        .unwrap();
    assert_eq!(bench.delivered(1), [("red-east".to_owned(), true)]);
}

#[test]
fn an_intermediary_speaks_for_whom_its_path_names_and_nobody_else_does() {
    let mut bench = Bench::new();
    let manager = id("east", "ns/nsm/nsmgr");
    let claimed = |id: SpiffeId, claimed: &str| Peer {
        claimed: vec![self::id("east", claimed)],
        ..Peer::own(id)
    };
    let endpoint = Endpoint {
        name: "x".to_owned(),
        services: vec!["s".to_owned()],
        ..Endpoint::default()
    };
    let register = Command::RegisterEndpoint {
        endpoint,
        lifetime: None,
    };
    let unregister = Command::UnregisterEndpoint {
        name: "x".to_owned(),
    };
    bench
        .call(&claimed(manager.clone(), "workload/a"), register.clone())
        .unwrap();
    // Not listed: the endpoint is its own.
    assert!(bench.call(&workload("a"), unregister.clone()).is_err());
    bench
        .call(&Peer::own(manager.clone()), unregister.clone())
        .unwrap();
    let listed = next(&bench.chain, |document| {
        let east = document.members.get_mut(&domain("east")).unwrap();
        east.roles.intermediary = vec![manager.to_string()];
    });
    bench
        .call(&workload("a"), Command::Publish { chain: listed })
        .unwrap();
    bench
        .call(&claimed(manager, "workload/a"), register)
        .unwrap();
    assert!(
        bench
            .call(&claimed(workload("b").id, "workload/a"), unregister.clone())
            .is_err()
    );
    bench.call(&workload("a"), unregister).unwrap();
}

#[test]
fn at_the_limits_newcomers_are_refused_and_nothing_grows() {
    let small = Config {
        endpoints_max: 1,
        services_max: 1,
        names_max: 1,
        watchers_max: 1,
        held_max: 1,
        ..config()
    };
    let mut bench = Bench::boot(small, chain(&["east", "west"]), Vec::new());
    let endpoint = |name: &str| Endpoint {
        name: name.to_owned(),
        ..Endpoint::default()
    };
    let register = |name: &str| Command::RegisterEndpoint {
        endpoint: endpoint(name),
        lifetime: None,
    };
    bench.call(&workload("a"), register("x")).unwrap();
    assert!(matches!(
        bench.call(&workload("a"), register("y")),
        Err(Refusal::Limit { .. })
    ));
    bench.call(&router(), bench.acquire(1)).unwrap();
    bench.call(&router(), bench.claim("a", "a")).unwrap();
    assert!(matches!(
        bench.call(&router(), bench.claim("b", "b")),
        Err(Refusal::Limit { .. })
    ));
    for watcher in [1, 2] {
        let query = Query::Endpoints(EndpointQuery::default());
        bench.handle(Input::Watch {
            watcher: WatcherId(watcher),
            peer: workload("a"),
            query,
        });
    }
    assert_eq!(bench.machine.counts().watchers, 1);
    let held = bench.send(&router(), bench.acquire(2));
    let shed = bench.send(&router(), bench.acquire(3));
    assert!(matches!(
        bench.reply(shed),
        Some(Err(Refusal::Unavailable { .. }))
    ));
    bench.write();
    assert!(bench.reply(held).unwrap().is_ok());
}

#[test]
fn a_long_journal_is_replaced_by_a_snapshot() {
    let mut bench = Bench::boot(
        Config {
            rewrite_after: 10,
            ..config()
        },
        chain(&["east", "west"]),
        Vec::new(),
    );
    for instance in 1..40 {
        bench.call(&router(), bench.acquire(instance)).unwrap();
    }
    assert!(bench.disk.len() <= 11, "{}", bench.disk.len());
    let before = bench.machine.snapshot();
    bench.restart();
    assert_eq!(bench.machine.snapshot(), before);
    assert_eq!(
        bench.machine.leases().next().unwrap().generation,
        Generation(39)
    );
}

#[test]
fn objects_neither_lengthen_the_journal_nor_are_rewritten_with_it() {
    let few = Config {
        rewrite_after: 10,
        ..config()
    };
    let mut bench = Bench::boot(few, chain(&["east", "west"]), Vec::new());
    for generation in 1..40 {
        bench.send(&router(), bench.register(generation));
        let (_, _, journal) = bench.writing.as_ref().unwrap();
        assert_eq!(*journal, None);
        bench.write();
    }
    let mut rewrites = 0;
    for instance in 1..40 {
        bench.send(&router(), bench.acquire(instance));
        if let Some((_, _, Some(journal))) = &bench.writing {
            assert!(journal.iter().all(|record| record.object_key().is_none()));
            rewrites += 1;
        }
        bench.write();
    }
    assert!(rewrites >= 4, "{rewrites}");
    let before = bench.machine.snapshot();
    assert!(
        before
            .iter()
            .any(|record| matches!(record, Record::Endpoint { .. }))
    );
    bench.restart();
    assert_eq!(bench.machine.snapshot(), before);
}

#[test]
fn a_network_that_is_no_longer_configured_is_kept_but_not_served() {
    let mut bench = Bench::new();
    bench.call(&router(), bench.acquire(1)).unwrap();
    let boot = Boot {
        documents: Vec::new(),
        records: bench.disk.clone(),
        ..Boot::default()
    };
    let machine = RegistryMachine::boot(config(), boot, at(1)).unwrap();
    assert_eq!(
        (machine.leases().count(), machine.snapshot()),
        (0, bench.machine.snapshot())
    );
    let orphan = Boot {
        records: bench.disk.split_off(1),
        ..Boot::default()
    };
    assert!(RegistryMachine::boot(config(), orphan, at(1)).is_err());
}

/// Commands in any order, with a disk that is fast or slow, and crashes.
#[derive(Clone, Debug)]
enum Step {
    Acquire(u8),
    Release,
    Register(u8),
    Unregister,
    Claim(u8, u8),
    Write,
    Wait(u64),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..4_u8).prop_map(Step::Acquire),
        Just(Step::Release),
        (1..9_u8).prop_map(Step::Register),
        Just(Step::Unregister),
        (0..3_u8, 0..3_u8).prop_map(|(name, by)| Step::Claim(name, by)),
        Just(Step::Write),
        (0..100_u64).prop_map(Step::Wait),
        Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariant 2: what was told outlives a crash at any moment; replay equals what ran.
    #[test]
    fn a_crash_between_any_two_effects_is_harmless(steps in steps()) {
        let mut bench = Bench::new();
        let mut told: Option<Generation> = None;
        for step in steps {
            match step {
                Step::Acquire(instance) => drop(bench.send(&router(), bench.acquire(instance))),
                Step::Release => {
                    let lease = bench.machine.leases().next().cloned();
                    if let Some(lease) = lease {
                        bench.send(&router(), Command::Release { lease });
                    }
                }
                Step::Register(generation) => drop(bench.send(&router(), bench.register(generation.into()))),
                Step::Unregister => {
                    bench.send(&router(), Command::UnregisterEndpoint { name: "red-east".to_owned() });
                }
                Step::Claim(name, by) => {
                    let (name, by) = (format!("n{name}"), format!("w{by}"));
                    bench.send(&router(), bench.claim(&name, &by));
                }
                Step::Write => {
                    bench.write();
                    let disk = bench.disk.clone();
                    let replayed = Bench::boot(config(), bench.chain.clone(), disk);
                    prop_assert_eq!(replayed.machine.snapshot(), bench.machine.snapshot());
                }
                Step::Wait(secs) => {
                    bench.now = Now { mono: bench.now.mono + Duration::from_secs(secs), ..bench.now };
                    bench.wake();
                }
                Step::Crash => bench.restart(),
            }
            for effect in core::mem::take(&mut bench.effects) {
                if let Effect::Reply { result: Ok(Reply::Lease(granted)), .. } = effect {
                    let generation = granted.lease.generation;
                    prop_assert!(told.is_none_or(|told| told <= generation), "{:?} then {}", told, generation);
                    told = Some(generation);
                }
            }
        }
    }
}
