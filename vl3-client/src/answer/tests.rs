use std::collections::{BTreeMap, BTreeSet};

use vl3_core::document::{Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, InstanceId, NetworkName, NetworkUid};
use vl3_proto::connection::{Path, PathSegment};
use vl3_proto::connectioncontext::{ConnectionContext, DnsConfig, DnsContext, Route};

use super::*;

const NOW: Wall = Wall::from_unix_secs(1_000);

fn document() -> Document {
    let member = Member {
        domain: DomainName::new("east").unwrap(),
        trust_domain: "east.test".to_owned(),
        bundle: Vec::new(),
        roles: RoleIds::defaults("east.test"),
        contacts: Vec::new(),
        block4: Some("10.60.0.0/22".parse().unwrap()),
        block6: "fd00:0:0:1::/80".parse().unwrap(),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    };
    Document {
        uid: NetworkUid([1; 16]),
        nonce: Vec::new(),
        version: 1,
        name: NetworkName::new("red").unwrap(),
        zone: "red.test".to_owned(),
        pool6: "fd00:0:0:1::/64".parse().unwrap(),
        pool4: Some("10.60.0.0/16".parse().unwrap()),
        admin_keys: BTreeSet::new(),
        members: BTreeMap::from([(member.domain.clone(), member)]),
        policy: Policy::default(),
    }
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        uid: NetworkUid([1; 16]),
        domain: DomainName::new("east").unwrap(),
        name: "red-east".to_owned(),
        instance: InstanceId([2; 16]),
        generation: Generation(3),
        dials_only: false,
        role: HelloRole::Router,
    }
}

fn segment(name: &str, id: &str, expires: u64) -> PathSegment {
    PathSegment {
        name: name.to_owned(),
        id: id.to_owned(),
        expires: Some(vl3_proto::timestamp(Wall::from_unix_secs(expires))),
        ..PathSegment::default()
    }
}

/// What a well-behaved router answers.
fn good() -> Connection {
    let context = ConnectionContext {
        ip_context: Some(IpContext {
            src_ip_addrs: vec!["10.60.0.5/32".to_owned(), "fd00:0:0:1::5/128".to_owned()],
            dst_ip_addrs: vec!["10.60.0.0/32".to_owned(), "fd00:0:0:1::/128".to_owned()],
            src_routes: ["10.60.0.0/24", "10.60.0.0/16", "fd00:0:0:1::/64"]
                .map(|prefix| Route {
                    prefix: prefix.to_owned(),
                    next_hop: String::new(),
                })
                .to_vec(),
            ..IpContext::default()
        }),
        dns_context: Some(DnsContext {
            configs: vec![DnsConfig {
                dns_server_ips: vec!["10.60.0.0".to_owned()],
                search_domains: vec!["east.red.test.".to_owned(), "red.test".to_owned()],
            }],
        }),
        mtu: 1400,
        extra_context: BTreeMap::from([(vl3_proto::HELLO_KEY.to_owned(), hello().encode())]),
        ..ConnectionContext::default()
    };
    let mechanism = WireguardParameters {
        dst_ip: Some("192.0.2.1".parse().unwrap()),
        dst_port: Some(51820),
        dst_public_key: Some(PublicKey([7; 32])),
        ..WireguardParameters::default()
    };
    Connection {
        id: "web-red".to_owned(),
        network_service: "red".to_owned(),
        mechanism: Some(mechanism.into_mechanism()),
        context: Some(context),
        path: Some(Path {
            index: 0,
            path_segments: vec![
                segment("web", "web-red", 1_060),
                segment("red-east", "x", 1_040),
            ],
        }),
        network_service_endpoint_name: "red-east".to_owned(),
        payload: "IP".to_owned(),
        ..Connection::default()
    }
}

fn ask(connection: &Connection, excluded: &[&str]) -> Result<Accepted, FieldError> {
    let excluded: Vec<IpNet> = excluded.iter().map(|text| text.parse().unwrap()).collect();
    // Ranges are the host's, single addresses another attachment's.
    let (held, ranges) = excluded
        .into_iter()
        .partition(|one| one.prefix_len() == one.max_prefix_len());
    let excluded = Excluded { ranges, held };
    check(
        connection,
        &Question {
            document: &document(),
            connection_id: "web-red",
            mechanism: Mechanism::Wireguard,
            excluded: &excluded,
            token_lifetime: Duration::from_secs(600),
            now: NOW,
        },
    )
}

fn ip(connection: &mut Connection) -> &mut IpContext {
    connection
        .context
        .as_mut()
        .unwrap()
        .ip_context
        .as_mut()
        .unwrap()
}

/// The field that is named when `change` spoils a good answer.
fn field_of(change: impl FnOnce(&mut Connection)) -> String {
    let mut connection = good();
    change(&mut connection);
    ask(&connection, &["10.244.0.0/16", "10.60.0.9/32"])
        .unwrap_err()
        .field
}

#[test]
fn a_good_answer_is_taken_whole() {
    let accepted = ask(&good(), &["10.244.0.0/16"]).unwrap();
    assert_eq!(accepted.addresses.len(), 2);
    assert_eq!((accepted.mtu, accepted.segments), (1400, 2));
    assert_eq!(accepted.lifetime, Duration::from_secs(40));
    assert_eq!(accepted.search, ["east.red.test", "red.test"]);
    assert_eq!(accepted.router.generation, Some(Generation(3)));
    let endpoint = "192.0.2.1:51820".parse().unwrap();
    assert_eq!(
        accepted.path,
        DataPath::Wireguard {
            endpoint,
            key: PublicKey([7; 32])
        }
    );
    // The router's own addresses are routes too.
    assert!(accepted.routes.contains(&"10.60.0.0/32".parse().unwrap()));
}

#[test]
fn each_bad_address_is_refused_by_its_field() {
    let first = "context.ip_context.src_ip_addrs[0]";
    for bad in [
        "10.60.0.0/32",
        "10.60.0.9/32",
        "10.61.0.5/32",
        "10.60.9.5/32",
        "224.0.0.1/32",
        "x",
        "10.60.0.5/24",
    ] {
        assert_eq!(
            field_of(|connection| ip(connection).src_ip_addrs[0] = bad.to_owned()),
            first,
            "{bad}"
        );
    }
    let again =
        |connection: &mut Connection| ip(connection).src_ip_addrs.push("10.60.0.5".to_owned());
    assert_eq!(field_of(again), "context.ip_context.src_ip_addrs[2]");
    let none = |connection: &mut Connection| ip(connection).src_ip_addrs.clear();
    assert_eq!(field_of(none), "context.ip_context.src_ip_addrs");
    let foreign =
        |connection: &mut Connection| ip(connection).dst_ip_addrs[0] = "192.0.2.9".to_owned();
    assert_eq!(field_of(foreign), "context.ip_context.dst_ip_addrs[0]");
}

#[test]
fn each_bad_route_is_refused_by_its_field() {
    for bad in ["10.60.0.0/33", "192.0.2.0/24", "nonsense"] {
        let change =
            |connection: &mut Connection| ip(connection).src_routes[1].prefix = bad.to_owned();
        assert_eq!(
            field_of(change),
            "context.ip_context.src_routes[1].prefix",
            "{bad}"
        );
    }
    let hop =
        |connection: &mut Connection| ip(connection).src_routes[0].next_hop = "10.60/8".to_owned();
    assert_eq!(field_of(hop), "context.ip_context.src_routes[0].nextHop");
}

#[test]
fn a_route_wider_than_the_pool_is_cut_to_it() {
    let mut connection = good();
    ip(&mut connection).src_routes[1].prefix = "10.60.5.0/12".to_owned();
    let accepted = ask(&connection, &[]).unwrap();
    assert!(accepted.routes.contains(&"10.60.0.0/16".parse().unwrap()));
    assert!(!accepted.routes.contains(&"10.48.0.0/12".parse().unwrap()));
}

#[test]
fn what_the_host_uses_inside_the_pool_stays_the_hosts() {
    let accepted = ask(&good(), &["10.60.128.0/18", "10.60.3.0/24"]).unwrap();
    let routes: Vec<_> = accepted
        .routes
        .iter()
        .filter(|route| route.addr().is_ipv4() && route.prefix_len() < 32)
        .copied()
        .collect();
    let covered = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        routes.iter().any(|route| route.contains(&address))
    };
    for theirs in [
        "10.60.0.1",
        "10.60.2.255",
        "10.60.4.0",
        "10.60.127.9",
        "10.60.192.0",
    ] {
        assert!(covered(theirs), "{theirs}: {routes:?}");
    }
    for own in ["10.60.3.0", "10.60.3.255", "10.60.128.0", "10.60.191.255"] {
        assert!(!covered(own), "{own}: {routes:?}");
    }
    assert!(routes.len() <= 9, "{routes:?}");
    // Another attachment's single address costs no route.
    let accepted = ask(&good(), &["10.60.0.9/32"]).unwrap();
    assert!(accepted.routes.contains(&"10.60.0.0/16".parse().unwrap()));
    // Nothing would be left of the pool, and the router itself is no address of the host's.
    for all in ["10.60.0.0/16", "10.0.0.0/8"] {
        assert!(ask(&good(), &[all]).is_err(), "{all}");
    }
    let field = ask(&good(), &["10.60.0.0/31"]).unwrap_err().field;
    assert_eq!(field, "context.ip_context.dst_ip_addrs[0]");
}

#[test]
fn an_answer_to_another_question_is_refused() {
    assert_eq!(
        field_of(|connection| connection.id = "other".to_owned()),
        "id"
    );
    assert_eq!(
        field_of(|connection| connection.network_service = "blue".to_owned()),
        "network_service"
    );
    assert_eq!(
        field_of(|connection| connection.path.as_mut().unwrap().index = 1),
        "path.index"
    );
    assert_eq!(
        field_of(|connection| connection.mechanism = None),
        "mechanism"
    );
    assert_eq!(
        field_of(|connection| connection.mechanism.as_mut().unwrap().r#type = "KERNEL".to_owned()),
        "mechanism.type"
    );
}

#[test]
fn a_router_of_another_network_or_of_no_member_is_refused() {
    let with = |hello: Hello| {
        field_of(move |connection| {
            let context = connection.context.as_mut().unwrap();
            context
                .extra_context
                .insert(vl3_proto::HELLO_KEY.to_owned(), hello.encode());
        })
    };
    assert_eq!(
        with(Hello {
            version_min: 2,
            version_max: 3,
            ..hello()
        }),
        "hello.version"
    );
    assert_eq!(
        with(Hello {
            uid: NetworkUid([9; 16]),
            ..hello()
        }),
        "hello.uid"
    );
    assert_eq!(
        with(Hello {
            domain: DomainName::new("west").unwrap(),
            ..hello()
        }),
        "hello.domain"
    );
    assert_eq!(
        with(Hello {
            role: HelloRole::Workload,
            ..hello()
        }),
        "hello.role"
    );
}

#[test]
fn nothing_but_names_reaches_the_search_list() {
    let field = field_of(|connection| {
        let context = connection.context.as_mut().unwrap();
        let dns = context.dns_context.as_mut().unwrap();
        dns.configs[0].search_domains[0] = "x\nnameserver 192.0.2.1".to_owned();
    });
    assert_eq!(field, "context.dns_context.configs[0].search_domains[0]");
}

#[test]
fn an_unset_mtu_has_a_default_and_a_tiny_one_is_refused() {
    let with = |mtu| {
        let mut connection = good();
        connection.context.as_mut().unwrap().mtu = mtu;
        ask(&connection, &[])
    };
    assert_eq!(with(0).unwrap().mtu, 1420);
    assert_eq!(with(576).unwrap_err().field, "context.MTU");
}
