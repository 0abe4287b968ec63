//! Start-up in the order it happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use vl3_core::ids::NetworkUid;
use vl3_proto::document::read_armoured;
use vl3_runtime::{CancellationToken, ReadyItem, RoleContext, Tasks};

use crate::config::read_cookie_keys;
use crate::engine::{Command, CookieKeys, EngineSettings, Running, Sender};
use crate::follow::Follower;
use crate::metrics::{Metrics, Origin};
use crate::query_log::QueryLog;
use crate::reload::{self, Reload};
use crate::serve::{Connections, Front};
use crate::sockets::{Dial, Dials, Listeners, OwnAddress, RouterSockets, bind, own_addresses};
use crate::standing::{Orders, Standing};
use crate::upstream::{Settings, Surroundings};
use crate::{Config, descriptors, engine, query_log};

/// Tasks may take so long to end after the engine did.
const END_LIMIT: Duration = Duration::from_secs(1);
/// A server of its own answers so long while it says that it is not ready, so that others are
/// chosen before it is gone (R7.2). Beside a router nobody chooses by readiness.
const UNREADY: Duration = Duration::from_secs(5);

/// Runs the DNS server until shutdown. With `reload` it reads its configuration again when it is
/// told to.
pub async fn run(config: Config, ctx: RoleContext, reload: Option<Reload>) -> anyhow::Result<()> {
    let reload = reload.map(|reload| (reload.seen(), reload));
    let tasks = Arc::new(Tasks::new("dns"));
    let metrics = Metrics::default();
    metrics.register(&ctx.metrics);
    metrics.set_origin(origin(&config));
    match descriptors::raise() {
        Ok(count) => tracing::debug!(count, "descriptors that may be open"),
        Err(error) => tracing::warn!(%error, "the limit of open descriptors stays as it is"),
    }
    let listening = ctx.readiness.item("listeners");
    let has_view = ctx.readiness.item(match &config.router {
        Some(_) => "state of the router",
        None => "an upstream",
    });

    let (networks, network) = watch::channel(None);
    let (router, passed) = match &config.router {
        Some(run_dir) => {
            let (own_sender, own) = watch::channel(OwnAddress::default());
            let follower = Follower {
                run_dir: run_dir.clone(),
                dialer: ctx.dialer(),
                trust_domain: ctx.identity.current().id.trust_domain().to_owned(),
                uid: network_uid(&config)?,
                trust: ctx.trust.clone(),
                alarms: ctx.document_alarms.clone(),
                shared_names: config.shared_names,
                port: config.upstream_port,
                networks,
                own: own_sender,
            };
            tasks.spawn("router state", follower.run(ctx.shutdown.clone()));
            let (listeners, passed) = mpsc::channel(1);
            let (sockets, dial, epochs) = RouterSockets::new(run_dir, own, listeners);
            tasks.spawn("router sockets", sockets.run(ctx.shutdown.clone()));
            (Some((dial, epochs)), Some(passed))
        }
        None => (None, None),
    };

    // Bound first: a server that cannot listen does not start.
    let bound = bind(&config.listen).await?;
    let (lines, writer) = query_log::lines();
    tasks.spawn("query log", writer.run(ctx.shutdown.clone()));
    let log = lines.log("", config.query_log, metrics.clone());
    let Running {
        engine,
        ended,
        able,
    } = start_engine(&config, &router, log, &metrics, &tasks)?;
    let (mut standing, orders) = Standing::new(
        config.clone(),
        own_addresses(&bound)?,
        engine.clone(),
        network,
    );
    standing.begin().await?;
    tasks.spawn("view", standing.run(ctx.shutdown.clone()));
    if let Some((_, epochs)) = router {
        tasks.spawn(
            "socket epochs",
            tell_epochs(epochs, engine.clone(), ctx.shutdown.clone()),
        );
    }
    let connections = Connections::new(
        config.connections_max,
        config.connections_per_client_max,
        metrics.clone(),
    );
    let front = Front {
        engine: engine.clone(),
        connections: Arc::new(connections),
        metrics,
        tasks: Arc::clone(&tasks),
    };
    let stop = CancellationToken::new();
    let server = Server {
        engine,
        front,
        ended,
        passed,
        stop: stop.clone(),
        serving: stop.child_token(),
        unready: match config.router {
            Some(_) => Duration::ZERO,
            None => UNREADY,
        },
    };
    server.listen(bound).await;
    hooks(&ctx, &server.engine, &orders);
    if let Some((seen, reload)) = reload {
        let watching = reload::run(reload, seen, orders, ctx.shutdown.clone());
        tasks.spawn("reload", watching);
    }
    if config.router.is_none() {
        listening.set(true);
    }
    let readiness = ready_while_able(able, has_view, ctx.shutdown.clone());
    tasks.spawn("readiness", readiness);
    server.until_stopped(&ctx, &listening, &tasks).await?;
    tasks.drain(END_LIMIT).await;
    Ok(())
}

fn start_engine(
    config: &Config,
    router: &Option<(Dial, watch::Receiver<u64>)>,
    log: QueryLog,
    metrics: &Metrics,
    tasks: &Arc<Tasks>,
) -> anyhow::Result<Running> {
    let settings = EngineSettings {
        upstreams: Settings {
            sockets: config.upstream_sockets,
        },
        resolver: config.resolver(),
        cookies: cookie_keys(config)?,
        packets_octets_max: config.packets_octets(),
        log,
    };
    let overlay = match router {
        Some((dial, _)) if !config.upstream_direct => dial.clone(),
        _ => Dial::Direct,
    };
    engine::start(settings, metrics.clone(), |engine| Surroundings {
        dials: Dials { overlay },
        tasks: Arc::clone(tasks),
        runtime: tokio::runtime::Handle::current(),
        engine,
        metrics: metrics.clone(),
    })
}

/// Of the file that replicas share, else of this start.
fn cookie_keys(config: &Config) -> anyhow::Result<CookieKeys> {
    match &config.cookie_keys {
        Some(file) => read_cookie_keys(file)
            .map_err(|allowed| anyhow::anyhow!("cookie_keys must be {allowed}")),
        None => Ok(CookieKeys::random()),
    }
}

/// What `vl3 status` and the other verbs ask.
fn hooks(ctx: &RoleContext, engine: &Sender, orders: &Orders) {
    let status = engine.clone();
    ctx.set_status(move || {
        let engine = status.clone();
        async move {
            let (reply, status) = oneshot::channel();
            let asked = engine.send(Command::Status(reply)).await.is_ok();
            match status.await {
                Ok(status) if asked => status,
                _ => json!({ "stopping": true }),
            }
        }
    });
    let (list, add, remove) = (orders.clone(), orders.clone(), orders.clone());
    ctx.set_command("upstream-list", move |_| {
        let orders = list.clone();
        async move { orders.list().await }
    });
    let explain = orders.clone();
    ctx.set_command("explain", move |arguments| {
        let orders = explain.clone();
        async move { orders.explain(arguments).await }
    });
    ctx.set_command("upstream-add", move |arguments| {
        let orders = add.clone();
        async move { orders.add(arguments).await }
    });
    ctx.set_command("upstream-remove", move |arguments| {
        let orders = remove.clone();
        async move { orders.remove(arguments).await }
    });
}

/// The running engine and its listeners.
struct Server {
    engine: Sender,
    front: Front,
    ended: oneshot::Receiver<anyhow::Result<()>>,
    /// What the router passes; unset without a router.
    passed: Option<mpsc::Receiver<Listeners>>,
    /// Ends all TCP listeners.
    stop: CancellationToken,
    /// Ends those that the router passed.
    serving: CancellationToken,
    unready: Duration,
}

impl Server {
    async fn listen(&self, listeners: Listeners) {
        say(&listeners);
        self.front.serve(listeners.tcp, &self.stop);
        // Err: the engine ended, which is told elsewhere.
        let _ended = self.engine.send(Command::Listen(listeners.udp)).await;
    }

    /// Takes the listeners that the router passes, each set in place of the one before, until
    /// the engine has drained.
    async fn until_stopped(
        mut self,
        ctx: &RoleContext,
        listening: &ReadyItem,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let mut stopping = false;
        let mut stop_at = None;
        loop {
            tokio::select! {
                Some(listeners) = next(&mut self.passed) => {
                    self.replace(listeners).await;
                    listening.set(true);
                }
                () = ctx.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    listening.set(false);
                    stop_at = Some(Instant::now() + self.unready);
                }
                () = until(stop_at) => {
                    stop_at = None;
                    self.stop.cancel();
                    // Err: it ended already.
                    let _ended = self.engine.send(Command::Stop).await;
                }
                ended = &mut self.ended => return ended.context("the engine panicked")?,
                error = tasks.failed() => return Err(error),
            }
        }
    }

    /// The new set first: at no moment does nobody listen.
    async fn replace(&mut self, listeners: Listeners) {
        say(&listeners);
        let serving = self.stop.child_token();
        self.front.serve(listeners.tcp, &serving);
        // Err: the engine ended, which is told elsewhere.
        let _ended = self.engine.send(Command::Replace(listeners.udp)).await;
        std::mem::replace(&mut self.serving, serving).cancel();
    }
}

fn say(listeners: &Listeners) {
    for socket in &listeners.udp {
        if let Ok(address) = socket.local_addr() {
            tracing::info!(%address, "answering questions");
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn next(passed: &mut Option<mpsc::Receiver<Listeners>>) -> Option<Listeners> {
    match passed {
        Some(passed) => passed.recv().await,
        None => None,
    }
}

async fn tell_epochs(
    mut epochs: watch::Receiver<u64>,
    engine: Sender,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = epochs.changed() => {
                if changed.is_err() || engine.send(Command::ReplaceSockets).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// What CoreDNS would call this server.
fn origin(config: &Config) -> Origin {
    let server = config.listen.first().copied();
    let server = server.unwrap_or(SocketAddr::new([0, 0, 0, 0].into(), config.upstream_port));
    Origin {
        server: format!("dns://{server}"),
        zone: ".".to_owned(),
        view: String::new(),
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

async fn ready_while_able(
    mut able: watch::Receiver<bool>,
    item: ReadyItem,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        item.set(*able.borrow_and_update());
        tokio::select! {
            changed = able.changed() => if changed.is_err() {
                break;
            },
            () = shutdown.cancelled() => break,
        }
    }
    shutdown.cancelled().await;
    Ok(())
}
