//! The signed documents, made and published by the verbs of `vl3 network` themselves.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use vl3_identity::authority::Authority;
use vl3_lab::{Host, ProcessSpec, Site};

use super::plan::{EXCLUDED, NetworkPlan, POOL_V4, REGISTRY_PORT, trust_domain};
use super::service::OWN_PROGRAM;

/// A verb that answers to nobody for this long is broken.
const VERB_MAX: Duration = Duration::from_secs(15);

/// What a document says of a domain.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) domain: &'static str,
    bundle: PathBuf,
    contact: String,
}

impl Member {
    pub(super) fn of(
        base: &Path,
        domain: &'static str,
        authority: &Authority,
        site: &Site,
    ) -> anyhow::Result<Self> {
        let bundle = base.join("doc").join(format!("{domain}.bundle.pem"));
        std::fs::write(&bundle, authority.bundle_pem())?;
        Ok(Self {
            domain,
            bundle,
            contact: contact(site.public_ipv4()),
        })
    }

    /// The registry of a site.
    pub(super) fn contact_of(&self, site: &Site) -> String {
        contact(site.public_ipv4())
    }
}

fn contact(address: Ipv4Addr) -> String {
    format!("{address}:{REGISTRY_PORT}")
}

/// A network that exists: its newest document in a file.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) plan: NetworkPlan,
    pub(super) uid: String,
    pub(super) pool6: Ipv6Net,
    version: u64,
    /// Each version is a file of its own: roles keep the one they were started with and follow.
    document: PathBuf,
    admin_key: PathBuf,
}

/// Of one domain in one network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) v4: Ipv4Net,
    pub(super) v6: Ipv6Net,
}

impl Network {
    /// `vl3 network init` and one `add-member` per domain.
    pub(super) async fn create(
        base: &Path,
        host: &Host,
        plan: NetworkPlan,
        members: &[&Member],
    ) -> anyhow::Result<Self> {
        let directory = base.join("doc");
        let document = directory.join(format!("{}.vl3", plan.name));
        let admin_key = directory.join(format!("{}.admin-key", plan.name));
        let arguments: [&OsStr; 13] = [
            "network".as_ref(),
            "init".as_ref(),
            plan.name.as_ref(),
            "--zone".as_ref(),
            plan.zone.as_ref(),
            "--pool4".as_ref(),
            POOL_V4.as_ref(),
            "--exclude".as_ref(),
            EXCLUDED.as_ref(),
            "--admin-key".as_ref(),
            admin_key.as_ref(),
            "--out".as_ref(),
            document.as_ref(),
        ];
        verb(host, &arguments).await?;
        let mut network = Self {
            plan,
            uid: String::new(),
            pool6: Ipv6Net::default(),
            version: 0,
            document,
            admin_key,
        };
        for member in members {
            network.add_member(base, host, member).await?;
        }
        Ok(network)
    }

    pub(super) fn document(&self) -> &Path {
        &self.document
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Signs the next version with one more member.
    pub(super) async fn add_member(
        &mut self,
        _base: &Path,
        host: &Host,
        member: &Member,
    ) -> anyhow::Result<()> {
        let trust_domain = trust_domain(member.domain);
        let block = self.plan.block_v4(member.domain);
        let arguments: [&OsStr; 15] = [
            "network".as_ref(),
            "add-member".as_ref(),
            self.document.as_ref(),
            "--admin-key".as_ref(),
            self.admin_key.as_ref(),
            "--domain".as_ref(),
            member.domain.as_ref(),
            "--trust-domain".as_ref(),
            trust_domain.as_ref(),
            "--bundle".as_ref(),
            member.bundle.as_ref(),
            "--contact".as_ref(),
            member.contact.as_ref(),
            "--block4".as_ref(),
            block.as_ref(),
        ];
        verb(host, &arguments).await?;
        self.read()
    }

    /// Hands the newest version to one registry, over mutual TLS from inside `host`.
    pub(super) async fn publish(
        &self,
        _base: &Path,
        host: &Host,
        contact: &str,
        identity: &Path,
    ) -> anyhow::Result<()> {
        let arguments: [&OsStr; 7] = [
            "network".as_ref(),
            "publish".as_ref(),
            self.document.as_ref(),
            "--to".as_ref(),
            contact.as_ref(),
            "--identity".as_ref(),
            identity.as_ref(),
        ];
        verb(host, &arguments).await
    }

    /// `vl3 network verify`.
    pub(super) async fn verify(&self, host: &Host) -> anyhow::Result<()> {
        verb(
            host,
            &[
                "network".as_ref(),
                "verify".as_ref(),
                self.document.as_ref(),
            ],
        )
        .await
    }

    /// What the document gives a domain.
    pub(super) fn block_of(&self, domain: &str) -> anyhow::Result<Block> {
        let chain = self.chain()?;
        let member = chain
            .document()
            .members
            .values()
            .find(|member| member.domain.as_str() == domain)
            .with_context(|| format!("{domain} is no member of {}", self.plan.name))?;
        let v4 = member
            .block4
            .with_context(|| format!("{domain} has no IPv4 block"))?;
        Ok(Block {
            v4,
            v6: member.block6,
        })
    }

    pub(super) fn chain(&self) -> anyhow::Result<vl3_core::document::Chain> {
        let text = std::fs::read_to_string(&self.document)?;
        Ok(vl3_proto::document::read_armoured(&text)?)
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let chain = self.chain()?;
        let document = chain.document();
        self.uid = document.uid.to_string();
        self.pool6 = document.pool6;
        self.version = document.version;
        Ok(())
    }
}

/// Runs a verb of this binary inside a host and waits for its success.
async fn verb(host: &Host, arguments: &[&OsStr]) -> anyhow::Result<()> {
    let words: Vec<String> = arguments
        .iter()
        .take(3)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let name = words.join(" ");
    let spec = ProcessSpec::new("network", OWN_PROGRAM).args(arguments);
    let mut process = host.spawn(spec)?;
    let status = tokio::time::timeout(VERB_MAX, process.wait())
        .await
        .with_context(|| format!("vl3 {name} does not end"))??;
    if !status.success() {
        bail!("vl3 {name}: {}", process.log_tail(4).join(" "));
    }
    Ok(())
}
