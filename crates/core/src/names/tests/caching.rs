//! Stored answers in the resolver: what is kept, how long, what removes it (R5, R2.10, R3.9).

use std::time::Duration;

use super::bench::{Bench, PLAIN, client_parts, configured, found, public, resolver, three};
use super::world::*;
use crate::names::{
    Data, Decision, Flags, Policy, Rcode, Record, RecordType, Reply, ResolverInput,
    ResolverSettings, View, ViewParts,
};

use RecordType as T;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Answers of the network are stored for as long as they live.
const TOLD: ResolverSettings = ResolverSettings {
    network_life_max: seconds(300),
    network_denial_max: seconds(30),
    ..PLAIN
};

fn with_ttl(text: &str, ttl: u32) -> Reply {
    let mut reply = public(text);
    reply.answers[0].ttl = ttl;
    reply
}

fn denied(rcode: Rcode, ttl: u32, minimum: u32) -> Reply {
    let mut soa = view().soa(name("example"), minimum);
    soa.ttl = ttl;
    Reply {
        authority: vec![soa],
        ..code(rcode)
    }
}

#[test]
fn r5_1_a_stored_answer_is_told_again_with_what_is_left_of_its_life() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    bench.reply(0, with_ttl("a.example", 100));
    bench.now = at(40_500);
    let answer = bench.told("A.example");
    assert_eq!((answer.answers[0].ttl, bench.queries.len()), (60, 3));
    assert!(!answer.authoritative);
    bench.now = at(100_000);
    bench.ask("a.example");
    assert_eq!(bench.queries.len(), 6, "expired");
}

#[test]
fn r5_1_lives_are_capped_by_whose_name_it_is() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    bench.reply(0, with_ttl("a.example", 86_400));
    assert_eq!(bench.told("a.example").answers[0].ttl, 3_600);
    bench.ask("b.example");
    bench.reply(3, with_ttl("b.example", 0));
    bench.ask("b.example");
    assert_eq!(bench.queries.len(), 9, "TTL 0 is not stored (R5.5)");

    let mut network = Bench::with(view(), TOLD);
    network.ask("db.west.red.test");
    let mut long = found("db.west.red.test");
    long.answers[0].ttl = 86_400;
    network.reply(0, long);
    assert_eq!(network.told("db.west.red.test").answers[0].ttl, 300);
}

#[test]
fn r5_2_a_denial_lives_by_its_soa_and_is_told_with_it() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    let life = |bench: &mut Bench, text: &str, reply: Reply| {
        bench.ask(text);
        bench.reply(bench.queries.len() - 1, reply);
        let answer = bench.told(text);
        answer.authority.first().map(|soa| soa.ttl)
    };
    let nx = Rcode::NX_DOMAIN;
    assert_eq!(
        life(&mut bench, "a.example", denied(nx, 60, 3_600)),
        Some(60)
    );
    assert_eq!(
        life(&mut bench, "b.example", denied(nx, 3_600, 40)),
        Some(40)
    );
    assert_eq!(
        life(&mut bench, "c.example", denied(nx, 9_999, 9_999)),
        Some(900)
    );
    assert_eq!(
        life(&mut bench, "d.example", code(nx)),
        None,
        "kept all the same"
    );
    assert_eq!(
        life(&mut bench, "e.example", denied(Rcode::NO_ERROR, 60, 60)),
        Some(60)
    );
    let before = bench.queries.len();
    bench.ask_from(MEMBER, "a.example", T::TXT);
    assert_eq!(bench.queries.len(), before, "NXDOMAIN is of the name");
    bench.ask_from(MEMBER, "e.example", T::TXT);
    assert_eq!(bench.queries.len(), before + 1, "NODATA is of the type");
    bench.now = at(1_000);
    bench.ask("d.example");
    assert_eq!(bench.queries.len(), before + 2, "one second without a SOA");
}

#[test]
fn r5_2_failures_are_not_stored_as_answers() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    let asked = bench.ask("a.example");
    bench.reply(0, code(Rcode::SERV_FAIL));
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
    assert_eq!(bench.resolver.cache_size().negative_entries, 0);
}

#[test]
fn r1_1_r4_1_no_stored_answer_crosses_classes_of_askers() {
    let mut state = state();
    state.servers.push(server("east", "172.16.1.1", true));
    let view = view_of(document(), state, Policy::FirstPositive);
    let mut bench = Bench::with(view, TOLD);
    bench.ask("db.red.test");
    bench.reply_from("west", found("db.red.test"));
    assert!(bench.told("db.red.test").is_positive());
    let remote = bench.ask_from(REMOTE, "db.red.test", T::A);
    assert!(
        !bench.answers.contains_key(&remote),
        "west's data are not ours to give"
    );
    bench.reply_from("east", code(Rcode::NX_DOMAIN));
    assert_eq!(bench.answers[&remote].rcode, Rcode::NX_DOMAIN);
}

#[test]
fn r5_1_without_news_of_changes_the_networks_answers_are_short_lived_and_denials_not_kept() {
    let settings = ResolverSettings {
        network_life_max: ResolverSettings::default().network_life_max,
        network_denial_max: ResolverSettings::default().network_denial_max,
        ..PLAIN
    };
    let mut bench = Bench::with(view(), settings);
    bench.ask("db.west.red.test");
    bench.reply(0, found("db.west.red.test"));
    assert_eq!(bench.told("db.west.red.test").answers[0].ttl, 30);
    bench.now = at(1_000);
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 2, "gone within a second (R1.5)");
    bench.ask("x.west.red.test");
    bench.reply(2, code(Rcode::NX_DOMAIN));
    bench.ask("x.west.red.test");
    assert_eq!(bench.queries.len(), 4, "a live name is never denied");
}

#[test]
fn r5_5_a_popular_answer_is_fetched_anew_while_it_still_serves() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    bench.ask("a.example");
    bench.reply(0, with_ttl("a.example", 100));
    bench.told("a.example");
    bench.told("a.example");
    bench.now = at(95_000);
    let old = bench.told("a.example");
    assert_eq!((old.answers[0].ttl, bench.queries.len()), (5, 2));
    bench.told("a.example");
    assert_eq!(bench.queries.len(), 2, "once");
    bench.reply(1, with_ttl("a.example", 100));
    assert_eq!(bench.told("a.example").answers[0].ttl, 100);
    assert_eq!(bench.resolver.in_flight(), 0);
}

#[test]
fn r5_6_what_the_registry_tells_of_takes_stored_answers_with_it() {
    let mut bench = Bench::with(view(), TOLD);
    for text in ["db.west.red.test", "cache.red.test"] {
        bench.ask(text);
        bench.reply_from("west", found(text));
    }
    let stamp = bench.told.values().find_map(|told| told.stamp).unwrap();
    assert_eq!(bench.resolver.reuse(stamp, bench.now), Some(0));
    let changed = vec![name("db.west.red.test")];
    bench.input(ResolverInput::Changed(changed));
    assert_eq!(
        bench.resolver.reuse(stamp, bench.now),
        None,
        "at once, in kept messages too"
    );
    assert!(bench.told("cache.red.test").is_positive(), "others stay");
    let queries = bench.queries.len();
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), queries + 1);
}

#[test]
fn r5_6_a_name_that_comes_or_goes_here_changes_the_shared_name_at_once() {
    let union = |state| view_of(document(), state, Policy::Union);
    let mut bench = Bench::with(union(state()), TOLD);
    let ask_all = |bench: &mut Bench| {
        let asked = bench.ask("web.red.test");
        bench.reply_from("west", found("web.red.test"));
        bench.reply_from("north", code(Rcode::NX_DOMAIN));
        addresses(&bench.answers[&asked]).len()
    };
    assert_eq!(ask_all(&mut bench), 2);
    assert_eq!(bench.told("web.red.test").answers.len(), 2);
    let mut without = state();
    without.sequence = 2;
    without.names.clear();
    bench.input(ResolverInput::View(union(without)));
    assert_eq!(ask_all(&mut bench), 1);
    let mut again = state();
    again.sequence = 3;
    bench.input(ResolverInput::View(union(again)));
    assert_eq!(ask_all(&mut bench), 2);
}

#[test]
fn r5_6_an_answer_that_was_asked_for_before_a_change_is_not_kept() {
    let mut bench = Bench::with(view(), TOLD);
    let asked = bench.ask("db.west.red.test");
    bench.input(ResolverInput::Changed(vec![name("db.west.red.test")]));
    bench.reply(0, found("db.west.red.test"));
    assert!(bench.answers[&asked].is_positive());
    bench.ask("db.west.red.test");
    assert_eq!(bench.queries.len(), 2);
}

#[test]
fn r1_5_messages_about_own_names_hold_as_long_as_the_state() {
    let mut bench = Bench::new(view());
    let asked = bench.ask("web.east.red.test");
    let stamp = bench.told[&asked].stamp.expect("own names may be kept");
    assert_eq!(bench.resolver.reuse(stamp, at(50_000)), Some(0));
    let mut without = state();
    without.sequence = 2;
    without.names.clear();
    bench.input(ResolverInput::View(view_of(
        document(),
        without,
        Policy::FirstPositive,
    )));
    assert_eq!(bench.resolver.reuse(stamp, at(50_000)), None);
}

#[test]
fn r3_9_an_upstream_that_leaves_takes_its_answers_and_no_others() {
    let with_suffix = |id: &str, last: u8, suffix: &str| {
        let mut upstream = resolver(id, last);
        upstream.suffixes = vec![name(suffix)];
        upstream
    };
    let upstreams = || {
        vec![
            with_suffix("one", 1, "one.example"),
            with_suffix("two", 2, "two.example"),
        ]
    };
    let mut bench = Bench::configured(upstreams());
    for text in ["a.one.example", "a.two.example"] {
        bench.ask(text);
        bench.reply(bench.queries.len() - 1, public(text));
    }
    bench.input(ResolverInput::View(configured(upstreams())));
    assert!(bench.told("a.one.example").is_positive(), "nothing changed");
    let mut left = upstreams();
    left.remove(0);
    bench.input(ResolverInput::View(configured(left.clone())));
    assert!(bench.told("a.two.example").is_positive());
    assert_eq!(bench.told("a.one.example").rcode, Rcode::REFUSED);
    // One that comes for part of the names is asked for those.
    left.push(with_suffix("three", 3, "a.two.example"));
    bench.input(ResolverInput::View(configured(left)));
    bench.ask("a.two.example");
    assert_eq!(bench.to(bench.queries.len() - 1).0, "three");
}

#[test]
fn r3_9_another_policy_answers_anew() {
    let view = |policy| {
        let parts = ViewParts {
            upstreams: three(),
            policies: vec![(name("."), policy)],
            ..client_parts()
        };
        std::sync::Arc::new(View::assemble(parts).unwrap())
    };
    let mut bench = Bench::new(view(Policy::FirstPositive));
    bench.ask("a.example");
    bench.reply(0, public("a.example"));
    bench.input(ResolverInput::View(view(Policy::Union)));
    bench.ask("a.example");
    assert_eq!(bench.queries.len(), 6);
}

#[test]
fn r2_10_a_name_with_an_address_is_not_denied_for_the_other_family() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    bench.ask("a.example");
    bench.reply(0, public("a.example"));
    for said in [Rcode::NX_DOMAIN, Rcode::SERV_FAIL] {
        let asked = bench.ask_from(MEMBER, "a.example", T::AAAA);
        bench.reply(bench.queries.len() - 1, code(said));
        let answer = &bench.answers[&asked];
        assert!(answer.is_nodata(), "{said:?}: {answer:?}");
        assert_eq!(answer.decision, Decision::OtherType);
        // Kept for five seconds.
        bench.now = at(6_000);
    }
    let mut six = Bench::configured(vec![resolver("one", 1)]);
    six.ask_from(MEMBER, "b.example", T::AAAA);
    let record = address("b.example", "2001:db8::1");
    six.reply(0, positive(vec![record]));
    let asked = six.ask("b.example");
    six.reply(1, code(Rcode::SERV_FAIL));
    assert_eq!(
        six.answers[&asked].rcode,
        Rcode::SERV_FAIL,
        "it may well have one"
    );
}

#[test]
fn r2_5_a_nodata_with_votes_missing_lives_five_seconds() {
    let mut bench = Bench::configured(three());
    let asked = bench.ask("a.example");
    bench.reply_from("one", denied(Rcode::NO_ERROR, 600, 600));
    bench.settle();
    let answer = &bench.answers[&asked];
    assert!(answer.is_nodata() && answer.decision == Decision::VotesMissing);
    assert_eq!(answer.authority[0].ttl, 5);
}

#[test]
fn r2_8_answers_with_and_without_signatures_are_stored_apart() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    bench.ask("a.example");
    bench.reply(0, public("a.example"));
    let mut asking = bench.asking(MEMBER, "a.example", T::A);
    asking.flags = Flags {
        dnssec_ok: true,
        ..Flags::default()
    };
    let asked = bench.ask_this(asking);
    assert!(bench.queries[1].flags.dnssec_ok);
    let signature = Record {
        owner: name("a.example"),
        ttl: 30,
        data: Data::Opaque {
            rtype: RecordType::RRSIG,
            data: vec![0, 1],
        },
    };
    let mut reply = public("a.example");
    reply.answers.push(signature);
    bench.reply(1, reply);
    assert_eq!(bench.answers[&asked].answers.len(), 2);
    assert_eq!(bench.told("a.example").answers.len(), 1);
}
