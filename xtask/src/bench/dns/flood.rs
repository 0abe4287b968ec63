//! One client floods with a million names that nobody asked before, another asks for a hot set:
//! with the limits that every client has, and without any.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::load::{self, Figures};
use super::servers::{FILL_ZONE, Kind, Running, Upstreams};
use super::{MEMORY_MIB, World};
use crate::bench::report::Report;
use crate::shell::say;

const FLOOD_NAMES: u64 = 1_000_000;
const FLOODER: &str = "127.0.3.2";
const GOOD: &str = "127.0.3.1";
/// Of the good client: below what one may ask by default.
const GOOD_QPS: &str = "800";
/// One look at how it fares.
const LOOK_S: &str = "3";
/// Figures follow what happened.
const FIGURES_LAG: Duration = Duration::from_millis(200);
const HITS: &str = "coredns_cache_hits_total{";

/// Marks.
const HIT_PERCENT: f64 = 95.0;
const ANSWERED_PERCENT: f64 = 99.9;

pub(super) async fn run(
    world: &World,
    upstreams: &Upstreams,
    report: &mut Report,
) -> anyhow::Result<()> {
    let hot = upstreams.questions(&world.scratch, "cached", Kind::Ours)?;
    let names = names(&world.scratch)?;
    for (kind, shown) in [
        (Kind::OursLimited, "clients limited"),
        (Kind::Ours, "no limit"),
    ] {
        say(&format!("flood, {shown}"));
        let server = Running::start(world, kind, upstreams).await?;
        // Twice, so that the set is hot.
        for _ in 0..2 {
            good(world, &server, &hot).await?;
        }
        let calm = good(world, &server, &hot).await?;
        tokio::time::sleep(FIGURES_LAG).await;
        let hits = server.figure(HITS).await?;
        let (flooded, flood_answered) = flooded(world, &server, &hot, &names).await?;
        let asked: f64 = flooded.iter().map(|look| look.answered).sum();
        let lost: f64 = flooded.iter().map(|look| look.lost).sum();
        tokio::time::sleep(FIGURES_LAG).await;
        let found = server.figure(HITS).await? - hits;
        let hit_percent = 100.0 * found / asked.max(1.0);
        let answered_percent = 100.0 * asked / (asked + lost).max(1.0);
        let memory = server.memory_mib()?;
        let under = Figures::median(&flooded);
        report.row(
            &format!("flood, {shown}"),
            &[
                ("random names", flood_answered, ""),
                ("hot questions", asked, ""),
                ("hits", hit_percent, "%"),
                ("answered", answered_percent, "%"),
                ("p99 calm", calm.p99_ms, "ms"),
                ("p99", under.p99_ms, "ms"),
                ("wrong", under.wrong, ""),
                ("memory", memory, "MiB"),
            ],
        );
        let mark = |what: &str| format!("flood, {shown}: {what}");
        report.at_least(&mark("hits of the hot set"), hit_percent, "%", HIT_PERCENT);
        let name = mark("answers to the other client");
        report.at_least(&name, answered_percent, "%", ANSWERED_PERCENT);
        report.at_most(&mark("wrong answers to it"), under.wrong, "", 0.0);
        report.at_most(&mark("memory"), memory, "MiB", MEMORY_MIB);
        server.stop().await?;
    }
    Ok(())
}

/// Looks at how the good client fares as long as the flood lasts; how many of the random names
/// were answered, refused or not.
async fn flooded(
    world: &World,
    server: &Running,
    hot: &Path,
    names: &Path,
) -> anyhow::Result<(Vec<Figures>, f64)> {
    let lasts = Cell::new(true);
    let flood = async {
        let text = load::client(world, server, names, FLOODER, &["-n", "1"]).await;
        lasts.set(false);
        load::field(&text?, "Queries completed:")
    };
    let others = async {
        let mut looks = Vec::new();
        while lasts.get() {
            looks.push(good(world, server, hot).await?);
        }
        anyhow::Ok(looks)
    };
    let (answered, looks) = tokio::join!(flood, others);
    Ok((looks?, answered?))
}

async fn good(world: &World, server: &Running, hot: &Path) -> anyhow::Result<Figures> {
    let arguments = ["-l", LOOK_S, "-n", "1000000", "-Q", GOOD_QPS, "-v"];
    let text = load::client(world, server, hot, GOOD, &arguments).await?;
    load::from_each_reply(&text)
}

/// A million names, each once, in no order.
fn names(scratch: &Path) -> anyhow::Result<PathBuf> {
    let mut text = String::new();
    for number in 0..FLOOD_NAMES {
        // Odd: each number below 2^32 comes once.
        let scrambled = number.wrapping_mul(2_654_435_761) & u64::from(u32::MAX);
        writeln!(text, "x{scrambled:08x}.{FILL_ZONE} A")?;
    }
    let path = scratch.join("flood.questions");
    std::fs::write(&path, text).context("write the flood's names")?;
    Ok(path)
}
