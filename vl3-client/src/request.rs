//! Requests, refreshes and closes as NSM v1 wants them (nsm-wire 3.1, 3.4).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use vl3_core::heal::RequestKind;
use vl3_core::ids::{NetworkName, WorkloadName};
use vl3_proto::connection::{Connection, Mechanism, Path, PathSegment, State};
use vl3_proto::connectioncontext::{ConnectionContext, IpContext};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::{HELLO_KEY, Hello};

use crate::answer::Excluded;

/// What stays the same over the life of an attachment.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// Also the id of the connection and of the client's own path segment.
    pub(crate) id: String,
    /// NSM name of the client: the name of its path segment.
    pub(crate) name: String,
    pub(crate) network: NetworkName,
    pub(crate) workload: WorkloadName,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) hello: Hello,
}

/// What may differ from one request to the next.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) kind: RequestKind,
    /// As the router in question answered last.
    pub(crate) last: Option<&'a Connection>,
    /// Held from whichever router; asked for again.
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) excluded: &'a Excluded,
    pub(crate) preference: Mechanism,
}

impl Template {
    /// The connection's stable id.
    pub(crate) fn connection_id(client: &str, network: &NetworkName) -> String {
        format!("{client}-{network}")
    }

    pub(crate) fn request(&self, wish: &Wish<'_>) -> NetworkServiceRequest {
        let mut connection = match (wish.kind, wish.last) {
            (RequestKind::Refresh, Some(last)) => last.clone(),
            (RequestKind::Reselect, Some(last)) => Connection {
                mechanism: None,
                network_service_endpoint_name: String::new(),
                state: State::ReselectRequested.into(),
                ..last.clone()
            },
            (kind, _) => {
                let mut fresh = self.fresh(wish.addresses);
                if kind == RequestKind::Reselect {
                    fresh.state = State::ReselectRequested.into();
                }
                fresh
            }
        };
        let context = connection.context.get_or_insert_default();
        context
            .extra_context
            .insert(HELLO_KEY.to_owned(), self.hello.encode());
        if let Some(path) = &mut connection.path {
            path.index = 0;
        }
        let mut request = NetworkServiceRequest {
            connection: Some(connection),
            mechanism_preferences: vec![wish.preference.clone()],
        };
        exclude(&mut request, wish.excluded);
        request
    }

    /// A connection that no router has seen.
    fn fresh(&self, addresses: &[IpAddr]) -> Connection {
        let mut labels = self.labels.clone();
        labels.insert("podName".to_owned(), self.workload.to_string());
        Connection {
            id: self.id.clone(),
            network_service: self.network.to_string(),
            labels,
            payload: "IP".to_owned(),
            context: Some(ConnectionContext {
                ip_context: Some(IpContext {
                    src_ip_addrs: addresses
                        .iter()
                        .map(|address| IpNet::from(*address).to_string())
                        .collect(),
                    ..IpContext::default()
                }),
                ..ConnectionContext::default()
            }),
            path: Some(Path {
                index: 0,
                path_segments: vec![self.segment()],
            }),
            ..Connection::default()
        }
    }

    /// The own segment; its token travels in the metadata of each call.
    pub(crate) fn segment(&self) -> PathSegment {
        PathSegment {
            name: self.name.clone(),
            id: self.id.clone(),
            ..PathSegment::default()
        }
    }
}

/// Sets the prefixes from which no address may come.
pub(crate) fn exclude(request: &mut NetworkServiceRequest, excluded: &Excluded) {
    let mut prefixes: Vec<String> = excluded.all().map(ToString::to_string).collect();
    prefixes.sort();
    prefixes.dedup();
    let context = request
        .connection
        .get_or_insert_default()
        .context
        .get_or_insert_default();
    context.ip_context.get_or_insert_default().excluded_prefixes = prefixes;
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::{DomainName, Generation, InstanceId, NetworkUid};
    use vl3_proto::HelloRole;

    use super::*;

    fn template() -> Template {
        Template {
            id: "web-red".to_owned(),
            name: "web".to_owned(),
            network: NetworkName::new("red").unwrap(),
            workload: WorkloadName::new("web").unwrap(),
            labels: BTreeMap::from([("app".to_owned(), "shop".to_owned())]),
            hello: Hello {
                version_min: 1,
                version_max: 1,
                uid: NetworkUid([1; 16]),
                domain: DomainName::new("east").unwrap(),
                name: "web".to_owned(),
                instance: InstanceId([2; 16]),
                generation: Generation(0),
                dials_only: true,
                role: HelloRole::Workload,
            },
        }
    }

    fn ask(kind: RequestKind, last: Option<&Connection>) -> Connection {
        let wish = Wish {
            kind,
            last,
            addresses: &["10.60.0.5".parse().unwrap()],
            excluded: &Excluded {
                ranges: vec!["10.244.0.0/16".parse().unwrap()],
                held: Vec::new(),
            },
            preference: Mechanism {
                cls: "LOCAL".to_owned(),
                r#type: "TUN".to_owned(),
                ..Mechanism::default()
            },
        };
        template().request(&wish).connection.unwrap()
    }

    fn answered() -> Connection {
        Connection {
            mechanism: Some(Mechanism::default()),
            network_service_endpoint_name: "red-east".to_owned(),
            path: Some(Path {
                index: 0,
                path_segments: vec![
                    template().segment(),
                    PathSegment {
                        name: "red-east".to_owned(),
                        id: "x".to_owned(),
                        ..PathSegment::default()
                    },
                ],
            }),
            ..ask(RequestKind::First, None)
        }
    }

    #[test]
    fn a_first_request_carries_one_own_segment_and_the_wishes() {
        let connection = ask(RequestKind::First, None);
        let path = connection.path.unwrap();
        assert_eq!((path.index, path.path_segments.len()), (0, 1));
        assert_eq!(path.path_segments[0].id, connection.id);
        assert_eq!(
            (
                connection.payload.as_str(),
                connection.labels["podName"].as_str()
            ),
            ("IP", "web")
        );
        let context = connection.context.unwrap();
        let ip = context.ip_context.unwrap();
        assert_eq!(ip.src_ip_addrs, ["10.60.0.5/32"]);
        assert_eq!(ip.excluded_prefixes, ["10.244.0.0/16"]);
        assert!(context.extra_context.contains_key("vl3"));
    }

    #[test]
    fn a_refresh_is_the_connection_as_last_answered() {
        let last = answered();
        let connection = ask(RequestKind::Refresh, Some(&last));
        assert_eq!(connection, last);
    }

    #[test]
    fn a_reselect_clears_mechanism_and_endpoint_and_keeps_the_addresses() {
        let last = answered();
        for connection in [
            ask(RequestKind::Reselect, Some(&last)),
            ask(RequestKind::Reselect, None),
        ] {
            assert_eq!(connection.state(), State::ReselectRequested);
            assert_eq!(connection.mechanism, None);
            assert!(connection.network_service_endpoint_name.is_empty());
            let ip = connection.context.unwrap().ip_context.unwrap();
            assert_eq!(ip.src_ip_addrs, ["10.60.0.5/32"]);
        }
    }
}
