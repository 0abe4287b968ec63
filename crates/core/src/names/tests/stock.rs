//! Routers of the stock make (R2.13).

use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, PLAIN, client_parts, found, resolver};
use super::world::*;
use crate::names::{
    ClientClass, Decision, Failure, NetworkParts, Policy, Rcode, RecordType, Upstream, View,
    ViewError, ViewParts,
};

use RecordType as T;

fn stock(id: &str, of: &str, last: u8) -> Upstream {
    let servers = vec![socket(&format!("172.16.8.{last}"))];
    Upstream::stock(id, domain(of), servers, vec![name(ZONE)])
}

/// The network of three, in which north has stock routers alone.
fn in_network(stock: Vec<Upstream>) -> Arc<View> {
    let mut state = state();
    state
        .servers
        .retain(|server| server.domain == domain("west"));
    // As if it were a workload's: where a stock router asks from does not make it one.
    let clients = "172.16.8.0/22".parse().unwrap();
    state.clients.push((clients, ClientClass::Member));
    let network = NetworkParts {
        document: Arc::new(document()),
        state,
        shared_names: Policy::FirstPositive,
        port: 53,
    };
    let parts = ViewParts {
        network: Some(network),
        upstreams: stock,
        ..ViewParts::default()
    };
    Arc::new(View::assemble(parts).unwrap())
}

/// Without a network: stock routers and a resolver, for whoever asks from 172.16.0.0/16.
fn alone(upstreams: Vec<Upstream>) -> Arc<View> {
    let parts = ViewParts {
        upstreams,
        ..client_parts()
    };
    Arc::new(View::assemble(parts).unwrap())
}

#[test]
fn r2_13_a_stock_router_is_asked_for_shared_names_only() {
    let view = in_network(vec![stock("n1", "north", 1)]);
    let shared = planned(&view, "db.red.test", T::A, ClientClass::Member);
    assert_eq!(asked(shared), ["-", "red-west"]);
    // Neither for canonical names nor for addresses of its domain: a missing vote.
    for (text, rtype) in [
        ("db.north.red.test", T::A),
        ("9.8.16.172.in-addr.arpa", T::PTR),
    ] {
        let answer = answered(planned(&view, text, rtype, ClientClass::Member));
        assert_eq!(answer.decision, Decision::VotesMissing, "{text}");
    }
    let alone = alone(vec![stock("n1", "north", 1), resolver("all", 1)]);
    let plan = |text| planned(&alone, text, T::A, ClientClass::Member);
    assert_eq!(asked(plan("db.red.test")), ["n1"]);
    assert_eq!(asked(plan("db.example")), ["all"]);
    for text in ["db.north.red.test", "red.test"] {
        assert_eq!(answered(plan(text)).rcode, Rcode::REFUSED, "{text}");
    }
}

#[test]
fn r2_13_without_a_router_of_ours_it_speaks_for_its_domain_and_beside_one_too() {
    let mut bench = Bench::new(in_network(vec![stock("n1", "north", 1)]));
    let asked = bench.ask("db.red.test");
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    let query = &bench.queries[0];
    assert_eq!(query.upstream.label(), "north");
    assert!(!query.flags.recursion_desired && !query.mixed_case && query.mark.is_none());
    let own = positive(vec![address("db.red.test", "172.16.8.9")]);
    bench.reply_from("north", own);
    assert_eq!(addresses(&bench.answers[&asked]), ["172.16.8.9"]);
    // R2.12: an address of another domain is not its to give.
    let asked = bench.ask("x.red.test");
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    bench.reply_from("north", found("x.red.test"));
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
    assert_eq!(
        counts(&bench.resolver.counters().failures, &Failure::Foreign),
        Some(1)
    );
}

#[test]
fn r2_13_what_the_document_does_not_know_is_not_asked() {
    let view = in_network(vec![stock("s1", "south", 1)]);
    let answer = planned(&view, "db.red.test", T::A, ClientClass::Member);
    assert_eq!(asked(answer), ["red-west"]);
}

#[test]
fn r2_13_the_second_servfail_to_another_message_is_its_nxdomain() {
    let mut bench = Bench::new(in_network(vec![stock("n1", "north", 1)]));
    let asked = bench.ask("db.red.test");
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    bench.reply_from("north", code(Rcode::SERV_FAIL));
    assert!(
        !bench.answers.contains_key(&asked),
        "a clash of IDs, perhaps"
    );
    let [first, second] = [0, 2].map(|at| &bench.queries[at]);
    assert_eq!(second.upstream.label(), "north");
    assert!(second.ticket != first.ticket && second.after == Some(first.ticket));
    bench.reply_from("north", code(Rcode::SERV_FAIL));
    let answer = &bench.answers[&asked];
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::NX_DOMAIN, Decision::Merged)
    );
    // A clash alone denies nothing.
    let asked = bench.ask("web2.red.test");
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    bench.reply_from("north", code(Rcode::SERV_FAIL));
    let own = positive(vec![address("web2.red.test", "172.16.8.9")]);
    bench.reply_from("north", own);
    assert!(bench.answers[&asked].is_positive());
    // A SERVFAIL of ours stays what it is.
    let asked = bench.ask("y.red.test");
    bench.reply_from("north", code(Rcode::SERV_FAIL));
    bench.reply_from("north", code(Rcode::SERV_FAIL));
    bench.reply_from("west", code(Rcode::SERV_FAIL));
    assert_eq!(bench.answers[&asked].rcode, Rcode::SERV_FAIL);
}

#[test]
fn r2_13_one_servfail_and_silence_is_a_missing_vote() {
    let mut bench = Bench::new(in_network(vec![stock("n1", "north", 1)]));
    let asked = bench.ask("db.red.test");
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    bench.reply_from("north", code(Rcode::SERV_FAIL));
    bench.settle();
    let answer = &bench.answers[&asked];
    assert_eq!(answer.rcode, Rcode::SERV_FAIL);
    assert!(answer.extended.as_ref().unwrap().text.contains("north"));
    let north = bench
        .queries
        .iter()
        .filter(|query| query.upstream.label() == "north");
    assert!(north.count() <= 3, "R3.8");
}

#[test]
fn r2_13_what_a_stock_router_asks_goes_to_no_other_one() {
    let view = alone(vec![stock("n1", "north", 1), stock("w1", "west", 2)]);
    let mut bench = Bench::with(view, PLAIN);
    let asked = bench.ask("db.red.test");
    bench.reply_from("west", positive(vec![address("db.red.test", "172.16.8.9")]));
    assert!(bench.answers[&asked].is_positive());
    let queries = bench.queries.len();
    // Not even what is stored for clients.
    let asked = bench.ask_from("172.16.8.1", "db.red.test", T::A);
    assert_eq!(bench.answers[&asked].rcode, Rcode::REFUSED);
    assert_eq!(bench.queries.len(), queries);
    let view = in_network(vec![stock("n1", "north", 1)]);
    let mut bench = Bench::with(view, PLAIN);
    let asked = bench.ask_from("172.16.8.1", "db.red.test", T::A);
    assert_eq!(bench.answers[&asked].rcode, Rcode::NX_DOMAIN);
    assert!(bench.queries.is_empty());
}

#[test]
fn r2_13_its_health_is_looked_at_with_a_shared_name_and_loops_are_not_looked_for() {
    let view = alone(vec![stock("n1", "north", 1)]);
    let mut bench = Bench::with(view, PLAIN);
    assert!(bench.probes.is_empty());
    bench.ask("db.red.test");
    bench.pass(Duration::from_millis(800));
    let probe = &bench.probes.last().unwrap().question;
    assert_eq!(
        (probe.name.to_string().as_str(), probe.rtype),
        ("vl3-probe.red.test.", T::A)
    );
}

#[test]
fn r2_13_without_suffixes_nobody_knows_what_it_may_be_asked() {
    let mut none = stock("n1", "north", 1);
    none.suffixes.clear();
    let parts = ViewParts {
        upstreams: vec![none.clone()],
        ..client_parts()
    };
    assert_eq!(
        View::assemble(parts).unwrap_err(),
        [ViewError::StockSuffix(none.id)]
    );
}
