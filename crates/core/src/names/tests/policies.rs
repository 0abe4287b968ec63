//! R2.2, R2.4, R2.6 for resolvers: every outcome of three of them, in every order of arrival,
//! under every policy, against a model.

use std::sync::Arc;

use super::bench::{Bench, client_parts, resolver};
use super::orders::Outcome::*;
use super::orders::{ORDERS, OUTCOMES, Outcome};
use super::world::*;
use crate::names::{Answer, Policy, Preference, Rcode, Reply, Upstream, View, ViewParts};

const LABELS: [&str; 3] = ["one", "two", "three"];
const NAME: &str = "a.example";

fn address_of(at: usize) -> String {
    format!("198.51.100.{at}")
}

/// "one" is of the local class, "three" has all the weight.
fn upstreams() -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = (0_u8..)
        .zip(LABELS)
        .map(|(at, label)| resolver(label, at + 1))
        .collect();
    upstreams[0].class = Preference::Local;
    upstreams[0].weight = 0;
    upstreams[1].weight = 0;
    upstreams
}

fn view_with(policy: Policy) -> Arc<View> {
    let parts = ViewParts {
        upstreams: upstreams(),
        policies: vec![(name("example"), policy)],
        ..client_parts()
    };
    Arc::new(View::assemble(parts).unwrap())
}

fn reply(at: usize, outcome: Outcome) -> Option<Reply> {
    match outcome {
        Positive => Some(positive(vec![address(NAME, &address_of(at))])),
        NoData => Some(code(Rcode::NO_ERROR)),
        NxDomain => Some(code(Rcode::NX_DOMAIN)),
        Refused => Some(code(Rcode::REFUSED)),
        ServFail => Some(code(Rcode::SERV_FAIL)),
        Timeout => None,
    }
}

fn run(view: &Arc<View>, outcomes: [Outcome; 3], order: [usize; 3]) -> Arc<Answer> {
    let mut bench = Bench::new(Arc::clone(view));
    let asked = bench.ask(NAME);
    for at in order {
        bench.now.mono = bench.now.mono + std::time::Duration::from_millis(1);
        if let Some(reply) = reply(at, outcomes[at]) {
            bench.reply_from(LABELS[at], reply);
        }
    }
    bench.settle();
    assert_eq!(bench.resolver.in_flight(), 0);
    bench.answers[&asked].clone()
}

/// What the rules say, written down a second time: code and addresses.
fn expected(policy: Policy, outcomes: [Outcome; 3], order: [usize; 3]) -> (Rcode, Vec<String>) {
    let has = |outcome| outcomes.contains(&outcome);
    let positives: Vec<usize> = (0..3).filter(|at| outcomes[*at] == Positive).collect();
    let first = |wanted: &[Outcome]| order.into_iter().find(|at| wanted.contains(&outcomes[*at]));
    if policy == Policy::Race
        && let Some(at) = first(&[Positive, NoData, NxDomain])
    {
        return match outcomes[at] {
            Positive => (Rcode::NO_ERROR, vec![address_of(at)]),
            NoData => (Rcode::NO_ERROR, vec![]),
            _ => (Rcode::NX_DOMAIN, vec![]),
        };
    }
    if !positives.is_empty() {
        let chosen = match policy {
            Policy::FirstPositive | Policy::Race => Vec::from_iter(first(&[Positive])),
            Policy::Union => positives,
            // The local class, else whoever of the others was first.
            Policy::Prefer if outcomes[0] == Positive => vec![0],
            Policy::Prefer => Vec::from_iter(first(&[Positive])),
            Policy::Weighted if positives.contains(&2) => vec![2],
            Policy::Weighted => positives,
        };
        return (
            Rcode::NO_ERROR,
            chosen.into_iter().map(address_of).collect(),
        );
    }
    let all_of = |wanted: &[Outcome]| outcomes.iter().all(|outcome| wanted.contains(outcome));
    if has(NoData) {
        (Rcode::NO_ERROR, vec![])
    } else if has(NxDomain) && all_of(&[NxDomain, Refused]) {
        (Rcode::NX_DOMAIN, vec![])
    } else if all_of(&[Refused]) {
        (Rcode::REFUSED, vec![])
    } else {
        (Rcode::SERV_FAIL, vec![])
    }
}

fn every_order_under(policy: Policy) {
    let view = view_with(policy);
    for a in OUTCOMES {
        for b in OUTCOMES {
            for c in OUTCOMES {
                let outcomes = [a, b, c];
                for order in ORDERS {
                    let answer = run(&view, outcomes, order);
                    let (rcode, mut wanted) = expected(policy, outcomes, order);
                    let context = format!("{policy:?} {outcomes:?} {order:?}: {answer:?}");
                    assert_eq!(answer.rcode, rcode, "{context}");
                    assert!(!answer.authoritative, "{context}");
                    let mut found = addresses(&answer);
                    found.sort();
                    wanted.sort();
                    if policy == Policy::Weighted && !wanted.contains(&address_of(2)) {
                        // All that have it weigh nothing: any of them.
                        assert_eq!(found.len(), wanted.len().min(1), "{context}");
                        assert!(found.iter().all(|one| wanted.contains(one)), "{context}");
                    } else if policy == Policy::Prefer && outcomes[0] != Positive {
                        // Within a class the name decides where both came in time.
                        assert_eq!(found.len(), wanted.len(), "{context}");
                    } else {
                        assert_eq!(found, wanted, "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn r2_6_first_positive() {
    every_order_under(Policy::FirstPositive);
}

#[test]
fn r2_6_union() {
    every_order_under(Policy::Union);
}

#[test]
fn r2_6_prefer() {
    every_order_under(Policy::Prefer);
}

#[test]
fn r2_6_weighted() {
    every_order_under(Policy::Weighted);
}

#[test]
fn r2_6_race() {
    every_order_under(Policy::Race);
}

#[test]
fn r2_2_prefer_waits_thirty_milliseconds_for_a_better_class() {
    let view = view_with(Policy::Prefer);
    let mut bench = Bench::new(Arc::clone(&view));
    let asked = bench.ask(NAME);
    bench.reply_from("two", positive(vec![address(NAME, &address_of(1))]));
    assert!(bench.answers.is_empty());
    bench.settle();
    assert_eq!(bench.now, at(30));
    assert_eq!(addresses(&bench.answers[&asked]), [address_of(1)]);
    // The better class in time; and no waiting for an equal one.
    let mut bench = Bench::new(Arc::clone(&view));
    let asked = bench.ask(NAME);
    bench.reply_from("three", positive(vec![address(NAME, &address_of(2))]));
    bench.now = at(29);
    bench.reply_from("one", positive(vec![address(NAME, &address_of(0))]));
    assert_eq!(addresses(&bench.answers[&asked]), [address_of(0)]);
    let mut bench = Bench::new(view);
    let asked = bench.ask(NAME);
    bench.reply_from("one", code(Rcode::NX_DOMAIN));
    bench.reply_from("two", positive(vec![address(NAME, &address_of(1))]));
    assert_eq!(
        addresses(&bench.answers[&asked]),
        [address_of(1)],
        "nobody better is left"
    );
}

#[test]
fn r2_3_a_silent_upstream_delays_no_positive_answer() {
    for policy in [Policy::FirstPositive, Policy::Race, Policy::Prefer] {
        let mut bench = Bench::new(view_with(policy));
        let asked = bench.ask(NAME);
        bench.reply_from("one", positive(vec![address(NAME, &address_of(0))]));
        assert!(bench.answers[&asked].is_positive(), "{policy:?}");
    }
}
