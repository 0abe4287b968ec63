//! R2.6: the answer depends on what the owners say, not on the order in which they say it.
//! Every outcome of three owners, in every order of arrival, against a model of R2.4 and R2.5.

use super::orders::{ORDERS, OUTCOMES, Outcome};
use super::world::*;
use crate::machine::{Machine, Outbox, Ticket};
use crate::names::ClientClass::Member;
use crate::names::{
    Answer, Ask, Asked, DEADLINE, Failure, Flags, Manner, Plan, Policy, Rcode, RecordType, Reply,
    Resolution, ResolutionEffect, ResolutionInput, Rtt, Upstream, plan,
};

const DOMAINS: [&str; 3] = ["north", "south", "west"];
const NAME: &str = "db.red.test";

fn address_of(domain: usize) -> String {
    format!("172.16.{}.9", 4 * (domain + 1))
}

fn three_owners(policy: Policy) -> (std::sync::Arc<crate::names::View>, Ask) {
    let mut document = document();
    document.members.clear();
    let mut state = state();
    state.names.clear();
    state.servers.clear();
    for (at, owner) in ["east", "north", "south", "west"].into_iter().enumerate() {
        let member = member(
            owner,
            &format!("172.16.{}.0/22", 4 * at),
            &format!("fd77:0:0:0:{at}::/80"),
        );
        document.members.insert(domain(owner), member);
        if owner != "east" {
            state
                .servers
                .push(server(owner, &format!("172.16.{}.1", 4 * at), false));
        }
    }
    let view = view_of(document, state, policy);
    let Plan::Ask(ask) = plan(&view, &question(NAME, RecordType::A), Member, at(0)) else {
        panic!("three owners")
    };
    assert_eq!(ask.upstreams.len(), 3);
    (view, ask)
}

fn manner(_: &Upstream) -> Manner {
    Manner {
        try_limit: Rtt::default().try_limit(),
        mixed_case: false,
    }
}

fn reply(domain: usize, outcome: Outcome) -> Option<Reply> {
    match outcome {
        Outcome::Positive => Some(positive(vec![address(NAME, &address_of(domain))])),
        Outcome::NoData => Some(code(Rcode::NO_ERROR)),
        Outcome::NxDomain => Some(code(Rcode::NX_DOMAIN)),
        Outcome::Refused => Some(code(Rcode::REFUSED)),
        Outcome::ServFail => Some(code(Rcode::SERV_FAIL)),
        Outcome::Timeout => None,
    }
}

/// Delivers the replies in one order, then lets time run until there is an answer.
fn run(policy: Policy, outcomes: [Outcome; 3], order: [usize; 3]) -> Answer {
    let (view, ask) = three_owners(policy);
    let asked = Asked::new(question(NAME, RecordType::A), Flags::default());
    let mut resolution = Resolution::new(view, asked, ask, DEADLINE, 0, manner);
    let mut out = Outbox::default();
    let mut tickets: [Option<Ticket>; 3] = [None; 3];
    let mut answers = Vec::new();
    let mut take = |out: &mut Outbox<ResolutionEffect>, tickets: &mut [Option<Ticket>; 3]| {
        for effect in out.drain() {
            match effect {
                ResolutionEffect::Query(query) => {
                    let domain = DOMAINS
                        .iter()
                        .position(|domain| *domain == query.upstream.label())
                        .unwrap();
                    tickets[domain].get_or_insert(query.ticket);
                }
                ResolutionEffect::Answer(merged) => answers.push(merged.choose(0).clone()),
                _ => {}
            }
        }
    };
    resolution.handle(ResolutionInput::Ask, at(0), &mut out);
    take(&mut out, &mut tickets);
    for (turn, domain) in order.into_iter().enumerate() {
        if let (Some(reply), Some(ticket)) = (reply(domain, outcomes[domain]), tickets[domain]) {
            let now = at(1 + u64::try_from(turn).unwrap());
            resolution.handle(ResolutionInput::Reply { ticket, reply }, now, &mut out);
            take(&mut out, &mut tickets);
        }
    }
    for _ in 0..10 {
        let Some((due, _)) = resolution.next_wake() else {
            break;
        };
        resolution.wake(crate::time::Now { mono: due, ..at(0) }, &mut out);
        take(&mut out, &mut tickets);
    }
    assert_eq!(
        answers.len(),
        1,
        "one answer for {outcomes:?} in order {order:?}"
    );
    assert!(resolution.is_answered() && resolution.next_wake().is_none());
    answers.remove(0)
}

/// What the rules say, written down a second time.
fn expected(outcomes: [Outcome; 3]) -> (Rcode, Option<u32>, Option<String>) {
    let has = |outcome| outcomes.contains(&outcome);
    let missing: Vec<&str> = (0..3)
        .filter(|at| outcomes[*at] > Outcome::NxDomain)
        .map(|at| DOMAINS[at])
        .collect();
    if has(Outcome::Positive) {
        (Rcode::NO_ERROR, None, None)
    } else if has(Outcome::NoData) {
        (
            Rcode::NO_ERROR,
            Some(if missing.is_empty() { 30 } else { 5 }),
            None,
        )
    } else if missing.is_empty() {
        (Rcode::NX_DOMAIN, Some(30), None)
    } else {
        (
            Rcode::SERV_FAIL,
            None,
            Some(format!("no answer from {}", missing.join(", "))),
        )
    }
}

#[test]
fn r2_4_r2_5_r2_6_every_order_of_every_outcome_gives_the_same_answer() {
    for policy in [Policy::FirstPositive, Policy::Union] {
        for a in OUTCOMES {
            for b in OUTCOMES {
                for c in OUTCOMES {
                    same_in_every_order(policy, [a, b, c]);
                }
            }
        }
    }
}

fn same_in_every_order(policy: Policy, outcomes: [Outcome; 3]) {
    let (rcode, soa_ttl, extended) = expected(outcomes);
    let positives: Vec<String> = (0..3)
        .filter(|at| outcomes[*at] == Outcome::Positive)
        .map(address_of)
        .collect();
    let answers = ORDERS.map(|order| run(policy, outcomes, order));
    for (answer, order) in answers.iter().zip(ORDERS) {
        let context = format!("{policy:?} {outcomes:?} {order:?}: {answer:?}");
        assert_eq!(
            answer.extended.as_ref().map(|error| error.text.clone()),
            extended,
            "{context}"
        );
        assert_eq!(answer.rcode, rcode, "{context}");
        assert_eq!(
            answer.authority.first().map(|soa| soa.ttl),
            soa_ttl,
            "{context}"
        );
        assert!(!answer.authoritative, "{context}");
        match policy {
            // Which of several positives is first is all that the order decides.
            Policy::FirstPositive | Policy::Prefer | Policy::Weighted | Policy::Race => {
                let first = order
                    .into_iter()
                    .find(|at| outcomes[*at] == Outcome::Positive)
                    .map(address_of);
                assert_eq!(addresses(answer), Vec::from_iter(first), "{context}");
            }
            Policy::Union => {
                assert_eq!(addresses(answer), positives, "{context}");
                assert_eq!(answer, &answers[0], "{context}");
            }
        }
    }
}

#[test]
fn r2_6_a_network_error_is_a_missing_vote_like_silence() {
    let (view, ask) = three_owners(Policy::FirstPositive);
    let asked = Asked::new(question(NAME, RecordType::A), Flags::default());
    let mut resolution = Resolution::new(view, asked, ask, DEADLINE, 0, manner);
    let mut out = Outbox::default();
    resolution.handle(ResolutionInput::Ask, at(0), &mut out);
    let mut answer = None;
    // Each failure makes one more try, then the vote is in: no waiting for the deadline.
    for _ in 0..6 {
        for effect in out.take() {
            match effect {
                ResolutionEffect::Query(query) => {
                    let failed = ResolutionInput::Failed {
                        ticket: query.ticket,
                        failure: Failure::Network,
                    };
                    resolution.handle(failed, at(1), &mut out);
                }
                ResolutionEffect::Answer(given) => answer = Some(given.choose(0).clone()),
                _ => {}
            }
        }
    }
    let text = answer.unwrap().extended.unwrap().text;
    assert_eq!(text, "no answer from north, south, west");
}
