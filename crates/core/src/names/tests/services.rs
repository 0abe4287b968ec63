//! `clusterset.local` (R1.7).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::bench::{client_parts, three};
use super::world::*;
use crate::names::{
    Answer, ClientClass, Data, Decision, Endpoint, Rcode, RecordType, Service, ServiceKind,
    ServiceName, ServicePort, Services, View, ViewParts,
};

use RecordType as T;

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|text| ip(text)).collect()
}

fn endpoint(hostname: Option<&str>, cluster: &str, addresses: &[&str], ready: bool) -> Endpoint {
    Endpoint {
        hostname: hostname.map(str::to_owned),
        cluster: cluster.to_owned(),
        addresses: set(addresses),
        ready,
    }
}

fn known_services() -> Services {
    let named = |namespace: &str, name: &str, kind: ServiceKind| {
        let name = ServiceName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let ports = vec![ServicePort {
            name: "http".to_owned(),
            protocol: "tcp".to_owned(),
            port: 8_080,
        }];
        (name, Service { kind, ports })
    };
    let headless = vec![
        endpoint(Some("db-0"), "east", &["10.1.0.1", "fd01::1"], true),
        endpoint(Some("db-0"), "west", &["10.2.0.1"], true),
        endpoint(None, "west", &["10.2.0.2"], true),
        endpoint(Some("db-9"), "west", &["10.2.0.9"], false),
    ];
    Services::new([
        named(
            "shop",
            "cart",
            ServiceKind::Addressed {
                addresses: set(&["10.9.0.1"]),
            },
        ),
        named(
            "shop",
            "db",
            ServiceKind::Headless {
                endpoints: headless,
            },
        ),
        named(
            "empty",
            "gone",
            ServiceKind::Headless {
                endpoints: vec![endpoint(None, "east", &["10.1.0.7"], false)],
            },
        ),
    ])
}

fn ask(text: &str, rtype: T) -> Answer {
    let parts = ViewParts {
        services: Some(Arc::new(known_services())),
        upstreams: three(),
        ..client_parts()
    };
    let view = View::assemble(parts).unwrap();
    answered(planned(&view, text, rtype, ClientClass::Member))
}

const CART: &str = "cart.shop.svc.clusterset.local";
const DB: &str = "db.shop.svc.clusterset.local";

#[test]
fn r1_7_the_zone_tells_its_version() {
    let answer = ask("dns-version.clusterset.local", T::TXT);
    let data = Data::Opaque {
        rtype: T::TXT,
        data: b"\x051.0.0".to_vec(),
    };
    assert_eq!(answer.answers[0].data, data);
    assert!(answer.authoritative && answer.decision == Decision::Service);
    assert!(ask("dns-version.clusterset.local", T::A).is_nodata());
}

#[test]
fn r1_7_a_service_has_the_address_of_the_set_and_no_name_per_cluster() {
    assert_eq!(
        addresses(&ask("Cart.Shop.svc.ClusterSet.local", T::A)),
        ["10.9.0.1"]
    );
    let six = ask(CART, T::AAAA);
    assert!(
        six.is_nodata() && six.authority.len() == 1,
        "known, no such address"
    );
    for rtype in [T::TXT, T(65), T(64_999)] {
        assert!(ask(CART, rtype).is_nodata(), "unknown types are NODATA");
    }
    for text in [
        "east.cart.shop.svc.clusterset.local",
        "other.shop.svc.clusterset.local",
        "cart.other.svc.clusterset.local",
        "other.clusterset.local",
    ] {
        let answer = ask(text, T::A);
        assert_eq!(answer.rcode, Rcode::NX_DOMAIN, "{text}");
        assert_eq!(answer.authority[0].owner, name("clusterset.local"));
    }
    for text in [
        "clusterset.local",
        "svc.clusterset.local",
        "shop.svc.clusterset.local",
    ] {
        assert!(ask(text, T::A).is_nodata(), "{text} has names below it");
    }
}

#[test]
fn r1_7_a_headless_service_is_the_union_of_its_ready_endpoints() {
    assert_eq!(
        addresses(&ask(DB, T::A)),
        ["10.1.0.1", "10.2.0.1", "10.2.0.2"]
    );
    assert_eq!(addresses(&ask(DB, T::AAAA)), ["fd01::1"]);
    let of = |hostname: &str, rtype| ask(&format!("{hostname}.{DB}"), rtype);
    assert_eq!(addresses(&of("db-0.east", T::A)), ["10.1.0.1"]);
    assert_eq!(addresses(&of("db-0.west", T::A)), ["10.2.0.1"]);
    assert_eq!(addresses(&of("10-2-0-2.west", T::A)), ["10.2.0.2"]);
    assert!(of("db-0.west", T::AAAA).is_nodata());
    assert_eq!(of("db-9.west", T::A).rcode, Rcode::NX_DOMAIN, "not ready");
    assert!(of("west", T::A).is_nodata());
    assert_eq!(
        ask("gone.empty.svc.clusterset.local", T::A).rcode,
        Rcode::NX_DOMAIN
    );
    assert_eq!(
        ask("empty.svc.clusterset.local", T::A).rcode,
        Rcode::NX_DOMAIN
    );
}

#[test]
fn r1_7_named_ports_have_srv_records() {
    let targets = |text: &str| -> Vec<String> {
        let answer = ask(text, T::SRV);
        let target = |data: &Data| match data {
            Data::Srv {
                port: 8_080,
                target,
                ..
            } => target.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(!answer.additional.is_empty());
        answer
            .answers
            .iter()
            .map(|record| target(&record.data))
            .collect()
    };
    assert_eq!(targets(&format!("_http._tcp.{CART}")), [format!("{CART}.")]);
    assert_eq!(
        targets(&format!("_http._tcp.{DB}")),
        ["db-0.east", "db-0.west", "10-2-0-2.west"].map(|host| format!("{host}.{DB}."))
    );
    assert_eq!(
        ask(&format!("_http._udp.{CART}"), T::SRV).rcode,
        Rcode::NX_DOMAIN
    );
    assert_eq!(
        ask(&format!("_smtp._tcp.{CART}"), T::SRV).rcode,
        Rcode::NX_DOMAIN
    );
    assert!(ask(&format!("_http._tcp.{CART}"), T::A).is_nodata());
    assert!(ask(&format!("_tcp.{CART}"), T::A).is_nodata());
}

#[test]
fn r1_7_without_services_the_zone_is_special() {
    let view = View::assemble(client_parts()).unwrap();
    let answer = answered(planned(&view, CART, T::A, ClientClass::Member));
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::NX_DOMAIN, Decision::SpecialUse)
    );
}
