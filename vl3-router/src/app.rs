//! Start-up in the order in which it happens: stored state first (traffic flows), then
//! registry, lease, links, in any order and for ever.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nsm_chain::{Limits, Server, SvidTokens};
use tokio::sync::watch;
use vl3_core::allocator::StockHolder;
use vl3_core::document::Chain;
use vl3_core::forward::PortClass;
use vl3_core::ids::RouterName;
use vl3_core::router::{self, OWN_PORT, RouterId, RouterMachine};
use vl3_proto::connection::monitor_connection_server::MonitorConnectionServer;
use vl3_proto::document::read_armoured;
use vl3_proto::networkservice::network_service_server::NetworkServiceServer;
use vl3_proto::vl3::network::v1::network_server::NetworkServer;
use vl3_proto::vl3::router::v1::resolver_server::ResolverServer;
use vl3_proto::vl3::router::v1::routes_server::RoutesServer;
use vl3_runtime::grpc::{self, Listen};
use vl3_runtime::{Documents, RoleContext, clock};

use crate::actor::{Actor, Command, Handle, Parts};
use crate::config::Config;
use crate::dial::Dials;
use crate::documents::Followed;
use crate::own::Own;
use crate::plane::Plane;
use crate::registry::{About, Prefixes, Registry};
use crate::resolver::Resolvers;
use crate::service::{Closer, Service};
use crate::store::Store;
use crate::tail::Tail;
use crate::wire::request::Expected;
use crate::{documents, fd, metrics, routes};

/// The table of the own address where no namespace can be made.
const OWN_TABLE: u32 = 20_053;

/// Runs one router until shutdown. Leases, addresses and peers stay as they are.
pub async fn run(config: Config, ctx: RoleContext) -> anyhow::Result<()> {
    let state_dir = ctx.common.state_dir.clone();
    let (store, own_state, mut state) = Store::open(state_dir.as_deref())?;
    let chain = documents::at_start(configured(&config)?, &store, &mut state)?;
    let document = Arc::clone(chain.document());
    let member = document.members.get(&config.domain).with_context(|| {
        format!(
            "domain: {} is no member of network {}",
            config.domain, document.name
        )
    })?;
    let router = RouterId {
        name: match &config.router {
            Some(name) => name.clone(),
            None => RouterName::new(&format!("{}-{}", document.name, config.domain))?,
        },
        domain: config.domain.clone(),
    };
    let documents = Documents::new(chain, ctx.trust.clone()).counted(&ctx.document_alarms);

    let (handle, commands) = Handle::new();
    let told = handle.clone();
    let lost = metrics::events_lost(&ctx);
    let mut plane = Plane::start(&config, own_state.private_key, move |input| {
        if !told.try_tell(input) {
            lost.inc();
            tracing::warn!(
                "the router is behind: an event of the data plane is lost; the next look at the ports makes up for it"
            );
        }
    })?;
    let (own, descriptor) = Own::create(ctx.name(), OWN_TABLE)?;
    if let Err(error) = plane.set_tun(OWN_PORT, PortClass::Own, config.mtu, descriptor) {
        bail!("the data plane refuses the own address's TUN: {error}");
    }
    let machine = RouterMachine::new(
        router::Config {
            router: router.clone(),
            uid: config.uid,
            instance: own_state.instance,
            public_key: plane.handle().public_key(),
            dials_only: member.dials_only,
            udp_port: config.udp_listen.port(),
            advertise: config.advertise,
            exclusions: config.exclusions.clone(),
            prefix_len4: config.prefix_len4,
            mtu: config.mtu,
            limits: config.limits.clone(),
            times: config.times.clone(),
            seed: rand::random(),
        },
        state,
        document.as_ref().clone(),
    );

    let tokens = SvidTokens::new(ctx.identity.clone(), config.token_lifetime, clock::wall);
    let dialer = ctx.dialer().token_lifetime(config.token_lifetime);
    let prefixes = (!config.prefix_servers.is_empty()).then(|| {
        Prefixes::start(
            &config.prefix_servers,
            StockHolder {
                uid: config.uid,
                router: router.name.clone(),
                instance: own_state.instance,
            },
            config.domain.clone(),
            config.exclusions.clone(),
            documents.clone(),
            dialer.clone(),
            &ctx.tasks,
        )
    });
    let stock = prefixes.is_some();
    let about = About {
        url: config.registry.clone(),
        prefixes,
        domain: config.domain.clone(),
        router: router.name.clone(),
        instance: own_state.instance,
    };
    let registry = Registry::new(about, dialer.clone(), documents.clone(), handle.clone());
    let resolvers = Resolvers::new(documents.clone(), config.domain.clone());
    let tickets = resolvers.tickets();
    let server = Server::new(
        router.name.as_str(),
        Arc::new(new_id),
        Arc::new(tokens.clone()),
        Limits {
            lifetime_max: config.token_lifetime.max(Limits::default().lifetime_max),
            ..Limits::default()
        },
        Tail {
            expected: Expected {
                network: document.name.clone(),
                router: router.name.clone(),
            },
            handle: handle.clone(),
            fd_socket: ctx.run_path("fd.sock"),
            documents: documents.clone(),
            domain: config.domain.clone(),
        },
    )?;
    let (own_sockets, sockets) = watch::channel(None);
    let dials = Dials::new(
        dialer,
        tokens,
        documents.clone(),
        router.name.clone(),
        config.advertise,
        handle.clone(),
    );
    let parts = Parts {
        store: Arc::new(store),
        plane,
        own: Arc::new(tokio::sync::Mutex::new(own)),
        own_ready: ctx.readiness.item("own addresses"),
        own_sockets,
        dials,
        registry: registry.clone(),
        resolvers: resolvers.clone(),
        closer: Closer {
            chain: server.chain.clone(),
        },
        documents: documents.clone(),
        metrics: metrics::Shared::default(),
    };
    metrics::register(&ctx, parts.metrics.clone(), parts.plane.handle());
    let actor = Actor::new(machine, handle.clone(), parts);
    let running = tokio::spawn(actor.run(commands, ctx.shutdown.clone()));

    let mut listen = config.listen.clone();
    listen.push(Listen::Unix(ctx.run_path("nsm.sock")));
    let options = ctx.serve_options().services(&[
        "networkservice.NetworkService",
        "connection.MonitorConnection",
    ]);
    let grpc = grpc::Server::bind(&listen, options).await?;
    let port = tcp_port(grpc.addresses())?;
    for address in grpc.addresses() {
        tracing::info!(%address, router = %router.name, domain = %router.domain, "router listens");
    }
    tracing::info!(address = %config.udp_listen, "data plane listens");
    let service = Service {
        uid: config.uid,
        chain: server.chain,
        monitor: server.monitor,
    };
    let stream_service = routes::Service {
        handle: handle.clone(),
        uid: config.uid,
    };
    let services = tonic::service::Routes::new(NetworkServiceServer::new(service.clone()))
        .add_service(MonitorConnectionServer::new(service))
        .add_service(RoutesServer::new(stream_service))
        .add_service(ResolverServer::new(resolvers))
        .add_service(NetworkServer::new(Followed(documents)));

    ctx.tasks.spawn(
        "registration",
        registry
            .clone()
            .keep_registered(port, config.advertise, config.udp_listen.port()),
    );
    ctx.tasks.spawn("watch", registry.clone().keep_watching());
    if stock {
        tracing::info!(
            "prefixes come from stock servers and the registry is taken for a stock one: \
             newer versions of the network document are read at the next start"
        );
    } else {
        ctx.tasks.spawn("document", registry.keep_document());
    }
    let fd_sock = fd::Socket {
        path: ctx.run_path("fd.sock"),
        handle: handle.clone(),
        own: sockets,
        tickets,
        refused: metrics::fd_refused(&ctx),
    };
    ctx.tasks
        .spawn("fd.sock", fd_sock.serve(ctx.shutdown.clone()));
    offer_commands(&ctx, &handle);

    grpc.serve(services).await?;
    running.await.context("the router's machine")?
}

/// What the configuration names.
fn configured(config: &Config) -> anyhow::Result<Chain> {
    let text = std::fs::read_to_string(&config.document)
        .with_context(|| format!("network.document: read {}", config.document.display()))?;
    let given = read_armoured(&text)
        .with_context(|| format!("network.document: {}", config.document.display()))?;
    if given.uid() != config.uid {
        bail!(
            "network.uid = {}: the document {} is of network {}",
            config.uid,
            config.document.display(),
            given.uid()
        );
    }
    Ok(given)
}

fn tcp_port(addresses: &[Listen]) -> anyhow::Result<u16> {
    let tcp: Option<SocketAddr> = addresses.iter().find_map(|listen| match listen {
        Listen::Tcp(address) => Some(*address),
        Listen::Unix(_) => None,
    });
    Ok(tcp
        .context("listen: must hold a tcp:// address, other routers dial it")?
        .port())
}

fn offer_commands(ctx: &RoleContext, handle: &Handle) {
    let status = handle.clone();
    ctx.set_status(move || {
        let status = status.clone();
        async move { status.status().await }
    });
    let leave = handle.clone();
    ctx.set_command("leave", move |_| {
        let leave = leave.clone();
        async move {
            leave
                .call(|reply| Command::Leave { reply })
                .await
                .map(|_| serde_json::json!({ "left": true }))
                .map_err(|refusal| refusal.to_string())
        }
    });
}

/// A UUIDv4 (RFC 9562 section 5.4), as NSM names connections.
pub(crate) fn new_id() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
