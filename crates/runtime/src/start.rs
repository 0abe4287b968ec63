//! From a configuration to a running role and its end.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use vl3_identity::Source;
use vl3_identity::authority::Authority;

use crate::config::{IdentitySource, Loaded};
use crate::{Retry, RoleContext, admin, clock, rundir, telemetry};

/// Shows nothing to anybody, so nothing hangs on its end.
const UNNEEDED_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Runs a role until it ends, fails, or a signal stops it: telemetry, directories, identity,
/// admin endpoint, the role, drain. A second signal ends the process at once.
///
/// A run directory that is empty at the end goes, when it is one of ours.
pub async fn run_role<C, F, R>(loaded: Loaded<C>, run: F) -> anyhow::Result<()>
where
    F: FnOnce(C, RoleContext) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let run_dir = loaded.common.run_dir.clone();
    let ours = run_dir.starts_with("/run/vl3") || !run_dir.exists();
    let outcome = start_and_run(loaded, run).await;
    if ours {
        // Not empty: another instance lives there.
        let _in_use = std::fs::remove_dir(&run_dir);
    }
    outcome
}

async fn start_and_run<C, F, R>(loaded: Loaded<C>, run: F) -> anyhow::Result<()>
where
    F: FnOnce(C, RoleContext) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    vl3_identity::install_crypto_provider();
    let Loaded { common, config } = loaded;
    telemetry::start(&common.log);
    rundir::make_dir(&common.run_dir)?;
    // Before anything else: a second instance must not touch the state of the first.
    rundir::claim_socket(&common.run_dir.join("admin.sock"))?;
    match &common.state_dir {
        Some(dir) => rundir::make_dir(dir)?,
        None => tracing::warn!("ephemeral: no state directory; a restart forgets everything"),
    }
    let shutdown = CancellationToken::new();
    let signals = stop_on_signals(shutdown.clone())?;
    tracing::info!(
        role = common.role,
        name = common.name,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );

    let Some(identity) = open_identity(&common.identity, &shutdown).await else {
        return Ok(());
    };
    let ctx = RoleContext {
        shutdown,
        ..RoleContext::new(common, identity)
    };
    ctx.readiness.starting();
    admin::start(&ctx).await?;
    // Role futures are large; the heap keeps them off this stack.
    let role = Box::pin(run(config, ctx.clone()));
    let outcome = tokio::select! {
        outcome = role => outcome,
        error = ctx.tasks.failed() => Err(error),
        () = signals => Err(anyhow::anyhow!("stopped by a second signal")),
    };
    ctx.shutdown.cancel();
    // The role has had its turn, and the admin endpoint never ends by itself.
    ctx.tasks.drain(Duration::ZERO).await;
    // Gone already: somebody cleaned up.
    let _gone = std::fs::remove_file(ctx.run_path("admin.sock"));
    tracing::info!(role = ctx.common.role, name = ctx.common.name, "stopped");
    outcome
}

/// Waits for an identity for ever: the issuer may come up after the role. `None` on shutdown.
async fn open_identity(from: &IdentitySource, shutdown: &CancellationToken) -> Option<Source> {
    let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(5));
    let open = retry.until_ok("opening the identity", || async {
        match from {
            IdentitySource::Dir(dir) => Source::from_dir(dir),
            IdentitySource::WorkloadApi(endpoint) => Source::from_workload_api(endpoint).await,
            IdentitySource::Unneeded => nobody(),
        }
    });
    tokio::select! {
        source = open => {
            let identity = source.current();
            tracing::info!(id = %identity.id, not_after = identity.not_after.unix_secs(), "identity held");
            Some(source)
        }
        () = shutdown.cancelled() => None,
    }
}

/// An identity of a trust domain that ends with this process.
fn nobody() -> Result<Source, vl3_identity::Error> {
    let authority = Authority::create("nobody.invalid", clock::wall())?;
    let identity = authority.identity("unneeded", UNNEEDED_LIFETIME, clock::wall())?;
    Ok(Source::fixed(identity))
}

/// Cancels on the first SIGTERM or SIGINT; the future ends with the second.
fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(
            "stopping on a signal; open calls and streams have 3 s to end, packets flow until then"
        );
        shutdown.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // The role has returned when nobody listens.
        let _ended = sender.send(());
    });
    Ok(async move {
        if receiver.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
