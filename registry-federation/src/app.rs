//! Start-up in the order it happens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nsm_chain::SvidTokens;
use tokio::sync::mpsc;
use vl3_core::registry::{Boot, RegistryMachine};
use vl3_runtime::grpc::{Listen, Server};
use vl3_runtime::{RoleContext, clock};

use crate::commands;
use crate::config::Config;
use crate::dialler::Dialler;
use crate::driver::Driver;
use crate::handle::Handle;
use crate::limits::Gate;
use crate::metrics::RegistryMetrics;
use crate::operator;
use crate::services::{self, Shared};
use crate::store::writer::Writer;
#[cfg(feature = "etcd")]
use crate::store::{Candidate, Claim, Etcd, Shared as _, StoreError};
use crate::store::{Memory, Redb, Store, StoreConfig};

/// Calls that wait for the machine; beyond that callers wait for room.
const MESSAGES: usize = 1024;

/// NSM_MAX_TOKEN_LIFETIME of the stock components.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

const STATE_FILE: &str = "registry.redb";

/// A registry that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, with the ports that the kernel chose.
    pub addresses: Vec<Listen>,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Returns after shutdown, or with the error that ended it.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.served.await.context("the registry's task")?
    }
}

/// Serves until shutdown. Leases, names and endpoints stay.
pub async fn run(config: Config, ctx: RoleContext) -> anyhow::Result<()> {
    let store: Box<dyn Store> = match (&config.store, ctx.state_path(STATE_FILE)) {
        #[cfg(feature = "etcd")]
        (StoreConfig::Etcd(etcd), _) => {
            let etcd = Etcd::new(etcd.clone())?;
            let Some(store) = turn(&etcd, &config, &ctx).await? else {
                return Ok(());
            };
            // The claim is given up when everything is written.
            return start(config, ctx, store).await?.wait().await;
        }
        #[cfg(not(feature = "etcd"))]
        (StoreConfig::Etcd(_), _) => anyhow::bail!("this program was built without etcd"),
        (StoreConfig::Redb, Some(path)) => Box::new(Redb::open(&path)?),
        (StoreConfig::Redb | StoreConfig::Memory, _) => {
            tracing::warn!("ephemeral: without a state directory nothing survives a restart");
            Box::new(Memory::default())
        }
    };
    start(config, ctx, store).await?.wait().await
}

/// Waits until it is this process's turn to write; None: it is to stop.
#[cfg(feature = "etcd")]
async fn turn(
    etcd: &Etcd,
    config: &Config,
    ctx: &RoleContext,
) -> anyhow::Result<Option<Box<dyn Store>>> {
    let address = config.listen.first().map(Listen::to_string);
    let mut claim = etcd.campaign(Candidate {
        id: rand::random(),
        name: config.domain.to_string(),
        address: address.unwrap_or_default(),
    });
    loop {
        let known = claim.borrow_and_update().clone();
        if let Claim::Active { term } = known {
            match tokio::task::block_in_place(|| etcd.writer(term)) {
                Ok(store) => return Ok(Some(store)),
                Err(StoreError::Fenced { .. } | StoreError::Unavailable(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(None),
            changed = claim.changed() => changed.context("the claim's task")?,
            // A store that did not answer is asked again.
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Starts with a given store; returns when every listener is bound.
pub async fn start(
    config: Config,
    ctx: RoleContext,
    store: Box<dyn Store>,
) -> anyhow::Result<Running> {
    let ready = ctx.readiness.item("registry");

    // What was kept.
    let (writer, records) = Writer::start(store).context("read the registry's state")?;
    tracing::info!(records = records.len(), "state read");
    let boot = Boot {
        documents: config
            .networks
            .iter()
            .map(|network| network.chain.clone())
            .collect(),
        records,
        restored: config.restored,
        ..Boot::default()
    };
    let machine = RegistryMachine::boot(core_config(&config, &ctx), boot, clock::now())?;

    // Whom to trust, before anybody can call.
    let dialler = Dialler::new(ctx.dialer(), ctx.trust.clone(), Arc::clone(&ctx.tasks));
    for chain in machine.documents() {
        dialler.trust(chain.document());
    }

    // The task that owns the machine.
    let (messages, inbox) = mpsc::channel(MESSAGES);
    // Bounded by the number of watches, which the machine limits.
    let (ends, ended) = mpsc::unbounded_channel();
    let metrics = RegistryMetrics::register(&ctx.metrics);
    let own = ctx.identity.current().id.clone();
    let gate = Gate::new(&config.limits, own, metrics.met.clone());
    let handle = Handle::new(messages, ends, gate);
    let status = handle.clone();
    ctx.set_status(move || {
        let handle = status.clone();
        async move { handle.status().await }
    });
    commands::register(&ctx, &handle);
    operator::register(&ctx, &handle);
    let driver = Driver::new(
        machine,
        writer,
        dialler,
        metrics,
        handle.clone(),
        inbox,
        ended,
    );

    // The port.
    let tokens = SvidTokens::new(ctx.identity.clone(), TOKEN_LIFETIME, clock::wall);
    let shared = Shared {
        handle,
        tokens: Arc::new(tokens),
    };
    let server = Server::bind(
        &config.listen,
        ctx.serve_options()
            .services(&services::NAMES)
            .connections_max(config.limits.connections)
            .connections_per_identity_max(config.limits.connections_per_identity),
    )
    .await?;
    let addresses = server.addresses().to_vec();
    for address in &addresses {
        tracing::info!(%address, domain = %config.domain, "registry listens");
    }
    ready.set(true);
    let shutdown = ctx.shutdown.clone();
    let served = tokio::spawn(async move {
        let _ready = ready;
        let driven = driver.run(shutdown);
        let serving = server.serve(services::routes(shared));
        // The machine's end is an error unless both were told to stop.
        tokio::try_join!(driven, serving).map(|((), ())| ())
    });
    Ok(Running { addresses, served })
}

fn core_config(config: &Config, ctx: &RoleContext) -> vl3_core::registry::Config {
    let identity = ctx.identity.current().id.clone();
    let mut core = vl3_core::registry::Config::new(
        config.domain.clone(),
        identity,
        rand::random(),
        rand::random(),
    );
    core.endpoint_lifetime = config.endpoint_lifetime;
    core.allocator.lifetime = config.lease_lifetime;
    core.allocator.renew_after = config.renew_after;
    core.allocator.prefix_len4 = config.prefix_len4;
    core.federation.stale_grace = config.stale_grace;
    config.limits.apply(&mut core);
    core
}
