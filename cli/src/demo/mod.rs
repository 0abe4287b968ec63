//! `vl3 demo`: a whole network on one machine, checked, broken and mended.
//!
//! `world` builds it from `plan`, `checks` are the promises, `report` is what comes out,
//! `control` serves the other verbs of a kept demo. Registry, routers and DNS servers of a domain
//! run on its gateway, workloads on pods behind it; the kiosk is a site of its own.

mod args;
mod checks;
mod control;
mod documents;
mod domain;
mod faults;
mod plan;
mod progress;
mod report;
mod sandbox;
mod service;
mod show;
mod store;
mod story;
mod workload;
mod world;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use args::Args;
use args::{RunArgs, Verb};
use checks::leftovers::Traces;
use control::Request;

use crate::output::{Output, report as report_error};
use progress::Progress;
use report::Report;

/// The demo itself needs few threads; blocking ones carry the throughput streams.
const WORKER_THREADS: usize = 2;

/// As a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// How long `down` waits for the end.
const DOWN_MAX: Duration = Duration::from_secs(10);

/// Must be called on the main thread before any other thread exists.
pub(crate) fn run(args: Args) -> ExitCode {
    let result = match args.verb {
        None => demo(args.run),
        Some(Verb::Exec {
            host,
            command,
            name,
        }) => ask(&name, &Request::Exec { host, command }),
        Some(Verb::Status { name }) => ask(&name, &Request::Status),
        Some(Verb::Fault { fault, name }) => ask(&name, &Request::Fault(fault)),
        Some(Verb::Down { name }) => down(&name),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report_error(&error, None);
            ExitCode::FAILURE
        }
    }
}

fn ask(name: &str, request: &Request) -> anyhow::Result<u8> {
    block_on(control::ask(name, request))
}

fn down(name: &str) -> anyhow::Result<u8> {
    block_on(async {
        control::ask(name, &Request::Down).await?;
        tokio::time::timeout(DOWN_MAX, control::wait_gone(name))
            .await
            .context("the demo does not end")?;
        Ok(0)
    })
}

fn demo(args: RunArgs) -> anyhow::Result<u8> {
    let traces = Traces::now();
    let base = sandbox::enter()?;
    let traces = traces.with_sandbox();
    block_on(async {
        let out = Output::stdout();
        let progress = Progress::start();
        let mut report = Report::new();
        let ended = interruptible(story::tell(&args, &base, &progress, &mut report, &out)).await;
        match ended {
            Some(told) => told?,
            None => {
                // Everything was dropped with the story; what is left is to see that it is gone.
                traces.compare().await?;
                progress.step("interrupted; nothing is left");
                return Ok(INTERRUPTED);
            }
        }
        let gone = traces.compare().await;
        story::note(&progress, &mut report, "nothing is left behind", gone);
        report.finish();
        if args.json {
            report.print_json(&out);
        } else {
            report.print_checks(&out);
        }
        Ok(u8::from(!report.ok))
    })
}

/// Drives `work` until it ends or a signal asks for the end; then `work` is dropped, and with it
/// all that it owns.
async fn interruptible<T>(work: impl Future<Output = T>) -> Option<T> {
    let signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [mut interrupt, mut terminate, mut hangup] = match signals.map(signal) {
        [Ok(one), Ok(two), Ok(three)] => [one, two, three],
        // Without handlers a signal ends the process, and the kernel cleans up as well.
        _ => return Some(work.await),
    };
    tokio::select! {
        result = work => Some(result),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hangup.recv() => None,
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
