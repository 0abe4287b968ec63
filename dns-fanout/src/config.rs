//! Configuration of the DNS server.

use std::net::SocketAddr;
use std::path::PathBuf;

use vl3_core::ids::NetworkUid;
use vl3_core::names::Policy;
use vl3_runtime::config::Value;
use vl3_runtime::grpc::DialUrl;
use vl3_runtime::{Configure, Section};

/// Where DNS servers listen.
const DNS_PORT: u16 = 53;

/// Of `vl3 dns`. Example:
///
/// ```toml
/// name = "red"
/// router = "/run/vl3/router-red"
/// [network]
/// uid = "00112233445566778899aabbccddeeff"
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// `router`: the run directory of this domain's router of the network, with its `nsm.sock`
    /// and `fd.sock`; or `unix:///DIR/nsm.sock`.
    pub router: PathBuf,
    /// `network.uid`: whose names are served. A state of another network is refused.
    pub uid: Option<NetworkUid>,
    /// `network.document`: a document file; gives the uid where that is unset.
    pub document: Option<PathBuf>,
    /// `listen`: addresses beside the router's own, for hosts that are no workloads. Bound
    /// directly; their clients must be among the router's.
    pub listen: Vec<SocketAddr>,
    /// `shared_names`: `first-positive` (names are unique) or `union` (services in several
    /// domains).
    pub shared_names: Policy,
    /// `upstream.port`: where other domains' servers listen.
    pub upstream_port: u16,
    /// `upstream.sockets`: UDP sockets per server, each with a port of its own.
    pub upstream_sockets: usize,
    /// `upstream.direct`: ask from this process's own addresses instead of the router's.
    pub upstream_direct: bool,
    /// `limits.connections`: TCP connections in all.
    pub connections_max: usize,
    /// `limits.connections_per_client`.
    pub connections_per_client_max: usize,
}

impl Configure for Config {
    const ROLE: &'static str = "dns";
    const ENVIRONMENT: &'static [(&'static str, &'static str)] = &[("NSM_CONNECT_TO", "router")];

    fn read(section: &mut Section<'_>) -> Option<Self> {
        let router = section.required::<RunDir>("router").map(|dir| dir.0);
        let (uid, document) = section.table("network", |network| {
            let given = network.has("uid") || network.has("document");
            let uid = network.optional::<NetworkUid>("uid");
            let document = network.optional::<PathBuf>("document");
            if let Some(file) = document.clone() {
                network.look_when_asked("document", format!("{file:?}"), move || {
                    vl3_proto::document::look(&file, uid)
                });
            }
            if !given {
                network.problem(
                    "uid",
                    None,
                    "the network's uid (`vl3 network show` prints it), or set network.document",
                );
            }
            (uid, document)
        });
        let listen = section.list::<SocketAddr>("listen");
        let shared_names = section.choice(
            "shared_names",
            &[
                ("first-positive", Policy::FirstPositive),
                ("union", Policy::Union),
            ],
            Policy::FirstPositive,
        );
        let (upstream_port, upstream_sockets, upstream_direct) =
            section.table("upstream", |upstream| {
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
        let (connections_max, connections_per_client_max) = section.table("limits", |limits| {
            let all = at_least_one(limits, "connections", 1_000_usize);
            (
                all,
                at_least_one(limits, "connections_per_client", 100_usize),
            )
        });
        Some(Self {
            router: router?,
            uid,
            document,
            listen,
            shared_names,
            upstream_port,
            upstream_sockets,
            upstream_direct,
            connections_max,
            connections_per_client_max,
        })
    }
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
