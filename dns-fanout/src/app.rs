//! Start-up in the order it happens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use vl3_core::ids::NetworkUid;
use vl3_core::names::View;
use vl3_proto::document::read_armoured;
use vl3_runtime::{CancellationToken, ReadyItem, RoleContext, Tasks};

use crate::Config;
use crate::engine::{COMPLETIONS_MAX, Command, Engine, Inputs, QUESTIONS_MAX};
use crate::follow::Follower;
use crate::metrics::Metrics;
use crate::serve::{Connections, Front};
use crate::sockets::{Dial, Listeners, OwnAddress, RouterSockets, bind};
use crate::upstream::{Settings, Upstreams};

/// Tasks may take so long to end after the engine did.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Runs the DNS server until shutdown.
pub async fn run(config: Config, ctx: RoleContext) -> anyhow::Result<()> {
    let has_state = ctx.readiness.item("state of the router");
    let listening = ctx.readiness.item("listeners of the router");
    let uid = network_uid(&config)?;
    let metrics = Metrics::default();
    ctx.metrics.register(|registry| metrics.register(registry));
    let tasks = Arc::new(Tasks::new("dns"));

    let (views, view) = watch::channel(None);
    let (own_sender, own) = watch::channel(OwnAddress::default());
    let follower = Follower {
        run_dir: config.router.clone(),
        dialer: ctx.dialer(),
        trust_domain: ctx.identity.current().id.trust_domain().to_owned(),
        uid,
        trust: ctx.trust.clone(),
        alarms: ctx.document_alarms.clone(),
        shared_names: config.shared_names,
        upstream_port: config.upstream_port,
        views,
        own: own_sender,
    };
    tasks.spawn("router state", follower.run(ctx.shutdown.clone()));

    let (server, dial) =
        Server::start(&config, own, view.clone(), metrics, &tasks, &ctx.shutdown).await?;
    drop(dial);
    let commands = server.commands.clone();
    ctx.set_status(move || {
        let commands = commands.clone();
        async move {
            let (reply, status) = oneshot::channel();
            let asked = commands.send(Command::Status(reply)).await.is_ok();
            match status.await {
                Ok(status) if asked => status,
                _ => json!({ "stopping": true }),
            }
        }
    });
    tasks.spawn(
        "readiness",
        ready_with_state(view, has_state, ctx.shutdown.clone()),
    );
    server.until_stopped(&ctx, &listening, &tasks).await?;
    tasks.drain(END_LIMIT).await;
    Ok(())
}

/// The engine, its listeners and sockets: everything but where the state comes from.
pub(crate) struct Server {
    pub(crate) commands: mpsc::Sender<Command>,
    front: Front,
    engine: tokio::task::JoinHandle<anyhow::Result<()>>,
    passed: mpsc::Receiver<Listeners>,
    serving: CancellationToken,
}

impl Server {
    pub(crate) async fn start(
        config: &Config,
        own: watch::Receiver<OwnAddress>,
        views: watch::Receiver<Option<Arc<View>>>,
        metrics: Metrics,
        tasks: &Arc<Tasks>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<(Self, Dial)> {
        let (listeners, passed) = mpsc::channel(1);
        let (sockets, dial, epochs) = RouterSockets::new(&config.router, own, listeners);
        let dial = if config.upstream_direct {
            Dial::Direct
        } else {
            dial
        };
        tasks.spawn("router sockets", sockets.run(shutdown.clone()));

        let (completions, completed) = mpsc::channel(COMPLETIONS_MAX);
        let settings = Settings {
            sockets: config.upstream_sockets,
        };
        let upstreams = Upstreams::new(
            settings,
            dial.clone(),
            Arc::clone(tasks),
            completions,
            metrics.clone(),
        );
        let (commands, received) = mpsc::channel(QUESTIONS_MAX);
        let inputs = Inputs {
            commands: received,
            completions: completed,
            views,
            epochs,
        };
        let engine =
            tokio::spawn(Engine::new(upstreams, metrics.clone()).run(inputs, shutdown.clone()));

        let connections = Connections::new(
            config.connections_max,
            config.connections_per_client_max,
            metrics.clone(),
        );
        let front = Front {
            engine: commands.clone(),
            connections: Arc::new(connections),
            metrics,
            tasks: Arc::clone(tasks),
        };
        front.serve(bind(&config.listen).await?, shutdown);
        let serving = shutdown.child_token();
        Ok((
            Self {
                commands,
                front,
                engine,
                passed,
                serving,
            },
            dial,
        ))
    }

    /// Takes the listeners that the router passes, each set in place of the one before, until
    /// the engine has drained.
    async fn until_stopped(
        mut self,
        ctx: &RoleContext,
        listening: &ReadyItem,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                Some(listeners) = self.passed.recv() => {
                    self.replace(listeners, &ctx.shutdown);
                    listening.set(true);
                }
                () = ctx.shutdown.cancelled(), if !self.serving.is_cancelled() => {
                    listening.set(false);
                    self.serving.cancel();
                }
                ended = &mut self.engine => return ended.context("the engine panicked")?,
                error = tasks.failed() => return Err(error),
            }
        }
    }

    /// The new set first: at no moment does nobody listen.
    fn replace(&mut self, listeners: Listeners, shutdown: &CancellationToken) {
        for socket in &listeners.udp {
            if let Ok(address) = socket.local_addr() {
                tracing::info!(%address, "answering questions");
            }
        }
        let serving = shutdown.child_token();
        self.front.serve(listeners, &serving);
        std::mem::replace(&mut self.serving, serving).cancel();
    }
}

/// Whose names are served: `network.uid`, which the document must not contradict.
fn network_uid(config: &Config) -> anyhow::Result<NetworkUid> {
    let Some(path) = &config.document else {
        return config.uid.context("network.uid is not set");
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read network.document {}", path.display()))?;
    let found = read_armoured(&text)
        .with_context(|| format!("network.document {}", path.display()))?
        .uid();
    match config.uid {
        Some(uid) if uid != found => {
            bail!(
                "network.document {} is of network {found}, network.uid is {uid}",
                path.display()
            )
        }
        _ => Ok(found),
    }
}

async fn ready_with_state(
    mut view: watch::Receiver<Option<Arc<View>>>,
    item: ReadyItem,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        known = view.wait_for(Option::is_some) => item.set(known.is_ok()),
        () = shutdown.cancelled() => {}
    }
    shutdown.cancelled().await;
    Ok(())
}
