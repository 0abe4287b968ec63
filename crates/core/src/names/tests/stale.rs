//! Expired answers and remembered failures (R5.3, R3.8).

use std::time::Duration;

use super::bench::{Bench, public, resolver, three};
use super::world::*;
use crate::names::{Decision, ExtendedError, Rcode, ResolverInput};

/// An answer that was stored and has expired since.
fn expired() -> Bench {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    bench.ask("a.example");
    bench.reply(0, public("a.example"));
    bench.now = at(60_000);
    bench
}

#[test]
fn r5_3_an_expired_answer_is_told_after_800_ms_of_silence() {
    let mut bench = expired();
    let asked = bench.ask("a.example");
    bench.settle();
    assert_eq!(bench.now, at(60_800));
    let answer = bench.answers[&asked].clone();
    assert_eq!(
        (answer.answers[0].ttl, answer.decision),
        (30, Decision::Stale)
    );
    assert_eq!(answer.extended.as_ref().unwrap().code, ExtendedError::STALE);
    assert_eq!(
        bench.told("a.example").decision,
        Decision::Stale,
        "no second wait"
    );
    // The late reply still counts.
    bench.reply_from("one", public("a.example"));
    assert_eq!(bench.told("a.example").decision, Decision::Merged);
}

#[test]
fn r5_3_an_expired_answer_is_better_than_a_failure_and_rechecked_every_five_seconds() {
    let mut bench = expired();
    let asked = bench.ask("a.example");
    bench.reply(1, code(Rcode::SERV_FAIL));
    assert_eq!(bench.answers[&asked].decision, Decision::Stale);
    let queries = bench.queries.len();
    bench.now = at(64_999);
    assert_eq!(bench.told("a.example").decision, Decision::Stale);
    assert_eq!(bench.queries.len(), queries);
    bench.now = at(65_000);
    bench.ask("a.example");
    assert_eq!(bench.queries.len(), queries + 1);
    assert_eq!(bench.resolver.cache_counters().served_stale, 2);
}

#[test]
fn r5_3_a_healthy_denial_ends_an_expired_answer() {
    for said in [Rcode::NX_DOMAIN, Rcode::NO_ERROR] {
        let mut bench = expired();
        let asked = bench.ask("a.example");
        bench.reply(1, code(said));
        assert_eq!(bench.answers[&asked].rcode, said);
        assert!(bench.answers[&asked].answers.is_empty());
        bench.now = at(70_000);
        bench.ask("a.example");
        bench.reply(2, code(Rcode::SERV_FAIL));
        let last = bench.answers.values().last().unwrap();
        assert_eq!(last.rcode, Rcode::SERV_FAIL, "nothing stale is left");
    }
}

#[test]
fn r5_3_an_answer_older_than_an_hour_is_not_told() {
    let mut bench = expired();
    bench.now = at(3_631_000);
    let asked = bench.ask("a.example");
    bench.reply(1, code(Rcode::SERV_FAIL));
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
}

#[test]
fn r2_5_with_votes_missing_an_expired_answer_comes_before_a_failure() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    bench.reply_from("one", public("a.example"));
    bench.now = at(60_000);
    let asked = bench.ask("a.example");
    bench.reply_from("two", code(Rcode::NX_DOMAIN));
    bench.reply_from("three", code(Rcode::NX_DOMAIN));
    assert!(!bench.answers.contains_key(&asked));
    bench.settle();
    assert_eq!(bench.answers[&asked].decision, Decision::Stale);
}

/// Who had the name is down: the others may deny, but what is known is better.
#[test]
fn r5_3_an_expired_answer_stands_while_one_resolver_is_down() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    bench.reply_from("one", public("a.example"));
    bench.now = at(60_000);
    // Only "one" is silent from here on.
    for _ in 0..3 {
        let before = bench.queries.len();
        let asked = bench.ask("a.example");
        for at in before..bench.queries.len() {
            if bench.to(at).0 != "one" {
                bench.reply(at, code(Rcode::NX_DOMAIN));
            }
        }
        bench.settle();
        assert_eq!(bench.answers[&asked].decision, Decision::Stale);
        bench.pass(Duration::from_secs(6));
    }
}

#[test]
fn r3_8_a_question_that_failed_is_not_asked_again_at_once() {
    let mut bench = Bench::configured(three());
    let ask = |bench: &mut Bench, millis: u64| {
        bench.now = at(millis);
        let before = bench.queries.len();
        let asked = bench.ask("a.example");
        for at in before..bench.queries.len() {
            bench.reply(at, code(Rcode::SERV_FAIL));
        }
        assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
        bench.queries.len() - before
    };
    assert_eq!(ask(&mut bench, 0), 3);
    assert_eq!(ask(&mut bench, 999), 0, "answered at once");
    assert_eq!(ask(&mut bench, 1_000), 3);
    assert_eq!(ask(&mut bench, 2_999), 0, "two seconds");
    assert_eq!(ask(&mut bench, 3_000), 3);
    let other = bench.ask("b.example");
    assert!(!bench.answers.contains_key(&other), "other names are asked");
}

#[test]
fn r3_8_at_most_three_tries_for_one_question() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    bench.ask("a.example");
    let cut = crate::names::Reply {
        truncated: true,
        ..public("a.example")
    };
    bench.pass(Duration::from_millis(400));
    assert_eq!(bench.queries.len(), 2);
    bench.reply(1, cut);
    assert_eq!(bench.queries.len(), 3);
    let query = bench.queries[2].clone();
    bench.input(ResolverInput::Failed {
        ticket: query.ticket,
        failure: crate::names::Failure::Network,
    });
    assert_eq!(bench.queries.len(), 3);
    assert!(bench.answers[&1].truncated);
}
