//! `cargo xtask bench dns`: fan-out to three upstreams and cached answers, beside CoreDNS with
//! the NSM fanout plugin and dnsdist, each in turn under the same load; then ours alone, with an
//! upstream that stops and with a client that floods.
//!
//! Real servers on loopback: three `nsd` with the records of one domain each, `dnsperf` as the
//! load, and questions of our own between them that look at every answer. The part `mesh` needs
//! none of them: many servers of ours that ask each other.

mod check;
mod faults;
mod flood;
mod load;
mod mesh;
mod servers;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use vl3_lab::{Host, Lab, ProcessSpec};

use super::Bench;
use super::report::Report;
use crate::shell::{self, say};
use load::Figures;
use servers::{Kind, Running, Upstreams};

/// Interleaved; figures are the medians.
const ROUNDS: usize = 3;
/// Half of the rate at which the slowest server was seen to saturate; latencies are taken at it.
const STEADY_QPS: u32 = 2_000;

/// Marks.
const QPS_RATIO: f64 = 5.0;
const FANOUT_CPU_RATIO: f64 = 2.5;
const CACHED_CPU_RATIO: f64 = 1.5;
const MEMORY_MIB: f64 = 100.0;
/// What a full cache holds, in names: more than 32 MiB of them.
const FILL_NAMES: usize = 200_000;

/// The parts, in the order in which they run; arguments choose some.
const PARTS: [&str; 6] = ["mesh", "fanout", "cached", "full", "faults", "flood"];

/// Those beside stock servers.
const COMPARING: [&str; 2] = ["fanout", "cached"];

/// One host that holds every process.
struct World {
    host: Host,
    scratch: PathBuf,
    vl3: PathBuf,
    /// The directory of the stock peers.
    peers: PathBuf,
}

impl World {
    /// Runs a program to its end and returns what it printed.
    async fn output(&self, spec: ProcessSpec) -> anyhow::Result<String> {
        let mut process = self.host.spawn(spec)?;
        let status = process.wait().await?;
        let log = process.log_path().to_owned();
        let text = std::fs::read_to_string(&log).context("read what a program printed")?;
        ensure!(
            status.success(),
            "{} ended with {status}: {}",
            process.name(),
            process.log_tail(5).join("\n")
        );
        std::fs::remove_file(&log).context("remove what a program printed")?;
        Ok(text)
    }
}

pub(crate) fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let parts = bench.parts(&PARTS)?;
    if parts.contains(&"mesh") {
        mesh::run(report)?;
    }
    if parts == ["mesh"] {
        return Ok(());
    }
    servers::installed()?;
    let compares = parts.iter().any(|part| COMPARING.contains(part));
    let peers = if compares {
        let (ok, built, errors) =
            shell::output(Command::new("tests/interop/peers/build").arg("coredns"))?;
        ensure!(ok, "build the stock peers: {errors}");
        PathBuf::from(built.trim())
    } else {
        PathBuf::new()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let lab = Lab::new(&bench.scratch)?;
        let world = World {
            host: lab.add_host("bench")?,
            scratch: bench.scratch.clone(),
            vl3: bench.binary.clone(),
            peers,
        };
        let upstreams = Upstreams::start(&world).await?;
        if parts.contains(&"fanout") {
            fanout(&world, &upstreams, report).await?;
        }
        if parts.contains(&"cached") {
            cached(&world, &upstreams, report).await?;
        }
        if parts.contains(&"full") {
            full(&world, &upstreams, report).await?;
        }
        if parts.contains(&"faults") {
            faults::run(&world, &upstreams, report).await?;
        }
        if parts.contains(&"flood") {
            flood::run(&world, &upstreams, report).await?;
        }
        Ok(())
    })
}

/// Names that no cache may keep (TTL 0), spread over all upstreams; dnsdist asks one upstream
/// for names of that one.
async fn fanout(world: &World, upstreams: &Upstreams, report: &mut Report) -> anyhow::Result<()> {
    let kinds = [Kind::Ours, Kind::CoreDnsFanout, Kind::DnsdistOne];
    let measured = rounds(world, upstreams, "fanout", &kinds, report).await?;
    let [ours, coredns, dnsdist] = measured.as_slice() else {
        return Ok(());
    };
    report.at_least(
        "fan-out: QPS against CoreDNS fanout",
        ours.qps / coredns.qps,
        "x",
        QPS_RATIO,
    );
    report.at_most(
        "fan-out: CPU per query against dnsdist asking one upstream",
        ours.cpu_us / dnsdist.cpu_us,
        "x",
        FANOUT_CPU_RATIO,
    );
    report.at_most("fan-out: wrong answers", ours.wrong, "", 0.0);
    Ok(())
}

/// A hot set that every cache holds.
async fn cached(world: &World, upstreams: &Upstreams, report: &mut Report) -> anyhow::Result<()> {
    let kinds = [Kind::Ours, Kind::DnsdistCache, Kind::CoreDnsCache];
    let measured = rounds(world, upstreams, "cached", &kinds, report).await?;
    let [ours, dnsdist, _] = measured.as_slice() else {
        return Ok(());
    };
    report.at_most(
        "cached: CPU per query against dnsdist's packet cache",
        ours.cpu_us / dnsdist.cpu_us,
        "x",
        CACHED_CPU_RATIO,
    );
    report.at_most("cached: wrong answers", ours.wrong, "", 0.0);
    Ok(())
}

/// Memory after more names than the cache holds.
async fn full(world: &World, upstreams: &Upstreams, report: &mut Report) -> anyhow::Result<()> {
    say("full cache");
    let server = Running::start(world, Kind::Ours, upstreams).await?;
    let questions = upstreams.questions_to_fill(&world.scratch, FILL_NAMES)?;
    let figures = load::once(world, &server, &questions).await?;
    let memory = server.memory_mib()?;
    report.row(
        "32 MiB cache, full",
        &[
            ("names asked", figures.answered, ""),
            ("memory", memory, "MiB"),
        ],
    );
    report.at_most("memory with a full cache", memory, "MiB", MEMORY_MIB);
    server.stop().await
}

/// All kinds at once on the machine, loaded one after another, in every round.
async fn rounds(
    world: &World,
    upstreams: &Upstreams,
    part: &str,
    kinds: &[Kind],
    report: &mut Report,
) -> anyhow::Result<Vec<Figures>> {
    let mut servers = Vec::new();
    for kind in kinds {
        servers.push(Running::start(world, *kind, upstreams).await?);
    }
    let mut found: Vec<Vec<Figures>> = vec![Vec::new(); kinds.len()];
    for round in 0..ROUNDS {
        for (server, found) in servers.iter().zip(&mut found) {
            say(&format!(
                "{part}, {}, round {}",
                server.kind.name(),
                round + 1
            ));
            let questions = upstreams.questions(&world.scratch, part, server.kind)?;
            found.push(load::measure(world, server, &questions).await?);
        }
    }
    let mut medians = Vec::new();
    for (server, found) in servers.into_iter().zip(&found) {
        let figures = Figures::median(found);
        report.row(
            &format!("{part}, {}", server.kind.name()),
            &[
                ("QPS", figures.qps, "1/s"),
                ("cpu", figures.cpu_us, "us/query"),
                ("p50", figures.p50_ms, "ms"),
                ("p99", figures.p99_ms, "ms"),
                ("lost", figures.lost, ""),
                ("wrong", figures.wrong, ""),
                ("memory", server.memory_mib()?, "MiB"),
            ],
        );
        medians.push(figures);
        server.stop().await?;
    }
    Ok(medians)
}
