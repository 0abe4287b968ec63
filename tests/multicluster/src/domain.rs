//! One domain: its site and the roles on its gateway.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vl3_lab::{Host, ProcessSpec, Site};

use crate::binary;
use crate::country::{Country, NetworkFile};
use crate::service::{Service, run_dir};
use crate::workload::{Mechanism, Workload};

pub(crate) const REGISTRY_PORT: u16 = 5002;
const LONG: &str = "24h";

/// A site with registry and, per network, a router and a DNS server.
#[derive(Debug)]
pub struct Domain {
    pub name: &'static str,
    pub site: Site,
    /// How others reach it.
    pub underlay: IpAddr,
    pub registry: Option<Service>,
    pub routers: BTreeMap<&'static str, Service>,
    pub dns: BTreeMap<&'static str, Service>,
    /// Further TOML keys of the routers.
    pub router_keys: String,
    /// Further TOML keys of the registries.
    pub registry_keys: String,
    /// Further TOML tables of the registries.
    pub registry_tables: String,
    /// Registries beside the first one, over the same store.
    pub replicas: Vec<Service>,
}

impl Domain {
    pub(crate) fn new(name: &'static str, site: Site, underlay: IpAddr) -> Self {
        Self {
            name,
            site,
            underlay,
            registry: None,
            routers: BTreeMap::new(),
            dns: BTreeMap::new(),
            router_keys: String::new(),
            registry_keys: String::new(),
            registry_tables: String::new(),
            replicas: Vec::new(),
        }
    }

    fn socket(&self, port: u16) -> String {
        match self.underlay {
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        }
    }

    fn any(&self, port: u16) -> String {
        match self.underlay {
            IpAddr::V4(_) => format!("0.0.0.0:{port}"),
            IpAddr::V6(_) => format!("[::]:{port}"),
        }
    }

    /// Configures and starts everything of these networks, and waits until it is ready.
    pub async fn start(&mut self, country: &Country, networks: &[&str]) -> anyhow::Result<()> {
        let networks: Vec<&NetworkFile> = networks
            .iter()
            .map(|name| country.network(name))
            .collect::<anyhow::Result<_>>()?;
        let base = country.base();
        let gateway = self.site.gateway().clone();
        let registry = self.start_registry(country, &networks, self.name, REGISTRY_PORT)?;
        self.registry = Some(registry);
        for network in &networks {
            let spec = network.spec;
            let name = format!("{}-{}", spec.name, self.name);
            let belongs = format!(
                "[network]\ndocument = {:?}\nuid = {:?}\n",
                network.document, network.uid
            );
            country.issue(self.name, "router", &name, LONG)?;
            let keys = format!(
                "domain = {:?}\nregistry = \"tcp://{}\"\nlisten = [\"tcp://{}\"]\nudp_listen = {:?}\n\
                 advertise = \"{}\"\n{}{belongs}",
                self.name,
                self.socket(REGISTRY_PORT),
                self.any(spec.tcp_port),
                self.any(spec.udp_port),
                self.underlay,
                self.router_keys,
            );
            let mut router = Service::new(base, "router", &name, &gateway, &keys)?;
            router.start()?;
            self.routers.insert(spec.name, router);
            country.issue(self.name, "dns", &name, LONG)?;
            let keys = format!("router = {:?}\n{belongs}", run_dir(base, "router", &name));
            let mut dns = Service::new(base, "dns", &name, &gateway, &keys)?;
            dns.start()?;
            self.dns.insert(spec.name, dns);
        }
        self.ready().await
    }

    /// One more registry over the same store, on the same gateway.
    pub async fn add_replica(
        &mut self,
        country: &Country,
        network: &str,
        name: &str,
    ) -> anyhow::Result<()> {
        let port = REGISTRY_PORT + 1 + u16::try_from(self.replicas.len())?;
        let networks = [country.network(network)?];
        let mut replica = self.start_registry(country, &networks, name, port)?;
        replica.ready().await?;
        self.replicas.push(replica);
        Ok(())
    }

    /// Beside its port it listens on `registry.sock` in its run directory.
    fn start_registry(
        &self,
        country: &Country,
        networks: &[&NetworkFile],
        name: &str,
        port: u16,
    ) -> anyhow::Result<Service> {
        country.issue(self.name, "registry", name, LONG)?;
        let socket = run_dir(country.base(), "registry", name).join("registry.sock");
        let mut keys = format!(
            "domain = {:?}\nlisten = [\"tcp://{}\", \"unix://{}\"]\nadvertise = \"tcp://{}\"\n{}",
            self.name,
            self.any(port),
            socket.display(),
            self.socket(port),
            self.registry_keys,
        );
        for network in networks {
            keys.push_str(&format!(
                "[[network]]\ndocument = {:?}\nuid = {:?}\n",
                network.document, network.uid
            ));
        }
        keys.push_str(&self.registry_tables);
        let gateway = self.site.gateway();
        let mut registry = Service::new(country.base(), "registry", name, gateway, &keys)?;
        registry.start()?;
        Ok(registry)
    }

    pub async fn ready(&mut self) -> anyhow::Result<()> {
        for service in self.services() {
            service.ready().await?;
        }
        Ok(())
    }

    pub fn services(&mut self) -> impl Iterator<Item = &mut Service> {
        self.registry
            .iter_mut()
            .chain(self.routers.values_mut())
            .chain(self.dns.values_mut())
    }

    pub fn router(&mut self, network: &str) -> anyhow::Result<&mut Service> {
        self.routers
            .get_mut(network)
            .ok_or_else(|| anyhow::anyhow!("{} has no router of {network}", self.name))
    }

    /// A pod whose client is configured, identified and not started. Names go to its own
    /// /etc/resolv.conf unless `keys` say something else about them.
    pub async fn add_workload(
        &self,
        country: &Country,
        name: &'static str,
        attach: &[(&'static str, Mechanism)],
        keys: &str,
    ) -> anyhow::Result<Workload> {
        let host = self.site.add_pod(name).await?;
        self.add_workload_on(country, name, host, attach, keys)
    }

    /// The same at a place of its own.
    pub fn add_workload_on(
        &self,
        country: &Country,
        name: &'static str,
        host: Host,
        attach: &[(&'static str, Mechanism)],
        keys: &str,
    ) -> anyhow::Result<Workload> {
        country.issue(self.name, "client", name, LONG)?;
        let mut text = keys.to_owned();
        if !["resolv_conf", "resolved"]
            .iter()
            .any(|key| keys.contains(key))
        {
            text.push_str("resolv_conf = \"/etc/resolv.conf\"\n");
        }
        for (network, mechanism) in attach {
            let file = country.network(network)?;
            let router = format!("{network}-{}", self.name);
            let url = match mechanism {
                Mechanism::Tun => {
                    let socket = run_dir(country.base(), "router", &router).join("nsm.sock");
                    format!("unix://{}", socket.display())
                }
                Mechanism::Wireguard => format!("tcp://{}", self.socket(file.spec.tcp_port)),
            };
            text.push_str(&format!(
                "[[attach]]\nconnect_to = [{url:?}]\nmechanism = {:?}\ninterface = {network:?}\n\
                 [attach.network]\ndocument = {:?}\nuid = {:?}\n",
                mechanism.word(),
                file.document,
                file.uid,
            ));
        }
        let client = Service::new(country.base(), "client", name, &host, &text)?;
        Ok(Workload::new(name, self.name, host, client))
    }

    /// `vl3 network publish` from this domain's gateway to its registry.
    pub async fn publish(&self, country: &Country, network: &str) -> anyhow::Result<()> {
        let identity = country.issue(self.name, "registry", "operator", LONG)?;
        let document = country.network(network)?.document.clone();
        let to = self.socket(REGISTRY_PORT);
        let spec = ProcessSpec::new("publish", binary::path()?).args([
            "network".as_ref(),
            "publish".as_ref(),
            document.as_os_str(),
            "--to".as_ref(),
            to.as_ref(),
            "--identity".as_ref(),
            identity.as_os_str(),
        ]);
        let mut process = self.site.gateway().spawn(spec)?;
        let status = process.wait().await?;
        anyhow::ensure!(
            status.success(),
            "vl3 network publish: {}",
            process.log_tail(5).join("\n")
        );
        Ok(())
    }
}
