//! One of three upstreams is stopped (SIGSTOP) and goes on: what the names of the others notice,
//! how long it takes until it is known to be down, and how fast "no answer" comes from then on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use vl3_lab::tools::{self, QueryType, Rcode};

use super::load::{self, Figures};
use super::servers::{Kind, Running, Upstreams, address_of, fan_name, names_of};
use super::{ROUNDS, World};
use crate::bench::report::Report;
use crate::shell::say;

/// Which upstream stops.
const STOPPED: usize = 2;
const OTHERS: [usize; 2] = [0, 1];
const HEALTHY_S: u32 = 4;
/// From the stop on: with the time in which it is not noticed.
const STOPPED_S: u32 = 6;
/// Questions that need it while it is down.
const NEEDED: usize = 200;
/// Between two looks at whether it is known to be down.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);
/// What counts as an answer at all: more than the deadline of a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const WENT_DOWN: &str = "vl3_dns_upstream_went_down_total{to=\"u2\"}";

/// Marks.
const P99_RATIO: f64 = 2.0;
const DOWN_S: f64 = 3.0;
const NEEDED_MS: f64 = 50.0;
const BACK_S: f64 = 2.0;

/// One round.
#[derive(Clone, Debug, Default)]
struct Round {
    healthy: Figures,
    stopped: Figures,
    down_s: f64,
    needed_ms: f64,
    /// Of those that need it: anything but SERVFAIL.
    denied: f64,
    back_s: f64,
}

pub(super) async fn run(
    world: &World,
    upstreams: &Upstreams,
    report: &mut Report,
) -> anyhow::Result<()> {
    let server = Running::start(world, Kind::OursApart, upstreams).await?;
    let others = upstreams.questions_of(&world.scratch, "others.questions", &OTHERS)?;
    let mut rounds = Vec::new();
    for number in 0..ROUNDS {
        say(&format!("faults, round {}", number + 1));
        let outcome = round(world, upstreams, &server, &others, number).await;
        // Whatever failed, nothing stays stopped.
        upstreams.signal(STOPPED, Signal::SIGCONT)?;
        rounds.push(outcome?);
    }
    server.stop().await?;
    tell(&rounds, report);
    Ok(())
}

async fn round(
    world: &World,
    upstreams: &Upstreams,
    server: &Running,
    others: &Path,
    number: usize,
) -> anyhow::Result<Round> {
    let healthy = load::steady(world, server, others, HEALTHY_S).await?;
    let before = server.figure(WENT_DOWN).await?;
    upstreams.signal(STOPPED, Signal::SIGSTOP)?;
    let since = Instant::now();
    let (stopped, down_s) = tokio::join!(
        load::steady(world, server, others, STOPPED_S),
        until_down(server, before, since),
    );
    let (stopped, down_s) = (stopped?, down_s?);
    let mut needed_ms: f64 = 0.0;
    let mut denied = 0.0;
    for owned in names_of(&[STOPPED]).skip(number * NEEDED).take(NEEDED) {
        let start = Instant::now();
        let asked = ask(world, server, owned).await?;
        needed_ms = needed_ms.max(start.elapsed().as_secs_f64() * 1e3);
        denied += f64::from(u8::from(asked.rcode != Rcode::ServFail));
    }
    upstreams.signal(STOPPED, Signal::SIGCONT)?;
    let back_s = until_back(world, server).await?;
    Ok(Round {
        healthy,
        stopped,
        down_s,
        needed_ms,
        denied,
        back_s,
    })
}

async fn ask(world: &World, server: &Running, name: usize) -> anyhow::Result<tools::Answer> {
    let (name, kind) = (fan_name(name), QueryType::A);
    tools::ask(&world.host, None, server.address, &name, kind, ANSWER_LIMIT).await
}

async fn until_down(server: &Running, before: f64, since: Instant) -> anyhow::Result<f64> {
    while server.figure(WENT_DOWN).await? <= before {
        let waited = since.elapsed();
        ensure!(waited < PATIENCE, "not known to be down after {waited:?}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(since.elapsed().as_secs_f64())
}

/// Until a name that only this upstream has is found again.
async fn until_back(world: &World, server: &Running) -> anyhow::Result<f64> {
    let since = Instant::now();
    let name = names_of(&[STOPPED]).next().context("a name of its own")?;
    loop {
        if let Ok(answer) = ask(world, server, name).await
            && answer.addresses == [address_of(&fan_name(name))?]
        {
            return Ok(since.elapsed().as_secs_f64());
        }
        let waited = since.elapsed();
        ensure!(waited < PATIENCE, "not in use after {waited:?}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn tell(rounds: &[Round], report: &mut Report) {
    let figures = |of: fn(&Round) -> &Figures| {
        Figures::median(
            &rounds
                .iter()
                .map(|round| of(round).clone())
                .collect::<Vec<_>>(),
        )
    };
    let worst = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let (healthy, stopped) = (
        figures(|round| &round.healthy),
        figures(|round| &round.stopped),
    );
    for (name, figures) in [("all three live", &healthy), ("one is stopped", &stopped)] {
        report.row(
            &format!("faults, {name}"),
            &[
                ("answered", figures.answered, ""),
                ("p50", figures.p50_ms, "ms"),
                ("p99", figures.p99_ms, "ms"),
                ("lost", figures.lost, ""),
                ("wrong", figures.wrong, ""),
            ],
        );
    }
    report.row(
        "faults, names of the stopped one",
        &[
            ("known to be down after", worst(|round| round.down_s), "s"),
            ("slowest answer", worst(|round| round.needed_ms), "ms"),
            ("in use again after", worst(|round| round.back_s), "s"),
        ],
    );
    report.at_most(
        "faults: p99 of the others' names against all three live",
        stopped.p99_ms / healthy.p99_ms,
        "x",
        P99_RATIO,
    );
    report.at_most(
        "faults: known to be down",
        worst(|round| round.down_s),
        "s",
        DOWN_S,
    );
    let needed = worst(|round| round.needed_ms);
    report.at_most(
        "faults: answers that need it, from then on",
        needed,
        "ms",
        NEEDED_MS,
    );
    report.at_most(
        "faults: in use again",
        worst(|round| round.back_s),
        "s",
        BACK_S,
    );
    let wrong = healthy.wrong + stopped.wrong + rounds.iter().map(|r| r.denied).sum::<f64>();
    report.at_most("faults: wrong answers", wrong, "", 0.0);
}
