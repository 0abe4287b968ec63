//! Load for registries, ours or stock: one task per run, figures as JSON.
//!
//! `registry_load TASK.json`, where the task is `{"dir": DIR, "output": FILE, "op": ..}` and what
//! the operation of [`Work`] takes. `DIR` is what the operation `prepare` filled: CAs,
//! identities and the document of one network. Every call goes over mutual TLS with tokens and
//! a path, as an NSM client makes it.

mod calls;
mod figures;
mod holding;
mod prepare;
mod propagation;
mod remotes;
mod rounds;

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Task {
    dir: PathBuf,
    output: PathBuf,
    #[serde(flatten)]
    work: Work,
}

/// Endpoints `load-I` are spread over `connections` (each with an identity of its own) and over
/// services `service-S`, so that each service has `endpoints / services` of them.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum Work {
    /// CAs, identities and a document for that many domains.
    Prepare { domains: u16 },
    /// Registers every endpoint once, one call at a time on each connection; a second run
    /// refreshes them.
    Register(rounds::Register),
    /// Finds the endpoints of one service after another, for a time.
    Find(rounds::Find),
    /// Acquires a lease and releases it, for a time.
    Lease(rounds::Lease),
    /// Refreshes every endpoint once per interval, for a time.
    Hold(holding::Hold),
    /// A router's endpoint comes and goes in the first domain; the others watch.
    Propagate(propagation::Propagate),
    /// Plays the registries of all domains but the first towards that one.
    Remotes(remotes::Remotes),
}

fn main() -> anyhow::Result<()> {
    vl3_identity::install_crypto_provider();
    let path = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("usage: registry_load TASK.json")?;
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let task: Task = serde_json::from_slice(&text).context("read the task")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run(&task))?;
    std::fs::write(&task.output, result.to_string())
        .with_context(|| format!("write {}", task.output.display()))
}

async fn run(task: &Task) -> anyhow::Result<Value> {
    let dir = &task.dir;
    match &task.work {
        Work::Prepare { domains } => prepare::prepare(dir, *domains),
        Work::Register(register) => register.run(dir).await,
        Work::Find(find) => find.run(dir).await,
        Work::Lease(lease) => lease.run(dir).await,
        Work::Hold(hold) => hold.run(dir).await,
        Work::Propagate(propagate) => propagate.run(dir).await,
        Work::Remotes(remotes) => remotes.run(dir).await,
    }
}
