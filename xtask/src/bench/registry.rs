//! `cargo xtask bench registry`: what a registry's clients feel and what it costs, per engine of
//! ours, beside the in-memory registry chain of the stock SDK where the operation exists.
//!
//! Real processes over loopback, mutual TLS, tokens verified. Servers that are compared hold the
//! same endpoints at the same time and are asked in turns.

mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use vl3_lab::{Host, Lab, ProcessSpec};

use super::Bench;
use super::report::Report;
use crate::shell::{self, cargo, say};
use server::{Engine, Files, Server};

/// Held at once in one registry, and by how many clients.
const ENDPOINTS: u32 = 10_000;
const CLIENTS: u32 = 200;
const SERVICES: u32 = 1_000;
const PER_SERVICE: u32 = ENDPOINTS / SERVICES;
/// Callers at once where the time of one call is of interest.
const CALLERS: u32 = 8;
const CALLERS_ENDPOINTS: u32 = 4_000;
/// The stock registry spends tens of milliseconds of CPU on the policies of one call.
const CALLERS_ENDPOINTS_STOCK: u32 = 160;
const ROUNDS: usize = 3;
const ROUND_S: f64 = 4.0;
const REFRESH_S: f64 = 40.0;
/// Domains that see one another; further ones make a fleet.
const FLEETS: [u16; 3] = [2, 10, 50];
const CHANGES: u32 = 20;
const REMOTE_DOMAINS: u16 = 251;
const REMOTE_ENDPOINTS: u32 = 1_000;
const SYNC_LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(100);

/// Marks.
const FIND_P99_MS: f64 = 1.0;
const REGISTER_P99_MS: f64 = 5.0;
const PROPAGATION_P99_MS: f64 = 50.0;
const REFRESH_CORE: f64 = 12.0;
const FIND_RATIO: f64 = 5.0;
const REMOTES_MIB: f64 = 512.0;

/// The parts, in the order in which they run; arguments choose some.
const PARTS: [&str; 4] = ["calls", "find", "propagation", "remotes"];

pub(crate) fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let parts = bench.parts(&PARTS)?;
    let load = build_load()?;
    let stock = build_stock()?;
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
            load,
            stock,
        };
        if parts.contains(&"calls") {
            calls(&world, report).await?;
        }
        if parts.contains(&"find") {
            find(&world, report).await?;
        }
        if parts.contains(&"propagation") {
            propagation(&world, report).await?;
        }
        if parts.contains(&"remotes") {
            remotes(&world, report).await?;
        }
        Ok(())
    })
}

/// The load program is an example of the registry's crate: nobody installs it.
fn build_load() -> anyhow::Result<PathBuf> {
    let package = [
        "--package",
        "registry-federation",
        "--example",
        "registry_load",
    ];
    shell::run(
        cargo()
            .args(["build", "--release", "--locked"])
            .args(package),
    )
    .context("build the load program")?;
    Ok(shell::target_dir().join("release/examples/registry_load"))
}

fn build_stock() -> anyhow::Result<PathBuf> {
    let (ok, built, errors) = shell::output(Command::new("tests/interop/peers/build").arg("nsm"))?;
    ensure!(ok, "build the stock peers: {errors}");
    Ok(PathBuf::from(built.trim()).join("nsm-peer"))
}

/// One host that holds every process.
struct World {
    host: Host,
    scratch: PathBuf,
    vl3: PathBuf,
    load: PathBuf,
    stock: PathBuf,
}

impl World {
    /// A directory with identities and a document for that many domains.
    async fn files(&self, name: &str, domains: u16) -> anyhow::Result<Files> {
        let dir = self.scratch.join(name);
        std::fs::create_dir_all(&dir)?;
        let known = self
            .load(&dir, json!({ "op": "prepare", "domains": domains }))
            .await?;
        Files::new(dir, &known)
    }

    /// Runs the load program to its end.
    async fn load(&self, dir: &Path, task: Value) -> anyhow::Result<Value> {
        let (mut process, output) = self.start_load(dir, task)?;
        let status = process.wait().await?;
        if !status.success() {
            bail!(
                "the load program ended with {status}: {}",
                process.log_tail(5).join("\n")
            );
        }
        let text = std::fs::read(&output).context("read the figures")?;
        let figures: Value = serde_json::from_slice(&text).context("read the figures")?;
        if let Some(wrong) = figures["first_wrong"].as_str() {
            bail!("{} wrong answers, the first: {wrong}", figures["wrong"]);
        }
        Ok(figures)
    }

    fn start_load(
        &self,
        dir: &Path,
        mut task: Value,
    ) -> anyhow::Result<(vl3_lab::Process, PathBuf)> {
        // Two operations may run at once.
        let op = task["op"].as_str().context("an operation")?.to_owned();
        let file = dir.join(format!("{op}-task.json"));
        let output = dir.join(format!("{op}-figures.json"));
        task["dir"] = json!(dir);
        task["output"] = json!(output);
        std::fs::write(&file, task.to_string())?;
        let process = self
            .host
            .spawn(ProcessSpec::new("load", &self.load).args([file]))?;
        Ok((process, output))
    }

    /// Runs the load and adds one row; returns the figures and the server's CPU seconds.
    async fn measured(
        &self,
        report: &mut Report,
        name: &str,
        server: &Server,
        task: Value,
    ) -> anyhow::Result<(Value, f64)> {
        let before = server.cpu_seconds()?;
        let figures = self.load(&server.dir, task).await?;
        let cpu = server.cpu_seconds()? - before;
        let per_call = cpu * 1e6 / number(&figures, "operations").max(1.0);
        report.row(
            &format!("{name}, {}", server.engine.name()),
            &[
                ("rate", number(&figures, "per_second"), "1/s"),
                ("p50", number(&figures, "p50_ms"), "ms"),
                ("p99", number(&figures, "p99_ms"), "ms"),
                ("cpu", per_call, "us/call"),
                ("memory", server.memory_mib()?, "MiB"),
            ],
        );
        Ok((figures, cpu))
    }
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or(f64::NAN)
}

/// Register, refresh and lease on a registry of each kind, with few callers.
async fn calls(world: &World, report: &mut Report) -> anyhow::Result<()> {
    for engine in Engine::ALL {
        say(&format!("calls, {}", engine.name()));
        let files = world.files(&format!("calls-{}", engine.name()), 1).await?;
        let server = Server::start(world, &files, engine, 0).await?;
        let endpoints = if engine.is_stock() {
            CALLERS_ENDPOINTS_STOCK
        } else {
            CALLERS_ENDPOINTS
        };
        let register = json!({
            "op": "register", "to": server.url, "connections": CALLERS,
            "endpoints": endpoints, "services": SERVICES,
        });
        let (first, _) = world
            .measured(report, "Register", &server, register.clone())
            .await?;
        world.measured(report, "refresh", &server, register).await?;
        if engine == Engine::Redb {
            report.at_most(
                "Register p99, redb",
                number(&first, "p99_ms"),
                "ms",
                REGISTER_P99_MS,
            );
        }
        if !engine.is_stock() {
            let lease = json!({
                "op": "lease", "to": server.url, "connections": CALLERS, "seconds": ROUND_S,
            });
            world
                .measured(report, "lease acquire", &server, lease)
                .await?;
        }
        server.stop().await?;
    }
    Ok(())
}

/// Ours and the stock one hold the same endpoints and are asked in turns; then what it costs
/// to keep them.
async fn find(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    for engine in [Engine::Redb, Engine::StockOpen] {
        say(&format!("{ENDPOINTS} endpoints, {}", engine.name()));
        let files = world.files(&format!("find-{}", servers.len()), 1).await?;
        let server = Server::start(world, &files, engine, servers.len()).await?;
        let fill = json!({
            "op": "register", "to": server.url, "connections": CLIENTS,
            "endpoints": ENDPOINTS, "services": SERVICES,
        });
        world
            .measured(report, "Register by 200 clients", &server, fill)
            .await?;
        servers.push(server);
    }
    let mut rates = vec![Vec::new(); servers.len()];
    let mut p99 = vec![Vec::new(); servers.len()];
    for round in 1..=ROUNDS {
        for (at, server) in servers.iter().enumerate() {
            say(&format!("Find, round {round}, {}", server.engine.name()));
            for (connections, name) in [(1, "Find by one caller"), (16, "Find by 16 callers")] {
                let find = json!({
                    "op": "find", "to": server.url, "connections": connections,
                    "services": SERVICES, "expected": PER_SERVICE, "seconds": ROUND_S,
                });
                let (figures, _) = world.measured(report, name, server, find).await?;
                if connections == 1 {
                    p99[at].push(number(&figures, "p99_ms"));
                } else {
                    rates[at].push(number(&figures, "per_second"));
                }
            }
        }
    }
    let ratios = rates[0]
        .iter()
        .zip(&rates[1])
        .map(|(ours, stock)| ours / stock);
    report.at_least(
        "Find throughput against stock",
        median(ratios),
        "x",
        FIND_RATIO,
    );
    let ours = median(p99[0].iter().copied());
    report.at_most("Find p99 at 10,000 endpoints", ours, "ms", FIND_P99_MS);
    for server in &servers {
        let share = hold(world, report, server).await?;
        if !server.engine.is_stock() {
            report.at_most(
                "keeping 10,000 endpoints",
                share,
                "% of a core",
                REFRESH_CORE,
            );
        }
    }
    for server in servers {
        server.stop().await?;
    }
    Ok(())
}

/// The share of a core that refreshes take, in percent.
async fn hold(world: &World, report: &mut Report, server: &Server) -> anyhow::Result<f64> {
    say(&format!(
        "keeping {ENDPOINTS} endpoints, {}",
        server.engine.name()
    ));
    let started = server.dir.join("holding");
    let task = json!({
        "op": "hold", "to": server.url, "connections": CLIENTS, "endpoints": ENDPOINTS,
        "services": SERVICES, "interval_s": REFRESH_S, "seconds": REFRESH_S, "started": started,
    });
    let (mut load, output) = world.start_load(&server.dir, task)?;
    wait_for(&started, &mut load).await?;
    let before = server.cpu_seconds()?;
    let status = load.wait().await?;
    ensure!(status.success(), "the load program ended with {status}");
    let cpu = server.cpu_seconds()? - before;
    let figures: Value = serde_json::from_slice(&std::fs::read(output)?)?;
    ensure!(
        figures["wrong"] == 0,
        "wrong answers: {}",
        figures["first_wrong"]
    );
    let share = cpu / number(&figures, "elapsed_s") * 100.0;
    report.row(
        &format!("keeping 10,000 endpoints, {}", server.engine.name()),
        &[
            ("refreshes", number(&figures, "per_second"), "1/s"),
            ("p99", number(&figures, "p99_ms"), "ms"),
            ("cpu", share, "% of a core"),
            ("memory", server.memory_mib()?, "MiB"),
        ],
    );
    Ok(share)
}

/// Domains that see one another, each with a registry of its own on disk.
async fn propagation(world: &World, report: &mut Report) -> anyhow::Result<()> {
    for domains in FLEETS {
        say(&format!("a change seen by {domains} domains"));
        let files = world.files(&format!("fleet-{domains}"), domains).await?;
        let mut fleet = Vec::new();
        for number in 0..usize::from(domains) {
            fleet.push(Server::spawn(world, &files, Engine::Redb, number)?);
        }
        for server in &mut fleet {
            server.ready().await?;
        }
        let task = json!({ "op": "propagate", "domains": domains, "rounds": CHANGES });
        let figures = world.load(&files.dir, task).await?;
        let memory = fleet
            .iter()
            .map(Server::memory_mib)
            .sum::<anyhow::Result<f64>>()?;
        report.row(
            &format!("a change seen by {domains} domains"),
            &[
                ("p50", number(&figures, "p50_ms"), "ms"),
                ("p99", number(&figures, "p99_ms"), "ms"),
                ("memory each", memory / f64::from(domains), "MiB"),
            ],
        );
        // Loopback: the round trip is far below a millisecond and counts as nothing.
        report.at_most(
            &format!("propagation p99, {domains} domains"),
            number(&figures, "p99_ms"),
            "ms",
            PROPAGATION_P99_MS,
        );
        for server in fleet {
            server.stop().await?;
        }
    }
    Ok(())
}

/// One registry that holds what 250 other domains say.
async fn remotes(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let expected = u64::from(REMOTE_DOMAINS - 1) * u64::from(REMOTE_ENDPOINTS);
    say(&format!(
        "{expected} endpoints of {} domains",
        REMOTE_DOMAINS - 1
    ));
    let files = world.files("remotes", REMOTE_DOMAINS).await?;
    let server = Server::start(world, &files, Engine::Redb, 0).await?;
    let (sent, stop) = (files.dir.join("sent"), files.dir.join("stop"));
    let task = json!({
        "op": "remotes", "to": server.url, "domains": REMOTE_DOMAINS,
        "endpoints": REMOTE_ENDPOINTS, "sent": sent, "stop": stop,
    });
    let (mut load, output) = world.start_load(&files.dir, task)?;
    let begin = std::time::Instant::now();
    wait_for(&sent, &mut load).await?;
    while server.endpoints().await? < expected {
        ensure!(
            begin.elapsed() < SYNC_LIMIT,
            "not all endpoints arrived within {SYNC_LIMIT:?}"
        );
        tokio::time::sleep(POLL * 10).await;
    }
    let took = begin.elapsed().as_secs_f64();
    let memory = server.memory_mib()?;
    report.row(
        "250 domains x 1,000 endpoints",
        &[
            ("synced", took, "s"),
            ("cpu", server.cpu_seconds()?, "s"),
            ("memory", memory, "MiB"),
        ],
    );
    report.at_most(
        "memory with 250,000 remote endpoints",
        memory,
        "MiB",
        REMOTES_MIB,
    );
    let find = json!({
        "op": "find", "to": server.url, "connections": 1, "services": 1, "expected": 1,
        "seconds": ROUND_S, "remote": { "domains": REMOTE_DOMAINS, "endpoints": REMOTE_ENDPOINTS },
    });
    let before = server.cpu_seconds()?;
    let figures = world.load(&files.dir, find).await?;
    let cpu = server.cpu_seconds()? - before;
    report.row(
        "Find of a remote endpoint by name",
        &[
            ("rate", number(&figures, "per_second"), "1/s"),
            ("p50", number(&figures, "p50_ms"), "ms"),
            ("p99", number(&figures, "p99_ms"), "ms"),
            (
                "cpu",
                cpu * 1e6 / number(&figures, "operations").max(1.0),
                "us/call",
            ),
        ],
    );
    std::fs::write(&stop, "")?;
    let status = load.wait().await?;
    ensure!(status.success(), "the load program ended with {status}");
    let ended: Value = serde_json::from_slice(&std::fs::read(output)?)?;
    ensure!(
        ended["streams_ended"] == 0,
        "{} sync streams ended",
        ended["streams_ended"]
    );
    server.stop().await
}

/// Until a file is there or the process that makes it has ended.
async fn wait_for(file: &Path, process: &mut vl3_lab::Process) -> anyhow::Result<()> {
    while !file.exists() {
        if let Some(status) = process.try_wait()? {
            bail!(
                "the load program ended with {status}: {}",
                process.log_tail(5).join("\n")
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
