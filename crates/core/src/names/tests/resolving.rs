//! Questions in time: repeats, TCP, sharing, limits (R2.3, R2.9, R2.11, R3.1, R3.6, R3.9).

use std::time::Duration;

use super::bench::{Bench, found};
use super::world::*;
use crate::machine::{Machine, Outbox, Ticket};
use crate::names::{
    Asking, Decision, Failure, Flags, Policy, Rcode, RecordType, Reply, Resolver, ResolverEffect,
    ResolverInput, Transport, WAITING_MAX,
};
use crate::time::Mono;

use RecordType as T;

#[test]
fn r2_3_a_positive_answer_does_not_wait_for_a_silent_upstream() {
    let mut bench = Bench::new(view());
    let asked = bench.ask("db.red.test");
    assert_eq!((bench.to(0).0, bench.to(1).0), ("north", "west"));
    bench.reply(1, found("db.red.test"));
    assert_eq!(addresses(&bench.answers[&asked]), ["172.16.4.9"]);
    assert_eq!(
        bench.forgotten,
        [bench.queries[0].ticket],
        "north's query is given up"
    );
    assert_eq!(bench.resolver.in_flight(), 0);
    // All that is left is to look whether north lives (R3.7).
    let (due, reason) = bench.resolver.next_wake().unwrap();
    assert_eq!((due, reason), (at(500).mono, "probe an upstream"));
}

#[test]
fn r2_3_a_union_waits_for_everybody_but_not_beyond_the_deadline() {
    let mut bench = Bench::new(view_of(document(), state(), Policy::Union));
    let asked = bench.ask("db.red.test");
    bench.reply(1, found("db.red.test"));
    assert!(bench.answers.is_empty());
    while bench.answers.is_empty() {
        bench.wake();
    }
    assert_eq!(bench.now, at(1_500));
    let answer = &bench.answers[&asked];
    assert_eq!(
        (addresses(answer), answer.decision),
        (vec!["172.16.4.9".to_owned()], Decision::VotesMissing)
    );
}

#[test]
fn r2_9_nxdomain_says_nothing_about_names_below_or_about_other_owners() {
    let mut bench = Bench::new(view());
    let shared = bench.ask("db.red.test");
    bench.reply(0, code(Rcode::NX_DOMAIN));
    bench.reply(1, found("db.red.test"));
    assert!(bench.answers[&shared].is_positive());
    let above = bench.ask("kiosk.west.red.test");
    bench.reply(2, code(Rcode::NX_DOMAIN));
    assert_eq!(bench.answers[&above].rcode, Rcode::NX_DOMAIN);
    bench.ask("db.kiosk.west.red.test");
    assert_eq!(bench.to(3).0, "west", "asked all the same");
}

#[test]
fn r2_11_equal_questions_in_flight_share_one_fan_out() {
    let mut bench = Bench::new(view());
    let first = bench.ask("db.west.red.test");
    let second = bench.ask("DB.west.red.test");
    let other_type = bench.ask_from(MEMBER, "db.west.red.test", T::AAAA);
    assert_eq!(bench.queries.len(), 2);
    assert_eq!(
        (bench.resolver.waiting(), bench.resolver.in_flight()),
        (3, 2)
    );
    bench.reply(0, found("db.west.red.test"));
    assert_eq!(bench.answers[&first], bench.answers[&second]);
    assert!(!bench.answers.contains_key(&other_type));
    assert_eq!(bench.resolver.counters().coalesced, 1);
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 3, "answered questions are not shared");
}

/// Two routers that ask each other for a shared name must not wait for each other.
#[test]
fn r2_11_a_routers_question_does_not_join_a_members() {
    let mut bench = Bench::new(view());
    bench.ask("db.red.test");
    let remote = bench.ask_from(REMOTE, "db.red.test", T::A);
    assert_eq!(
        bench.answers[&remote].rcode,
        Rcode::NX_DOMAIN,
        "from own names alone"
    );
}

#[test]
fn r3_1_a_cut_reply_is_asked_again_over_tcp() {
    let mut bench = Bench::new(view());
    let asked = bench.ask("db.west.red.test");
    let cut = Reply {
        truncated: true,
        ..found("db.west.red.test")
    };
    bench.reply(0, cut.clone());
    assert!(
        bench.answers.is_empty(),
        "a cut reply is no positive answer"
    );
    assert_eq!(bench.to(1), ("west", Transport::Tcp));
    bench.reply(
        1,
        positive(vec![
            address("db.west.red.test", "172.16.4.9"),
            address("db.west.red.test", "172.16.4.8"),
        ]),
    );
    let answer = &bench.answers[&asked];
    assert_eq!((answer.answers.len(), answer.truncated), (2, false));

    let again = bench.ask("db.west.red.test");
    bench.reply(2, cut);
    let ticket = bench.queries[3].ticket;
    bench.input(ResolverInput::Failed {
        ticket,
        failure: Failure::Network,
    });
    let answer = &bench.answers[&again];
    assert_eq!(
        (answer.answers.len(), answer.truncated),
        (1, true),
        "better than nothing, with TC"
    );
}

#[test]
fn r3_6_a_silent_server_is_asked_once_more_and_given_up_at_the_deadline() {
    let mut bench = Bench::new(view());
    let asked = bench.ask("db.west.red.test");
    bench.wake();
    assert_eq!(bench.now, at(300), "before the first sample");
    assert_eq!(
        (bench.to(1), bench.queries[1].after),
        (("west", Transport::Udp), Some(bench.queries[0].ticket))
    );
    while bench.answers.is_empty() {
        bench.wake();
    }
    assert_eq!((bench.now, bench.queries.len()), (at(1_500), 2));
    let answer = &bench.answers[&asked];
    assert_eq!(answer.rcode, Rcode::SERV_FAIL);
    assert_eq!(
        counts(&bench.resolver.counters().failures, &Failure::TimedOut),
        Some(1)
    );
}

#[test]
fn r3_6_a_failed_try_is_repeated_at_once_and_only_once() {
    let mut bench = Bench::new(view());
    let asked = bench.ask("db.west.red.test");
    let failed = |bench: &mut Bench, at: usize| {
        let (ticket, failure) = (bench.queries[at].ticket, Failure::Network);
        bench.input(ResolverInput::Failed { ticket, failure });
    };
    failed(&mut bench, 0);
    assert!(bench.answers.is_empty(), "one try is left");
    assert_eq!(bench.queries.len(), 2);
    assert_eq!(bench.to(1), ("west", Transport::Udp));
    failed(&mut bench, 1);
    assert_eq!(bench.queries.len(), 2);
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
}

#[test]
fn r3_6_the_repeat_follows_the_servers_round_trip_and_tries_its_other_address() {
    let mut state = state();
    state.servers = vec![server("west", "172.16.4.1 fd77::2:0:0:1", false)];
    let mut bench = Bench::new(view_of(document(), state, Policy::FirstPositive));
    for _ in 0..50 {
        bench.ask("db.west.red.test");
        bench.now.mono = bench.now.mono + Duration::from_millis(1);
        bench.reply(bench.queries.len() - 1, found("db.west.red.test"));
    }
    let (start, sent) = (bench.now.mono, bench.queries.len());
    let asked = bench.ask("db.west.red.test");
    bench.wake();
    assert_eq!(
        bench.now.mono.saturating_since(start),
        Duration::from_millis(50),
        "the lower bound"
    );
    assert_eq!(bench.queries[sent].server, socket("172.16.4.1"));
    assert_eq!(bench.queries[sent + 1].server, socket("fd77::2:0:0:1"));
    // A late reply to the first try counts as well.
    bench.reply(sent, found("db.west.red.test"));
    assert!(bench.answers[&asked].is_positive());
}

#[test]
fn r3_9_a_new_view_serves_new_questions_while_old_ones_end_by_theirs() {
    let mut bench = Bench::new(view());
    let before = bench.ask("db.west.red.test");
    let mut state = state();
    state.sequence = 2;
    state.servers = vec![server("west", "172.16.5.1", false)];
    bench.input(ResolverInput::View(view_of(
        document(),
        state,
        Policy::FirstPositive,
    )));
    let after = bench.ask("db.west.red.test");
    assert_eq!(
        bench.queries[1].server,
        socket("172.16.5.1"),
        "not shared with the question before"
    );
    bench.reply(0, found("db.west.red.test"));
    assert!(bench.answers.contains_key(&before) && !bench.answers.contains_key(&after));
}

#[test]
fn r3_10_beyond_the_limit_questions_are_refused_and_counted() {
    let mut bench = Bench::new(view());
    for _ in 0..WAITING_MAX {
        bench.ask("db.west.red.test");
    }
    let more = bench.ask("other.west.red.test");
    let answer = &bench.answers[&more];
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::REFUSED, Decision::Overload)
    );
    assert_eq!(bench.resolver.counters().shed, 1);
    let local = bench.ask("web.east.red.test");
    assert!(
        bench.answers[&local].is_positive(),
        "what needs nobody is still answered"
    );
    bench.reply(0, found("db.west.red.test"));
    assert_eq!(bench.resolver.waiting(), 0);
}

#[test]
fn r4_1_nobody_we_do_not_know_is_served() {
    let mut bench = Bench::new(view());
    let stranger = bench.ask_from("192.0.2.1", "web.east.red.test", T::A);
    assert_eq!(bench.answers[&stranger].rcode, Rcode::REFUSED);
    let sibling = bench.ask_from(SIBLING, "db.red.test", T::A);
    assert_eq!(bench.answers[&sibling].rcode, Rcode::NX_DOMAIN);
    assert!(bench.queries.is_empty());
    assert_eq!(bench.resolver.counters().strangers, 1);
}

#[test]
fn r2_5_before_the_first_state_nothing_is_denied() {
    let mut resolver = Resolver::new(1);
    let mut out = Outbox::default();
    let question = question("web.east.red.test", T::A);
    let asking = Asking::new(Ticket(1), ip(MEMBER), question, Flags::default());
    let input = ResolverInput::Ask(asking);
    resolver.handle(input, at(0), &mut out);
    assert!(
        matches!(&out.take()[..], [ResolverEffect::Answer(answered)] if answered.reading.rcode == Rcode::SERV_FAIL)
    );
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let trace = || {
        let mut bench = Bench::new(view_of(document(), state(), Policy::Union));
        for round in 0..20_u64 {
            bench.now.mono = Mono(round);
            bench.ask(if round % 3 == 0 {
                "db.red.test"
            } else {
                "db.west.red.test"
            });
            if round % 4 == 1 {
                bench.reply(bench.queries.len() - 1, found("db.west.red.test"));
            }
        }
        bench.settle();
        format!(
            "{:?} {:?} {:?}",
            bench.queries, bench.forgotten, bench.answers
        )
    };
    assert_eq!(trace(), trace());
}
