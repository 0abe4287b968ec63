//! Configuration of the DNS server.

pub(crate) mod service;
pub(crate) mod upstream;
pub(crate) mod view;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::view::View;
use crate::engine::CookieKeys;
use ipnet::IpNet;
use vl3_core::ids::NetworkUid;
use vl3_core::names::{
    ClientLimits, MERGED_RECORDS_MAX, Name, PREFER_WAIT, Policy, ResolverSettings, Upstream,
};
use vl3_runtime::config::Value;
use vl3_runtime::grpc::DialUrl;
use vl3_runtime::{Configure, Section};

/// Where DNS servers listen.
const DNS_PORT: u16 = 53;
/// R5.4.
const CACHE_OCTETS: usize = 32 << 20;
const CACHE_OCTETS_MIN: usize = 64 << 10;

/// Of `vl3 dns`: beside a router,
///
/// ```toml
/// name = "red"
/// router = "/run/vl3/router-red"
/// [network]
/// uid = "00112233445566778899aabbccddeeff"
/// ```
///
/// or a server of its own, with servers to ask (or both):
///
/// ```toml
/// listen = ["192.0.2.53:53"]
/// clients = ["192.0.2.0/24"]
/// [[upstream]]
/// name = "ns1"
/// addresses = ["198.51.100.1:53"]
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// `router`: the run directory of this domain's router of the network, with its `nsm.sock`
    /// and `fd.sock`; or `unix:///DIR/nsm.sock`. Unset: a server without a network.
    pub router: Option<PathBuf>,
    /// `network.uid`: whose names are served. A state of another network is refused.
    pub uid: Option<NetworkUid>,
    /// `network.document`: a document file; gives the uid where that is unset.
    pub document: Option<PathBuf>,
    /// `listen`: addresses beside the router's own. Bound directly; who asks there must be among
    /// the clients. Views without addresses of their own answer here, too.
    pub listen: Vec<SocketAddr>,
    /// `clients`: who may ask, beside those of the router; this host when there is no router.
    pub clients: Vec<IpNet>,
    /// `[[upstream]]`: servers to ask.
    pub upstreams: Vec<Upstream>,
    /// `[[policy]]`: how answers for names below a suffix are made.
    pub policies: Vec<(Name, Policy)>,
    /// `[[service]]`: what this domain has of services under `clusterset.local`.
    pub services: Vec<service::Export>,
    /// `prefer_wait`: how long the policy `prefer` waits for a better class.
    pub prefer_wait: Duration,
    /// `records_max`: largest merged set.
    pub records_max: usize,
    /// `shared_names`: `first-positive` (names are unique) or `union` (services in several
    /// domains).
    pub shared_names: Policy,
    /// `upstreams.port`: where other domains' servers listen.
    pub upstream_port: u16,
    /// `upstreams.sockets`: UDP sockets per server, each with a port of its own.
    pub upstream_sockets: usize,
    /// `upstreams.direct`: ask other domains from this process's own addresses instead of the
    /// router's.
    pub upstream_direct: bool,
    /// `cookie_keys`: a file with the keys of DNS cookies, 32 hexadecimal digits per line, the
    /// current one first; replicas share it. Without it a key of its own for each start.
    pub cookie_keys: Option<PathBuf>,
    /// `query_log`: the share of questions that are logged with their votes, 0 to 1 (R7.3).
    pub query_log: f64,
    /// `cache.bytes`: of all that is kept of answers.
    pub cache_octets: usize,
    /// `limits.connections`: TCP connections in all.
    pub connections_max: usize,
    /// `limits.connections_per_client`.
    pub connections_per_client_max: usize,
    /// `limits.queries_per_second`: of one client; 0 for no limit.
    pub queries_per_second_max: u32,
    /// `limits.in_flight`: questions of one client that wait for others; 0 for no limit.
    pub in_flight_max: u32,
    /// `[[view]]`: further views, each with keys of its own. Limits of connections, cookies and
    /// the query log are of the process.
    pub views: Vec<View>,
}

impl Configure for Config {
    const ROLE: &'static str = "dns";
    const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[("NSM_CONNECT_TO", "router")];

    /// Towards its router alone.
    fn needs_identity(section: &Section<'_>) -> bool {
        section.has("router") || section.has_within("view", "router")
    }

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let mut config = read_view(section, false)?;
        config.views = section
            .tables("view", view::read)
            .into_iter()
            .flatten()
            .collect();
        for (key, value, allowed) in view::problems(&config) {
            section.problem(&key, value, &allowed);
        }
        Some(config)
    }
}

/// The keys of a view: those of a `[[view]]`, or those at the top of the file, where they are the
/// process's own as well.
fn read_view(section: &mut Section<'_>, is_named: bool) -> Option<Config> {
    let given = section.has("router");
    // Of the top: views may be all there is, and all may have addresses of their own.
    let has_views = !is_named && section.has("view");
    let router = section.optional::<RunDir>("router").map(|dir| dir.0);
    let (uid, document) = network(section, given);
    let listen = section.list::<SocketAddr>("listen");
    let own_host = if given {
        Vec::new()
    } else {
        ["127.0.0.0/8", "::1/128"]
            .iter()
            .filter_map(|net| net.parse().ok())
            .collect()
    };
    let clients = section.list_or::<IpNet>("clients", own_host);
    let upstreams = section.tables("upstream", upstream::read);
    if !given && upstreams.is_empty() && !has_views {
        section.problem(
            "router",
            None,
            "the run directory of the network's router, or set [[upstream]] (servers to ask)",
        );
    }
    let needs_listen = !given && !is_named && !has_views;
    if needs_listen && listen.is_empty() && !section.has("listen") {
        section.problem(
            "listen",
            None,
            "a list of addresses with port, as [\"127.0.0.1:53\"]",
        );
    }
    let policies = section.tables("policy", upstream::policy);
    let services = service::read(section, given);
    let of_process = !is_named;
    let cookie_keys = of_process
        .then(|| section.optional::<PathBuf>("cookie_keys"))
        .flatten();
    if let Some(file) = cookie_keys.clone() {
        let shown = format!("{file:?}");
        section.look("cookie_keys", shown, move || {
            read_cookie_keys(&file).map(drop)
        });
    }
    let query_log = if of_process {
        section.or("query_log", 0.0)
    } else {
        0.0
    };
    if !(0.0..=1.0).contains(&query_log) {
        let allowed = "the share of questions to log, from 0.0 to 1.0";
        section.problem("query_log", Some(query_log.to_string()), allowed);
    }
    let prefer_wait = section.or("prefer_wait", PREFER_WAIT);
    let records_max = at_least_one(section, "records_max", MERGED_RECORDS_MAX);
    let shared_names = section.choice(
        "shared_names",
        &[
            ("first-positive", Policy::FirstPositive),
            ("union", Policy::Union),
        ],
        Policy::FirstPositive,
    );
    let (upstream_port, upstream_sockets, upstream_direct) =
        section.table("upstreams", |upstream| {
            let port = at_least_one(upstream, "port", DNS_PORT);
            let sockets = upstream.or("sockets", 16_usize);
            if !(1..=256).contains(&sockets) {
                upstream.problem(
                    "sockets",
                    Some(sockets.to_string()),
                    "a number from 1 to 256",
                );
            }
            (port, sockets, upstream.or("direct", false))
        });
    let cache_octets = section.table("cache", |cache| {
        let bytes = cache.or("bytes", CACHE_OCTETS);
        if bytes < CACHE_OCTETS_MIN {
            cache.problem("bytes", Some(bytes.to_string()), "a number from 65536 on");
        }
        bytes
    });
    let limits = section.table("limits", |limits| {
        let mut connections = |key, default| {
            if of_process {
                at_least_one(limits, key, default)
            } else {
                default
            }
        };
        (
            connections("connections", 1_000_usize),
            connections("connections_per_client", 100_usize),
            limits.or("queries_per_second", 1_000_u32),
            limits.or("in_flight", 200_u32),
        )
    });
    if given && router.is_none() {
        return None;
    }
    Some(Config {
        router,
        uid,
        document,
        listen,
        clients,
        upstreams: upstreams.into_iter().flatten().collect(),
        policies: policies.into_iter().flatten().collect(),
        services,
        prefer_wait,
        records_max,
        shared_names,
        upstream_port,
        upstream_sockets,
        upstream_direct,
        cookie_keys,
        query_log,
        cache_octets,
        connections_max: limits.0,
        connections_per_client_max: limits.1,
        queries_per_second_max: limits.2,
        in_flight_max: limits.3,
        views: Vec::new(),
    })
}

impl Config {
    /// A server of its own that listens and asks there, every limit as it is by default.
    pub fn standalone(listen: Vec<SocketAddr>, upstreams: Vec<Upstream>) -> Self {
        Self {
            router: None,
            uid: None,
            document: None,
            listen,
            clients: vec![
                IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
                IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
            ],
            upstreams,
            policies: Vec::new(),
            services: Vec::new(),
            prefer_wait: PREFER_WAIT,
            records_max: MERGED_RECORDS_MAX,
            shared_names: Policy::FirstPositive,
            upstream_port: DNS_PORT,
            upstream_sockets: 16,
            upstream_direct: false,
            cookie_keys: None,
            query_log: 0.0,
            cache_octets: CACHE_OCTETS,
            connections_max: 1_000,
            connections_per_client_max: 100,
            queries_per_second_max: 1_000,
            in_flight_max: 200,
            views: Vec::new(),
        }
    }
}

/// Of the octets for answers, the part that keeps them as packets.
const PACKETS_SHARE: usize = 4;

impl Config {
    /// What the resolver is told.
    pub(crate) fn resolver(&self) -> ResolverSettings {
        ResolverSettings {
            cache_octets: self.cache_octets - self.packets_octets(),
            clients: ClientLimits {
                per_second: self.queries_per_second_max,
                in_flight: self.in_flight_max,
            },
            ..ResolverSettings::default()
        }
    }

    pub(crate) const fn packets_octets(&self) -> usize {
        self.cache_octets / PACKETS_SHARE
    }
}

/// What is allowed, when the file holds no keys.
pub(crate) fn read_cookie_keys(file: &Path) -> Result<CookieKeys, String> {
    let allowed = "a file with keys of 32 hexadecimal digits, one per line";
    let text = std::fs::read_to_string(file).map_err(|error| format!("{allowed}; {error}"))?;
    CookieKeys::read(&text).ok_or_else(|| allowed.to_owned())
}

/// Whose names are served; needed with a router alone.
fn network(section: &mut Section<'_>, needed: bool) -> (Option<NetworkUid>, Option<PathBuf>) {
    section.table("network", |network| {
        let given = network.has("uid") || network.has("document");
        let uid = network.optional::<NetworkUid>("uid");
        let document = network.optional::<PathBuf>("document");
        if let Some(file) = document.clone() {
            network.look_when_asked("document", format!("{file:?}"), move || {
                vl3_proto::document::look(&file, uid)
            });
        }
        if needed && !given {
            network.problem(
                "uid",
                None,
                "the network's uid (`vl3 network show` prints it), or set network.document",
            );
        }
        (uid, document)
    })
}

/// The router's run directory, as a path or as the URL of its `nsm.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RunDir(PathBuf);

impl Value for RunDir {
    const ALLOWED: &'static str =
        "the run directory of the network's router, or unix:///DIR/nsm.sock within it";

    fn from_text(text: &str) -> Option<Self> {
        if let Ok(DialUrl::Unix(socket)) = text.parse() {
            let is_routers = socket.file_name().is_some_and(|name| name == "nsm.sock");
            return is_routers
                .then(|| socket.parent().map(|dir| Self(dir.to_owned())))
                .flatten();
        }
        let is_path = !text.is_empty() && !text.contains("://") && !text.starts_with("unix:");
        is_path.then(|| Self(PathBuf::from(text)))
    }
}

fn at_least_one<T>(section: &mut Section<'_>, key: &'static str, default: T) -> T
where
    T: Value + Default + PartialEq + ToString + Copy,
{
    let value = section.or(key, default);
    if value == T::default() {
        section.problem(key, Some(value.to_string()), "a number from 1 on");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_a_directory_or_its_socket_and_no_other_url() {
        let dir = |text: &str| RunDir::from_text(text).map(|dir| dir.0);
        let run = PathBuf::from("/run/vl3/router-red");
        assert_eq!(dir("/run/vl3/router-red"), Some(run.clone()));
        assert_eq!(dir("unix:///run/vl3/router-red/nsm.sock"), Some(run));
        for refused in [
            "",
            "unix:///run/vl3/router-red",
            "unix:///var/lib/networkservicemesh/nsm.io.sock",
            "unix://relative/nsm.sock",
            "tcp://192.0.2.1:5010",
        ] {
            assert_eq!(dir(refused), None, "{refused}");
        }
    }
}
