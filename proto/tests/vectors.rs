//! The bytes that NSM's own Go types produce (nsm-wire 1.6): encoding and decoding must agree.

use std::collections::BTreeMap;
use std::fmt::Debug;

use prost::Message;
use prost_types::Timestamp;
use vl3_proto::connection::{
    Connection, ConnectionEvent, ConnectionEventType, Mechanism, MonitorScopeSelector, Path,
    PathSegment, State,
};
use vl3_proto::connectioncontext::{
    ConnectionContext, DnsConfig, DnsContext, IpContext, PolicyRoute, Route,
};
use vl3_proto::ipam::{PrefixRequest, PrefixResponse, Type};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::registry::{
    Destination, Match, Metadata, NetworkService, NetworkServiceEndpoint,
    NetworkServiceEndpointResponse, NetworkServiceLabels, NetworkServiceQuery,
};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn agree<M: Message + Default + PartialEq + Debug>(message: &M, hex: &str) {
    let encoded: String = message
        .encode_to_vec()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(encoded, hex);
    assert_eq!(
        M::decode(message.encode_to_vec().as_slice()).expect("own bytes decode"),
        *message
    );
}

fn seconds(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

#[test]
fn monitor_scope_selector() {
    let message = MonitorScopeSelector {
        path_segments: vec![PathSegment {
            id: "nsc-0".into(),
            ..PathSegment::default()
        }],
        network_services: strings(&["vl3"]),
    };
    agree(&message, "0a0712056e73632d301203766c33");
}

#[test]
fn connection_event() {
    let connection = Connection {
        id: "x".into(),
        ..Connection::default()
    };
    let message = ConnectionEvent {
        r#type: ConnectionEventType::Delete.into(),
        connections: BTreeMap::from([("x".to_owned(), connection)]),
    };
    agree(&message, "080212080a017812030a0178");
}

#[test]
fn prefix_request() {
    let message = PrefixRequest {
        r#type: Type::Allocate.into(),
        ..PrefixRequest::default()
    };
    agree(&message, "0801");
}

#[test]
fn prefix_response() {
    let message = PrefixResponse {
        prefix: "172.16.0.0/24".into(),
        exclude_prefixes: strings(&["172.16.0.0/32"]),
    };
    agree(
        &message,
        "120d3137322e31362e302e302f32341a0d3137322e31362e302e302f3332",
    );
}

#[test]
fn network_service_endpoint_response() {
    let message = NetworkServiceEndpointResponse {
        deleted: true,
        network_service_endpoint: Some(NetworkServiceEndpoint {
            name: "nse-1".into(),
            network_service_names: strings(&["vl3"]),
            network_service_labels: BTreeMap::from([(
                "vl3".to_owned(),
                NetworkServiceLabels {
                    labels: map(&[("k", "v")]),
                },
            )]),
            url: "tcp://1.2.3.4:5".into(),
            expiration_time: seconds(1, 0),
            initial_registration_time: seconds(2, 0),
            path_ids: strings(&["spiffe://a/b"]),
        }),
    };
    agree(
        &message,
        "0a440a056e73652d311203766c331a0f0a03766c3312080a060a016b120176220f7463703a2f2f312e322e332e343a352a020801320208023a0c7370696666653a2f2f612f621001",
    );
}

#[test]
fn network_service_query() {
    let message = NetworkServiceQuery {
        watch: true,
        network_service: Some(NetworkService {
            name: "vl3".into(),
            payload: "IP".into(),
            matches: vec![Match {
                source_selector: map(&[("a", "b")]),
                routes: vec![Destination {
                    destination_selector: map(&[("c", "d")]),
                    weight: 1,
                }],
                fallthrough: true,
                metadata: Some(Metadata {
                    labels: map(&[("e", "f")]),
                }),
            }],
            path_ids: Vec::new(),
        }),
    };
    agree(
        &message,
        "0a2b0a03766c33120249501a200a060a0161120162120a0a060a01631201641001180122080a060a01651201661001",
    );
}

#[test]
fn network_service_request() {
    let mechanism = Mechanism {
        cls: "REMOTE".into(),
        r#type: "WIREGUARD".into(),
        parameters: map(&[("src_port", "51820")]),
    };
    let context = ConnectionContext {
        mtu: 1420,
        ip_context: Some(IpContext {
            src_ip_addrs: strings(&["10.0.0.1/32"]),
            src_routes: vec![Route {
                prefix: "10.0.0.0/16".into(),
                next_hop: "10.0.0.0".into(),
            }],
            policies: vec![PolicyRoute {
                proto: "6".into(),
                dst_port: "80".into(),
                ..PolicyRoute::default()
            }],
            ..IpContext::default()
        }),
        dns_context: Some(DnsContext {
            configs: vec![DnsConfig {
                dns_server_ips: strings(&["10.0.0.0"]),
                search_domains: strings(&["vl3"]),
            }],
        }),
        ..ConnectionContext::default()
    };
    let path = Path {
        index: 1,
        path_segments: vec![
            PathSegment {
                name: "a".into(),
                id: "nsc-0".into(),
                token: "t".into(),
                expires: seconds(1_700_000_000, 5),
                ..PathSegment::default()
            },
            PathSegment {
                name: "b".into(),
                id: "x".into(),
                metrics: map(&[("client_interface", "KERNEL/nsm-1")]),
                ..PathSegment::default()
            },
        ],
    };
    let message = NetworkServiceRequest {
        mechanism_preferences: vec![mechanism.clone()],
        connection: Some(Connection {
            id: "nsc-0".into(),
            network_service: "vl3".into(),
            mechanism: Some(mechanism),
            context: Some(context),
            labels: map(&[("podName", "a")]),
            path: Some(path),
            network_service_endpoint_name: "nse-1".into(),
            payload: "IP".into(),
            state: State::ReselectRequested.into(),
        }),
    };
    agree(
        &message,
        "0adf010a056e73632d301203766c331a260a0652454d4f544512095749524547554152441a110a087372635f706f72741205353138323022470a2f0a0b31302e302e302e312f33322a170a0b31302e302e302e302f3136120831302e302e302e305a071201361a02383012110a0f0a0831302e302e302e301203766c33288c0b2a0c0a07706f644e616d651201613245080112170a016112056e73632d301a017422080880e2cfaa06100512280a01621201782a200a10636c69656e745f696e74657266616365120c4b45524e454c2f6e736d2d313a056e73652d3142024950480312260a0652454d4f544512095749524547554152441a110a087372635f706f727412053531383230",
    );
}
