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
        let mut unknown = false;
        let is_etcd = match engine.as_deref() {
            None | Some("redb") => false,
            Some("memory") => return Some(Self::Memory),
            Some("etcd") => true,
            Some(other) => {
                let words = "one of redb, memory, etcd";
                section.problem("engine", Some(other.to_owned()), words);
                unknown = true;
                false
            }
        };
        if !is_etcd && !section.has("etcd") {
            return Some(Self::Redb);
        }
        if unknown {
            // Said already; its table is looked at as well.
        } else if !is_etcd {
            let words = "etcd, as there is a table [store.etcd]";
            section.problem("engine", engine, words);
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
            section.problem("timeout", Some(spelled(timeout)), "100ms to 60s");
        }
        let ttl = section.or("ttl", TTL_DEFAULT);
        if ttl.subsec_nanos() != 0 || !(2..=60).contains(&ttl.as_secs()) {
            section.problem("ttl", Some(spelled(ttl)), "2s to 60s in whole seconds");
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

/// As people write it.
fn spelled(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{}s", time.as_secs()),
        _ => format!("{}ms", time.as_millis()),
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

#[cfg(test)]
mod tests {
    use vl3_runtime::Configure;
    use vl3_runtime::config::{Flags, load_from};

    use super::*;

    struct OnlyStore(StoreConfig);

    impl Configure for OnlyStore {
        const ROLE: &'static str = "registry";
        const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[];

        fn read(section: &mut Section<'_>) -> Option<Self> {
            section
                .table("store", |section| StoreConfig::read(section, "east"))
                .map(Self)
        }
    }

    /// The store, or every mistake with its key.
    fn read(text: &str) -> Result<StoreConfig, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registry.toml");
        let text = format!("name = \"east\"\nidentity.dir = \"/etc/id\"\n[store]\n{text}");
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            config: Some(file),
            set: Vec::new(),
        };
        match load_from::<OnlyStore>(&flags, std::iter::empty()) {
            Ok(loaded) => Ok(loaded.config.0),
            Err(invalid) => Err(invalid.problems.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn the_engine_is_a_file_unless_it_says_otherwise() {
        assert_eq!(read(""), Ok(StoreConfig::Redb));
        assert_eq!(read("engine = \"memory\""), Ok(StoreConfig::Memory));
    }

    #[test]
    fn an_engine_that_its_tables_contradict_is_named_as_it_was_given() {
        let etcd = "[store.etcd]\nendpoints = [\"http://127.0.0.1:2379\"]";
        for given in ["redb", "ectd"] {
            let problems = read(&format!("engine = \"{given}\"\n{etcd}")).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(
                problems[0].starts_with(&format!("store.engine = {given}: must be ")),
                "{problems:?}"
            );
        }
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn every_mistake_of_an_etcd_is_told_at_once() {
        let problems = read(
            "engine = \"etcd\"\n[store.etcd]\nendpoints = []\nprefix = \"east\"\n\
             cert = \"/nowhere/cert\"\ntimeout = \"0s\"\nttl = \"1500ms\"",
        )
        .unwrap_err();
        let about = |key: &str| {
            problems
                .iter()
                .find(|problem| problem.starts_with(&format!("store.etcd.{key}")))
                .unwrap_or_else(|| panic!("nothing about {key}: {problems:?}"))
        };
        assert!(about("endpoints").contains("[]"), "{problems:?}");
        assert!(about("prefix").contains("/vl3/east/"), "{problems:?}");
        assert!(
            about("key").contains("cert and key go together"),
            "{problems:?}"
        );
        assert!(about("timeout").contains("= 0s:"), "{problems:?}");
        assert!(about("ttl").contains("= 1500ms:"), "{problems:?}");
    }
}
