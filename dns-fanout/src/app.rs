//! Start-up in the order it happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use vl3_core::ids::NetworkUid;
use vl3_core::names::ByPrefix;
use vl3_proto::document::read_armoured;
use vl3_runtime::{CancellationToken, ReadyItem, RoleContext, Tasks};

use crate::config::read_cookie_keys;
use crate::config::view::{View, by_address};
use crate::engine::{Command, CookieKeys, EngineSettings, Running, Sender};
use crate::follow::Follower;
use crate::metrics::{Metrics, Origin};
use crate::query_log::Lines;
use crate::reload::{self, Reload};
use crate::serve::{Connections, Front};
use crate::sockets::{Dial, Dials, Listeners, OwnAddress, RouterSockets, bind, own_addresses};
use crate::standing::{Orders, Standing, Views};
use crate::switch::Switch;
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
    match descriptors::raise() {
        Ok(count) => tracing::debug!(count, "descriptors that may be open"),
        Err(error) => tracing::warn!(%error, "the limit of open descriptors stays as it is"),
    }
    let tasks = Arc::new(Tasks::new("dns"));
    let metrics = Metrics::default();
    metrics.register(&ctx.metrics);
    let (lines, writer) = query_log::lines();
    tasks.spawn("query log", writer.run(ctx.shutdown.clone()));
    // Bound first: a server that cannot listen does not start.
    let views = config.all_views();
    let bound = bind_all(&config, &views).await?;
    let process = Process {
        cookies: cookie_keys(&config)?,
        listeners: own_addresses(bound.iter().map(|(listeners, _)| listeners))?,
        first: config.listen.first().copied(),
        is_alone: views.len() == 1,
        ctx: ctx.clone(),
        tasks: Arc::clone(&tasks),
        metrics,
        lines,
    };
    let mut running = Vec::new();
    let mut ended = JoinSet::new();
    for view in &views {
        let (view, end) = process.start(view).await?;
        running.push(view);
        ended.spawn(async move { end.await.context("the engine panicked")? });
    }
    let connections = Arc::new(Connections::new(
        config.connections_max,
        config.connections_per_client_max,
        process.metrics.clone(),
    ));
    let front = |switch| Front {
        switch,
        connections: Arc::clone(&connections),
        metrics: process.metrics.clone(),
        tasks: Arc::clone(&tasks),
    };
    let stop = CancellationToken::new();
    let mut number = 0;
    for (listeners, sharing) in bound {
        say(&listeners);
        let switch = switch_of(&running, &views, &sharing);
        let count = u32::try_from(listeners.udp.len()).unwrap_or(u32::MAX);
        switch
            .listen(listeners.udp, number)
            .await
            .context("share a listener among views")?;
        front(switch).serve(listeners.tcp, &stop);
        number += count;
    }
    let mut listening = Vec::new();
    for (view, known) in running.iter_mut().zip(&views) {
        let item = Arc::new(ctx.readiness.item(process.item("listeners", &known.name)));
        match view.passed.take() {
            Some(passed) => {
                let of_router = FromRouter {
                    passed,
                    engine: view.engine.clone(),
                    front: front(Switch::one(view.engine.clone())),
                    listening: Arc::clone(&item),
                    stop: stop.clone(),
                };
                tasks.spawn("listeners", of_router.run(ctx.shutdown.clone()));
            }
            None => item.set(true),
        }
        listening.push(item);
    }
    let has_routers = views.iter().all(|view| view.config.router.is_some());
    let unready = if has_routers { Duration::ZERO } else { UNREADY };
    let engines: Vec<Sender> = running.iter().map(|view| view.engine.clone()).collect();
    let orders = running.into_iter().map(|view| (view.name, view.orders));
    let views = Views::new(orders.collect(), config.listen.clone());
    hooks(&ctx, &engines, &views);
    if let Some((seen, reload)) = reload {
        let reading = reload::run(reload, seen, views, ctx.shutdown.clone());
        tasks.spawn("reload", reading);
    }
    let server = Server {
        engines,
        ended,
        stop,
        unready,
    };
    server.until_stopped(&ctx, &listening, &tasks).await?;
    tasks.drain(END_LIMIT).await;
    Ok(())
}

/// The sockets of every address, and the places of the views that answer there.
async fn bind_all(config: &Config, views: &[View]) -> anyhow::Result<Vec<(Listeners, Vec<usize>)>> {
    let mut bound = Vec::new();
    for (address, sharing) in by_address(&config.listen, views) {
        bound.push((bind(&[address]).await?, sharing));
    }
    Ok(bound)
}

/// Which of the views that share an address answers a client there: the one whose prefix is
/// longest, else the first.
fn switch_of(running: &[Part], views: &[View], sharing: &[usize]) -> Switch {
    let engines = sharing.iter().filter_map(|at| running.get(*at));
    let engines: Vec<Sender> = engines.map(|view| view.engine.clone()).collect();
    let mut clients = Vec::new();
    for (place, view) in sharing.iter().filter_map(|at| views.get(*at)).enumerate() {
        clients.extend(view.config.clients.iter().map(|client| (*client, place)));
    }
    Switch::new(engines, ByPrefix::new(&clients))
}

/// What all views of a process share.
struct Process {
    ctx: RoleContext,
    tasks: Arc<Tasks>,
    metrics: Metrics,
    lines: Lines,
    cookies: CookieKeys,
    /// Where the process listens, whatever view answers there (R4.4).
    listeners: Vec<SocketAddr>,
    /// The first address of the file's top.
    first: Option<SocketAddr>,
    /// There is one view: it needs no name in what is shown.
    is_alone: bool,
}

/// A running view.
struct Part {
    name: String,
    engine: Sender,
    orders: Orders,
    /// What its router passes.
    passed: Option<mpsc::Receiver<Listeners>>,
}

type Ended = oneshot::Receiver<anyhow::Result<()>>;

impl Process {
    /// What a view is called where the only one has no name.
    fn shown(&self, view: &str) -> String {
        if self.is_alone {
            String::new()
        } else {
            view.to_owned()
        }
    }

    /// What CoreDNS would call this server.
    fn origin(&self, config: &Config, view: &str) -> Origin {
        let own = config.listen.first().copied().or(self.first);
        let everywhere = || SocketAddr::new([0, 0, 0, 0].into(), config.upstream_port);
        Origin {
            server: format!("dns://{}", own.unwrap_or_else(everywhere)),
            zone: ".".to_owned(),
            view: view.to_owned(),
        }
    }

    /// A condition of readiness.
    fn item(&self, what: &str, view: &str) -> String {
        if self.is_alone {
            what.to_owned()
        } else {
            format!("{what} of view {view}")
        }
    }

    async fn start(&self, view: &View) -> anyhow::Result<(Part, Ended)> {
        let View { name, config } = view;
        let (ctx, tasks) = (&self.ctx, &self.tasks);
        let has_view = ctx.readiness.item(self.item(
            match &config.router {
                Some(_) => "state of the router",
                None => "an upstream",
            },
            name,
        ));
        let (networks, network) = watch::channel(None);
        let (router, passed) = match &config.router {
            Some(run_dir) => {
                let (own_sender, own) = watch::channel(OwnAddress::default());
                let follower = Follower {
                    run_dir: run_dir.clone(),
                    dialer: ctx.dialer(),
                    trust_domain: ctx.identity.current().id.trust_domain().to_owned(),
                    uid: network_uid(config)?,
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
        let shown = self.shown(name);
        let metrics = self.metrics.of_view(self.origin(config, &shown));
        let settings = EngineSettings {
            upstreams: Settings {
                sockets: config.upstream_sockets,
            },
            resolver: config.resolver(),
            cookies: self.cookies.clone(),
            packets_octets_max: config.packets_octets(),
            log: self.lines.log(&shown, config.query_log, metrics.clone()),
        };
        let overlay = match &router {
            Some((dial, _)) if !config.upstream_direct => dial.clone(),
            _ => Dial::Direct,
        };
        let Running {
            engine,
            ended,
            able,
        } = engine::start(settings, metrics.clone(), |engine| Surroundings {
            dials: Dials { overlay },
            tasks: Arc::clone(tasks),
            runtime: tokio::runtime::Handle::current(),
            engine,
            metrics,
        })?;
        let (mut standing, orders) = Standing::new(
            config.clone(),
            self.listeners.clone(),
            engine.clone(),
            network,
        );
        standing
            .begin()
            .await
            .with_context(|| format!("view {name}"))?;
        tasks.spawn("view", standing.run(ctx.shutdown.clone()));
        if let Some((_, epochs)) = router {
            tasks.spawn(
                "socket epochs",
                tell_epochs(epochs, engine.clone(), ctx.shutdown.clone()),
            );
        }
        let readiness = ready_while_able(able, has_view, ctx.shutdown.clone());
        tasks.spawn("readiness", readiness);
        let part = Part {
            name: name.clone(),
            engine,
            orders,
            passed,
        };
        Ok((part, ended))
    }
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
fn hooks(ctx: &RoleContext, engines: &[Sender], views: &Views) {
    let status: Vec<(String, Sender)> = views.names().zip(engines.iter().cloned()).collect();
    ctx.set_status(move || {
        let views = status.clone();
        async move {
            if let [(_, engine)] = views.as_slice() {
                return status_of(engine).await;
            }
            let mut shown = serde_json::Map::new();
            for (name, engine) in &views {
                shown.insert(name.clone(), status_of(engine).await);
            }
            json!({ "views": shown })
        }
    });
    let of = views.clone();
    ctx.set_command("upstream-list", move |arguments| {
        let views = of.clone();
        async move { views.of(&arguments)?.list().await }
    });
    let of = views.clone();
    ctx.set_command("explain", move |arguments| {
        let views = of.clone();
        async move { views.of(&arguments)?.explain(arguments).await }
    });
    let of = views.clone();
    ctx.set_command("upstream-add", move |arguments| {
        let views = of.clone();
        async move { views.of(&arguments)?.add(arguments).await }
    });
    let of = views.clone();
    ctx.set_command("upstream-remove", move |arguments| {
        let views = of.clone();
        async move { views.of(&arguments)?.remove(arguments).await }
    });
}

async fn status_of(engine: &Sender) -> Value {
    let (reply, status) = oneshot::channel();
    let asked = engine.send(Command::Status(reply)).await.is_ok();
    match status.await {
        Ok(status) if asked => status,
        _ => json!({ "stopping": true }),
    }
}

/// The running engines and their listeners.
struct Server {
    engines: Vec<Sender>,
    ended: JoinSet<anyhow::Result<()>>,
    /// Ends all TCP listeners.
    stop: CancellationToken,
    unready: Duration,
}

impl Server {
    /// Serves until every engine has drained, or one failed.
    async fn until_stopped(
        mut self,
        ctx: &RoleContext,
        listening: &[Arc<ReadyItem>],
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let mut stopping = false;
        let mut stop_at = None;
        loop {
            tokio::select! {
                () = ctx.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    listening.iter().for_each(|item| item.set(false));
                    stop_at = Some(Instant::now() + self.unready);
                }
                () = until(stop_at) => {
                    stop_at = None;
                    self.stop.cancel();
                    for engine in &self.engines {
                        // Err: it ended already.
                        let _ended = engine.send(Command::Stop).await;
                    }
                }
                ended = self.ended.join_next() => match ended {
                    Some(ended) => ended.context("the engine panicked")??,
                    None => return Ok(()),
                },
                error = tasks.failed() => return Err(error),
            }
        }
    }
}

/// Takes the listeners that a router passes, each set in place of the one before.
struct FromRouter {
    passed: mpsc::Receiver<Listeners>,
    engine: Sender,
    front: Front,
    listening: Arc<ReadyItem>,
    /// Ends all TCP listeners.
    stop: CancellationToken,
}

impl FromRouter {
    async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut serving = self.stop.child_token();
        loop {
            let listeners = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                listeners = self.passed.recv() => listeners,
            };
            let Some(listeners) = listeners else {
                shutdown.cancelled().await;
                return Ok(());
            };
            say(&listeners);
            // The new set first: at no moment does nobody listen.
            let next = self.stop.child_token();
            self.front.serve(listeners.tcp, &next);
            // Err: the engine ended, which is told elsewhere.
            let _ended = self.engine.send(Command::Replace(listeners.udp)).await;
            std::mem::replace(&mut serving, next).cancel();
            self.listening.set(true);
        }
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
