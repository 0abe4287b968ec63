//! R7.3: who was asked, who said what and when, the rule that decided.

use std::time::Duration;

use super::bench::{Bench, public, three};
use super::world::*;
use crate::names::{Decision, Policy, Rcode, RecordType, Step, Trace};

fn explained(bench: &mut Bench, text: &str) -> u64 {
    let mut asking = bench.asking(MEMBER, text, RecordType::A);
    asking.explain = true;
    bench.ask_this(asking)
}

fn trace(bench: &Bench, asked: u64) -> &Trace {
    bench.told[&asked].trace.as_ref().expect("a trace")
}

#[test]
fn r7_3_an_explained_question_tells_who_said_what_and_when() {
    let mut bench = Bench::configured(three());
    let asked = explained(&mut bench, "a.example");
    bench.now = at(4);
    bench.reply_from("two", code(Rcode::NX_DOMAIN));
    bench.now = at(7);
    bench.reply_from("one", public("a.example"));
    let steps: Vec<String> = trace(&bench, asked)
        .steps
        .iter()
        .map(|(since, step)| format!("{} {step:?}", since.as_millis()))
        .collect();
    assert_eq!(steps.len(), 8, "{steps:#?}");
    assert!(steps[0].contains("Cached") && steps[0].contains("miss"));
    assert!(steps[1].contains("Planned") && steps[1].contains("R1.3"));
    assert!(steps[2..5].iter().all(|step| step.starts_with("0 Asked")));
    assert!(steps[5].starts_with("4 Said { upstream: two, vote: \"nxdomain\""));
    assert!(steps[6].starts_with("7 Said { upstream: one, vote: \"positive\""));
    let last = &trace(&bench, asked).steps[7];
    assert_eq!(
        *last,
        (
            Duration::from_millis(7),
            Step::Answered {
                rcode: Rcode::NO_ERROR,
                decision: Decision::Merged,
                rule: "R2.2"
            }
        )
    );
}

#[test]
fn r7_3_explaining_asks_anew_and_joins_nobody() {
    let mut bench = Bench::configured(three());
    bench.ask("a.example");
    bench.reply(0, public("a.example"));
    assert!(bench.told("a.example").is_positive());
    let asked = explained(&mut bench, "a.example");
    assert_eq!(bench.queries.len(), 6, "whatever is stored");
    explained(&mut bench, "a.example");
    assert_eq!(bench.queries.len(), 9);
    bench.settle();
    let steps = &trace(&bench, asked).steps;
    assert!(matches!(steps[0].1, Step::Cached { state: "fresh", .. }));
    let failed = steps
        .iter()
        .filter(|(_, step)| matches!(step, Step::Failed { .. }))
        .count();
    assert_eq!(failed, 3, "silence is told too");
    assert!(matches!(
        steps.last().unwrap().1,
        Step::Answered {
            decision: Decision::VotesMissing,
            rule: "R2.5",
            ..
        }
    ));
}

#[test]
fn r7_3_what_is_answered_at_once_is_explained_by_its_rule() {
    let mut bench = Bench::new(view_of(document(), state(), Policy::FirstPositive));
    let rule = |bench: &mut Bench, text: &str| {
        let asked = explained(bench, text);
        match trace(bench, asked).steps.last() {
            Some((_, Step::Answered { rule, .. })) => *rule,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(rule(&mut bench, "web.east.red.test"), "R1.5");
    assert_eq!(rule(&mut bench, "db.south.red.test"), "R1.8");
    assert_eq!(rule(&mut bench, "localhost"), "R1.6");
    assert_eq!(rule(&mut bench, "www.example"), "R1.6");
}

#[test]
fn r7_3_a_logged_question_is_answered_as_any_other() {
    let mut bench = Bench::configured(three());
    let logged = |bench: &mut Bench| {
        let mut asking = bench.asking(MEMBER, "a.example", RecordType::A);
        asking.log = true;
        bench.ask_this(asking)
    };
    let first = logged(&mut bench);
    let plain = bench.ask("a.example");
    let joined = logged(&mut bench);
    assert_eq!(bench.queries.len(), 3, "one fan-out for all");
    bench.reply_from("one", public("a.example"));
    let stored = logged(&mut bench);
    assert_eq!(bench.queries.len(), 3, "what is stored is used");
    let of = |asked| {
        let steps = trace(&bench, asked).steps.iter();
        let text = |(_, step): &(Duration, Step)| {
            let text = format!("{step:?}");
            let end = text.find(' ').unwrap_or(text.len());
            text[..end].to_owned()
        };
        steps.map(text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        of(first),
        "Cached Planned Asked Asked Asked Said Answered",
        "with the votes"
    );
    assert_eq!(of(joined), "Cached Joined Answered");
    assert_eq!(of(stored), "Cached Answered");
    assert!(bench.told[&plain].trace.is_none());
}
