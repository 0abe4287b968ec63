//! A whole arrangement of sites, domains and networks.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vl3_lab::{Internet, Lab, SiteSpec};

use crate::binary::verb;
use crate::domain::{Domain, REGISTRY_PORT};

/// The pod network of every site, which no network may use.
pub(crate) const PODS: &str = "10.244.0.0/16";

/// What a network is made of.
#[derive(Clone, Copy, Debug)]
pub struct NetworkSpec {
    pub name: &'static str,
    pub tcp_port: u16,
    pub udp_port: u16,
    /// Domains of the first documents; more may join.
    pub domains: &'static [&'static str],
}

impl NetworkSpec {
    pub const RED: Self = Self {
        name: "red",
        tcp_port: 5010,
        udp_port: 51820,
        domains: &["east", "west"],
    };
    pub const BLUE: Self = Self {
        name: "blue",
        tcp_port: 5011,
        udp_port: 51821,
        domains: &["east", "west"],
    };
}

/// A network that exists: its newest document in a file.
#[derive(Clone, Debug)]
pub struct NetworkFile {
    pub spec: NetworkSpec,
    pub document: PathBuf,
    pub uid: String,
}

/// The lab, its internet, and what runs there. Dropping it ends everything.
#[derive(Debug)]
pub struct Country {
    pub internet: Internet,
    pub lab: Lab,
    pub networks: Vec<NetworkFile>,
    /// Contacts and WireGuard endpoints are IPv6 addresses.
    pub ipv6_underlay: bool,
    scratch: tempfile::TempDir,
}

impl Country {
    pub async fn new() -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("vl3-").tempdir()?;
        for directory in ["ca", "id", "run", "state", "log"] {
            std::fs::create_dir(scratch.path().join(directory))?;
        }
        let lab = Lab::new(&scratch.path().join("log"))
            .context("multi-cluster tests need root and /dev/net/tun")?;
        let internet = Internet::build(&lab).await?;
        Ok(Self {
            internet,
            lab,
            networks: Vec::new(),
            ipv6_underlay: false,
            scratch,
        })
    }

    pub fn base(&self) -> &Path {
        self.scratch.path()
    }

    /// A site with a CA of its own.
    pub async fn add_domain(&self, name: &'static str, site: SiteSpec) -> anyhow::Result<Domain> {
        let site = self.internet.add_site(name, site).await?;
        let ca = self.base().join("ca").join(name);
        verb(
            self.base(),
            &[
                "identity",
                "init",
                &format!("{name}.test"),
                "--ca",
                &ca.to_string_lossy(),
            ],
        )?;
        let bundle = verb(
            self.base(),
            &["identity", "bundle", "--ca", &ca.to_string_lossy()],
        )?;
        std::fs::write(self.base().join(format!("{name}.pem")), bundle)?;
        let underlay: IpAddr = if self.ipv6_underlay {
            site.public_ipv6().into()
        } else {
            site.public_ipv4().into()
        };
        Ok(Domain::new(name, site, underlay))
    }

    /// Signs a network's first document and adds its domains.
    pub fn add_network(&mut self, spec: NetworkSpec, members: &[&Domain]) -> anyhow::Result<()> {
        let document = self.base().join(format!("{}.vl3net", spec.name));
        let key = self.base().join(format!("{}.key", spec.name));
        let (document_text, key_text) = (document.to_string_lossy(), key.to_string_lossy());
        verb(
            self.base(),
            &[
                "network",
                "init",
                spec.name,
                "--pool4",
                "10.80.0.0/16",
                "--exclude",
                PODS,
                "--admin-key",
                &key_text,
                "--out",
                &document_text,
            ],
        )?;
        self.networks.push(NetworkFile {
            spec,
            document: document.clone(),
            uid: String::new(),
        });
        for member in members {
            self.add_member(spec.name, member)?;
        }
        let shown = verb(
            self.base(),
            &["network", "show", &document_text, "--output", "json"],
        )?;
        let shown: serde_json::Value =
            serde_json::from_str(&shown).context("network show prints JSON")?;
        let uid = shown["uid"]
            .as_str()
            .context("network show names the uid")?
            .to_owned();
        if let Some(network) = self.networks.last_mut() {
            network.uid = uid;
        }
        Ok(())
    }

    /// Signs a newer version with one more member.
    pub fn add_member(&self, network: &str, member: &Domain) -> anyhow::Result<()> {
        let file = self.network(network)?;
        let contact = match member.underlay {
            IpAddr::V4(address) => format!("{address}:{REGISTRY_PORT}"),
            IpAddr::V6(address) => format!("[{address}]:{REGISTRY_PORT}"),
        };
        let bundle = self.base().join(format!("{}.pem", member.name));
        let key = self.base().join(format!("{network}.key"));
        verb(
            self.base(),
            &[
                "network",
                "add-member",
                &file.document.to_string_lossy(),
                "--admin-key",
                &key.to_string_lossy(),
                "--domain",
                member.name,
                "--trust-domain",
                &format!("{}.test", member.name),
                "--bundle",
                &bundle.to_string_lossy(),
                "--contact",
                &contact,
                "--block4",
                "/24",
            ],
        )?;
        Ok(())
    }

    pub fn network(&self, name: &str) -> anyhow::Result<&NetworkFile> {
        let found = self
            .networks
            .iter()
            .find(|network| network.spec.name == name);
        found.with_context(|| format!("no network {name}"))
    }

    /// An identity directory as `vl3 identity issue` makes it.
    pub fn issue(
        &self,
        domain: &str,
        role: &str,
        name: &str,
        ttl: &str,
    ) -> anyhow::Result<PathBuf> {
        let out = crate::service::identity_dir(self.base(), role, name);
        let ca = self.base().join("ca").join(domain);
        let (ca, out_text) = (ca.to_string_lossy(), out.to_string_lossy());
        verb(
            self.base(),
            &[
                "identity", "issue", role, name, "--ttl", ttl, "--ca", &ca, "--out", &out_text,
            ],
        )?;
        Ok(out)
    }
}
