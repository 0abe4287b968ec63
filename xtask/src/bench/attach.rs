//! `cargo xtask bench attach`: how long from the start of the first dial to the first echo
//! reply of the router, for 200 workloads one after another and 200 at once, by each mechanism.
//!
//! One registry and one router with stores on disk; one load process in a namespace of its own
//! holds every workload. Mutual TLS, the interface and the handshake are within the time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vl3_lab::{Host, Lab, Process, ProcessSpec};

use super::Bench;
use super::report::Report;
use crate::shell::{self, cargo, say};

const WORKLOADS: u32 = 200;
const MECHANISMS: [&str; 2] = ["tun", "wireguard"];
const READY_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);
const MTU: u16 = 1500;
/// Marks, in milliseconds: the median of one after another; all at once.
const MEDIAN_WANTED: f64 = 10.0;
const ALL_WANTED: f64 = 5_000.0;

pub(crate) fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let load = build_load()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(measure(bench, &load, report))
}

/// The load program is an example of the client's crate: nobody installs it.
fn build_load() -> anyhow::Result<PathBuf> {
    let package = ["--package", "vl3-client", "--example", "attach_load"];
    shell::run(
        cargo()
            .args(["build", "--release", "--locked"])
            .args(package),
    )
    .context("build the load program")?;
    Ok(shell::target_dir().join("release/examples/attach_load"))
}

async fn measure(bench: &Bench, load: &Path, report: &mut Report) -> anyhow::Result<()> {
    let world = World::start(bench).await?;
    for mechanism in MECHANISMS {
        for concurrent in [false, true] {
            let name = format!(
                "{mechanism}, {}",
                if concurrent {
                    "all at once"
                } else {
                    "one by one"
                }
            );
            say(&format!("{WORKLOADS} workloads by {name}"));
            let result = world.load(load, mechanism, concurrent).await?;
            let times = sorted(&result)?;
            let (median, p99) = (percentile(&times, 50), percentile(&times, 99));
            let all = times.last().copied().unwrap_or_default();
            report.row(
                &name,
                &[
                    ("p50", median, "ms"),
                    ("p99", p99, "ms"),
                    ("all", all, "ms"),
                ],
            );
            if concurrent {
                report.at_most(&format!("{name}: all attached"), all, "ms", ALL_WANTED);
            } else {
                report.at_most(&format!("{name}: p50"), median, "ms", MEDIAN_WANTED);
            }
        }
    }
    Ok(())
}

/// One domain on one host, and the host of the load.
struct World {
    scratch: PathBuf,
    uid: String,
    workloads: Host,
    _domain: (Process, Process),
}

impl World {
    async fn start(bench: &Bench) -> anyhow::Result<Self> {
        let scratch = &bench.scratch;
        let uid = write_files(bench)?;
        let lab = Lab::new(scratch)?;
        let domain = lab.add_host("domain")?;
        let workloads = lab.add_host("workloads")?;
        let addresses = (
            &["192.0.2.1/24".parse()?][..],
            &["192.0.2.2/24".parse()?][..],
        );
        lab.join(&domain, &workloads, ("eth0", "eth0"), addresses, MTU)
            .await?;
        let role = |name: &str| {
            let config = scratch.join(format!("{name}.toml"));
            domain.spawn(
                ProcessSpec::new(name, &bench.binary)
                    .args([name, "--config"])
                    .args([config]),
            )
        };
        let running = (role("registry")?, role("router")?);
        wait_ready(&bench.binary, &scratch.join("run-router")).await?;
        Ok(Self {
            scratch: scratch.clone(),
            uid,
            workloads,
            _domain: running,
        })
    }

    async fn load(
        &self,
        program: &Path,
        mechanism: &str,
        concurrent: bool,
    ) -> anyhow::Result<serde_json::Value> {
        let file = |name: &str| self.scratch.join(name);
        let connect_to = match mechanism {
            "tun" => format!("unix://{}", file("run-router/nsm.sock").display()),
            _ => "tcp://192.0.2.1:5010".to_owned(),
        };
        let (task, output) = (file("task.json"), file("times.json"));
        let wanted = serde_json::json!({
            "ca": file("ca"),
            "document": file("red.vl3net"),
            "uid": self.uid,
            "connect_to": connect_to,
            "mechanism": mechanism,
            "workloads": WORKLOADS,
            "concurrent": concurrent,
            "output": output,
        });
        std::fs::write(&task, wanted.to_string()).context("write the task")?;
        let mut process = self
            .workloads
            .spawn(ProcessSpec::new("load", program).args([task]))?;
        let status = process.wait().await?;
        if !status.success() {
            bail!(
                "the load program ended with {status}: {}",
                process.log_tail(5).join("\n")
            );
        }
        let text = std::fs::read(&output).context("read the times")?;
        serde_json::from_slice(&text).context("read the times")
    }
}

/// Identities, document and configurations, by the verbs that people use; returns the uid.
fn write_files(bench: &Bench) -> anyhow::Result<String> {
    let at = &bench.scratch;
    let vl3 = |arguments: &[&str]| {
        let mut command = Command::new(&bench.binary);
        command.args(arguments).current_dir(at);
        let (ok, text, errors) = shell::output(&mut command)?;
        if !ok {
            bail!("vl3 {}: {errors}", arguments.join(" "));
        }
        Ok(text)
    };
    vl3(&["identity", "init", "east.test", "--ca", "ca"])?;
    for role in ["registry", "router"] {
        vl3(&[
            "identity", "issue", role, "red-east", "--ca", "ca", "--out", role,
        ])?;
    }
    let bundle = vl3(&["identity", "bundle", "--ca", "ca"])?;
    std::fs::write(at.join("east.pem"), bundle)?;
    vl3(&["network", "init", "red", "--pool4", "10.80.0.0/16"])?;
    vl3(&[
        "network",
        "add-member",
        "red.vl3net",
        "--domain",
        "east",
        "--trust-domain",
        "east.test",
        "--bundle",
        "east.pem",
        "--block4",
        "/20",
    ])?;
    let shown: serde_json::Value =
        serde_json::from_str(&vl3(&["network", "show", "red.vl3net", "-o", "json"])?)?;
    let uid = shown["uid"]
        .as_str()
        .context("the document's uid")?
        .to_owned();
    let dir = at.display();
    std::fs::write(
        at.join("registry.toml"),
        format!(
            "domain = \"east\"\nlisten = [\"tcp://192.0.2.1:5002\"]\n\
             run_dir = \"{dir}/run-registry\"\nstate_dir = \"{dir}/state-registry\"\n\
             identity.dir = \"{dir}/registry\"\n\
             [[network]]\ndocument = \"{dir}/red.vl3net\"\nuid = \"{uid}\"\n"
        ),
    )?;
    std::fs::write(
        at.join("router.toml"),
        format!(
            // A block for all workloads of the four runs: the addresses of closed ones rest.
            "name = \"red-east\"\ndomain = \"east\"\nregistry = \"tcp://192.0.2.1:5002\"\n\
             prefix_len4 = 21\nlisten = [\"tcp://192.0.2.1:5010\"]\n\
             run_dir = \"{dir}/run-router\"\nstate_dir = \"{dir}/state-router\"\n\
             identity.dir = \"{dir}/router\"\n\
             [network]\ndocument = \"{dir}/red.vl3net\"\nuid = \"{uid}\"\n"
        ),
    )?;
    Ok(uid)
}

async fn wait_ready(binary: &Path, run_dir: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let mut status = Command::new(binary);
        status.arg("status").arg(run_dir).args(["-o", "json"]);
        if let (true, text, _) = shell::output(&mut status)?
            && text.contains("\"ready\":true")
        {
            return Ok(());
        }
        if start.elapsed() > READY_LIMIT {
            bail!(
                "the router is not ready within {READY_LIMIT:?}; its log is beside its configuration"
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

fn sorted(result: &serde_json::Value) -> anyhow::Result<Vec<f64>> {
    let times = result["connect_ms"]
        .as_array()
        .context("connect_ms of the load")?;
    let mut times: Vec<f64> = times.iter().filter_map(serde_json::Value::as_f64).collect();
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Nearest rank.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        assert!((percentile(&times, 50) - 100.0).abs() < f64::EPSILON);
        assert!((percentile(&times, 99) - 198.0).abs() < f64::EPSILON);
        assert!((percentile(&[], 50)).abs() < f64::EPSILON);
    }
}
