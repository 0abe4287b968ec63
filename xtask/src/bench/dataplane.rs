//! `cargo xtask bench dataplane`: our tunnel beside `boringtun-cli`, in one run, interleaved.
//!
//! Rows, all over namespaces and veth with offloads on:
//! * veth: client - router = tunnel = router - client, by kernel routing around `vl3 wg`;
//! * attached: the programs hold the TUN itself, as with a passed descriptor;
//! * transit: tunnel client - router - router - tunnel client.
//!
//! Arguments choose rows. Each: one TCP stream; 200-byte UDP at overload, and at half of what that delivered. CPU is
//! what both routers' processes used. Ratios are medians of the per-round ratios.

mod load;
mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use vl3_lab::{Lab, tools};

use super::Bench;
use super::report::Report;
use crate::shell::{self, cargo, say};
use load::{Datagrams, flood, paced};
use world::{Layout, Program, World};

const ROUNDS: usize = 3;
const STREAM: Duration = Duration::from_secs(4);
const FLOOD: Duration = Duration::from_secs(3);
/// The baseline of the first mark, in the version whose library is also our engine.
const BASELINE: &str = "0.7.1";
/// On one TCP stream, veth row.
const RATIO_WANTED: f64 = 2.0;

/// What one program did in one round of one layout.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Gbit/s of one TCP stream, and CPU-seconds of both routers per 10^9 bytes.
    stream: f64,
    stream_cpu: f64,
    /// Packets per second delivered at overload, and CPU-microseconds per packet.
    flood: f64,
    flood_cpu: f64,
    half: Datagrams,
}

pub(crate) fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let baseline = install_baseline()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let wanted = |layout: &Layout| {
        bench.arguments.is_empty() || bench.arguments.iter().any(|name| name == layout.name())
    };
    for layout in Layout::ALL.into_iter().filter(wanted) {
        say(&format!(
            "{}: {ROUNDS} rounds of both programs",
            layout.name()
        ));
        let samples =
            runtime.block_on(measure(layout, &bench.binary, &baseline, &bench.scratch))?;
        record(layout, &samples, report);
    }
    Ok(())
}

/// By cargo, below the target directory; nothing to do the second time.
fn install_baseline() -> anyhow::Result<PathBuf> {
    let root = shell::target_dir().join("tools");
    let binary = root.join("bin/boringtun-cli");
    if !binary.exists() {
        let mut install = cargo();
        install.args([
            "install",
            "boringtun-cli",
            "--version",
            BASELINE,
            "--locked",
            "--root",
        ]);
        shell::run(install.arg(&root)).context("install the baseline")?;
    }
    Ok(binary)
}

async fn measure(
    layout: Layout,
    ours: &Path,
    baseline: &Path,
    scratch: &Path,
) -> anyhow::Result<Vec<[Sample; 2]>> {
    let lab = Lab::new(scratch)?;
    let programs = [
        Program::Ours(ours.to_owned()),
        Program::Boringtun(baseline.to_owned()),
    ];
    let mut worlds = Vec::new();
    for program in &programs {
        let name = format!("{} with {}", layout.name(), program.name());
        worlds.push(
            World::build(&lab, layout, program)
                .await
                .with_context(|| format!("build {name}"))?,
        );
    }
    let mut samples = Vec::new();
    for round in 1..=ROUNDS {
        let mut pair = Vec::new();
        for (world, program) in worlds.iter().zip(&programs) {
            let context = || format!("round {round} of {} with {}", layout.name(), program.name());
            let sample = sample(world).await.with_context(context)?;
            say(&format!(
                "  {round} {:<14} {:6.2} Gbit/s {:6.2} s/GB | {:7.0} packets/s {:5.2} us | at half {:7.0}/s lost {} reordered {}",
                program.name(),
                sample.stream,
                sample.stream_cpu,
                sample.flood,
                sample.flood_cpu,
                sample.half.per_second(),
                sample.half.lost(),
                sample.half.reordered,
            ));
            pair.push(sample);
        }
        samples.extend(<[Sample; 2]>::try_from(pair).ok());
    }
    Ok(samples)
}

async fn sample(world: &World) -> anyhow::Result<Sample> {
    let (from, to) = world.ends();
    let before = world.router_cpu()?;
    let stream = tools::throughput(from, None, to, world.target(), STREAM).await?;
    let stream_cpu = (world.router_cpu()? - before).as_secs_f64() / (stream.bytes as f64 / 1e9);

    let before = world.router_cpu()?;
    let flooded = flood(from, to, world.target(), FLOOD)?;
    let cpu = world.router_cpu()? - before;
    let half = paced(from, to, world.target(), FLOOD, flooded.per_second() / 2.0)?;
    Ok(Sample {
        stream: stream.bits_per_second() / 1e9,
        stream_cpu,
        flood: flooded.per_second(),
        flood_cpu: cpu.as_secs_f64() * 1e6 / (flooded.received.max(1) as f64),
        half,
    })
}

fn record(layout: Layout, samples: &[[Sample; 2]], report: &mut Report) {
    for (index, program) in ["vl3", "boringtun-cli"].into_iter().enumerate() {
        let of =
            |figure: fn(&Sample) -> f64| median(samples.iter().map(|pair| figure(&pair[index])));
        report.row(
            &format!("{} {program}", layout.name()),
            &[
                ("tcp", of(|sample| sample.stream), "Gbit/s"),
                ("tcp cpu", of(|sample| sample.stream_cpu), "s/GB"),
                ("udp200", of(|sample| sample.flood), "packets/s"),
                ("udp200 cpu", of(|sample| sample.flood_cpu), "us"),
                (
                    "half lost",
                    of(|sample| sample.half.lost() as f64),
                    "packets",
                ),
                (
                    "half reordered",
                    of(|sample| sample.half.reordered as f64),
                    "packets",
                ),
            ],
        );
    }
    let ratio = |figure: fn(&Sample) -> f64| {
        median(
            samples
                .iter()
                .map(|pair| figure(&pair[0]) / figure(&pair[1])),
        )
    };
    let stream = ratio(|sample| sample.stream);
    report.row(
        &format!("{} ratio", layout.name()),
        &[
            ("tcp", stream, "x"),
            ("tcp cpu", ratio(|sample| sample.stream_cpu), "x"),
            ("udp200", ratio(|sample| sample.flood), "x"),
            ("udp200 cpu", ratio(|sample| sample.flood_cpu), "x"),
        ],
    );
    let half =
        |figure: fn(&Sample) -> u64| median(samples.iter().map(|pair| figure(&pair[0]) as f64));
    report.at_most(
        &format!("{} half load lost", layout.name()),
        half(|sample| sample.half.lost()),
        "packets",
        0.0,
    );
    report.at_most(
        &format!("{} half load reordered", layout.name()),
        half(|sample| sample.half.reordered),
        "packets",
        0.0,
    );
    if layout == Layout::Veth {
        report.at_least("veth tcp against boringtun-cli", stream, "x", RATIO_WANTED);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
