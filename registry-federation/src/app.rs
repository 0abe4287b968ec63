//! Start-up in the order it happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nsm_chain::SvidTokens;
use tokio::sync::{mpsc, watch};
use vl3_core::ids::NetworkUid;
use vl3_core::registry::{Boot, Record, RegistryMachine};
use vl3_runtime::grpc::{Listen, Server};
use vl3_runtime::{RoleContext, clock};

use crate::backlog::Backlog;
use crate::commands;
use crate::config::Config;
use crate::dialler::Dialler;
use crate::driver::{Driver, Keeper, Replica};
use crate::handle::Handle;
use crate::limits::Gate;
use crate::metrics::RegistryMetrics;
use crate::operator;
use crate::replica::{Forward, ForwardMetrics, Replicas, Standing, Trusted};
use crate::services::{self, InUse, Prefixes, Shared};
#[cfg(feature = "etcd")]
use crate::store::Etcd;
use crate::store::writer::Writer;
use crate::store::{Candidate, Kept, Memory, Redb, Store, StoreConfig};

/// Calls that wait for the machine; beyond that callers wait for room.
const MESSAGES: usize = 1024;

/// NSM_MAX_TOKEN_LIFETIME of the stock components.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

pub(crate) const STATE_FILE: &str = "registry.redb";

/// A registry that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, with the ports that the kernel chose.
    pub addresses: Vec<Listen>,
    /// Where stock routers get prefixes, in the order of the configuration.
    pub prefix_addresses: Vec<Listen>,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Returns after shutdown, or with the error that ended it.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.served.await.context("the registry's task")?
    }

    /// Ends it without a word to anybody, as far as that can be done within a process.
    pub fn kill(self) {
        self.served.abort();
    }
}

/// Serves until shutdown. Leases, names and endpoints stay.
pub async fn run(config: Config, ctx: RoleContext) -> anyhow::Result<()> {
    let listening = ctx.readiness.item("listen");
    let running = open(config, &ctx).await?;
    listening.set(true);
    running.wait().await
}

/// Opens the store that is configured and starts with it.
async fn open(config: Config, ctx: &RoleContext) -> anyhow::Result<Running> {
    let store: Box<dyn Store> = match (&config.store, ctx.state_path(STATE_FILE)) {
        #[cfg(feature = "etcd")]
        (StoreConfig::Etcd(etcd), _) => {
            let etcd: Arc<dyn crate::store::Shared> = Arc::new(Etcd::new(etcd.clone())?);
            return start(config, ctx.clone(), etcd).await;
        }
        #[cfg(not(feature = "etcd"))]
        (StoreConfig::Etcd(_), _) => anyhow::bail!("this program was built without etcd"),
        (StoreConfig::Redb, Some(path)) => Box::new(Redb::open(&path)?),
        (StoreConfig::Redb | StoreConfig::Memory, _) => {
            tracing::warn!("ephemeral: without a state directory nothing survives a restart");
            Box::new(Memory::default())
        }
    };
    start(config, ctx.clone(), store).await
}

/// Starts with a given store; returns when every listener is bound.
pub async fn start(
    config: Config,
    ctx: RoleContext,
    kept: impl Into<Kept>,
) -> anyhow::Result<Running> {
    let ready = ctx.readiness.item("registry");
    let options = ctx
        .serve_options()
        .connections_max(config.limits.connections)
        .connections_per_identity_max(config.limits.connections_per_identity);
    let served = options.clone().services(&services::NAMES);
    let server = Server::bind(&config.listen, served).await?;
    let addresses = server.addresses().to_vec();

    // What was kept, or the others who share it.
    let (standing, replicas) = watch::channel(Standing::default());
    let mut boot = boot(&config, &ctx);
    let (machine, keeper, shared) = match kept.into() {
        Kept::Own(store) => {
            let (writer, records) = Writer::start(store).context("read the registry's state")?;
            tracing::info!(records = records.len(), "state read");
            let machine = boot(records, false)?;
            ready.set(true);
            (machine, Keeper::Sole(writer, ready), None)
        }
        Kept::Shared(shared) => {
            let own = ctx.identity.current().id.clone();
            let trusted = Trusted::new(own, &config.replicas);
            standing.send_modify(|standing| standing.trusted = trusted);
            let candidate = candidate(&config, &ctx, &addresses)?;
            tracing::info!(
                name = candidate.name,
                address = candidate.address,
                "one of several replicas"
            );
            let mut follow = move || boot(Vec::new(), true);
            let machine = follow()?;
            let follow = Box::new(follow);
            let replica = Replica::new(
                Arc::clone(&shared),
                candidate,
                follow,
                standing.clone(),
                ready,
            );
            (machine, Keeper::Shared(replica), Some(shared))
        }
    };

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
    let backlog = Backlog::new(config.limits.unread_bytes, metrics.met.clone());
    let handle = Handle::new(messages, ends, gate, backlog);
    let status = handle.clone();
    ctx.set_status(move || {
        let handle = status.clone();
        async move { handle.status().await }
    });
    commands::register(&ctx, &handle);
    operator::register(&ctx, &handle);
    let driver = Driver::new(
        machine,
        keeper,
        standing,
        dialler,
        metrics,
        handle.clone(),
        inbox,
        ended,
    );

    // The port.
    let tokens = SvidTokens::new(ctx.identity.clone(), TOKEN_LIFETIME, clock::wall);
    let services = Shared {
        handle,
        tokens: Arc::new(tokens),
    };
    let replicas = Replicas {
        standing: replicas,
        shared,
    };
    let mut stock = Vec::new();
    let mut in_use: BTreeMap<NetworkUid, InUse> = BTreeMap::new();
    for port in &config.prefixes {
        let server = Server::bind(&port.listen, options.clone()).await?;
        let prefixes = Prefixes {
            handle: services.handle.clone(),
            uid: port.network,
            family: port.family,
            in_use: in_use.entry(port.network).or_default().clone(),
            replicas: replicas.clone(),
        };
        stock.push((server, services::stock_routes(prefixes)));
    }
    let prefix_addresses = stock
        .iter()
        .flat_map(|(server, _)| server.addresses().to_vec())
        .collect();
    let counted = ForwardMetrics::register(&ctx.metrics);
    let routes = services::routes(services, Forward::new(replicas, ctx.dialer(), counted));
    for address in &addresses {
        tracing::info!(%address, domain = %config.domain, "registry listens");
    }
    let shutdown = ctx.shutdown.clone();
    let served = tokio::spawn(async move {
        let driven = driver.run(shutdown);
        let serving = server.serve(routes);
        let stock = stock
            .into_iter()
            .map(|(server, routes)| server.serve(routes));
        let stock = futures_util::future::try_join_all(stock);
        // The machine's end is an error unless all were told to stop.
        tokio::try_join!(driven, serving, stock).map(|_| ())
    });
    Ok(Running {
        addresses,
        prefix_addresses,
        served,
    })
}

/// Makes machines, each with streams of its own: what follows another replica starts over with
/// a new one.
fn boot(
    config: &Config,
    ctx: &RoleContext,
) -> impl FnMut(Vec<Record>, bool) -> anyhow::Result<RegistryMachine> + Send + 'static {
    let (config, ctx) = (config.clone(), ctx.clone());
    if config.restored {
        tracing::warn!(
            "restored = true: for two renewal periods leases are only taken back; \
             remove the key now, every further start with it does so again"
        );
    }
    let mut lives = 0;
    move |records, following| {
        let mut core = core_config(&config, &ctx);
        core.federation.streams_above = lives << 32;
        lives += 1;
        let documents = config.networks.iter().map(|network| network.chain.clone());
        let boot = Boot {
            documents: documents.collect(),
            records,
            restored: config.restored,
            following,
        };
        Ok(RegistryMachine::boot(core, boot, clock::now())?)
    }
}

/// Where the other replicas reach this one.
fn candidate(config: &Config, ctx: &RoleContext, bound: &[Listen]) -> anyhow::Result<Candidate> {
    let specific = bound.iter().find_map(|listen| match listen {
        Listen::Tcp(address) if !address.ip().is_unspecified() => Some(format!("tcp://{address}")),
        Listen::Tcp(_) | Listen::Unix(_) => None,
    });
    let address = config
        .advertise
        .as_ref()
        .map(ToString::to_string)
        .or(specific);
    let address = address.context(
        "advertise: missing; replicas that share a store reach each other at tcp://HOST:PORT, \
         and no address of listen is a specific one",
    )?;
    Ok(Candidate {
        id: rand::random(),
        name: ctx.name().to_owned(),
        address,
    })
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
    core.rewrite_after = config.journal_records;
    config.limits.apply(&mut core);
    core
}
