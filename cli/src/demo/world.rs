//! The whole world of the demo: one owner of everything that runs. Dropping it ends it all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::{join_all, try_join_all};
use vl3_lab::{Host, Internet, Lab, RelaySpec, RelayedHost, Site, SiteSpec};

use super::documents::{Member, Network};
use super::domain::{Domain, READY_WAIT_MAX, authority_of, host_of};
use super::plan::{
    DOMAINS, KIOSK, LATE_DOMAIN, LATE_WORKLOADS, NETWORKS, NetworkPlan, WORKLOADS, WorkloadPlan,
};
use super::progress::Progress;
use super::service::Service;
use super::workload::Workload;

/// Each way on the kiosk's access line.
const KIOSK_DELAY: Duration = Duration::from_millis(3);

#[derive(Debug)]
pub(super) struct World {
    // Processes end before the namespaces that they live in.
    pub(super) workloads: Vec<Workload>,
    pub(super) domains: BTreeMap<&'static str, Domain>,
    pub(super) networks: Vec<Network>,
    pub(super) kiosk: RelayedHost,
    pub(super) internet: Internet,
    pub(super) base: PathBuf,
    /// The etcd that each domain gets for its registry.
    etcd: Option<PathBuf>,
}

impl World {
    /// Builds the internet, the documents and every configuration; starts no role.
    pub(super) async fn build(
        base: &Path,
        progress: &Progress,
        etcd: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        for directory in ["etc", "run", "state", "id", "log", "doc"] {
            std::fs::create_dir_all(base.join(directory))
                .with_context(|| format!("make {directory}"))?;
        }
        let lab = Lab::new(&base.join("log"))?;
        let internet = Internet::build(&lab).await?;
        let mut sites: BTreeMap<&'static str, Site> = BTreeMap::new();
        for domain in DOMAINS {
            sites.insert(
                domain,
                internet.add_site(domain, SiteSpec::default()).await?,
            );
        }
        let line = RelaySpec {
            delay: KIOSK_DELAY,
            ..RelaySpec::nat()
        };
        let kiosk = internet.behind_relay(KIOSK, line).await?;
        progress
            .step("the internet stands: 3 clusters with 10.244.0.0/16 each, 1 site behind a NAT");

        let mut authorities = BTreeMap::new();
        let mut members = BTreeMap::new();
        for (name, site) in &sites {
            let authority = authority_of(name)?;
            members.insert(*name, Member::of(base, name, &authority, site)?);
            authorities.insert(*name, authority);
        }
        let host = sites
            .get("east")
            .context("there is an east")?
            .gateway()
            .clone();
        let networks = try_join_all(NETWORKS.map(|plan| {
            let of: Vec<&Member> = plan
                .domains
                .iter()
                .filter_map(|(domain, _)| members.get(domain))
                .collect();
            let host = host.clone();
            async move { Network::create(base, &host, plan, &of).await }
        }))
        .await?;
        progress.step("two networks exist: signed documents of red and blue, with one IPv4 pool");

        let mut domains = BTreeMap::new();
        for (name, site) in sites {
            let authority = authorities
                .remove(name)
                .context("every site has an authority")?;
            let of: Vec<&Network> = networks
                .iter()
                .filter(|network| network.plan.has(name))
                .collect();
            domains.insert(
                name,
                Domain::prepare(base, name, site, authority, &of, etcd.as_deref())?,
            );
        }
        let mut world = Self {
            workloads: Vec::new(),
            domains,
            networks,
            kiosk,
            internet,
            base: base.to_owned(),
            etcd,
        };
        for plan in WORKLOADS {
            world.add_workload(plan).await?;
        }
        Ok(world)
    }

    async fn add_workload(&mut self, plan: WorkloadPlan) -> anyhow::Result<()> {
        let domain = self
            .domains
            .get(plan.domain)
            .with_context(|| format!("no domain {}", plan.domain))?;
        let host = host_of(plan, &domain.site, Some(&self.kiosk)).await?;
        let workload = domain.prepare_workload(&self.base, plan, host, &self.networks)?;
        self.workloads.push(workload);
        Ok(())
    }

    /// Starts every role of every domain and waits until each is ready.
    pub(super) async fn start_domains(&mut self) -> anyhow::Result<()> {
        for domain in self.domains.values_mut() {
            domain.start()?;
        }
        try_join_all(self.domains.values_mut().map(Domain::wait_ready)).await?;
        Ok(())
    }

    /// Starts every client that does not run, and waits until each is attached.
    pub(super) async fn start_workloads(&mut self) -> anyhow::Result<()> {
        for workload in &mut self.workloads {
            workload.client.start()?;
        }
        try_join_all(
            self.workloads
                .iter_mut()
                .map(|workload| workload.client.wait_ready(READY_WAIT_MAX)),
        )
        .await?;
        let read = join_all(self.workloads.iter().map(Workload::await_addresses)).await;
        for (workload, addresses) in self.workloads.iter_mut().zip(read) {
            workload.addresses = addresses?;
        }
        Ok(())
    }

    /// A further cluster joins the first network while it runs.
    pub(super) async fn add_late_domain(&mut self) -> anyhow::Result<()> {
        let site = self
            .internet
            .add_site(LATE_DOMAIN, SiteSpec::default())
            .await?;
        let authority = authority_of(LATE_DOMAIN)?;
        let member = Member::of(&self.base, LATE_DOMAIN, &authority, &site)?;
        let east = self.domains.get("east").context("there is an east")?;
        let identity = super::service::identity_dir(&self.base, "registry", east.name);
        let contact = member.contact_of(&east.site);
        let host = east.site.gateway().clone();
        let base = self.base.clone();
        let network = self
            .networks
            .first_mut()
            .context("there is a first network")?;
        network.add_member(&base, &host, &member).await?;
        network.publish(&base, &host, &contact, &identity).await?;
        let mut domain = Domain::prepare(
            &base,
            LATE_DOMAIN,
            site,
            authority,
            &[network],
            self.etcd.as_deref(),
        )?;
        domain.start()?;
        domain.wait_ready().await?;
        self.domains.insert(LATE_DOMAIN, domain);
        for plan in LATE_WORKLOADS {
            self.add_workload(plan).await?;
        }
        self.start_workloads().await
    }

    pub(super) fn network(&self, name: &str) -> anyhow::Result<&Network> {
        self.networks
            .iter()
            .find(|network| network.plan.name == name)
            .with_context(|| format!("no network {name}"))
    }

    pub(super) fn plans(&self) -> impl Iterator<Item = NetworkPlan> {
        self.networks.iter().map(|network| network.plan)
    }

    pub(super) fn domain(&self, name: &str) -> anyhow::Result<&Domain> {
        let known: Vec<&str> = self.domains.keys().copied().collect();
        self.domains
            .get(name)
            .with_context(|| format!("no domain {name}; there are {}", known.join(", ")))
    }

    pub(super) fn domain_mut(&mut self, name: &str) -> anyhow::Result<&mut Domain> {
        let known = self.domains.keys().copied().collect::<Vec<_>>().join(", ");
        self.domains
            .get_mut(name)
            .with_context(|| format!("no domain {name}; there are {known}"))
    }

    pub(super) fn workload(&self, name: &str) -> anyhow::Result<&Workload> {
        self.workloads
            .iter()
            .find(|workload| workload.name() == name)
            .with_context(|| format!("no workload {name}; there are {}", self.workload_names()))
    }

    pub(super) fn workload_mut(&mut self, name: &str) -> anyhow::Result<&mut Workload> {
        let known = self.workload_names();
        self.workloads
            .iter_mut()
            .find(|workload| workload.name() == name)
            .with_context(|| format!("no workload {name}; there are {known}"))
    }

    fn workload_names(&self) -> String {
        self.workloads
            .iter()
            .map(Workload::name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The workloads of one network.
    pub(super) fn members(&self, network: &str) -> Vec<&Workload> {
        self.workloads
            .iter()
            .filter(|workload| workload.in_network(network).is_some())
            .collect()
    }

    /// A workload, a gateway, or the internet itself.
    pub(super) fn host(&self, name: &str) -> anyhow::Result<Host> {
        if let Ok(workload) = self.workload(name) {
            return Ok(workload.host.clone());
        }
        if name == self.internet.router().name() {
            return Ok(self.internet.router().clone());
        }
        let domains = self.domains.keys().copied().collect::<Vec<_>>().join(", ");
        let domain = self.domains.get(name).with_context(|| {
            format!(
                "no host {name}; there are {}, {domains}, internet",
                self.workload_names()
            )
        })?;
        Ok(domain.site.gateway().clone())
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        self.domains
            .values()
            .flat_map(Domain::services)
            .chain(self.workloads.iter().map(|workload| &workload.client))
    }
}
