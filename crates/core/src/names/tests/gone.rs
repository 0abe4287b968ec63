//! A name that is gone in its domain is gone in every other one within a second (R1.5, R5.6),
//! whatever is stored, in flight or expired there.

use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, found};
use super::world::*;
use crate::names::{ClientLimits, Decision, Policy, Rcode, RecordType, ResolverSettings, View};

/// As in production, but for the limits of clients.
fn settings() -> ResolverSettings {
    ResolverSettings {
        clients: ClientLimits {
            per_second: 0,
            in_flight: 0,
        },
        ..ResolverSettings::default()
    }
}

fn bench(view: Arc<View>) -> Bench {
    Bench::with(view, settings())
}

/// A shared name that west has given, whose time is over.
fn expired(view: Arc<View>) -> Bench {
    let mut bench = bench(view);
    bench.ask("db.red.test");
    bench.reply_from("west", found("db.red.test"));
    bench.now = at(10_000);
    bench
}

#[test]
fn r5_1_a_stored_answer_serves_from_when_it_was_asked_for() {
    let mut bench = bench(view());
    bench.ask("db.west.red.test");
    bench.now = at(500);
    bench.reply(0, found("db.west.red.test"));
    bench.now = at(799);
    assert!(bench.told("db.west.red.test").is_positive());
    bench.now = at(800);
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 2, "300 ms after the reply");
    // What took longer than that is told to who waits, and kept for nobody.
    bench.now = at(1_650);
    bench.reply(1, found("db.west.red.test"));
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 3);
}

#[test]
fn r2_11_nobody_joins_a_fan_out_that_began_too_long_ago() {
    let mut bench = bench(view());
    bench.ask("db.west.red.test");
    bench.now = at(799);
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 1, "joined");
    bench.now = at(800);
    let late = bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 2);
    // The name has gone since; the reply to the first query was long under way.
    bench.reply(0, found("db.west.red.test"));
    assert!(!bench.answers.contains_key(&late));
    bench.reply(1, code(Rcode::NX_DOMAIN));
    assert_eq!(bench.answers[&late].rcode, Rcode::NX_DOMAIN);
    assert_eq!(
        (bench.resolver.waiting(), bench.resolver.in_flight()),
        (0, 0)
    );
}

#[test]
fn r5_3_a_name_that_its_domain_denies_is_not_told_for_others_that_are_missing() {
    let mut bench = expired(view());
    let asked = bench.ask("db.red.test");
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    // north stays silent: neither after 800 ms nor at the end.
    bench.pass(Duration::from_millis(900));
    assert!(!bench.answers.contains_key(&asked));
    bench.settle();
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
    // Nor does it come back when its domain cannot be asked any more.
    bench.now = at(20_000);
    let asked = bench.ask("db.red.test");
    bench.settle();
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
    assert_eq!(bench.resolver.cache_counters().served_stale, 0);
}

#[test]
fn r5_3_a_name_whose_domain_is_missing_is_told_although_others_deny_it() {
    let mut bench = expired(view());
    let asked = bench.ask("db.red.test");
    bench.reply_from("north", code(Rcode::NX_DOMAIN));
    bench.settle();
    assert_eq!(bench.answers[&asked].decision, Decision::Stale);
}

#[test]
fn r5_3_one_sibling_does_not_deny_what_another_one_gave() {
    let mut state = state();
    state.servers.push(server("east", "172.16.1.1", true));
    let mut third = server("east", "172.16.2.1", true);
    third.router = crate::ids::RouterName::new("red-east-3").unwrap();
    state.servers.push(third);
    let view = view_of(document(), state, Policy::FirstPositive);
    let mut bench = bench(view);
    let to = |bench: &Bench, router: &str| {
        let is_it = |query: &crate::names::Query| query.upstream.id.as_str().ends_with(router);
        bench
            .queries
            .iter()
            .rposition(is_it)
            .expect("a query to it")
    };
    bench.ask("db.east.red.test");
    let second = to(&bench, "red-east-2");
    let own = positive(vec![address("db.east.red.test", "172.16.1.9")]);
    bench.reply(second, own);
    bench.now = at(10_000);
    let asked = bench.ask("db.east.red.test");
    let third = to(&bench, "red-east-3");
    bench.reply(third, code(Rcode::NX_DOMAIN));
    bench.settle();
    assert_eq!(bench.answers[&asked].decision, Decision::Stale);
}

#[test]
fn r5_5_a_name_that_goes_while_it_is_fetched_anew_is_gone_with_the_reply() {
    let mut bench = bench(view());
    bench.ask("db.west.red.test");
    bench.reply(0, found("db.west.red.test"));
    bench.told("db.west.red.test");
    bench.told("db.west.red.test");
    bench.now = at(750);
    assert!(bench.told("db.west.red.test").is_positive());
    assert_eq!(bench.queries.len(), 2, "fetched anew");
    bench.reply(1, code(Rcode::NX_DOMAIN));
    let asked = bench.ask_from(MEMBER, "db.west.red.test", RecordType::A);
    assert_eq!(bench.queries.len(), 3, "nothing is left of it");
    bench.reply(2, code(Rcode::NX_DOMAIN));
    assert_eq!(bench.answers[&asked].rcode, Rcode::NX_DOMAIN);
}
