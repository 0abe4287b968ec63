//! What a router is told.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use vl3_core::ids::{DomainName, NetworkUid, RouterName};
use vl3_core::router::{Limits, Times};
use vl3_runtime::grpc::{DialUrl, Listen};
use vl3_runtime::{Configure, Section};

/// Inner packets over an underlay of 1500 bytes, by IPv6 (80 bytes of overhead).
const MTU: u16 = 1420;
const PREFIX_SERVERS_MAX: usize = 2;
/// NSM's default (nsm-wire 6).
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct Config {
    pub domain: DomainName,
    /// Stable router name, `<network>-<domain>[-n]`; unset: made of the document's name.
    pub router: Option<RouterName>,
    pub document: PathBuf,
    pub uid: NetworkUid,
    pub registry: DialUrl,
    /// Stock IPAMs, one per family, to lease from by `ManagePrefixes`; then `registry` is a stock
    /// registry (or manager) too.
    pub prefix_servers: Vec<DialUrl>,
    pub listen: Vec<Listen>,
    pub udp_listen: SocketAddr,
    /// Underlay address told to peers and in the registered URL.
    pub advertise: Option<IpAddr>,
    /// Ranges that this router must not be given and gives to nobody.
    pub exclusions: Vec<IpNet>,
    /// Wanted IPv4 prefix length, 0 = the registry's choice.
    pub prefix_len4: u8,
    pub mtu: u16,
    pub workers: usize,
    pub token_lifetime: Duration,
    pub limits: Limits,
    pub times: Times,
}

impl Configure for Config {
    const ROLE: &'static str = "router";

    const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[
        ("NSM_REGISTRY_URL", "registry"),
        ("NSM_CONNECT_TO", "registry"),
        ("NSM_PREFIX_SERVER_URL", "prefix_servers"),
        ("NSM_LISTEN_ON", "listen"),
        ("NSM_TUNNEL_IP", "advertise"),
        ("NSM_MAX_TOKEN_LIFETIME", "token_lifetime"),
    ];

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let domain = section.required("domain");
        let router = section.optional("router");
        let (document, uid) = section.table("network", |network| {
            let document = network.required::<PathBuf>("document");
            let uid = network.required::<NetworkUid>("uid");
            if let Some(file) = document.clone() {
                network.look("document", format!("{file:?}"), move || {
                    vl3_proto::document::look(&file, uid)
                });
            }
            (document, uid)
        });
        let registry = section.required("registry");
        let prefix_servers = section.list("prefix_servers");
        if prefix_servers.len() > PREFIX_SERVERS_MAX {
            section.problem(
                "prefix_servers",
                Some(format!("{} of them", prefix_servers.len())),
                "at most one per family of addresses",
            );
        }
        let any = Listen::Tcp(SocketAddr::from(([0; 16], 5010)));
        let listen = section.list_or("listen", vec![any]);
        let udp_listen = section.or("udp_listen", SocketAddr::from(([0; 16], 51820)));
        let advertise = section.optional::<IpAddr>("advertise");
        if let Some(address) = advertise.filter(|ip| ip.is_unspecified() || ip.is_multicast()) {
            section.problem(
                "advertise",
                Some(address.to_string()),
                "a unicast address that peers reach",
            );
        }
        let exclusions = section.list("exclusions");
        let prefix_len4 = section.or("prefix_len4", 0_u8);
        if prefix_len4 != 0 && !(8..=30).contains(&prefix_len4) {
            section.problem(
                "prefix_len4",
                Some(prefix_len4.to_string()),
                "8 to 30, or 0 for the registry's choice",
            );
        }
        let mtu = section.or("mtu", MTU);
        if !(1200..=65_000).contains(&mtu) {
            section.problem("mtu", Some(mtu.to_string()), "1200 to 65000");
        }
        let workers = section.or("workers", 1);
        if !(1..=64).contains(&workers) {
            section.problem("workers", Some(workers.to_string()), "1 to 64");
        }
        let token_lifetime = section.or("token_lifetime", TOKEN_LIFETIME);
        if token_lifetime < Duration::from_secs(2) {
            section.problem(
                "token_lifetime",
                Some(format!("{token_lifetime:?}")),
                "2s or longer",
            );
        }
        let limits = read_limits(section);
        let times = read_times(section);
        Some(Self {
            domain: domain?,
            router,
            document: document?,
            uid: uid?,
            registry: registry?,
            prefix_servers,
            listen,
            udp_listen,
            advertise,
            exclusions,
            prefix_len4,
            mtu,
            workers,
            token_lifetime,
            limits,
            times,
        })
    }
}

fn read_limits(section: &mut Section<'_>) -> Limits {
    section.table("limits", |limits| {
        let default = Limits::default();
        let mut at_least_one = |key: &'static str, value: usize| {
            let value = limits.or(key, value);
            if value == 0 {
                limits.problem(key, Some("0".to_owned()), "1 or more");
            }
            value
        };
        Limits {
            workloads: at_least_one("workloads", default.workloads),
            reserved: at_least_one("reserved", default.reserved),
            links: at_least_one("links", default.links),
            discovered: at_least_one("discovered", default.discovered),
            routes_per_link: at_least_one("routes_per_link", default.routes_per_link),
            pending_records: at_least_one("pending_records", default.pending_records),
        }
    })
}

fn read_times(section: &mut Section<'_>) -> Times {
    section.table("times", |times| {
        let default = Times::default();
        Times {
            claim_grace: times.or("claim_grace", default.claim_grace),
            silent_after: times.or("silent_after", default.silent_after),
            dial_wait: times.or("dial_wait", default.dial_wait),
            probe_idle: times.or("probe_idle", default.probe_idle),
            probe_fast: times.or("probe_fast", default.probe_fast),
            data_down_after: times.or("data_down_after", default.data_down_after),
            ..default
        }
    })
}

#[cfg(test)]
mod tests {
    use vl3_runtime::config::{Flags, load_from};

    use super::*;

    #[test]
    fn ten_mistakes_are_named_at_once_with_key_and_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("router.toml");
        let text = r#"
            domain = "not a label"
            registry = "http://east:5002"
            listen = ["tcp://nowhere"]
            udp_listen = "51820"
            advertise = "224.0.0.1"
            exclusions = ["10.0.0.0/40"]
            prefix_len4 = 31
            prefix_servers = ["tcp://a:1", "tcp://b:1", "tcp://c:1"]
            mtu = 500
            workers = 0
            token_lifetime = "1ms"
            udp_port = 51820
            [network]
            document = "red.doc"
            uid = "xyz"
            [limits]
            links = 0
        "#;
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            config: Some(file),
            ..Flags::default()
        };
        let text = load_from::<Config>(&flags, []).err().unwrap().to_string();
        for key in [
            "domain",
            "registry",
            "listen",
            "udp_listen",
            "advertise",
            "exclusions",
            "prefix_len4",
            "prefix_servers",
            "mtu",
            "workers",
            "token_lifetime",
            "udp_port",
            "network.uid",
            "limits.links",
        ] {
            assert!(
                text.lines().any(|line| line.contains(key)),
                "{key} is missing in:\n{text}"
            );
        }
    }
}
