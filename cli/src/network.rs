//! `vl3 network`: writing, checking and publishing network documents.

mod edit;
mod key;
mod publish;
mod rotate;
mod show;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use vl3_core::Wall;
use vl3_core::document::{Chain, Role};
use vl3_core::ids::{DomainName, NetworkName};
use vl3_identity::Bundle;
use vl3_identity::token::parse_rfc3339;
use vl3_proto::document::{read_armoured, write_armoured};

use crate::app::Failure;
use crate::output::Output;

pub(crate) use edit::{Block4, NewMember, NewNetwork};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a network: version 1 of its document
    Init {
        /// Also its NSM network service name
        name: NetworkName,
        /// DNS zone of its names (default: NAME.vl3)
        #[arg(long)]
        zone: Option<String>,
        /// IPv4 pool, such as 10.80.0.0/16; without it the network has IPv6 alone
        #[arg(long, value_name = "CIDR", value_parser = ipv4_prefix)]
        pool4: Option<Ipv4Net>,
        /// Ranges that nobody may be given (pods, services); may be repeated
        #[arg(long, value_name = "CIDR", value_parser = prefix)]
        exclude: Vec<IpNet>,
        /// Seconds that a connection may carry traffic after its right expired
        #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
        stale_limit: u32,
        #[command(flatten)]
        admin: Admin,
        /// Where the document goes (default: NAME.vl3net)
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Add a domain, or take back one that was removed
    AddMember {
        /// The document, rewritten in place
        file: PathBuf,
        #[arg(long)]
        domain: DomainName,
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// PEM roots of the trust domain (`vl3 identity bundle`)
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
        /// Address of its registry; may be repeated
        #[arg(long, value_name = "HOST:PORT")]
        contact: Vec<String>,
        /// Who acts as registry, router, dns, workload or intermediary: a SPIFFE ID of the trust
        /// domain, or its beginning with '*' at the end; may be repeated, and replaces the role's
        /// default (spiffe://TD/vl3/ROLE/*, workloads spiffe://TD/workload/*, no intermediary)
        #[arg(long, value_name = "ROLE=ID", value_parser = role_id)]
        role: Vec<(Role, String)>,
        /// IPv4 block: a size such as /28, a prefix of the pool, or none
        #[arg(long, default_value = "/22")]
        block4: Block4,
        /// The domain cannot be dialled
        #[arg(long)]
        dials_only: bool,
        /// End of its membership, as 2027-01-31T00:00:00Z
        #[arg(long, value_name = "TIME", value_parser = time)]
        not_after: Option<Wall>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Revoke a domain's membership; its blocks stay reserved
    RemoveMember {
        /// The document, rewritten in place
        file: PathBuf,
        #[arg(long)]
        domain: DomainName,
        #[command(flatten)]
        admin: Admin,
    },
    /// Hand the network over to a new admin key; the old one signs for the last time
    RotateKey {
        /// The document, rewritten in place
        file: PathBuf,
        /// Ed25519 key that signs from now on, mode 0600 (made where it is absent)
        #[arg(long, value_name = "FILE")]
        new_key: PathBuf,
        #[command(flatten)]
        admin: Admin,
    },
    /// Change the roots that a domain's identities are checked by
    RotateBundle {
        /// The document, rewritten in place
        file: PathBuf,
        #[arg(long)]
        domain: DomainName,
        /// PEM roots of the trust domain (`vl3 identity bundle`)
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
        /// The old roots count beside the new ones, while identities change over; the same
        /// verb without this ends it
        #[arg(long)]
        keep_old: bool,
        #[command(flatten)]
        admin: Admin,
    },
    /// Show a document
    Show {
        file: PathBuf,
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Check a document: signatures, order, content
    Verify { file: PathBuf },
    /// Hand a document to a registry, which carries it on to all others
    Publish {
        file: PathBuf,
        /// Address of the registry
        #[arg(long, value_name = "HOST:PORT")]
        to: String,
        /// Identity directory of the caller: svid.pem, key.pem, bundle.pem
        #[arg(long, value_name = "DIR")]
        identity: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Admin {
    /// Ed25519 key that signs, mode 0600 (`init` makes it where it is absent)
    #[arg(long, value_name = "FILE", default_value = "vl3-admin.key")]
    admin_key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

fn role_id(text: &str) -> Result<(Role, String), String> {
    let bad = || {
        let words: Vec<_> = edit::ROLES.iter().map(|(word, _)| *word).collect();
        format!("must be ROLE=ID, ROLE one of {}", words.join(", "))
    };
    let (word, pattern) = text.split_once('=').ok_or_else(bad)?;
    let role = edit::ROLES.iter().find(|(known, _)| *known == word);
    let (_, role) = role.ok_or_else(bad)?;
    Ok((*role, pattern.to_owned()))
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let (address, length) = text
        .split_once('/')
        .ok_or("must be ADDRESS/LENGTH, as 10.0.0.0/8")?;
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("{address:?} must be an IP address"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length
        .parse()
        .ok()
        .filter(|length| *length <= most)
        .ok_or_else(|| format!("the length {length:?} must be 0 to {most}"))?;
    let prefix = IpNet::new(address, length).map_err(|error| error.to_string())?;
    if prefix != prefix.trunc() {
        return Err(format!(
            "has bits behind its length; the prefix of that address is {}",
            prefix.trunc()
        ));
    }
    Ok(prefix)
}

fn ipv4_prefix(text: &str) -> Result<Ipv4Net, String> {
    match prefix(text)? {
        IpNet::V4(prefix) => Ok(prefix),
        IpNet::V6(_) => Err("must be an IPv4 prefix, as 10.80.0.0/16".to_owned()),
    }
}

fn time(text: &str) -> Result<Wall, String> {
    parse_rfc3339(text).ok_or_else(|| "must be a time such as 2027-01-31T00:00:00Z".to_owned())
}

pub(crate) async fn run(verb: Verb, out: &Output) -> Result<(), Failure> {
    match verb {
        Verb::Init {
            name,
            zone,
            pool4,
            exclude,
            stale_limit,
            admin,
            out: file,
        } => {
            let file = file.unwrap_or_else(|| PathBuf::from(format!("{name}.vl3net")));
            if file.exists() {
                let error = anyhow!("{} is there already", file.display());
                return Err(Failure::with_next(
                    error,
                    format!("vl3 network show {}", file.display()),
                ));
            }
            let secret = key::load_or_make(&admin.admin_key)?;
            let zone = zone.unwrap_or_else(|| format!("{name}.vl3"));
            let new = NewNetwork {
                name,
                zone,
                pool4,
                exclusions: exclude,
                stale_limit_seconds: stale_limit,
            };
            let chain = edit::init(new, &secret)?;
            write(&file, &chain)?;
            out.line(&format!(
                "made network {} ({}) in {}",
                chain.document().name,
                chain.uid(),
                file.display()
            ));
            out.line(&format!(
                "next: vl3 network add-member {} --domain NAME ...",
                file.display()
            ));
        }
        Verb::AddMember {
            file,
            domain,
            trust_domain,
            bundle,
            contact,
            role,
            block4,
            dials_only,
            not_after,
            admin,
        } => {
            let chain = open(&file)?;
            let secret = key::load(&admin.admin_key)?;
            let (pem, roots) = read_bundle(&bundle)?;
            let named = roots.trust_domains();
            if let Some(other) = named.iter().find(|named| **named != trust_domain) {
                return Err(anyhow!(
                    "--trust-domain {trust_domain}: {} is the bundle of trust domain {other}",
                    bundle.display()
                )
                .into());
            }
            if let Some(end) = not_after.filter(|end| *end <= vl3_runtime::clock::wall()) {
                return Err(anyhow!(
                    "--not-after {}: must be a time to come",
                    vl3_identity::token::format_rfc3339(end)
                )
                .into());
            }
            let unreachable = contact.is_empty() && !dials_only;
            let member = NewMember {
                domain: domain.clone(),
                trust_domain,
                bundle: pem,
                contacts: contact,
                roles: role,
                block4,
                dials_only,
                not_after,
            };
            let chain = edit::add_member(&chain, member, &secret)?;
            write(&file, &chain)?;
            let member = chain.document().members.get(&domain);
            let blocks: Vec<_> = member
                .into_iter()
                .flat_map(|member| member.blocks())
                .map(|block| block.to_string())
                .collect();
            out.line(&format!(
                "version {}: {domain} is a member with {}",
                chain.document().version,
                blocks.join(" and ")
            ));
            if unreachable {
                out.line(&format!(
                    "warning: {domain} has neither --contact nor --dials-only: no other registry finds its own"
                ));
            }
            out.line(&publish_next(&file));
        }
        Verb::RemoveMember {
            file,
            domain,
            admin,
        } => {
            let chain = open(&file)?;
            let secret = key::load(&admin.admin_key)?;
            let chain = edit::remove_member(&chain, &domain, &secret)?;
            write(&file, &chain)?;
            out.line(&format!(
                "version {}: {domain} is revoked",
                chain.document().version
            ));
            out.line(&publish_next(&file));
        }
        Verb::RotateKey {
            file,
            new_key,
            admin,
        } => {
            let chain = open(&file)?;
            let old = key::load(&admin.admin_key)?;
            let new = key::load_or_make(&new_key)?;
            let chain = rotate::rotate_key(&chain, &old, &new)?;
            write(&file, &chain)?;
            out.line(&format!(
                "version {}: {} is an admin key, {} is not any more",
                chain.document().version,
                new.public(),
                old.public()
            ));
            out.line(&format!(
                "from now on: --admin-key {}; keep the old key until this version is published",
                new_key.display()
            ));
            out.line(&publish_next(&file));
        }
        Verb::RotateBundle {
            file,
            domain,
            bundle,
            keep_old,
            admin,
        } => {
            let chain = open(&file)?;
            let secret = key::load(&admin.admin_key)?;
            let (_, roots) = read_bundle(&bundle)?;
            let rotated = rotate::rotate_bundle(&chain, &domain, &roots, keep_old, &secret)?;
            write(&file, &rotated.chain)?;
            out.line(&format!(
                "version {}: {domain} is checked by {} root(s)",
                rotated.chain.document().version,
                rotated.roots
            ));
            if rotated.abrupt {
                out.line(&format!(
                    "warning: no root stays, what {domain} holds today is refused once this is published (--keep-old first, to change over)"
                ));
            }
            out.line(&publish_next(&file));
        }
        Verb::Show { file, output } => {
            let chain = open(&file)?;
            match output {
                Format::Json => out.line(&show::json(&chain).to_string()),
                Format::Table => show::table(&chain, out),
            }
        }
        Verb::Verify { file } => {
            let chain = open(&file)?;
            let document = chain.document();
            let signers: Vec<_> = chain
                .newest()
                .signatures
                .iter()
                .map(|signature| signature.key.to_string())
                .collect();
            out.line(&format!(
                "{} is fine: network {} ({}), version {}, signed by {}",
                file.display(),
                document.name,
                document.uid,
                document.version,
                signers.join(", ")
            ));
        }
        Verb::Publish { file, to, identity } => {
            let chain = open(&file)?;
            let answer = publish::publish(&chain, &to, &identity).await?;
            out.line(&answer);
        }
    }
    Ok(())
}

fn publish_next(file: &Path) -> String {
    format!(
        "next: vl3 network publish {} --to HOST:PORT --identity DIR",
        file.display()
    )
}

/// A bundle's bytes and its roots.
fn read_bundle(file: &Path) -> anyhow::Result<(Vec<u8>, Bundle)> {
    let pem = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let roots = Bundle::from_pem(&pem).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok((pem, roots))
}

/// Reads and verifies a document file.
pub(crate) fn open(file: &Path) -> Result<Chain, Failure> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let chain = read_armoured(&text).with_context(|| format!("verify {}", file.display()))?;
    Ok(chain)
}

/// Replaces the file at once, so that no reader sees half of it.
pub(crate) fn write(file: &Path, chain: &Chain) -> anyhow::Result<()> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, write_armoured(chain))
        .and_then(|()| std::fs::rename(&temporary, file))
        .with_context(|| format!("write {}", file.display()))
}
