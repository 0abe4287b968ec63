//! The query log (R7.3): a sample of the questions, who said what to each, and the rule that
//! decided. Off by default.
//!
//! The engine draws which question is next and hands it over; a task writes. What the task does not
//! keep up with is not logged, and counted.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use vl3_core::names::{Decision, Question, Rcode, Step, Trace};
use vl3_runtime::CancellationToken;

use crate::engine::type_text;
use crate::metrics::Metrics;

/// Lines that wait to be written.
const WAITING_MAX: usize = 256;
/// Votes shown of one question.
const VOTES_MAX: usize = 64;
/// What the lines are found by, as in `RUST_LOG=vl3::dns::query=info`.
const TARGET: &str = "vl3::dns::query";

/// One question that was drawn.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) client: IpAddr,
    pub(crate) proto: &'static str,
    pub(crate) question: Question,
    pub(crate) rcode: Rcode,
    pub(crate) decision: Decision,
    /// From question to answer.
    pub(crate) waited: Duration,
    pub(crate) trace: Option<Box<Trace>>,
}

/// The engine's end: draws, and hands over without waiting.
#[derive(Debug)]
pub(crate) struct QueryLog {
    rate: f64,
    /// Questions that pass before the next one is drawn.
    pass: u64,
    view: String,
    lines: mpsc::Sender<(String, Entry)>,
    metrics: Metrics,
}

/// What a log is made of; one task writes for all views.
#[derive(Clone, Debug)]
pub(crate) struct Lines(mpsc::Sender<(String, Entry)>);

/// The task's end.
pub(crate) struct Writer(mpsc::Receiver<(String, Entry)>);

pub(crate) fn lines() -> (Lines, Writer) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Lines(sender), Writer(receiver))
}

impl Lines {
    /// Of one view; `rate` is the share of questions that are drawn, 0 for none.
    pub(crate) fn log(&self, view: &str, rate: f64, metrics: Metrics) -> QueryLog {
        let mut log = QueryLog {
            rate: 0.0,
            pass: 0,
            view: view.to_owned(),
            lines: self.0.clone(),
            metrics,
        };
        log.set_rate(rate);
        log
    }
}

impl QueryLog {
    pub(crate) fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
        self.pass = gap(rate, rand::random());
    }

    /// Whether this question is to be logged. Costs a comparison, and a number drawn for each one
    /// that is.
    pub(crate) fn draw(&mut self) -> bool {
        if self.rate <= 0.0 {
            return false;
        }
        if self.pass > 0 {
            self.pass -= 1;
            return false;
        }
        self.pass = gap(self.rate, rand::random());
        // Nothing is gathered for a line that would not be written.
        let has_room = self.lines.capacity() > 0;
        if !has_room {
            self.metrics.not_logged();
        }
        has_room
    }

    pub(crate) fn put(&self, entry: Entry) {
        match self.lines.try_send((self.view.clone(), entry)) {
            Ok(()) => self.metrics.logged(),
            Err(_) => self.metrics.not_logged(),
        }
    }
}

/// How many questions pass between two that are drawn, each of them with the same chance.
/// `random` is even within 0 and 1.
fn gap(rate: f64, random: f64) -> u64 {
    if rate >= 1.0 {
        return 0;
    }
    let passed = (1.0 - random).ln() / (1.0 - rate).ln();
    // Not a number or infinite where the rate is next to nothing: as good as never.
    if passed.is_finite() && passed < 1e18 {
        passed as u64
    } else {
        u64::MAX
    }
}

impl Writer {
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                line = self.0.recv() => match line {
                    Some((view, entry)) => write(&view, &entry),
                    None => std::future::pending().await,
                },
            }
        }
    }
}

fn write(view: &str, entry: &Entry) {
    tracing::info!(
        target: TARGET,
        view,
        client = %entry.client,
        proto = entry.proto,
        name = %entry.question.name,
        rtype = type_text(entry.question.rtype),
        rcode = entry.rcode.label(),
        decision = entry.decision.label(),
        rule = entry.decision.rule(),
        waited_ms = entry.waited.as_secs_f64() * 1e3,
        votes = votes(entry.trace.as_deref()),
        "question"
    );
}

/// `stored`, or `east=positive west=timed_out`, in the order in which they came.
fn votes(trace: Option<&Trace>) -> String {
    let mut words = Vec::new();
    let mut more = trace.map_or(0, |trace| trace.left_out);
    for (_, step) in trace.into_iter().flat_map(|trace| &trace.steps) {
        let word = match step {
            Step::Cached { state: "miss", .. } | Step::Planned { .. } | Step::Asked { .. } => {
                continue;
            }
            Step::Cached { state, .. } => (*state).to_owned(),
            Step::Joined => "joined".to_owned(),
            Step::Said { upstream, vote, .. } => format!("{upstream}={vote}"),
            Step::Failed { upstream, failure } | Step::LeftOut { upstream, failure } => {
                format!("{upstream}={}", failure.label())
            }
            Step::Answered { .. } => continue,
        };
        if words.len() < VOTES_MAX {
            words.push(word);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vl3_core::names::{Failure, Policy, UpstreamId};

    #[test]
    fn r7_3_each_question_has_the_same_chance() {
        assert_eq!(gap(1.0, 0.99), 0);
        assert_eq!(gap(0.0, 0.5), u64::MAX);
        assert_eq!(gap(0.5, 0.0), 0);
        // With one in four, half of the gaps are within two.
        assert_eq!((gap(0.25, 0.4), gap(0.25, 0.6)), (1, 3));
        let drawn = 1_000;
        let passed: u64 = (0..drawn)
            .map(|at| gap(0.01, (f64::from(at) + 0.5) / f64::from(drawn)))
            .sum();
        let mean = passed as f64 / f64::from(drawn);
        assert!((98.0..100.0).contains(&mean), "{mean}");
    }

    #[test]
    fn r7_3_what_is_not_written_in_time_is_not_logged_and_counted() {
        let (lines, writer) = lines();
        let metrics = Metrics::default();
        let mut log = lines.log("", 1.0, metrics.clone());
        let entry = || Entry {
            client: IpAddr::from([192, 0, 2, 1]),
            proto: "udp",
            question: Question::new(
                vl3_core::names::Name::root(),
                vl3_core::names::RecordType::A,
            ),
            rcode: Rcode::NO_ERROR,
            decision: Decision::Merged,
            waited: Duration::ZERO,
            trace: None,
        };
        for _ in 0..WAITING_MAX {
            assert!(log.draw());
            log.put(entry());
        }
        assert!(!log.draw(), "no room");
        log.put(entry());
        assert_eq!(metrics.query_log(), (256, 2));
        log.set_rate(0.0);
        assert!(!log.draw());
        assert_eq!(metrics.query_log(), (256, 2), "off");
        drop(writer);
    }

    #[test]
    fn r7_3_votes_stand_in_one_word_each() {
        let (east, west) = (UpstreamId::new("east"), UpstreamId::new("west"));
        let mut trace = Trace::default();
        let steps = [
            Step::Cached {
                state: "miss",
                age: 0,
            },
            Step::Planned {
                rule: "R1.3",
                policy: Policy::Race,
                upstreams: vec![east.clone(), west.clone()],
            },
            Step::Said {
                upstream: east,
                vote: "nxdomain",
                records: 0,
                truncated: false,
            },
            Step::Failed {
                upstream: west,
                failure: Failure::TimedOut,
            },
        ];
        trace.steps.extend(steps.map(|step| (Duration::ZERO, step)));
        assert_eq!(votes(Some(&trace)), "east=nxdomain west=timed_out");
        assert_eq!(votes(None), "");
        let step = trace.steps[2].clone();
        trace.steps.extend(vec![step; VOTES_MAX]);
        assert!(votes(Some(&trace)).ends_with("east=nxdomain and 2 more"));
    }
}
