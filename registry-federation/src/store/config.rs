//! Which engine keeps the state, and where an etcd is and how to be believed there.

use std::path::PathBuf;
use std::time::Duration;

use vl3_runtime::Section;

/// What etcd itself leaves for an election is 1 s and more; a request that is repeated towards
/// another member in time costs less than one that waits for a dead one.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// Longest time without anybody to write after the active replica vanished.
const TTL_DEFAULT: Duration = Duration::from_secs(3);

/// `[store]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreConfig {
    /// One file in the state directory.
    #[default]
    Redb,
    /// Nothing survives a restart.
    Memory,
    Etcd(EtcdConfig),
}

impl StoreConfig {
    pub fn read(section: &mut Section<'_>, domain: &str) -> Option<Self> {
        let engine = section.optional::<String>("engine");
        let is_etcd = match engine.as_deref() {
            None | Some("redb") => false,
            Some("memory") => return Some(Self::Memory),
            Some("etcd") => true,
            Some(other) => {
                let words = "one of redb, memory, etcd";
                section.problem("engine", Some(other.to_owned()), words);
                false
            }
        };
        if !is_etcd && !section.has("etcd") {
            return Some(Self::Redb);
        }
        if !is_etcd {
            section.problem("engine", None, "etcd, as there is a table [store.etcd]");
        } else if cfg!(not(feature = "etcd")) {
            let words = "redb or memory: this program was built without etcd";
            section.problem("engine", Some("etcd".to_owned()), words);
        }
        section
            .table("etcd", |section| EtcdConfig::read(section, domain))
            .map(Self::Etcd)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `https://HOST:PORT` of the members; `http://` towards this machine only.
    pub endpoints: Vec<String>,
    /// Every key begins with it; ends with a slash.
    pub prefix: String,
    /// PEM files, read again when they change.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Of one request to one member.
    pub timeout: Duration,
    /// Of the claim to be the active replica, in whole seconds.
    pub ttl: Duration,
}

impl EtcdConfig {
    /// With every default.
    pub fn new(endpoints: Vec<String>, prefix: &str) -> Self {
        Self {
            endpoints,
            prefix: prefix.to_owned(),
            ca: None,
            cert: None,
            key: None,
            timeout: TIMEOUT_DEFAULT,
            ttl: TTL_DEFAULT,
        }
    }

    /// Reads `[store.etcd]`.
    pub fn read(section: &mut Section<'_>, domain: &str) -> Option<Self> {
        let endpoints = section.list_required::<String>("endpoints");
        for endpoint in endpoints.iter().flatten() {
            if !is_endpoint(endpoint) {
                section.problem(
                    "endpoints",
                    Some(endpoint.clone()),
                    "https://HOST:PORT, or http://127.0.0.1:PORT towards this machine",
                );
            }
        }
        let prefix = section.or("prefix", format!("/vl3/{domain}/"));
        if !(prefix.starts_with('/') && prefix.ends_with('/')) {
            section.problem("prefix", Some(prefix.clone()), "a text like /vl3/east/");
        }
        let ca = section.optional::<PathBuf>("ca");
        let cert = section.optional::<PathBuf>("cert");
        let key = section.optional::<PathBuf>("key");
        for (name, file) in [("ca", &ca), ("cert", &cert), ("key", &key)] {
            let Some(file) = file.clone() else { continue };
            section.look(name, file.display().to_string(), move || {
                std::fs::read(&file)
                    .map(drop)
                    .map_err(|error| format!("a readable file ({error})"))
            });
        }
        if ca.is_none()
            && endpoints
                .iter()
                .flatten()
                .any(|it| it.starts_with("https:"))
        {
            section.problem(
                "ca",
                None,
                "a file with the authority of the etcd's certificates",
            );
        }
        if cert.is_some() != key.is_some() {
            let missing = if cert.is_some() { "key" } else { "cert" };
            section.problem(missing, None, "a file: cert and key go together");
        }
        let timeout = section.or("timeout", TIMEOUT_DEFAULT);
        if timeout < Duration::from_millis(100) || timeout > Duration::from_secs(60) {
            section.problem("timeout", Some(format!("{timeout:?}")), "100ms to 60s");
        }
        let ttl = section.or("ttl", TTL_DEFAULT);
        if ttl.subsec_nanos() != 0 || !(2..=60).contains(&ttl.as_secs()) {
            section.problem(
                "ttl",
                Some(format!("{ttl:?}")),
                "2s to 60s in whole seconds",
            );
        }
        Some(Self {
            endpoints: endpoints?,
            prefix,
            ca,
            cert,
            key,
            timeout,
            ttl,
        })
    }
}

fn is_endpoint(text: &str) -> bool {
    let has_port = |rest: &str| {
        let port = rest.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        matches!(port, Some(Ok(_))) && !rest.contains('/')
    };
    if let Some(rest) = text.strip_prefix("http://") {
        return has_port(rest) && (rest.starts_with("127.") || rest.starts_with("[::1]"));
    }
    text.strip_prefix("https://").is_some_and(has_port)
}
