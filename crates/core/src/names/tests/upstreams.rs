//! Health, limits and loops of upstreams (R3.3, R3.7, R3.10, R4.2, R4.3, R6.6).

use std::time::Duration;

use super::bench::{Bench, PLAIN, configured, found, public, resolver, three};
use super::world::*;
use crate::machine::Machine;
use crate::names::{
    ClientLimits, Condition, Data, Decision, ExtendedError, Failure, Hop, IN_FLIGHT_MAX, LoopMark,
    Policy, Preference, Rcode, RecordType, Reply, ResolverInput, ResolverSettings, Soa,
};

use RecordType as T;

fn condition(bench: &Bench, label: &str) -> Condition {
    let found = bench
        .resolver
        .upstreams()
        .find(|status| status.upstream.label() == label);
    found.unwrap().condition
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn soa_of(minimum: u32) -> Data {
    Data::Soa(Soa {
        mname: name("example"),
        rname: name("example"),
        serial: 1,
        refresh: 1,
        retry: 1,
        expire: 1,
        minimum,
    })
}

/// "one" is silent, the others say that they have no opinion.
fn one_is_silent(bench: &mut Bench, text: &str) -> u64 {
    let before = bench.queries.len();
    let asked = bench.ask(text);
    for at in before..bench.queries.len() {
        if bench.to(at).0 != "one" {
            bench.reply(at, code(Rcode::REFUSED));
        }
    }
    asked
}

#[test]
fn r3_7_an_upstream_that_stays_silent_is_down_within_three_seconds() {
    let mut bench = Bench::configured(three());
    let asked = one_is_silent(&mut bench, "a.example");
    bench.pass(millis(300));
    assert_eq!(
        condition(&bench, "one"),
        Condition::Suspect,
        "overdue: probed"
    );
    assert_eq!(bench.probes.last().unwrap().question.rtype, T::NS);
    assert!(bench.probes.last().unwrap().question.name.is_root());
    bench.pass(millis(2_700));
    assert_eq!(condition(&bench, "one"), Condition::Down);
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
    let (sent, probes) = (bench.queries.len(), bench.probes.len());
    // What needs it comes at once; it is not asked.
    let next = one_is_silent(&mut bench, "b.example");
    let answer = &bench.answers[&next];
    assert_eq!(
        (answer.rcode, bench.queries.len()),
        (Rcode::SERV_FAIL, sent + 2)
    );
    let extended = answer.extended.as_ref().unwrap();
    assert_eq!(extended.code, ExtendedError::NO_REACHABLE_AUTHORITY);
    assert!(extended.text.ends_with("one"), "{}", extended.text);
    bench.pass(millis(2_000));
    assert_eq!(bench.probes.len(), probes + 4, "a probe each 500 ms");
    // Any well-formed reply brings it back.
    let ticket = bench.probes.last().unwrap().ticket;
    bench.input(ResolverInput::Reply {
        ticket,
        reply: code(Rcode::SERV_FAIL),
    });
    assert_eq!(condition(&bench, "one"), Condition::Up);
    one_is_silent(&mut bench, "c.example");
    assert_eq!(bench.queries.len(), sent + 5);
    let probes = bench.probes.len();
    bench.pass(millis(200));
    assert_eq!(bench.probes.len(), probes, "no probes while it is up");
}

/// "one" is silent, and each question is answered by "two" before anybody could miss it.
#[test]
fn r3_7_who_is_never_needed_is_known_to_be_down_all_the_same() {
    let mut bench = Bench::configured(three());
    let mut number = 0;
    let mut ask_two = |bench: &mut Bench, answers: &[&str]| {
        number += 1;
        let text = format!("n{number}.example");
        let asked = bench.ask(&text);
        for upstream in answers {
            bench.reply_from(upstream, public(&text));
        }
        assert!(bench.answers[&asked].is_positive());
    };
    let probes = bench.probes.len();
    ask_two(&mut bench, &["two"]);
    bench.pass(millis(499));
    assert_eq!(bench.probes.len(), probes, "it may just be slower");
    bench.pass(millis(1));
    let probed: Vec<&str> = bench.probes[probes..]
        .iter()
        .map(|probe| probe.upstream.label())
        .collect();
    assert_eq!(probed, ["one", "three"], "both were outrun");
    assert_eq!(condition(&bench, "one"), Condition::Up);
    let ticket = bench.probes.last().unwrap().ticket;
    bench.input(ResolverInput::Reply {
        ticket,
        reply: code(Rcode::NO_ERROR),
    });
    bench.pass(millis(500));
    assert_eq!(condition(&bench, "one"), Condition::Suspect);
    assert_eq!(condition(&bench, "three"), Condition::Up);
    for _ in 0..10 {
        ask_two(&mut bench, &["two"]);
        bench.pass(millis(100));
        let ticket = bench.probes.last().unwrap().ticket;
        if bench.probes.last().unwrap().upstream.label() == "three" {
            bench.input(ResolverInput::Reply {
                ticket,
                reply: code(Rcode::NO_ERROR),
            });
        }
    }
    assert_eq!(
        condition(&bench, "one"),
        Condition::Down,
        "within two seconds"
    );
    assert_eq!(condition(&bench, "three"), Condition::Up);
    assert_eq!(condition(&bench, "two"), Condition::Up);
}

#[test]
fn r3_7_whoever_is_not_asked_is_not_probed() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    for upstream in ["one", "two", "three"] {
        if let Some(at) = bench
            .queries
            .iter()
            .rposition(|query| query.upstream.label() == upstream)
        {
            bench.reply(at, code(Rcode::NX_DOMAIN));
        }
    }
    bench.pass(millis(10_000));
    assert_eq!(bench.resolver.next_wake(), None);
}

#[test]
fn r2_5_without_the_word_of_an_overlay_server_nobody_denies() {
    let mut upstreams = three();
    for upstream in &mut upstreams {
        upstream.class = Preference::Overlay;
    }
    let mut bench = Bench::configured(upstreams);
    one_is_silent(&mut bench, "a.example");
    bench.pass(millis(3_000));
    assert_eq!(condition(&bench, "one"), Condition::Down);
    let asked = bench.ask("b.example");
    bench.reply_from("two", code(Rcode::NX_DOMAIN));
    bench.reply_from("three", code(Rcode::NX_DOMAIN));
    let answer = &bench.answers[&asked];
    assert_eq!(answer.rcode, Rcode::SERV_FAIL, "at once");
    let extended = answer.extended.as_ref().unwrap();
    assert_eq!(extended.text, "no answer from one");
    let sent = bench.queries.len();
    let found = bench.ask("c.example");
    bench.reply_from("two", public("c.example"));
    assert!(bench.answers[&found].is_positive());
    assert_eq!(bench.queries.len(), sent + 2, "one is not asked");
}

/// A resolver that is down may have had the name: the denial is short.
#[test]
fn r2_5_a_denial_without_all_resolvers_lives_five_seconds() {
    let mut bench = Bench::configured(three());
    one_is_silent(&mut bench, "a.example");
    bench.pass(millis(3_000));
    let soa = Reply {
        authority: vec![record("example", soa_of(600))],
        ..code(Rcode::NX_DOMAIN)
    };
    let asked = bench.ask("b.example");
    bench.reply_from("two", soa.clone());
    bench.reply_from("three", soa);
    let answer = &bench.answers[&asked];
    assert_eq!(
        (answer.rcode, answer.authority[0].ttl, answer.decision),
        (Rcode::NX_DOMAIN, 5, Decision::VotesMissing)
    );
    let sent = bench.queries.len();
    bench.told("b.example");
    bench.pass(millis(5_001));
    bench.ask("b.example");
    assert_eq!(bench.queries.len(), sent + 2);
}

#[test]
fn r2_4_what_is_down_does_not_keep_the_others_from_denying() {
    let mut bench = Bench::configured(three());
    one_is_silent(&mut bench, "a.example");
    bench.pass(millis(3_000));
    let asked = bench.ask("b.example");
    bench.reply_from("two", code(Rcode::NX_DOMAIN));
    bench.reply_from("three", code(Rcode::REFUSED));
    assert_eq!(bench.answers[&asked].rcode, Rcode::NX_DOMAIN);
}

#[test]
fn r3_7_a_refusal_and_a_failed_probe_take_an_upstream_down_at_once() {
    let mut bench = Bench::configured(three());
    one_is_silent(&mut bench, "a.example");
    let query = bench.queries[0].clone();
    bench.fail(&query, Failure::Network);
    assert_eq!(condition(&bench, "one"), Condition::Suspect);
    bench.wake();
    let probe = bench.probes.last().unwrap().clone();
    bench.fail(&probe, Failure::Network);
    assert_eq!(condition(&bench, "one"), Condition::Down);
    assert_eq!(bench.now, at(0));
}

#[test]
fn r3_7_lost_messages_and_failing_names_take_nobody_down() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    for round in 0..50 {
        let text = format!("n{round}.example");
        let asked = bench.ask(&text);
        if round % 5 == 0 {
            // Both tries are lost, while others are answered.
            for other in 0..20 {
                bench.pass(millis(75));
                bench.ask(&format!("o{round}-{other}.example"));
                bench.reply(bench.queries.len() - 1, code(Rcode::SERV_FAIL));
            }
            bench.pass(millis(1));
        } else {
            bench.reply(bench.queries.len() - 1, code(Rcode::SERV_FAIL));
        }
        assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
        assert!(condition(&bench, "one").is_asked(), "round {round}");
    }
}

#[test]
fn r3_7_when_all_resolvers_are_down_all_are_asked_for_half_a_second() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    bench.pass(millis(3_000));
    let all_down = |bench: &Bench| {
        ["one", "two", "three"]
            .iter()
            .all(|label| condition(bench, label) == Condition::Down)
    };
    assert!(all_down(&bench));
    let (start, sent) = (bench.now.mono, bench.queries.len());
    let asked = bench.ask("b.example");
    assert_eq!(bench.queries.len(), sent + 3);
    bench.settle();
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
    assert_eq!(bench.now.mono.saturating_since(start), millis(500));
}

#[test]
fn r2_5_an_owner_that_is_down_is_a_missing_vote_at_once() {
    let mut bench = Bench::new(view());
    bench.ask("db.west.red.test");
    bench.pass(millis(3_000));
    assert_eq!(condition(&bench, "west"), Condition::Down);
    assert_eq!(bench.probes.last().unwrap().question.name, name(ZONE));
    let answer = bench.told("other.west.red.test");
    assert_eq!(answer.rcode, Rcode::SERV_FAIL);
    assert_eq!(
        answer.extended.as_ref().unwrap().text,
        "no answer from west"
    );
    let shared = bench.ask("db.red.test");
    bench.reply_from("north", found("db.red.test"));
    assert_eq!(
        bench.answers[&shared].rcode,
        Rcode::SERV_FAIL,
        "north may not say that"
    );
}

#[test]
fn r3_9_health_follows_an_upstream_from_view_to_view() {
    let mut bench = Bench::configured(three());
    one_is_silent(&mut bench, "a.example");
    bench.pass(millis(3_000));
    bench.input(ResolverInput::View(configured(three())));
    assert_eq!(condition(&bench, "one"), Condition::Down);
    bench.input(ResolverInput::View(configured(vec![resolver("two", 2)])));
    bench.pass(millis(6_000));
    assert_eq!(bench.resolver.next_wake(), None, "nobody probes who left");
    bench.input(ResolverInput::View(configured(three())));
    assert_eq!(condition(&bench, "one"), Condition::Up, "unknown again");
}

#[test]
fn r3_3_names_go_out_in_mixed_case_until_an_upstream_shows_that_it_cannot() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    for round in 0..3 {
        let asked = bench.ask(&format!("n{round}.example"));
        let query = bench.queries.last().unwrap().clone();
        assert!(query.mixed_case, "round {round}");
        bench.fail(&query, Failure::CaseChanged);
        assert!(
            !bench.queries.last().unwrap().mixed_case,
            "once more as it is"
        );
        bench.reply(
            bench.queries.len() - 1,
            public(&format!("n{round}.example")),
        );
        assert!(bench.answers[&asked].is_positive());
    }
    bench.ask("later.example");
    assert!(!bench.queries.last().unwrap().mixed_case);
    bench.now = at(600_000);
    bench.ask("much-later.example");
    assert!(bench.queries.last().unwrap().mixed_case, "tried again");
    let overlay = view();
    let mut network = Bench::new(overlay);
    network.ask("db.west.red.test");
    assert!(!network.queries[0].mixed_case);
}

#[test]
fn r4_1_recursion_is_desired_of_resolvers_and_never_of_routers() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    bench.ask("a.example");
    assert!(bench.queries[0].flags.recursion_desired);
    let mut network = Bench::new(view());
    let mut asking = network.asking(MEMBER, "db.west.red.test", T::A);
    asking.flags.recursion_desired = true;
    network.ask_this(asking);
    assert!(!network.queries[0].flags.recursion_desired);
    assert_eq!(
        network.queries[0].mark, None,
        "loops end by the order of packets"
    );
}

#[test]
fn r3_10_an_upstream_with_too_many_questions_in_flight_is_not_asked() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    for number in 0..IN_FLIGHT_MAX {
        bench.ask(&format!("n{number}.example"));
    }
    let answer = bench.told("more.example");
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::REFUSED, Decision::Overload)
    );
    assert_eq!(answer.extended.as_ref().unwrap().code, ExtendedError::OTHER);
    bench.reply(0, public("n0.example"));
    let next = bench.ask("next.example");
    assert!(!bench.answers.contains_key(&next), "there is room again");
    assert_eq!(
        bench.resolver.upstreams().next().unwrap().in_flight,
        IN_FLIGHT_MAX
    );
}

#[test]
fn r4_2_a_question_that_comes_back_ends_and_its_upstream_rests() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    let mark = bench.queries[1].mark.unwrap();
    let mut asking = bench.asking(MEMBER, "a.example", T::A);
    // Through another server and back.
    asking.mark = mark.and(Hop {
        instance: 77,
        upstream: 1,
    });
    let looped = bench.ask_this(asking);
    let answer = bench.answers[&looped].clone();
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::SERV_FAIL, Decision::Loop)
    );
    let extended = answer.extended.as_ref().unwrap();
    assert_eq!(
        (extended.code, extended.text.as_str()),
        (ExtendedError::OTHER, "loop")
    );
    let label = bench.to(1).0.to_owned();
    assert!(matches!(
        condition(&bench, &label),
        Condition::Looping { .. }
    ));
    bench.ask("b.example");
    assert_eq!(bench.queries.len(), 5, "two of three");
    bench.pass(Duration::from_secs(31));
    assert!(condition(&bench, &label).is_asked());
    assert_eq!(bench.resolver.counters().loops, 1);
}

#[test]
fn r4_2_a_question_that_went_too_far_ends() {
    let mut bench = Bench::configured(three());
    let hop = |instance| Hop {
        instance,
        upstream: 1,
    };
    let mut asking = bench.asking(MEMBER, "a.example", T::A);
    asking.mark = LoopMark::new([hop(1), hop(2), hop(3)]);
    let three_hops = bench.ask_this(asking);
    assert!(!bench.answers.contains_key(&three_hops));
    let mut asking = bench.asking(MEMBER, "a.example", T::A);
    asking.mark = bench.queries[0].mark.unwrap();
    asking.mark = LoopMark::new([hop(1), hop(2), hop(3), hop(4)]);
    let four = bench.ask_this(asking);
    assert_eq!(bench.answers[&four].decision, Decision::Loop);
}

#[test]
fn r2_11_a_question_from_another_server_does_not_join_one_that_may_wait_for_it() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    let mut asking = bench.asking(MEMBER, "a.example", T::A);
    asking.mark = LoopMark::new([Hop {
        instance: 1,
        upstream: 1,
    }]);
    bench.ask_this(asking);
    assert_eq!(
        (bench.queries.len(), bench.resolver.counters().coalesced),
        (6, 0)
    );
}

#[test]
fn r4_3_a_new_upstream_is_looked_at_for_loops_with_a_random_name() {
    let mut upstreams = three();
    upstreams[1].suffixes = vec![name("corp.example")];
    let mut bench = Bench::configured(upstreams.clone());
    assert_eq!(bench.probes.len(), 3);
    let probes = bench.probes.clone();
    assert!(
        probes[1]
            .question
            .name
            .is_at_or_below(&name("corp.example")),
        "{probes:?}"
    );
    assert!(probes.iter().all(|probe| probe.mark.is_none()));
    bench.input(ResolverInput::View(configured(upstreams.clone())));
    assert_eq!(bench.probes.len(), 3, "known already");
    // It comes in here, through a server that strips options.
    let text = probes[0].question.name.to_string();
    let asking = bench.asking(MEMBER, &text, T::TXT);
    let looped = bench.ask_this(asking);
    assert_eq!(bench.answers[&looped].decision, Decision::Loop);
    let label = probes[0].upstream.label().to_owned();
    assert!(matches!(
        condition(&bench, &label),
        Condition::Looping { .. }
    ));
    bench.pass(Duration::from_secs(31));
    assert_eq!(bench.probes.len(), 4, "looked at again before it is used");
    let old = probes[2].question.name.to_string();
    bench.ask_from(MEMBER, &old, T::TXT);
    assert_eq!(
        bench.resolver.counters().loops,
        1,
        "an old name is a name like any other"
    );
}

#[test]
fn r6_6_a_client_above_its_rate_is_refused_and_counted() {
    let settings = ResolverSettings {
        clients: ClientLimits {
            per_second: 10,
            in_flight: 3,
        },
        ..PLAIN
    };
    let view = view_of(document(), state(), Policy::FirstPositive);
    let mut bench = Bench::with(view, settings);
    let refused = |bench: &Bench| {
        let limited = |answer: &&std::sync::Arc<crate::names::Answer>| {
            answer.decision == Decision::ClientLimit && answer.rcode == Rcode::REFUSED
        };
        bench.answers.values().filter(limited).count()
    };
    for number in 0..5 {
        bench.ask(&format!("n{number}.west.red.test"));
    }
    assert_eq!(refused(&bench), 2, "three wait");
    for _ in 0..10 {
        bench.ask("web.east.red.test");
    }
    assert_eq!(refused(&bench), 7, "ten a second");
    let other = bench.ask_from("172.16.0.6", "web.east.red.test", T::A);
    assert!(bench.answers[&other].is_positive());
    assert_eq!(bench.resolver.counters().limited, 7);
    bench.settle();
    bench.now = at(10_000);
    bench.ask("n9.west.red.test");
    assert_eq!(refused(&bench), 7);
}
