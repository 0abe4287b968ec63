//! The role: one task per network, one owner of the host's network.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::sync::watch;
use vl3_core::document::Role;
use vl3_core::heal::State;
use vl3_core::ids::{Generation, InstanceId, WorkloadName};
use vl3_core::router::VERSION;
use vl3_net::Netlink;
use vl3_proto::{Hello, HelloRole};
use vl3_runtime::{RoleContext, Tasks, clock};

use crate::attachment::{Attachment, Parts};
use crate::config::{Attach, Config};
use crate::control::Control;
use crate::document::Documents;
use crate::host::{self, HostHandle};
use crate::name::interface_name;
use crate::names::{Entries, Keeper, ResolvConf};
use crate::request::Template;
use crate::status::{Counters, Status};

/// Close calls, routes and interfaces at the end.
const STOP_LIMIT: Duration = Duration::from_secs(6);

/// Runs the client until its shutdown; returns once connections are closed and interfaces gone.
pub async fn run(config: Config, ctx: RoleContext) -> anyhow::Result<()> {
    Client::start(config, &ctx)?.finish().await
}

/// A running client.
#[derive(Debug)]
pub struct Client {
    ctx: RoleContext,
    tasks: Arc<Tasks>,
    statuses: Vec<watch::Receiver<Status>>,
    resolv_conf: Option<ResolvConf>,
}

impl Client {
    /// Starts every attachment. Must be called on a thread of the namespace that the interfaces
    /// shall be in.
    pub fn start(config: Config, ctx: &RoleContext) -> anyhow::Result<Self> {
        let tasks = Arc::new(Tasks::new("client"));
        let netlink = Netlink::open()?;
        let names = Keeper::new(&config.names, ctx.name()).context("look at the own process")?;
        let (names_shown, resolv_conf) = (names.shown(), names.file());
        let (host, owner) = host::start(netlink.clone(), names);
        tasks.spawn_detached("host network", owner);
        let shared = Shared {
            ctx,
            counters: Counters::register(&ctx.metrics),
            host,
            netlink,
            tasks: &tasks,
            instance: InstanceId(rand::random()),
        };
        let mut interfaces = Vec::new();
        let mut statuses = Vec::new();
        for (position, attach) in config.attach.iter().enumerate() {
            let (attachment, status) = shared
                .attachment(position, attach, &config, &mut interfaces)
                .with_context(|| format!("attach[{position}]"))?;
            statuses.push(status);
            tasks.spawn(format!("attachment {position}"), attachment.run());
        }
        let shown = statuses.clone();
        ctx.set_status(move || {
            let attachments: Vec<Value> = shown
                .iter()
                .map(|status| status.borrow().to_json())
                .collect();
            let names = names_shown.borrow().clone();
            async move { json!({ "role": "client", "attachments": attachments, "names": names }) }
        });
        Ok(Self {
            ctx: ctx.clone(),
            tasks,
            statuses,
            resolv_conf,
        })
    }

    /// One per network, in the order of the configuration.
    pub fn statuses(&self) -> &[watch::Receiver<Status>] {
        &self.statuses
    }

    /// Waits for the shutdown and the end of every attachment, or for the first failure.
    pub async fn finish(self) -> anyhow::Result<()> {
        let outcome = tokio::select! {
            () = self.ctx.shutdown.cancelled() => Ok(()),
            error = self.tasks.failed() => Err(error),
        };
        self.ctx.shutdown.cancel();
        let stopped = async {
            for mut status in self.statuses {
                // An error: the attachment's task is gone.
                let _gone = status
                    .wait_for(|status| status.state == State::Stopped)
                    .await;
            }
        };
        if tokio::time::timeout(STOP_LIMIT, stopped).await.is_err() {
            tracing::warn!(limit = ?STOP_LIMIT, "an attachment did not stop in time");
        }
        self.tasks.drain(Duration::from_millis(500)).await;
        // Also where its owner was stopped before it could.
        if let Some(file) = self.resolv_conf
            && let Err(error) = file.set(&Entries::default()).await
        {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(
                error,
                "resolv.conf could not be put back; the next start tries again"
            );
        }
        outcome
    }
}

/// What all attachments of one client share.
struct Shared<'a> {
    ctx: &'a RoleContext,
    counters: Counters,
    host: HostHandle,
    netlink: Netlink,
    tasks: &'a Arc<Tasks>,
    instance: InstanceId,
}

impl Shared<'_> {
    fn attachment(
        &self,
        position: usize,
        attach: &Attach,
        config: &Config,
        interfaces: &mut Vec<String>,
    ) -> anyhow::Result<(Attachment, watch::Receiver<Status>)> {
        let ctx = self.ctx;
        let documents = Documents::open(
            &attach.document,
            attach.uid,
            ctx.state_path(&format!("{}.vl3", attach.uid)),
            ctx.trust.clone(),
            &ctx.document_alarms,
        )?;
        let document = documents.current();
        let own = &ctx.identity.current().id;
        let Some(member) = document.speaker(Role::Workload, own, clock::wall()) else {
            bail!(
                "{own} is no workload of a live member of network {}: the identity or the document is another one's",
                document.name
            );
        };
        let workload = match &attach.workload {
            Some(workload) => workload.clone(),
            None => WorkloadName::new(ctx.name()).with_context(|| {
                format!(
                    "name {:?} cannot name the workload; set attach.workload",
                    ctx.name()
                )
            })?,
        };
        let interface = match &attach.interface {
            Some(interface) => interface.clone(),
            None => interface_name(document.name.as_str(), position, interfaces),
        };
        interfaces.push(interface.clone());
        let template = Template {
            id: Template::connection_id(ctx.name(), &document.name),
            name: ctx.name().to_owned(),
            network: document.name.clone(),
            labels: attach.labels.clone(),
            hello: Hello {
                version_min: VERSION,
                version_max: VERSION,
                uid: document.uid,
                domain: member.domain.clone(),
                name: workload.to_string(),
                instance: self.instance,
                generation: Generation(0),
                dials_only: true,
                role: HelloRole::Workload,
            },
            workload,
        };
        let key = crate::wireguard::load_or_make_key(
            ctx.state_path(&format!("{}.key", attach.uid)).as_deref(),
        )?;
        let (status, shown) = watch::channel(Status {
            network: document.name.to_string(),
            uid: document.uid.to_string(),
            mechanism: attach.mechanism.label(),
            interface: interface.clone(),
            state: State::Idle,
            router: None,
            generation: None,
            url: None,
            addresses: Vec::new(),
            router_addresses: Vec::new(),
            routes: Vec::new(),
            mtu: None,
            dns_servers: Vec::new(),
            search: Vec::new(),
            document_version: document.version,
            rtt: None,
            last_receipt: None,
            attached_after: None,
            drops: Vec::new(),
            last_error: None,
        });
        let lifetime = config.token_lifetime;
        let control = Control {
            dialer: ctx.dialer().token_lifetime(lifetime),
            tokens: Arc::new(nsm_chain::SvidTokens::new(
                ctx.identity.clone(),
                lifetime,
                clock::wall,
            )),
            documents,
            registry: config.registry.clone(),
            mechanism: attach.mechanism,
            token_lifetime: lifetime,
            said: Arc::default(),
        };
        let attachment = Attachment::new(Parts {
            position,
            ready: ctx.readiness.item(format!("network {}", document.name)),
            attach: attach.clone(),
            interface,
            template,
            control,
            host: self.host.clone(),
            netlink: self.netlink.clone(),
            exclude: config.exclude.clone(),
            key,
            tasks: Arc::clone(self.tasks),
            counters: self.counters.clone(),
            status,
            shutdown: ctx.shutdown.clone(),
        })?;
        Ok((attachment, shown))
    }
}
