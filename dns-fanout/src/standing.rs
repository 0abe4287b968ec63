//! What the server is told to do, by file and by command, joined with what the router says into
//! the view in force: whole, or the one before stays (R7.4, R3.9).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use vl3_core::names::{
    ClientClass, Name, NetworkParts, Question, Upstream, UpstreamId, View, ViewParts,
};
use vl3_runtime::CancellationToken;

use crate::Config;
use crate::config::service::services;
use crate::config::view::DEFAULT_VIEW;
use crate::config::{read_cookie_keys, upstream};
use crate::engine::{Command, CookieKeys, Explain, Sender, type_of};

/// Orders that wait; who gives them waits, too.
const ORDERS_MAX: usize = 16;

/// An order and where its outcome goes.
#[derive(Debug)]
pub(crate) enum Order {
    /// Whether a reload would be taken; changes nothing.
    Check(Box<Config>, oneshot::Sender<Result<(), String>>),
    Reload(Box<Config>, oneshot::Sender<Result<(), String>>),
    Add(Box<Upstream>, oneshot::Sender<Result<(), String>>),
    Remove(UpstreamId, oneshot::Sender<Result<(), String>>),
    List(oneshot::Sender<Value>),
    Explain(
        Question,
        Option<IpAddr>,
        oneshot::Sender<Result<Value, String>>,
    ),
}

#[derive(Clone, Debug)]
pub(crate) struct Orders(mpsc::Sender<Order>);

pub(crate) struct Standing {
    config: Config,
    /// Upstreams that came by command: until the next reload or restart.
    added: BTreeSet<UpstreamId>,
    upstreams: Vec<Upstream>,
    listeners: Vec<SocketAddr>,
    network: Option<NetworkParts>,
    sequence: u64,
    engine: Sender,
    orders: mpsc::Receiver<Order>,
    networks: watch::Receiver<Option<NetworkParts>>,
}

impl Standing {
    /// `listeners`: where we listen, wildcards spelled out.
    pub(crate) fn new(
        config: Config,
        listeners: Vec<SocketAddr>,
        engine: Sender,
        networks: watch::Receiver<Option<NetworkParts>>,
    ) -> (Self, Orders) {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let standing = Self {
            upstreams: config.upstreams.clone(),
            config,
            added: BTreeSet::new(),
            listeners,
            network: None,
            sequence: 0,
            engine,
            orders,
            networks,
        };
        (standing, Orders(sender))
    }

    /// Puts the configured view in force, before anything else; without a router it must be one.
    pub(crate) async fn begin(&mut self) -> anyhow::Result<()> {
        if self.config.router.is_some() {
            return Ok(());
        }
        let upstreams = self.upstreams.clone();
        self.put(&self.config.clone(), upstreams)
            .await
            .map_err(|problems| anyhow::anyhow!(problems))
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut follows = true;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = self.networks.changed(), if follows => match changed {
                    Ok(()) => self.take_network().await,
                    // Nobody follows a router.
                    Err(_) => follows = false,
                },
                Some(order) = self.orders.recv() => self.order(order).await,
            }
        }
    }

    async fn take_network(&mut self) {
        let network = self.networks.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.network, network);
        let (config, upstreams) = (self.config.clone(), self.upstreams.clone());
        if let Err(problems) = self.put(&config, upstreams).await {
            tracing::error!(
                problems,
                "the router's state is refused; the one before stays"
            );
            self.network = before;
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            // Err: who gave the order left.
            Order::Check(config, done) => drop(done.send(self.check(&config))),
            Order::Reload(config, done) => drop(done.send(self.reload(*config).await)),
            Order::Add(upstream, done) => drop(done.send(self.add(*upstream).await)),
            Order::Remove(id, done) => drop(done.send(self.remove(&id).await)),
            Order::List(done) => drop(done.send(self.list())),
            Order::Explain(question, from, reply) => self.explain(question, from, reply).await,
        }
    }

    /// Everything that a reload depends on.
    fn check(&self, config: &Config) -> Result<(), String> {
        let fixed = |config: &Config| {
            (
                config.router.clone(),
                config.listen.clone(),
                config.upstream_sockets,
                config.cache_octets,
            )
        };
        if fixed(config) != fixed(&self.config) {
            return Err(
                "router, listen, upstreams.sockets and cache.bytes change with a restart only"
                    .to_owned(),
            );
        }
        new_keys(config)?;
        self.assemble(config, config.upstreams.clone()).map(drop)
    }

    /// The file as it is: what came or went by command is as the file says again.
    async fn reload(&mut self, config: Config) -> Result<(), String> {
        self.check(&config)?;
        let keys = new_keys(&config)?;
        self.put(&config, config.upstreams.clone()).await?;
        if let Some(keys) = keys {
            // Err: the server stops.
            let _stopped = self.engine.send(Command::Cookies(keys)).await;
        }
        // Err: the server stops.
        let _stopped = self.engine.send(Command::LogRate(config.query_log)).await;
        let _stopped = self.engine.send(Command::Settings(config.resolver())).await;
        self.upstreams.clone_from(&config.upstreams);
        self.added.clear();
        self.config = config;
        Ok(())
    }

    async fn add(&mut self, upstream: Upstream) -> Result<(), String> {
        let mut upstreams = self.upstreams.clone();
        let id = upstream.id.clone();
        upstreams.push(upstream);
        self.put(&self.config.clone(), upstreams.clone()).await?;
        self.upstreams = upstreams;
        self.added.insert(id);
        Ok(())
    }

    async fn remove(&mut self, id: &UpstreamId) -> Result<(), String> {
        let mut upstreams = self.upstreams.clone();
        upstreams.retain(|upstream| upstream.id != *id);
        if upstreams.len() == self.upstreams.len() {
            let known: Vec<&str> = upstreams.iter().map(|known| known.id.as_str()).collect();
            return Err(format!(
                "no upstream is called {id}; there are: {}",
                known.join(", ")
            ));
        }
        self.put(&self.config.clone(), upstreams.clone()).await?;
        self.upstreams = upstreams;
        self.added.remove(id);
        Ok(())
    }

    /// As a member of the network would ask, or the first client that is served.
    async fn explain(
        &self,
        question: Question,
        from: Option<IpAddr>,
        reply: oneshot::Sender<Result<Value, String>>,
    ) {
        let members = self
            .network
            .iter()
            .flat_map(|network| &network.state.clients);
        let member = members
            .filter(|(_, class)| *class == ClientClass::Member)
            .map(|(prefix, _)| prefix)
            .chain(&self.config.clients)
            .next();
        let Some(source) = from.or_else(|| member.map(|prefix| prefix.addr())) else {
            let nobody = "nobody is served here yet; say for whom with --from".to_owned();
            // Err: who asked left.
            return drop(reply.send(Err(nobody)));
        };
        let explain = Explain {
            question,
            source,
            reply,
        };
        // Err: the server stops, and so does the wait for the reply.
        let _stopped = self.engine.send(Command::Explain(explain)).await;
    }

    fn list(&self) -> Value {
        let all: Vec<Value> = self
            .upstreams
            .iter()
            .map(|known| upstream::to_json(known, self.added.contains(&known.id)))
            .collect();
        json!({ "upstreams": all })
    }

    /// Checks everything; only then anything changes.
    async fn put(&mut self, config: &Config, upstreams: Vec<Upstream>) -> Result<(), String> {
        if let Some(view) = self.assemble(config, upstreams)? {
            self.sequence = view.sequence();
            // Err: the server stops.
            let _stopped = self.engine.send(Command::View(Arc::new(view))).await;
        }
        Ok(())
    }

    /// `None` while nothing is known of the network: with the router the rest comes along.
    fn assemble(&self, config: &Config, upstreams: Vec<Upstream>) -> Result<Option<View>, String> {
        let clients = config
            .clients
            .iter()
            .map(|net| (*net, ClientClass::Member))
            .collect();
        let network = self.network.clone();
        if network.is_none() && config.router.is_some() {
            return Ok(None);
        }
        let known = network.as_ref();
        let services = known.map(|known| Arc::new(services(&config.services, &known.state)));
        let of_network = network.as_ref().map_or(0, |network| network.state.sequence);
        let parts = ViewParts {
            sequence: self.sequence.max(of_network) + 1,
            network,
            upstreams,
            policies: config.policies.clone(),
            clients,
            listeners: self.listeners.clone(),
            services,
            prefer_wait: config.prefer_wait,
            records_max: config.records_max,
        };
        View::assemble(parts).map(Some).map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            texts.join("; ")
        })
    }
}

fn new_keys(config: &Config) -> Result<Option<CookieKeys>, String> {
    let keys = config.cookie_keys.as_deref().map(read_cookie_keys);
    keys.transpose()
        .map_err(|allowed| format!("cookie_keys must be {allowed}"))
}

/// The orders of every view of the process.
#[derive(Clone, Debug)]
pub(crate) struct Views {
    /// By name, the default one first.
    views: Vec<(String, Orders)>,
    /// Addresses of the file's top.
    listen: Vec<SocketAddr>,
}

impl Views {
    pub(crate) const fn new(views: Vec<(String, Orders)>, listen: Vec<SocketAddr>) -> Self {
        Self { views, listen }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.views.iter().map(|(name, _)| name.clone())
    }

    /// The view that a command names; the only one, or the default one, where it names none.
    pub(crate) fn of(&self, arguments: &Value) -> Result<&Orders, String> {
        let names = || self.names().collect::<Vec<_>>().join(", ");
        let named = arguments.get("view").and_then(Value::as_str);
        if let Some(view) = named {
            let found = self.views.iter().find(|(name, _)| name == view);
            return found.map(|(_, orders)| orders).ok_or_else(|| {
                format!(
                    "view = {view:?}: must be a view of this server: {}",
                    names()
                )
            });
        }
        match self.views.as_slice() {
            [(_, only)] => Ok(only),
            [(name, default), ..] if name == DEFAULT_VIEW => Ok(default),
            _ => Err(format!("view is missing: must be one of {}", names())),
        }
    }

    /// A new configuration, for all views or for none (R7.4).
    pub(crate) async fn reload(&self, config: &Config) -> Result<(), String> {
        if config.listen != self.listen {
            return Err("listen changes with a restart only".to_owned());
        }
        let views = config.all_views();
        let names = views.iter().map(|view| &view.name);
        if !names.eq(self.views.iter().map(|(name, _)| name)) {
            let known: Vec<String> = self.names().collect();
            return Err(format!(
                "views come and go with a restart only; there are: {}",
                known.join(", ")
            ));
        }
        let both = || views.iter().zip(&self.views);
        let mut problems = Vec::new();
        for (view, (name, orders)) in both() {
            if let Err(problem) = orders.check(view.config.clone()).await {
                problems.push(self.told_of(name, &problem));
            }
        }
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        for (view, (name, orders)) in both() {
            let done = orders.reload(view.config.clone()).await;
            done.map_err(|problem| self.told_of(name, &problem))?;
        }
        Ok(())
    }

    fn told_of(&self, view: &str, problem: &str) -> String {
        match self.views.as_slice() {
            [_] => problem.to_owned(),
            _ => format!("view {view}: {problem}"),
        }
    }
}

impl Orders {
    async fn check(&self, config: Config) -> Result<(), String> {
        self.give(|done| Order::Check(Box::new(config), done))
            .await?
    }

    async fn reload(&self, config: Config) -> Result<(), String> {
        self.give(|done| Order::Reload(Box::new(config), done))
            .await?
    }

    /// `upstream-add` of the admin socket.
    pub(crate) async fn add(&self, arguments: Value) -> Result<Value, String> {
        let upstream = upstream::from_json(&arguments).map_err(|problems| problems.join("; "))?;
        self.give(|done| Order::Add(Box::new(upstream), done))
            .await??;
        self.list().await
    }

    /// `upstream-remove`.
    pub(crate) async fn remove(&self, arguments: Value) -> Result<Value, String> {
        let name = arguments.get("name").and_then(Value::as_str);
        let id = upstream::id(name.ok_or("name is missing: must be the name of an upstream")?);
        self.give(|done| Order::Remove(id, done)).await??;
        self.list().await
    }

    /// `upstream-list`.
    pub(crate) async fn list(&self) -> Result<Value, String> {
        self.give(Order::List).await
    }

    /// `explain`: `name`, `type`, `from`.
    pub(crate) async fn explain(&self, arguments: Value) -> Result<Value, String> {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str);
        let name = text("name").ok_or("name is missing: must be a domain name")?;
        let name = Name::parse(name)
            .map_err(|error| format!("name = {name:?}: must be a domain name ({error})"))?;
        let rtype = text("type").unwrap_or("A");
        let rtype = type_of(rtype).ok_or_else(|| {
            format!("type = {rtype:?}: must be a record type, as A, AAAA, SRV or TYPE65")
        })?;
        let from = text("from").map(|from| {
            from.parse::<IpAddr>()
                .map_err(|_| format!("from = {from:?}: must be an IP address"))
        });
        let (question, from) = (Question::new(name, rtype), from.transpose()?);
        self.give(|done| Order::Explain(question, from, done))
            .await?
    }

    async fn give<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, String> {
        let stopping = || "the server stops".to_owned();
        let (done, outcome) = oneshot::channel();
        self.0.send(order(done)).await.map_err(|_| stopping())?;
        outcome.await.map_err(|_| stopping())
    }
}
