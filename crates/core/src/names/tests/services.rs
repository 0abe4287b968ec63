//! `clusterset.local` (R1.7).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::bench::{Bench, client_parts, three};
use super::world::*;
use crate::names::{
    Answer, ClientClass, DNS_PORT, Data, Decision, Endpoint, Failure, Flags, NetworkParts, Policy,
    Rcode, Record, RecordType, Reply, Service, ServiceKind, ServiceName, ServicePort, Services,
    Upstream, View, ViewParts, Vote, classify,
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

/// East's view of the network: it has one endpoint of `db`.
fn in_network() -> Arc<View> {
    in_network_with(Vec::new())
}

fn in_network_with(upstreams: Vec<Upstream>) -> Arc<View> {
    let own = Endpoint {
        hostname: Some("web".to_owned()),
        cluster: "east".to_owned(),
        addresses: set(&["172.16.0.5"]),
        ready: true,
    };
    let name = ServiceName {
        namespace: "shop".to_owned(),
        name: "db".to_owned(),
    };
    let port = ServicePort {
        name: "http".to_owned(),
        protocol: "tcp".to_owned(),
        port: 8_080,
    };
    let service = Service {
        kind: ServiceKind::Headless {
            endpoints: vec![own],
        },
        ports: vec![port],
    };
    let parts = ViewParts {
        network: Some(NetworkParts {
            document: Arc::new(document()),
            state: state(),
            shared_names: Policy::FirstPositive,
            port: DNS_PORT,
        }),
        services: Some(Arc::new(Services::new([(name, service)]))),
        upstreams,
        ..ViewParts::default()
    };
    Arc::new(View::assemble(parts).unwrap())
}

fn srv(of: &str, target: &str) -> Record {
    let data = Data::Srv {
        priority: 0,
        weight: 100,
        port: 8_080,
        target: name(target),
    };
    record(of, data)
}

#[test]
fn r1_7_a_service_is_asked_of_every_domain_as_a_shared_name_is() {
    let view = in_network();
    let by = |text: &str, asker| planned(&view, text, T::A, asker);
    for text in [
        DB,
        "other.shop.svc.clusterset.local",
        "_http._tcp.db.shop.svc.clusterset.local",
    ] {
        assert_eq!(
            asked(by(text, ClientClass::Member)),
            ["red-north", "red-west"],
            "{text}"
        );
    }
    // R4.1: another router is told what is ours, and nobody is asked for it.
    let told = answered(by(DB, ClientClass::Remote));
    assert_eq!(addresses(&told), ["172.16.0.5"]);
    assert_eq!(told.decision, Decision::Service);
    let told = answered(by("other.shop.svc.clusterset.local", ClientClass::Remote));
    assert_eq!(told.rcode, Rcode::NX_DOMAIN);
    assert_eq!(told.authority[0].owner, name("clusterset.local"));
}

#[test]
fn r1_3_a_resolver_for_the_zone_has_a_say_about_services() {
    let mut cluster = three();
    cluster[0].suffixes = vec![name("clusterset.local")];
    cluster[1].suffixes = vec![name("local")];
    let view = in_network_with(cluster);
    let all = asked(planned(&view, DB, T::A, ClientClass::Member));
    assert_eq!(all, ["one", "red-north", "red-west"]);
    assert!(answered(planned(&view, DB, T::A, ClientClass::Remote)).is_positive());
}

#[test]
fn r1_7_an_endpoints_name_is_asked_of_its_cluster_alone() {
    let view = in_network();
    let of = |host: &str| planned(&view, &format!("{host}.{DB}"), T::A, ClientClass::Member);
    assert_eq!(asked(of("db-0.west")), ["red-west"]);
    assert_eq!(asked(of("west")), ["red-west"]);
    assert_eq!(addresses(&answered(of("web.east"))), ["172.16.0.5"]);
    assert_eq!(answered(of("db-0.atlantis")).rcode, Rcode::NX_DOMAIN);
    let version = planned(
        &view,
        "dns-version.clusterset.local",
        T::TXT,
        ClientClass::Member,
    );
    assert!(answered(version).is_positive(), "it is the same everywhere");
}

#[test]
fn r1_7_endpoints_of_all_domains_are_one_answer() {
    let mut bench = Bench::new(in_network());
    let asked = bench.ask(DB);
    bench.reply_from("west", positive(vec![address(DB, "172.16.4.7")]));
    bench.reply_from("north", code(Rcode::NX_DOMAIN));
    let mut all = addresses(&bench.answers[&asked]);
    all.sort_unstable();
    assert_eq!(all, ["172.16.0.5", "172.16.4.7"]);

    let port = format!("_http._tcp.{DB}");
    let target = format!("db-0.west.{DB}");
    let reply = Reply {
        additional: vec![address(&target, "172.16.4.7")],
        ..positive(vec![srv(&port, &target)])
    };
    let asked = bench.ask_from(MEMBER, &port, T::SRV);
    bench.reply_from("west", reply);
    bench.reply_from("north", code(Rcode::NX_DOMAIN));
    let answer = &bench.answers[&asked];
    assert_eq!(answer.answers.len(), 2);
    assert_eq!(answer.additional.len(), 2, "the addresses of both targets");
}

#[test]
fn r2_12_a_domain_speaks_for_its_own_endpoints_only() {
    let port = format!("_http._tcp.{DB}");
    for reply in [
        positive(vec![address(&port, "172.16.8.9")]),
        positive(vec![srv(&port, &format!("db-0.north.{DB}"))]),
        positive(vec![srv(&port, "db-0.example")]),
    ] {
        let view = in_network();
        let question = question(&port, T::SRV);
        let west = view
            .upstreams()
            .find(|upstream| upstream.label() == "west")
            .unwrap();
        let vote = classify(&view, &question, Flags::default(), west, &reply).vote;
        assert_eq!(vote, Vote::Failed(Failure::Foreign), "{reply:?}");
    }
}

#[test]
fn r2_5_a_silent_domain_is_a_missing_vote_for_a_service_nobody_else_has() {
    let mut bench = Bench::new(in_network());
    let text = "other.shop.svc.clusterset.local";
    let asked = bench.ask(text);
    bench.reply_from("west", code(Rcode::NX_DOMAIN));
    bench.settle();
    let answer = &bench.answers[&asked];
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::SERV_FAIL, Decision::VotesMissing)
    );
}
