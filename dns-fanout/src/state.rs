//! The router's message as core types, checked field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use vl3_core::ids::{DomainName, InvalidName, RouterName, WorkloadName};
use vl3_core::names::{ClientClass, DomainServer, LocalName, ResolverState};
use vl3_proto::vl3::router::v1 as wire;

/// Names of one router; a hundred times what one router serves.
const NAMES_MAX: usize = 65_536;
/// Servers and client prefixes.
const LIST_MAX: usize = 16_384;

/// Stands for "no router" in a server without addresses.
const NOBODY: &str = "-";

/// Why a state was not taken: the one before stays (R7.4).
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("{field}: {source}")]
    Name {
        field: &'static str,
        source: InvalidName,
    },
    #[error("{field}: {value:?} is no {allowed}")]
    Value {
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
    #[error("{field} has {count} entries, at most {max} are allowed")]
    TooMany {
        field: &'static str,
        count: usize,
        max: usize,
    },
}

pub(crate) fn from_wire(
    state: &wire::ResolverState,
    sequence: u64,
) -> Result<ResolverState, StateError> {
    bounded("names", state.names.len(), NAMES_MAX)?;
    bounded("servers", state.servers.len(), LIST_MAX)?;
    bounded("clients", state.clients.len(), LIST_MAX)?;
    let mut names = BTreeMap::new();
    for name in &state.names {
        let key = WorkloadName::new(&name.name).map_err(|source| StateError::Name {
            field: "names.name",
            source,
        })?;
        let local: &mut LocalName = names.entry(key).or_default();
        local.addresses.extend(addresses::<BTreeSet<IpAddr>>(
            "names.addresses",
            &name.addresses,
        )?);
    }
    let servers = state.servers.iter().map(server).collect::<Result<_, _>>()?;
    let clients = state
        .clients
        .iter()
        .filter_map(client)
        .collect::<Result<_, _>>()?;
    Ok(ResolverState {
        sequence,
        domain: DomainName::new(&state.domain).map_err(|source| StateError::Name {
            field: "domain",
            source,
        })?,
        names,
        servers,
        clients,
        own_addresses: addresses("own_addresses", &state.own_addresses)?,
    })
}

/// A domain that is known while none of its routers lives comes without a router's name.
fn server(server: &wire::DomainServer) -> Result<DomainServer, StateError> {
    let name = |field, source| StateError::Name { field, source };
    let addresses: Vec<IpAddr> = addresses("servers.addresses", &server.addresses)?;
    let router = if server.router.is_empty() && addresses.is_empty() {
        NOBODY
    } else {
        &server.router
    };
    Ok(DomainServer {
        domain: DomainName::new(&server.domain).map_err(|source| name("servers.domain", source))?,
        router: RouterName::new(router).map_err(|source| name("servers.router", source))?,
        addresses,
        sibling: server.sibling,
    })
}

/// A class that this version does not know is served by nobody's rule: left out.
fn client(range: &wire::ClientRange) -> Option<Result<(IpNet, ClientClass), StateError>> {
    let class = match range.class() {
        wire::ClientClass::Member => ClientClass::Member,
        wire::ClientClass::Sibling => ClientClass::Sibling,
        wire::ClientClass::Remote => ClientClass::Remote,
        wire::ClientClass::Unspecified => return None,
    };
    let prefix = range
        .prefix
        .parse::<IpNet>()
        .ok()
        .or_else(|| range.prefix.parse::<IpAddr>().ok().map(IpNet::from))
        .ok_or_else(|| value("clients.prefix", &range.prefix, "prefix"));
    Some(prefix.map(|prefix| (prefix.trunc(), class)))
}

/// Plain addresses, or prefixes of one address.
fn addresses<C: FromIterator<IpAddr>>(
    field: &'static str,
    texts: &[String],
) -> Result<C, StateError> {
    texts
        .iter()
        .map(|text| {
            let prefix = || {
                text.parse::<IpNet>()
                    .ok()
                    .filter(|net| net.prefix_len() == net.max_prefix_len())
            };
            text.parse::<IpAddr>()
                .ok()
                .or_else(|| prefix().map(|net| net.addr()))
                .map(|address| address.to_canonical())
                .ok_or_else(|| value(field, text, "address"))
        })
        .collect()
}

fn value(field: &'static str, value: &str, allowed: &'static str) -> StateError {
    StateError::Value {
        field,
        value: value.chars().take(64).collect(),
        allowed,
    }
}

const fn bounded(field: &'static str, count: usize, max: usize) -> Result<(), StateError> {
    if count > max {
        Err(StateError::TooMany { field, count, max })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> wire::ResolverState {
        let text = |text: &str| text.to_owned();
        wire::ResolverState {
            domain: text("east"),
            names: vec![wire::LocalName {
                name: text("web"),
                addresses: vec![text("172.16.0.5/32"), text("fd00::5")],
            }],
            servers: vec![wire::DomainServer {
                domain: text("west"),
                ..wire::DomainServer::default()
            }],
            clients: vec![
                wire::ClientRange {
                    prefix: text("172.16.0.0/24"),
                    class: wire::ClientClass::Member.into(),
                },
                wire::ClientRange {
                    prefix: text("fd00::9"),
                    class: wire::ClientClass::Remote.into(),
                },
                wire::ClientRange {
                    prefix: text("10.0.0.0/8"),
                    class: 77,
                },
            ],
            own_addresses: vec![text("::ffff:172.16.0.1")],
            ..wire::ResolverState::default()
        }
    }

    #[test]
    fn a_state_is_taken_as_it_is_meant() {
        let core = from_wire(&state(), 9).unwrap();
        assert_eq!(
            (core.sequence, core.clients.len()),
            (9, 2),
            "an unknown class is left out"
        );
        assert_eq!(
            core.own_addresses,
            ["172.16.0.1".parse::<IpAddr>().unwrap()]
        );
        assert!(core.servers[0].addresses.is_empty());
        let web = &core.names[&WorkloadName::new("web").unwrap()];
        assert_eq!(web.addresses.len(), 2);
    }

    #[test]
    fn an_error_names_the_field_and_the_value() {
        type Change = fn(&mut wire::ResolverState);
        let wrong: [(Change, &str); 6] = [
            (|state| state.domain = "a.b".to_owned(), "domain: \"a.b\""),
            (
                |state| state.names[0].name = "-".to_owned(),
                "names.name: \"-\"",
            ),
            (
                |state| state.names[0].addresses[0] = "172.16.0.0/24".to_owned(),
                "names.addresses: \"172.16.0.0/24\"",
            ),
            (
                |state| state.servers[0].addresses.push("172.16.4.1".to_owned()),
                "servers.router: \"\"",
            ),
            (
                |state| state.clients[0].prefix = "x".to_owned(),
                "clients.prefix: \"x\"",
            ),
            (
                |state| state.names = vec![wire::LocalName::default(); NAMES_MAX + 1],
                "names has 65537 entries",
            ),
        ];
        for (change, expected) in wrong {
            let mut state = state();
            change(&mut state);
            let error = from_wire(&state, 1).unwrap_err();
            let source = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            let text = format!("{error}: {source}");
            assert!(text.contains(expected), "{text}");
        }
    }
}
