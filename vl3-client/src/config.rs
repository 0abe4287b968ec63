//! What a client is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use vl3_core::heal::Candidate;
use vl3_core::ids::{NetworkUid, WorkloadName};
use vl3_runtime::config::Value;
use vl3_runtime::grpc::DialUrl;
use vl3_runtime::{Configure, Section};

use crate::names::Names;
use crate::services;

/// Networks that one client joins at most.
const ATTACHMENTS_MAX: usize = 16;

/// Routing tables of networks with colliding IPv4, and the priorities of the rules that choose
/// them: base + position of the network in the configuration.
const TABLE_BASE: u32 = 20_000;

/// NSM's default (nsm-wire 6).
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct Config {
    /// The registry of the own domain, for candidates `registry`.
    pub registry: Option<DialUrl>,
    /// Path tokens live this long; their expiry drives the refresh.
    pub token_lifetime: Duration,
    /// What is done about the networks' names on this host.
    pub names: Names,
    /// Ranges that the host uses: no overlay address may come from them.
    pub exclude: Vec<IpNet>,
    /// In order (a top-level `connect_to` serves entries without their own): of two networks with the same IPv4 the earlier one has the main table.
    pub attach: Vec<Attach>,
}

/// One network to join.
#[derive(Clone, Debug)]
pub struct Attach {
    pub document: PathBuf,
    pub uid: NetworkUid,
    pub connect_to: Vec<ConnectTo>,
    pub mechanism: Mechanism,
    /// Unset: `vl3-<network>`, cut to 15 bytes.
    pub interface: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// The workload's label in names (label `podName` goes before it); unset: the client's name.
    pub workload: Option<WorkloadName>,
    /// WIREGUARD: where the data plane listens.
    pub udp_listen: SocketAddr,
    /// WIREGUARD: worker threads.
    pub workers: usize,
    /// Policy routing even without a collision: every route of this network in this table.
    pub table: Option<u32>,
    /// Table for a family that collides with an earlier network.
    pub spare_table: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// A descriptor handed to a router on the same machine.
    Tun,
    /// A WireGuard peer of the router, anywhere.
    Wireguard,
}

impl Mechanism {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Wireguard => "wireguard",
        }
    }
}

/// `unix:///path`, `tcp://host:port` or `registry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectTo {
    Router(DialUrl),
    Registry,
}

impl ConnectTo {
    pub(crate) fn candidate(&self) -> Candidate {
        match self {
            Self::Router(url) => Candidate::Url(url.to_string()),
            Self::Registry => Candidate::Registry,
        }
    }
}

impl Value for ConnectTo {
    const ALLOWED: &'static str = "unix:///PATH, tcp://HOST:PORT or registry";

    fn from_text(text: &str) -> Option<Self> {
        if text == "registry" {
            return Some(Self::Registry);
        }
        text.parse().ok().map(Self::Router)
    }
}

impl Configure for Config {
    const ROLE: &'static str = "client";

    const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[
        ("NSM_REGISTRY_URL", "registry"),
        ("NSM_CONNECT_TO", "connect_to"),
        ("NSM_NETWORK_SERVICES", "network_services"),
        ("NSM_MAX_TOKEN_LIFETIME", "token_lifetime"),
    ];

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let registry = section.optional("registry");
        let token_lifetime = section.or("token_lifetime", TOKEN_LIFETIME);
        if token_lifetime < Duration::from_secs(2) {
            section.problem(
                "token_lifetime",
                Some(format!("{token_lifetime:?}")),
                "2s or longer",
            );
        }
        let names = names(section);
        let exclude = section.list("exclude");
        let connect_to = section.list::<ConnectTo>("connect_to");
        let table_base = section.or("table_base", TABLE_BASE);
        let mut spare = (0..).map(|position: u32| table_base.saturating_add(position));
        let mut spare_table = || spare.next().unwrap_or(u32::MAX);
        let mut attach: Vec<Option<Attach>> = section.tables("attach", |entry| {
            Attach::read(entry, &connect_to, registry.is_some(), spare_table())
        });
        // After the tables, in their order.
        attach.extend(services::read(section, &connect_to, &mut spare_table));
        if attach.is_empty() || attach.len() > ATTACHMENTS_MAX {
            section.problem(
                "attach",
                Some(attach.len().to_string()),
                "1 to 16 tables [[attach]] and network_services (NSM_NETWORK_SERVICES) together",
            );
        }
        let attach: Vec<Attach> = attach.into_iter().collect::<Option<_>>()?;
        let mut uids = BTreeSet::new();
        let mut interfaces = BTreeSet::new();
        for (at, entry) in attach.iter().enumerate() {
            if !uids.insert(entry.uid) {
                section.problem(
                    &format!("attach[{at}].network.uid"),
                    Some(entry.uid.to_string()),
                    "another network than in the other [[attach]] tables",
                );
            }
            if let Some(interface) = &entry.interface
                && !interfaces.insert(interface.clone())
            {
                section.problem(
                    &format!("attach[{at}].interface"),
                    Some(format!("{interface:?}")),
                    "another interface than in the other [[attach]] tables",
                );
            }
        }
        Some(Self {
            registry,
            token_lifetime,
            names,
            exclude,
            attach,
        })
    }
}

fn names(section: &mut Section<'_>) -> Names {
    let resolv_conf = section
        .optional::<PathBuf>("resolv_conf")
        .filter(|path| path.as_os_str() != "none");
    if let Some(path) = resolv_conf.as_ref().filter(|path| !path.is_absolute()) {
        section.problem(
            "resolv_conf",
            Some(format!("{path:?}")),
            "an absolute path, or none",
        );
    }
    let resolved = section.or("resolved", false);
    match (resolv_conf, resolved) {
        (None, false) => Names::Told,
        (None, true) => Names::Resolved,
        (Some(path), false) => Names::ResolvConf(path),
        (Some(path), true) => {
            section.problem(
                "resolved",
                Some("true".to_owned()),
                "false where resolv_conf names a file",
            );
            Names::ResolvConf(path)
        }
    }
}

impl Attach {
    fn read(
        entry: &mut Section<'_>,
        default_connect_to: &[ConnectTo],
        has_registry: bool,
        spare_table: u32,
    ) -> Option<Self> {
        let network = entry.table("network", |network| {
            let document = network.required::<PathBuf>("document");
            let uid = network.required::<NetworkUid>("uid");
            if let Some(file) = document.clone() {
                network.look("document", format!("{file:?}"), move || {
                    vl3_proto::document::look(&file, uid)
                });
            }
            Some((document?, uid?))
        });
        let connect_to = if default_connect_to.is_empty() || entry.has("connect_to") {
            entry.list_required::<ConnectTo>("connect_to")
        } else {
            Some(entry.list_or("connect_to", default_connect_to.to_vec()))
        };
        if !has_registry
            && connect_to
                .iter()
                .flatten()
                .any(|one| *one == ConnectTo::Registry)
        {
            entry.problem(
                "connect_to",
                Some("\"registry\"".to_owned()),
                "a router's url, unless the key registry of the client is set",
            );
        }
        let mechanism = entry.choice(
            "mechanism",
            &[("tun", Mechanism::Tun), ("wireguard", Mechanism::Wireguard)],
            Mechanism::Wireguard,
        );
        let tcp = |one: &ConnectTo| {
            matches!(
                one,
                ConnectTo::Router(DialUrl::Tcp { .. }) | ConnectTo::Registry
            )
        };
        if mechanism == Mechanism::Tun && connect_to.iter().flatten().any(tcp) {
            entry.problem(
                "mechanism",
                Some("\"tun\"".to_owned()),
                "wireguard, unless every entry of connect_to is a unix:// socket of a router on this machine",
            );
        }
        let interface = entry.optional::<String>("interface");
        if let Some(name) = &interface
            && !services::is_interface(name)
        {
            entry.problem(
                "interface",
                Some(format!("{name:?}")),
                "at most 15 bytes without '/', '%' and space",
            );
        }
        let labels = entry.map("labels");
        let name = entry.optional::<WorkloadName>("workload");
        let workload = match labels.get("podName") {
            None => name,
            Some(label) => match WorkloadName::new(label) {
                Ok(name) => Some(name),
                Err(error) => {
                    entry.problem("labels.podName", Some(format!("{label:?}")), error.allowed);
                    None
                }
            },
        };
        let udp_listen = entry.or("udp_listen", SocketAddr::from(([0, 0, 0, 0], 0)));
        let workers = entry.or("workers", 1_usize);
        if !(1..=64).contains(&workers) {
            entry.problem("workers", Some(workers.to_string()), "1 to 64");
        }
        let table = entry.optional("table");
        let (document, uid) = network?;
        Some(Self {
            document,
            uid,
            connect_to: connect_to?,
            mechanism,
            interface,
            labels,
            workload,
            udp_listen,
            workers,
            table,
            spare_table,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vl3_runtime::config::{Flags, Invalid, Loaded, load_from};

    use super::*;

    const UID: &str = "00112233445566778899aabbccddeeff";

    fn read(text: &str) -> Result<Loaded<Config>, Invalid> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.toml");
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            config: Some(file),
            set: Vec::new(),
        };
        load_from(&flags, [])
    }

    #[test]
    fn the_examples_are_accepted() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        for (file, mechanism) in [
            ("client-tun.toml", Mechanism::Tun),
            ("client-wireguard.toml", Mechanism::Wireguard),
        ] {
            let text = std::fs::read_to_string(dir.join(file)).unwrap();
            let config = read(&text.replace("NETWORK_UID", UID)).unwrap().config;
            assert_eq!(config.attach[0].mechanism, mechanism, "{file}");
        }
    }

    #[test]
    fn nothing_is_done_about_names_unless_it_is_said() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let text = std::fs::read_to_string(dir.join("client-wireguard.toml")).unwrap();
        let text = text.replace("NETWORK_UID", UID);
        let names = |keys: &str| read(&format!("{keys}\n{text}")).map(|read| read.config.names);
        assert_eq!(names("").unwrap(), Names::Told);
        assert_eq!(names("resolv_conf = \"none\"").unwrap(), Names::Told);
        assert_eq!(names("resolved = true").unwrap(), Names::Resolved);
        let file = Names::ResolvConf("/etc/resolv.conf".into());
        assert_eq!(names("resolv_conf = \"/etc/resolv.conf\"").unwrap(), file);
        for (keys, wrong) in [
            ("resolved = true\nresolv_conf = \"/a\"", "resolved"),
            ("resolv_conf = \"resolv.conf\"", "resolv_conf"),
        ] {
            let problems = names(keys).unwrap_err().problems;
            assert_eq!(problems[0].key, wrong, "{problems:?}");
        }
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = format!(
            "identity.dir = \"/id\"\nregistri = \"x:1\"\ntoken_lifetime = \"1s\"\nexclude = [\"10.0.0.1/8\"]\n\
             [[attach]]\nconnect_to = [\"tcp://192.0.2.1:5010\"]\nmechanism = \"tun\"\n\
             interface = \"a-name-of-17-bytes\"\nworkers = 0\n\
             [attach.network]\ndocument = \"red\"\nuid = \"{UID}\"\n\
             [[attach]]\nconnect_to = [\"registry\"]\nmechanism = \"carrier\"\n\
             [attach.network]\ndocument = \"red\"\nuid = \"xyz\"\n"
        );
        let problems = read(&text).unwrap_err().problems;
        let keys: Vec<&str> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        for key in [
            "registri",
            "token_lifetime",
            "exclude[0]",
            "attach[0].mechanism",
            "attach[0].interface",
            "attach[0].workers",
            "attach[1].connect_to",
            "attach[1].mechanism",
            "attach[1].network.uid",
        ] {
            assert!(keys.contains(&key), "{key} is not in {keys:?}");
        }
    }
}
