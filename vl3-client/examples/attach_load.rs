//! Many workloads in one process, each with an identity, an interface and a client of its own:
//! how long from the start of the first dial to the first echo reply of the router?
//!
//! `attach_load TASK.json` where the task is
//! `{"ca": DIR, "document": FILE, "uid": HEX, "connect_to": URL, "mechanism": "tun"|"wireguard",
//! "workloads": N, "concurrent": bool, "output": FILE}`; the output is
//! `{"connect_ms": [..], "all_ms": ..}`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use vl3_client::{Attach, Client, Config, ConnectTo, Mechanism, Status};
use vl3_core::ids::{NetworkUid, WorkloadName};
use vl3_identity::Source;
use vl3_identity::authority::Authority;
use vl3_runtime::config::Common;
use vl3_runtime::{RoleContext, clock};

/// Nobody waits longer for one attachment.
const ATTACH_LIMIT: Duration = Duration::from_secs(30);
const IDENTITY_LIFETIME: Duration = Duration::from_secs(3600);
/// Above the tables that clients choose themselves.
const TABLE_BASE: u32 = 30_000;

#[derive(Debug, Deserialize)]
struct Task {
    ca: PathBuf,
    document: PathBuf,
    uid: String,
    connect_to: String,
    mechanism: String,
    workloads: u32,
    concurrent: bool,
    output: PathBuf,
}

/// One workload that is ready to dial.
struct Workload {
    config: Config,
    ctx: RoleContext,
}

fn main() -> anyhow::Result<()> {
    vl3_identity::install_crypto_provider();
    let path = std::env::args_os()
        .nth(1)
        .context("usage: attach_load TASK.json")?;
    let text =
        std::fs::read(&path).with_context(|| format!("read {}", Path::new(&path).display()))?;
    let task: Task = serde_json::from_slice(&text).context("read the task")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(run(&task))
}

async fn run(task: &Task) -> anyhow::Result<()> {
    let authority = Authority::load(&task.ca)?;
    // Identities are made before the clock starts: issuing them is nobody's attach time.
    let workloads: Vec<Workload> = (0..task.workloads)
        .map(|number| workload(task, &authority, number))
        .collect::<Result<_, _>>()?;
    let start = Instant::now();
    let connect_ms = if task.concurrent {
        all_at_once(workloads).await?
    } else {
        one_by_one(workloads).await?
    };
    let result = serde_json::json!({
        "connect_ms": connect_ms,
        "all_ms": connect_ms.iter().copied().fold(0.0, f64::max),
        "elapsed_ms": start.elapsed().as_secs_f64() * 1e3,
    });
    std::fs::write(&task.output, result.to_string()).context("write the output")
}

async fn one_by_one(workloads: Vec<Workload>) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(workloads.len());
    for Workload { config, ctx } in workloads {
        let client = Client::start(config, &ctx)?;
        times.push(attached(&client).await?);
        ctx.shutdown.cancel();
        client.finish().await?;
    }
    Ok(times)
}

/// The times count from the common start of all.
async fn all_at_once(workloads: Vec<Workload>) -> anyhow::Result<Vec<f64>> {
    let start = clock::mono();
    let mut running = Vec::with_capacity(workloads.len());
    for Workload { config, ctx } in workloads {
        running.push(
            (tokio::spawn(async move { Client::start(config, &ctx).map(|client| (client, ctx)) }))
                .await??,
        );
    }
    let mut times = Vec::with_capacity(running.len());
    for (client, _) in &running {
        attached(client).await?;
        let answered = client.statuses()[0].borrow().last_receipt.unwrap_or(start);
        times.push(answered.saturating_since(start).as_secs_f64() * 1e3);
    }
    let stops: Vec<_> = running
        .into_iter()
        .map(|(client, ctx)| {
            ctx.shutdown.cancel();
            tokio::spawn(client.finish())
        })
        .collect();
    for stop in stops {
        stop.await??;
    }
    Ok(times)
}

/// Milliseconds from the first dial to the first echo reply.
async fn attached(client: &Client) -> anyhow::Result<f64> {
    let mut status = client.statuses().first().context("one attachment")?.clone();
    let done = status.wait_for(|status| status.attached_after.is_some());
    match tokio::time::timeout(ATTACH_LIMIT, done).await {
        Ok(Ok(status)) => Ok(status.attached_after.unwrap_or_default().as_secs_f64() * 1e3),
        Ok(Err(_)) => bail!("the attachment ended: {:?}", last_error(client)),
        Err(_) => bail!(
            "no answer within {ATTACH_LIMIT:?}: {:?}",
            last_error(client)
        ),
    }
}

fn last_error(client: &Client) -> Option<Status> {
    client
        .statuses()
        .first()
        .map(|status| status.borrow().clone())
}

fn workload(task: &Task, authority: &Authority, number: u32) -> anyhow::Result<Workload> {
    let name = format!("load-{number}");
    let identity = authority.identity(
        &format!("workload/{name}"),
        IDENTITY_LIFETIME,
        clock::wall(),
    )?;
    let uid: NetworkUid = task.uid.parse()?;
    let mechanism = match task.mechanism.as_str() {
        "tun" => Mechanism::Tun,
        "wireguard" => Mechanism::Wireguard,
        other => bail!("mechanism {other:?} must be tun or wireguard"),
    };
    let attach = Attach {
        document: task.document.clone(),
        uid,
        connect_to: vec![ConnectTo::Router(task.connect_to.parse()?)],
        mechanism,
        interface: Some(format!("l{number}")),
        labels: [].into(),
        workload: Some(WorkloadName::new(&name)?),
        udp_listen: ([0, 0, 0, 0], 0).into(),
        workers: 1,
        // Two hundred times the same routes: each in a table of its own.
        table: Some(TABLE_BASE + number),
        spare_table: TABLE_BASE + number,
    };
    let config = Config {
        registry: None,
        token_lifetime: Duration::from_secs(600),
        names: vl3_client::Names::Told,
        exclude: Vec::new(),
        attach: vec![attach],
    };
    let common = Common {
        state_dir: None,
        ..Common::in_dir("client", &name, Path::new("/nonexistent"))
    };
    Ok(Workload {
        config,
        ctx: RoleContext::new(common, Source::fixed(identity)),
    })
}
