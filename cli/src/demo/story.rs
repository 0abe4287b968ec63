//! The demo from beginning to end: build, check, break, mend.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::args::RunArgs;
use super::checks::{
    addresses, connect_time, documents, explained, foreign_route, forged_source, isolation,
    late_domain, memory, names, partition, reachability, router_crash, servers_down, throughput,
    underlay,
};
use super::control;
use super::progress::Progress;
use super::report::Report;
use super::store::etcd_of;
use super::world::World;
use crate::output::Output;

/// What the whole may take, the tear-down excluded.
const ELAPSED_MAX: Duration = Duration::from_secs(60);

/// Records a check and tells it at once.
pub(super) fn note(
    progress: &Progress,
    report: &mut Report,
    name: &str,
    result: anyhow::Result<String>,
) {
    let check = report.record(name, result);
    progress.check(check.ok, &check.name, &check.detail);
}

/// Errors are of the kind after which nothing can be checked; failed checks are in the report.
pub(super) async fn tell(
    args: &RunArgs,
    base: &Path,
    progress: &Progress,
    report: &mut Report,
    out: &Output,
) -> anyhow::Result<()> {
    let listener = if args.keep {
        Some(control::listen(&args.name)?)
    } else {
        None
    };
    let logs = KeptLogs {
        from: base.join("log"),
        to: args.logs.clone(),
    };
    let etcd = etcd_of(args.store)?;
    let mut world = World::build(base, progress, etcd)
        .await
        .context("build the demo")?;
    let started = start(&mut world, progress, report).await;
    if started && !args.no_checks {
        check(&world, progress, report).await;
        if !args.json {
            print_first(report, out);
        }
        break_and_mend(&mut world, progress, report).await;
        if !args.json {
            report.print_faults(out);
        }
    }
    note(
        progress,
        report,
        "memory of all processes",
        memory::run(&world),
    );
    note(progress, report, "time", time(report.elapsed()));
    if let Some(listener) = listener {
        progress.step(&format!(
            "kept; in another terminal: vl3 demo status, vl3 demo exec east-a -- COMMAND, vl3 demo fault --help, \
             vl3 demo down{}",
            if args.name == super::args::DEFAULT_NAME { String::new() } else { format!(" (each with --name {})", args.name) }
        ));
        control::serve(&mut world, &listener).await?;
    }
    drop(world);
    drop(logs);
    Ok(())
}

/// Starts all roles and workloads; false when there is nothing to check.
async fn start(world: &mut World, progress: &Progress, report: &mut Report) -> bool {
    let roles = world.start_domains().await.map(|()| {
        let count = world
            .domains
            .values()
            .map(|domain| domain.services().count())
            .sum::<usize>();
        format!("{count} registries, routers and DNS servers are ready")
    });
    let roles_run = roles.is_ok();
    note(progress, report, "roles start", roles);
    if !roles_run {
        return false;
    }
    let attached = world
        .start_workloads()
        .await
        .map(|()| format!("{} clients are attached, dual stack", world.workloads.len()));
    let ok = attached.is_ok();
    note(progress, report, "workloads attach", attached);
    ok
}

async fn check(world: &World, progress: &Progress, report: &mut Report) {
    note(
        progress,
        report,
        "colliding clusters and a NAT",
        underlay::run(world).await,
    );
    note(
        progress,
        report,
        "signed documents",
        documents::run(world).await,
    );
    note(
        progress,
        report,
        "addresses, MTU and routes",
        addresses::run(world).await,
    );
    for network in ["red", "blue"] {
        let result = reachability::run(world, report, network).await;
        note(
            progress,
            report,
            &format!("reachability in {network}"),
            result,
        );
    }
    let result = names::resolve(world, report).await;
    note(progress, report, "names resolve everywhere", result);
    let result = names::absent(world, report).await;
    note(progress, report, "absent names are NXDOMAIN", result);
    let result = explained::run(world, report).await;
    note(progress, report, "names are explained", result);
    note(
        progress,
        report,
        "red and blue are apart",
        isolation::run(world).await,
    );
    note(
        progress,
        report,
        "a forged source is dropped and counted",
        forged_source::run(world).await,
    );
    note(
        progress,
        report,
        "a foreign prefix is not believed",
        foreign_route::run(world).await,
    );
    note(
        progress,
        report,
        "connect time",
        connect_time::run(world).await,
    );
    let result = throughput::run(world, report).await;
    note(progress, report, "throughput", result);
}

fn print_first(report: &Report, out: &Output) {
    for network in ["red", "blue"] {
        report.print_reachability(out, network);
    }
    report.print_names(out);
    report.print_explained(out);
    report.print_throughput(out);
}

async fn break_and_mend(world: &mut World, progress: &Progress, report: &mut Report) {
    let result = router_crash::run(world, report).await;
    note(progress, report, "router crash", result);
    let result = servers_down::run(world, report).await;
    note(progress, report, "registries and DNS servers down", result);
    let result = partition::run(world, report).await;
    note(progress, report, "partition", result);
    let result = late_domain::run(world, report).await;
    note(progress, report, "a fourth cluster joins", result);
}

fn time(elapsed: Duration) -> anyhow::Result<String> {
    let seconds = elapsed.as_secs_f64();
    ensure!(
        elapsed <= ELAPSED_MAX,
        "{seconds:.1} s, allowed are {} s",
        ELAPSED_MAX.as_secs()
    );
    Ok(format!(
        "{seconds:.1} s of at most {} s",
        ELAPSED_MAX.as_secs()
    ))
}

/// Copies the logs out of the sandbox at the end, whatever end that is.
struct KeptLogs {
    from: PathBuf,
    to: Option<PathBuf>,
}

impl Drop for KeptLogs {
    fn drop(&mut self) {
        let Some(to) = &self.to else { return };
        if let Err(error) = copy_all(&self.from, to) {
            tracing::error!(%error, to = %to.display(), "the logs cannot be copied");
        }
    }
}

fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
