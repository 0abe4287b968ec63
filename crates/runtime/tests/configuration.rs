//! Every mistake of a configuration is reported at once.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::net::SocketAddr;
use std::time::Duration;

use vl3_core::ids::{DomainName, NetworkUid};
use vl3_runtime::config::{Flags, Invalid, Loaded, load_from};
use vl3_runtime::grpc::{DialUrl, Listen};
use vl3_runtime::{Configure, Section};

#[derive(Debug)]
struct Config {
    domain: DomainName,
    listen: Vec<Listen>,
    registry: Option<DialUrl>,
    udp_listen: SocketAddr,
    workers: u16,
    lifetime: Duration,
    uid: NetworkUid,
    attach: Vec<String>,
}

impl Configure for Config {
    const ROLE: &'static str = "router";
    const ENVIRONMENT: &'static [(&'static str, &'static str)] =
        &[("NSM_LISTEN_ON", "listen"), ("NSM_CONNECT_TO", "registry")];

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let domain = section.required("domain");
        let listen = section.list("listen");
        let registry = section.optional("registry");
        let udp_listen = section.required("udp_listen");
        let workers = section.or("workers", 1);
        if workers == 0 {
            section.problem("workers", Some("0".to_owned()), "at least 1");
        }
        let lifetime = section.or("token_lifetime", Duration::from_secs(600));
        let uid = section.table("network", |network| network.required("uid"));
        let attach = section.tables("attach", |attach| attach.required("interface"));
        Some(Self {
            domain: domain?,
            listen,
            registry,
            udp_listen: udp_listen?,
            workers,
            lifetime,
            uid: uid?,
            attach: attach.into_iter().collect::<Option<_>>()?,
        })
    }
}

const GOOD: &str = r#"
name = "red-east"
domain = "east"
listen = ["tcp://0.0.0.0:5010", "unix:///run/a.sock"]
udp_listen = "0.0.0.0:51820"
token_lifetime = "1m30s"
[identity]
dir = "/etc/vl3/identity"
[network]
uid = "000102030405060708090a0b0c0d0e0f"
[[attach]]
interface = "nsm-1"
"#;

fn load(
    text: &str,
    environment: &[(&str, &str)],
    set: &[(&str, &str)],
) -> Result<Loaded<Config>, Invalid> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let set = set
        .iter()
        .map(|(key, value)| {
            (
                (*key).to_owned(),
                (*value).to_owned(),
                format!("--set {key}"),
            )
        })
        .collect();
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load_from(
        &Flags {
            config: Some(file),
            set,
        },
        environment,
    )
}

#[test]
fn a_good_file_is_read_with_defaults() {
    let Loaded { common, config } = load(GOOD, &[], &[]).unwrap();
    assert_eq!(common.run_dir.to_str(), Some("/run/vl3/router-red-east"));
    assert_eq!(
        common.state_dir.unwrap().to_str(),
        Some("/var/lib/vl3/router-red-east")
    );
    assert_eq!(config.domain.as_str(), "east");
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.lifetime, Duration::from_secs(90));
    assert_eq!(config.attach, ["nsm-1"]);
    assert_eq!((config.workers, config.registry), (1, None));
    assert_eq!(config.udp_listen.port(), 51820);
    assert_eq!(config.uid.0[15], 15);
}

#[test]
fn flags_go_before_environment_and_environment_before_the_file() {
    let environment = [
        ("NSM_NAME", "a"),
        ("NSM_LISTEN_ON", "tcp://:1, unix:///b"),
        ("VL3_NETWORK__UID", "ff0102030405060708090a0b0c0d0e0f"),
    ];
    let Loaded { common, config } = load(GOOD, &environment, &[("name", "b")]).unwrap();
    assert_eq!(common.name, "b");
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.uid.0[0], 0xff);
    let common = load(GOOD, &environment, &[]).unwrap().common;
    assert_eq!(common.name, "a");
}

#[test]
fn an_empty_state_directory_means_ephemeral() {
    assert!(
        load(GOOD, &[], &[("state_dir", "")])
            .unwrap()
            .common
            .state_dir
            .is_none()
    );
}

#[test]
fn ten_mistakes_are_named_at_once() {
    let text = r#"
name = "red/east"
domian = "east"
listen = ["tcp:/0.0.0.0:5010", 7]
udp_listen = "0.0.0.0"
workers = 0
token_lifetime = "10"
[log]
level = "info,="
format = "xml"
[network]
uid = "12"
[[attach]]
interfaces = "nsm-1"
"#;
    let invalid = load(text, &[("NSM_CONNECT_TO", "nowhere")], &[]).unwrap_err();
    let keys: Vec<&str> = invalid
        .problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    for key in [
        "name",
        "identity.dir",
        "log.level",
        "log.format",
        "domain",
        "listen[0]",
        "listen[1]",
        "registry",
        "udp_listen",
        "workers",
        "token_lifetime",
        "network.uid",
        "attach[0].interface",
        "attach[0].interfaces",
        "domian",
    ] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    let text = invalid.to_string();
    assert!(
        text.contains("domian = \"east\": must be a known key; did you mean domain?"),
        "{text}"
    );
    assert!(text.contains("registry (environment NSM_CONNECT_TO) = \"nowhere\": must be tcp://HOST:PORT or unix:///PATH"), "{text}");
    assert!(text.contains("workers = 0: must be at least 1"), "{text}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_one_clear_mistake() {
    let invalid = load("a = = b", &[], &[]).unwrap_err();
    assert!(invalid.to_string().contains("must be TOML"), "{invalid}");
    let flags = Flags {
        config: Some("/nonexistent/a.toml".into()),
        set: Vec::new(),
    };
    let invalid = load_from::<Config>(&flags, []).unwrap_err();
    assert!(invalid.to_string().contains("a readable file"), "{invalid}");
}
