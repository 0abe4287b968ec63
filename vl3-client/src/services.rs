//! Networks to join as NSM writes them: the NS URLs of its annotation and of
//! `NSM_NETWORK_SERVICES` (nsm-wire 7), as `kernel://red/nsm-1?app=shop`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use vl3_core::ids::{NetworkName, NetworkUid, WorkloadName};
use vl3_runtime::Section;
use vl3_runtime::config::Value;
use vl3_runtime::grpc::DialUrl;

use crate::config::{Attach, ConnectTo, Mechanism};

const DIRECTORY: &str = "/etc/vl3";

/// One NS URL. `service@domain` is refused: a network spans its domains.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NsUrl {
    mechanism: NsMechanism,
    service: NetworkName,
    interface: Option<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NsMechanism {
    /// An interface of the host, however it comes there.
    Kernel,
    Tun,
    Wireguard,
}

impl Value for NsUrl {
    const ALLOWED: &'static str = "kernel://NETWORK[/INTERFACE][?LABEL=VALUE&...] (or tun://, wireguard://), INTERFACE of at most 15 bytes";

    fn from_text(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let mechanism = match scheme.to_ascii_lowercase().as_str() {
            "kernel" => NsMechanism::Kernel,
            "tun" => NsMechanism::Tun,
            "wireguard" => NsMechanism::Wireguard,
            _ => return None,
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (service, path) = place.split_once('/').unwrap_or((place, ""));
        // The last segment, as stock reads it.
        let interface = path.rsplit('/').find(|segment| !segment.is_empty());
        if interface.is_some_and(|name| !is_interface(name)) {
            return None;
        }
        let mut labels = BTreeMap::<String, String>::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=')?;
            labels
                .entry(key.to_owned())
                .and_modify(|values| {
                    values.push(',');
                    values.push_str(value);
                })
                .or_insert_with(|| value.to_owned());
        }
        Some(Self {
            mechanism,
            service: service.parse().ok()?,
            interface: interface.map(str::to_owned),
            labels,
        })
    }
}

pub(crate) fn is_interface(name: &str) -> bool {
    name.len() <= vl3_net::tun::NAME_LEN_MAX
        && !name.is_empty()
        && !name.contains(['/', ' ', '%'])
        && name != "."
        && name != ".."
}

/// Reads `network_services` and what belongs to it: one attachment each, `None` for one with a
/// problem.
pub(crate) fn read(
    section: &mut Section<'_>,
    connect_to: &[ConnectTo],
    mut spare_table: impl FnMut() -> u32,
) -> Vec<Option<Attach>> {
    let services = section.list::<NsUrl>("network_services");
    let directory = section.or("network_dir", PathBuf::from(DIRECTORY));
    let uids = section.map("network_uids");
    if !services.is_empty() && connect_to.is_empty() {
        section.problem("connect_to", None, "a list of routers for network_services");
    }
    services
        .into_iter()
        .enumerate()
        .map(|(at, url)| {
            let spare_table = spare_table();
            let uid = read_uid(section, &uids, &url.service);
            let mechanism = mechanism(section, at, url.mechanism, connect_to);
            let workload = workload(section, at, &url);
            Some(Attach {
                document: document(&directory, &url.service),
                uid: uid?,
                connect_to: Some(connect_to.to_vec()).filter(|list| !list.is_empty())?,
                mechanism: mechanism?,
                interface: url.interface,
                labels: url.labels,
                workload: workload?,
                udp_listen: SocketAddr::from(([0, 0, 0, 0], 0)),
                workers: 1,
                table: None,
                spare_table,
            })
        })
        .collect()
}

fn document(directory: &Path, service: &NetworkName) -> PathBuf {
    directory.join(format!("{service}.vl3net"))
}

fn read_uid(
    section: &mut Section<'_>,
    uids: &BTreeMap<String, String>,
    service: &NetworkName,
) -> Option<NetworkUid> {
    let text = uids.get(service.as_str());
    let uid = text.and_then(|text| NetworkUid::from_text(text));
    if uid.is_none() {
        section.problem(
            &format!("network_uids.{service}"),
            text.map(|text| format!("{text:?}")),
            "the network's uid (`vl3 network show` prints it; VL3_NETWORK_UIDS=NAME:UID,...)",
        );
    }
    uid
}

fn mechanism(
    section: &mut Section<'_>,
    at: usize,
    wanted: NsMechanism,
    connect_to: &[ConnectTo],
) -> Option<Mechanism> {
    let local = connect_to
        .iter()
        .all(|one| matches!(one, ConnectTo::Router(DialUrl::Unix(_))));
    match wanted {
        NsMechanism::Kernel if local => Some(Mechanism::Tun),
        NsMechanism::Kernel | NsMechanism::Wireguard => Some(Mechanism::Wireguard),
        NsMechanism::Tun if local => Some(Mechanism::Tun),
        NsMechanism::Tun => {
            section.problem(
                &format!("network_services[{at}]"),
                Some("tun://".to_owned()),
                "wireguard:// or kernel://, unless every entry of connect_to is a unix:// socket of a router on this machine",
            );
            None
        }
    }
}

/// The outer `None` is a problem.
fn workload(section: &mut Section<'_>, at: usize, url: &NsUrl) -> Option<Option<WorkloadName>> {
    let Some(label) = url.labels.get("podName") else {
        return Some(None);
    };
    match WorkloadName::new(label) {
        Ok(name) => Some(Some(name)),
        Err(error) => {
            section.problem(
                &format!("network_services[{at}]"),
                Some(format!("podName={label}")),
                error.allowed,
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use vl3_runtime::config::{Flags, Invalid, Loaded, load_from};

    use super::*;
    use crate::Config;

    const RED: &str = "00112233445566778899aabbccddeeff";
    const BLUE: &str = "ff112233445566778899aabbccddee00";

    fn read(environment: &[(&str, &str)]) -> Result<Loaded<Config>, Invalid> {
        let common = [
            ("NSM_NAME", "pod-1"),
            ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/agent.sock"),
        ];
        let all = common.iter().chain(environment);
        load_from(
            &Flags::default(),
            all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn stock_environment_becomes_attachments() {
        let uids = format!("red:{RED},blue:{BLUE}");
        let loaded = read(&[
            ("NSM_CONNECT_TO", "unix:///run/vl3/router/nsm.sock"),
            (
                "NSM_NETWORK_SERVICES",
                "kernel://red/nsm-1?app=shop&app=web&podName=cart,wireguard://blue",
            ),
            ("VL3_NETWORK_UIDS", &uids),
        ])
        .unwrap();
        assert_eq!(loaded.common.name, "pod-1");
        let [red, blue] = &loaded.config.attach[..] else {
            panic!("two attachments: {:?}", loaded.config.attach)
        };
        assert_eq!(red.document, Path::new("/etc/vl3/red.vl3net"));
        assert_eq!(red.uid.to_string(), RED);
        assert_eq!(red.mechanism, Mechanism::Tun);
        assert_eq!(red.interface.as_deref(), Some("nsm-1"));
        assert_eq!(red.labels["app"], "shop,web");
        assert_eq!(red.workload.as_ref().unwrap().as_str(), "cart");
        assert_eq!(blue.mechanism, Mechanism::Wireguard);
        assert_eq!(blue.interface, None);
        assert_eq!(blue.connect_to, red.connect_to);
        assert_ne!(blue.spare_table, red.spare_table);
    }

    #[test]
    fn a_kernel_interface_comes_by_wireguard_from_a_router_elsewhere() {
        let loaded = read(&[
            ("NSM_CONNECT_TO", "tcp://192.0.2.1:5010"),
            ("NSM_NETWORK_SERVICES", "kernel://red"),
            ("VL3_NETWORK_UIDS", &format!("red:{RED}")),
        ])
        .unwrap();
        assert_eq!(loaded.config.attach[0].mechanism, Mechanism::Wireguard);
    }

    #[test]
    fn every_mistake_in_stock_environment_is_named_at_once() {
        let uids = format!("red:{RED},green:{RED},tan:xyz");
        let error = read(&[
            ("NSM_CONNECT_TO", "tcp://192.0.2.1:5010,ftp://x"),
            (
                "NSM_NETWORK_SERVICES",
                "memif://red,kernel://red@far/nsm,kernel://red/a-name-of-17-bytes,kernel://red?x,\
                 tun://red,kernel://blue,kernel://tan,kernel://red?podName=a.b,kernel://green,kernel://red",
            ),
            ("VL3_NETWORK_UIDS", &uids),
        ])
        .unwrap_err();
        let text = error.to_string();
        for part in [
            "connect_to[1] (environment NSM_CONNECT_TO) = ftp://x",
            "network_services[0] (environment NSM_NETWORK_SERVICES) = memif://red",
            "network_services[1] (environment NSM_NETWORK_SERVICES) = kernel://red@far/nsm",
            "network_services[2] (environment NSM_NETWORK_SERVICES) = kernel://red/a-name",
            "network_services[3] (environment NSM_NETWORK_SERVICES) = kernel://red?x",
            "= tun://",
            "network_uids.blue is missing",
            "network_uids.tan = \"xyz\"",
            "podName=a.b",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn one_network_twice_is_refused() {
        let error = read(&[
            ("NSM_CONNECT_TO", "tcp://192.0.2.1:5010"),
            ("NSM_NETWORK_SERVICES", "kernel://red,kernel://red/other"),
            ("VL3_NETWORK_UIDS", &format!("red:{RED}")),
        ])
        .unwrap_err();
        assert!(error.to_string().contains("another network"), "{error}");
    }

    #[test]
    fn services_without_a_router_are_refused() {
        let error = read(&[
            ("NSM_NETWORK_SERVICES", "kernel://red"),
            ("VL3_NETWORK_UIDS", &format!("red:{RED}")),
        ])
        .unwrap_err();
        assert!(
            error.to_string().contains("connect_to is missing"),
            "{error}"
        );
    }
}
