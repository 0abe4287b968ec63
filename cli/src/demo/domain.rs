//! One domain: its site, its authority, and the roles on its gateway.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use vl3_identity::authority::Authority;
use vl3_lab::{Host, RelayedHost, Site};
use vl3_runtime::clock;

use super::documents::Network;
use super::plan::{
    EXCLUDED, Mechanism, NAMESPACE, REGISTRY_PORT, SERVICE, SERVICE_PORT, SERVICE_WORKLOADS,
    WorkloadPlan, trust_domain,
};
use super::service::{Service, identity_dir, run_dir};
use super::store::Etcd;
use super::workload::Workload;

/// Of the certificates; the demo is over long before.
const SVID_LIFETIME: Duration = Duration::from_secs(3600 * 24);

/// How long a role may take to become ready.
pub(super) const READY_WAIT_MAX: Duration = Duration::from_secs(20);

/// A domain with everything that runs on its gateway: the registry, and per network a router and
/// a DNS server, all in the gateway's namespace, as a small site would run them on one node.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) name: &'static str,
    pub(super) site: Site,
    pub(super) authority: Authority,
    pub(super) registry: Service,
    /// Where the registry keeps its state, unless in a file.
    etcd: Option<Etcd>,
    /// By network.
    pub(super) routers: BTreeMap<&'static str, Service>,
    pub(super) dns: BTreeMap<&'static str, Service>,
}

pub(super) fn authority_of(domain: &str) -> anyhow::Result<Authority> {
    Authority::create(&trust_domain(domain), clock::wall())
        .with_context(|| format!("make the CA of {domain}"))
}

/// The SPIFFE path that a document expects of a role by default.
pub(super) fn issue(
    authority: &Authority,
    base: &Path,
    role: &str,
    name: &str,
) -> anyhow::Result<()> {
    let path = if role == "client" {
        format!("workload/{name}")
    } else {
        format!("vl3/{role}/{name}")
    };
    let issued = authority.issue(&path, SVID_LIFETIME, clock::wall())?;
    issued.store(&identity_dir(base, role, name))?;
    Ok(())
}

impl Domain {
    /// Writes identities and configurations; starts nothing.
    pub(super) fn prepare(
        base: &Path,
        name: &'static str,
        site: Site,
        authority: Authority,
        networks: &[&Network],
        etcd: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let gateway = site.gateway().clone();
        issue(&authority, base, "registry", name)?;
        let public = site.public_ipv4();
        let mut keys = format!(
            "domain = {name:?}\nlisten = [\"tcp://0.0.0.0:{REGISTRY_PORT}\"]\n\
             advertise = \"tcp://{public}:{REGISTRY_PORT}\"\n"
        );
        for network in networks {
            keys.push_str(&format!(
                "[[network]]\ndocument = {:?}\nuid = {:?}\n",
                network.document(),
                network.uid
            ));
        }
        let etcd = etcd.map(|program| Etcd::new(base, name, &gateway, program));
        keys.extend(etcd.as_ref().map(Etcd::tables));
        let registry = Service::new(base, "registry", name, &gateway, &keys)?;
        let (mut routers, mut dns) = (BTreeMap::new(), BTreeMap::new());
        for network in networks {
            let plan = network.plan;
            let router = format!("{}-{name}", plan.name);
            issue(&authority, base, "router", &router)?;
            let keys = format!(
                "domain = {name:?}\nregistry = \"tcp://{public}:{REGISTRY_PORT}\"\n\
                 listen = [\"tcp://0.0.0.0:{tcp}\"]\nudp_listen = \"0.0.0.0:{udp}\"\nadvertise = \"{public}\"\n\
                 [network]\ndocument = {document:?}\nuid = {uid:?}\n",
                tcp = plan.tcp_port,
                udp = plan.udp_port,
                document = network.document(),
                uid = network.uid,
            );
            routers.insert(
                plan.name,
                Service::new(base, "router", &router, &gateway, &keys)?,
            );
            issue(&authority, base, "dns", &router)?;
            let keys = format!("router = {:?}\n", run_dir(base, "router", &router));
            let keys = format!(
                "{keys}[network]\ndocument = {:?}\nuid = {:?}\n\
                 [[service]]\nname = {SERVICE:?}\nnamespace = {NAMESPACE:?}\n\
                 ports = [{SERVICE_PORT:?}]\nworkloads = {SERVICE_WORKLOADS:?}\n",
                network.document(),
                network.uid
            );
            dns.insert(
                plan.name,
                Service::new(base, "dns", &router, &gateway, &keys)?,
            );
        }
        Ok(Self {
            name,
            site,
            authority,
            registry,
            etcd,
            routers,
            dns,
        })
    }

    /// Starts the roles; each waits for what it needs by itself.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        if let Some(etcd) = &mut self.etcd {
            etcd.start()?;
        }
        self.registry.start()?;
        for service in self.routers.values_mut().chain(self.dns.values_mut()) {
            service.start()?;
        }
        Ok(())
    }

    pub(super) async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let services = std::iter::once(&mut self.registry)
            .chain(self.routers.values_mut())
            .chain(self.dns.values_mut());
        try_join_all(services.map(|service| service.wait_ready(READY_WAIT_MAX))).await?;
        Ok(())
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        std::iter::once(&self.registry)
            .chain(self.routers.values())
            .chain(self.dns.values())
    }

    /// A workload of this domain, on a pod or at a site of its own; starts nothing.
    pub(super) fn prepare_workload(
        &self,
        base: &Path,
        plan: WorkloadPlan,
        host: Host,
        networks: &[Network],
    ) -> anyhow::Result<Workload> {
        issue(&self.authority, base, "client", plan.name)?;
        let mut keys = format!("resolv_conf = \"/etc/resolv.conf\"\nexclude = [{EXCLUDED:?}]\n");
        for (name, mechanism) in plan.networks {
            let network = networks
                .iter()
                .find(|network| network.plan.name == *name)
                .with_context(|| format!("no network {name}"))?;
            let url = match mechanism {
                // The same node: the router's directory is a path that both see.
                Mechanism::Tun => {
                    let router = format!("{name}-{}", self.name);
                    format!(
                        "unix://{}",
                        run_dir(base, "router", &router).join("nsm.sock").display()
                    )
                }
                Mechanism::Wireguard if plan.behind_nat => {
                    format!(
                        "tcp://{}:{}",
                        self.site.public_ipv4(),
                        network.plan.tcp_port
                    )
                }
                Mechanism::Wireguard => {
                    format!(
                        "tcp://{}:{}",
                        self.site.gateway_pod_ipv4(),
                        network.plan.tcp_port
                    )
                }
            };
            keys.push_str(&format!(
                "[[attach]]\nconnect_to = [{url:?}]\nmechanism = {:?}\ninterface = {name:?}\n\
                 [attach.network]\ndocument = {:?}\nuid = {:?}\n",
                mechanism.word(),
                network.document(),
                network.uid,
            ));
        }
        let client = Service::new(base, "client", plan.name, &host, &keys)?;
        Ok(Workload {
            plan,
            host,
            client,
            addresses: BTreeMap::new(),
        })
    }
}

/// Where a workload lives.
pub(super) async fn host_of(
    plan: WorkloadPlan,
    site: &Site,
    kiosk: Option<&RelayedHost>,
) -> anyhow::Result<Host> {
    match kiosk {
        Some(kiosk) if plan.behind_nat => Ok(kiosk.host().clone()),
        _ => site.add_pod(plan.name).await,
    }
}
