//! Resolvers that were configured: who is asked, what they may say (R1.2, R1.3, R1.6, R2.8, R3.4,
//! R4.4, R6.6, R6.7, R7.4).

use std::sync::Arc;

use super::bench::{Bench, client_parts, configured, resolver, three};
use super::world::*;
use crate::names::{
    ClientClass, Data, Decision, ExtendedError, Flags, NetworkParts, Policy, Preference, Rcode,
    Record, RecordType, Reply, Tags, Transport, Upstream, View, ViewError, ViewParts,
};

use ClientClass::{Member, Remote};
use RecordType as T;

fn with_suffixes(id: &str, last: u8, suffixes: &[&str]) -> Upstream {
    Upstream {
        suffixes: suffixes.iter().map(|text| name(text)).collect(),
        ..resolver(id, last)
    }
}

fn mixed_view() -> View {
    let network = NetworkParts {
        document: Arc::new(document()),
        state: state(),
        shared_names: Policy::FirstPositive,
        port: 5_353,
    };
    let parts = ViewParts {
        network: Some(network),
        upstreams: vec![
            resolver("all", 1),
            with_suffixes("corp", 2, &["corp.example", "printers.local"]),
            with_suffixes("deep", 3, &["deep.west.red.test"]),
        ],
        ..ViewParts::default()
    };
    View::assemble(parts).unwrap()
}

#[test]
fn r1_2_an_upstream_has_an_address_a_class_a_weight_and_tags() {
    let upstream = Upstream {
        weight: 5,
        class: Preference::Local,
        transport: Transport::Tcp,
        tags: Tags {
            domain: Some("corp".to_owned()),
            site: Some("cellar".to_owned()),
        },
        ..resolver("one", 1)
    };
    let mut bench = Bench::configured(vec![upstream]);
    bench.ask("a.example");
    let query = &bench.queries[0];
    assert_eq!(
        (query.server, query.transport),
        (socket("192.0.2.1"), Transport::Tcp)
    );
    assert_eq!(
        (query.upstream.label(), query.upstream.id.as_str()),
        ("corp", "one")
    );
    let overlay = mixed_view();
    let ports: Vec<u16> = overlay
        .upstreams()
        .map(|upstream| upstream.servers[0].port())
        .collect();
    assert_eq!(ports, [5_353, 5_353, 53, 53, 53]);
}

#[test]
fn r1_3_the_longest_suffix_decides_among_resolvers() {
    let view = configured(vec![
        resolver("all", 1),
        resolver("all-too", 2),
        with_suffixes("corp", 3, &["corp.example", "corp.test"]),
        with_suffixes("deep", 4, &["deep.corp.example"]),
        with_suffixes("deep-too", 5, &["deep.corp.example", "example"]),
    ]);
    let asked_for = |text: &str| asked(planned(&view, text, T::A, Member));
    assert_eq!(asked_for("www.test"), ["all", "all-too"]);
    assert_eq!(asked_for("www.CORP.example"), ["corp"]);
    assert_eq!(asked_for("corp.test"), ["corp"]);
    assert_eq!(asked_for("a.deep.corp.example"), ["deep", "deep-too"]);
    assert_eq!(asked_for("example"), ["deep-too"]);
    assert_eq!(asked_for("xcorp.example"), ["deep-too"], "whole labels");
    assert_eq!(asked_for("."), ["all", "all-too"]);
    assert_eq!(asked_for("8.8.8.8.in-addr.arpa"), ["all", "all-too"]);
}

#[test]
fn r1_3_the_network_is_a_suffix_like_others() {
    let view = mixed_view();
    let asked_for = |text: &str| asked(planned(&view, text, T::A, Member));
    assert_eq!(asked_for("www.example"), ["all"]);
    assert_eq!(asked_for("db.west.red.test"), ["red-west"]);
    assert_eq!(asked_for("db.red.test"), ["red-north", "red-west"]);
    assert_eq!(
        asked_for("x.deep.west.red.test"),
        ["deep"],
        "the longer suffix"
    );
    assert_eq!(asked_for("9.4.16.172.in-addr.arpa"), ["red-west"]);
    let nobodys = answered(planned(&view, "db.south.red.test", T::A, Member));
    assert_eq!(nobodys.rcode, Rcode::NX_DOMAIN, "never leaves the router");
    let remote = answered(planned(&view, "www.example", T::A, Remote));
    assert_eq!(
        remote.decision,
        Decision::NotForAsker,
        "a router asks for itself (R4.1)"
    );
}

#[test]
fn r1_3_a_resolver_for_just_the_zone_votes_beside_its_owners() {
    let network = NetworkParts {
        document: Arc::new(document()),
        state: state(),
        shared_names: Policy::FirstPositive,
        port: 53,
    };
    let parts = ViewParts {
        network: Some(network),
        upstreams: vec![with_suffixes("beside", 1, &["red.test"])],
        ..ViewParts::default()
    };
    let view = View::assemble(parts).unwrap();
    let asked_for = |text: &str| asked(planned(&view, text, T::A, Member));
    assert_eq!(
        asked_for("db.red.test"),
        ["beside", "red-north", "red-west"]
    );
    assert_eq!(
        asked_for("db.west.red.test"),
        ["red-west"],
        "a member's tree is its own"
    );
    assert_eq!(asked_for("db.south.red.test"), ["beside"]);
}

#[test]
fn r1_6_special_names_leave_only_where_a_suffix_names_them() {
    let view = mixed_view();
    let special = |text: &str| answered(planned(&view, text, T::PTR, Member)).decision;
    for text in [
        "a.localhost",
        "x.invalid",
        "y.onion",
        "tv.local",
        "1.1.168.192.in-addr.arpa",
    ] {
        assert_eq!(special(text), Decision::SpecialUse, "{text}");
    }
    let named = asked(planned(&view, "hp.printers.local", T::A, Member));
    assert_eq!(named, ["corp"]);
    let reverse = configured(vec![with_suffixes("ptr", 1, &["168.192.in-addr.arpa"])]);
    let text = "1.1.168.192.in-addr.arpa";
    assert_eq!(asked(planned(&reverse, text, T::PTR, Member)), ["ptr"]);
    let other = answered(planned(&reverse, "1.2.3.10.in-addr.arpa", T::PTR, Member));
    assert_eq!(other.rcode, Rcode::NX_DOMAIN);
    let arpa = configured(vec![with_suffixes("arpa", 1, &["arpa"])]);
    assert_eq!(
        answered(planned(&arpa, text, T::PTR, Member)).rcode,
        Rcode::NX_DOMAIN
    );
}

#[test]
fn r1_6_a_name_without_an_upstream_is_refused() {
    let view = configured(vec![with_suffixes("corp", 1, &["corp.example"])]);
    let answer = answered(planned(&view, "www.example", T::A, Member));
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::REFUSED, Decision::Outside)
    );
    let localhost = answered(planned(&view, "localhost", T::A, Member));
    assert_eq!(addresses(&localhost), ["127.0.0.1"]);
}

#[test]
fn r6_6_who_may_ask_is_configured() {
    let mut bench = Bench::configured(three());
    let stranger = bench.ask_from("203.0.113.9", "a.example", T::A);
    assert_eq!(bench.answers[&stranger].rcode, Rcode::REFUSED);
    assert!(bench.queries.is_empty());
    assert!(
        View::assemble(ViewParts::default())
            .unwrap()
            .client_class(ip(MEMBER))
            .is_none()
    );
}

#[test]
fn r2_2_the_policy_of_the_longest_suffix_holds() {
    let parts = ViewParts {
        upstreams: three(),
        policies: vec![
            (name("."), Policy::Race),
            (name("example"), Policy::Union),
            (name("b.example"), Policy::Weighted),
        ],
        ..client_parts()
    };
    let view = View::assemble(parts).unwrap();
    let policy = |text: &str| match planned(&view, text, T::A, Member) {
        crate::names::Plan::Ask(ask) => ask.policy,
        other => panic!("{other:?}"),
    };
    assert_eq!(policy("www.test"), Policy::Race);
    assert_eq!(policy("www.example"), Policy::Union);
    assert_eq!(policy("x.b.example"), Policy::Weighted);
}

#[test]
fn r4_4_r7_4_bad_upstreams_are_all_named_at_once() {
    let mut twice = resolver("one", 1);
    twice.servers = vec!["127.0.0.1:5300".parse().unwrap()];
    let nothing = Upstream::outside("none", Vec::new());
    let mapped = Upstream::outside("mapped", vec!["[::ffff:127.0.0.1]:5300".parse().unwrap()]);
    let other_port = Upstream::outside("other", vec!["127.0.0.1:5301".parse().unwrap()]);
    let parts = ViewParts {
        upstreams: vec![resolver("one", 1), twice, nothing, mapped, other_port],
        listeners: vec!["127.0.0.1:5300".parse().unwrap()],
        ..client_parts()
    };
    let errors = View::assemble(parts).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(matches!(&errors[0], ViewError::Twice(id) if id.as_str() == "one"));
    assert!(matches!(&errors[1], ViewError::OwnListener { .. }));
    assert!(matches!(&errors[2], ViewError::NoAddress(id) if id.as_str() == "none"));
    assert_eq!(
        errors[3].to_string(),
        "upstream mapped: [::ffff:127.0.0.1]:5300 is our own listener; asking it would loop"
    );
}

/// Says the same to every question.
fn told_by(upstream: Upstream, reply: Reply) -> (Arc<crate::names::Answer>, u64) {
    let mut bench = Bench::configured(vec![upstream]);
    let asked = bench.ask("a.example");
    bench.reply(0, reply);
    (
        bench.answers[&asked].clone(),
        bench.resolver.counters().private_removed,
    )
}

#[test]
fn r6_7_private_addresses_from_outside_are_removed() {
    let private = [
        "10.0.0.1",
        "192.168.1.1",
        "172.16.4.9",
        "127.0.0.1",
        "169.254.0.1",
        "0.0.0.0",
    ];
    let mut records: Vec<Record> = private
        .iter()
        .map(|text| address("a.example", text))
        .collect();
    let (gone, removed) = told_by(resolver("one", 1), positive(records.clone()));
    assert!(gone.is_nodata() && removed == 6, "{gone:?}");
    records.push(address("a.example", "198.51.100.7"));
    let (left, _) = told_by(resolver("one", 1), positive(records.clone()));
    assert_eq!(addresses(&left), ["198.51.100.7"]);
    let allowed = Upstream {
        allow_private: true,
        ..resolver("one", 1)
    };
    assert_eq!(
        told_by(allowed, positive(records.clone())).0.answers.len(),
        7
    );
    let local = Upstream {
        class: Preference::Local,
        ..resolver("one", 1)
    };
    assert_eq!(told_by(local, positive(records)).0.answers.len(), 7);
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    let asked = bench.ask_from(MEMBER, "a.example", T::AAAA);
    let six = [
        "fd00::1",
        "fe80::1",
        "::1",
        "::ffff:10.0.0.1",
        "2001:db8::1",
    ];
    bench.reply(
        0,
        positive(six.iter().map(|text| address("a.example", text)).collect()),
    );
    assert_eq!(addresses(&bench.answers[&asked]), ["2001:db8::1"]);
}

#[test]
fn r3_4_authentic_data_are_said_to_be_so_by_trusted_upstreams_only() {
    let reply = Reply {
        authenticated: true,
        ..positive(vec![address("a.example", "198.51.100.7")])
    };
    assert!(!told_by(resolver("one", 1), reply.clone()).0.authenticated);
    let trusted = Upstream {
        trusted: true,
        ..resolver("one", 1)
    };
    assert!(told_by(trusted.clone(), reply.clone()).0.authenticated);
    let silent = Reply {
        authenticated: false,
        ..reply
    };
    assert!(!told_by(trusted, silent).0.authenticated);
}

#[test]
fn r2_4_resolvers_without_an_opinion_refuse_together_and_a_network_error_is_said_to_be_one() {
    let mut bench = Bench::configured(three());
    let asked = bench.ask("a.example");
    for label in ["one", "two", "three"] {
        bench.reply_from(label, code(Rcode::REFUSED));
    }
    let refused = bench.answers[&asked].clone();
    assert_eq!(
        (refused.rcode, refused.decision),
        (Rcode::REFUSED, Decision::NoOpinion)
    );
    let asked = bench.ask("b.example");
    for at in 3.. {
        if bench.answers.contains_key(&asked) {
            break;
        }
        let query = bench.queries[at].clone();
        bench.fail(&query, crate::names::Failure::Network);
    }
    let extended = bench.answers[&asked].extended.clone().unwrap();
    assert_eq!(extended.code, ExtendedError::NETWORK_ERROR);
}

fn union_of(replies: [Reply; 3], rtype: T, flags: Flags) -> Arc<crate::names::Answer> {
    let parts = ViewParts {
        upstreams: three(),
        policies: vec![(name("."), Policy::Union)],
        ..client_parts()
    };
    let mut bench = Bench::new(Arc::new(View::assemble(parts).unwrap()));
    let mut asking = bench.asking(MEMBER, "a.example", rtype);
    asking.flags = flags;
    let asked = bench.ask_this(asking);
    for (label, reply) in ["one", "two", "three"].into_iter().zip(replies) {
        bench.reply_from(label, reply);
    }
    bench.answers[&asked].clone()
}

#[test]
fn r2_8_sets_that_make_sense_only_whole_are_not_merged() {
    let a = |last: u8| positive(vec![address("a.example", &format!("198.51.100.{last}"))]);
    let three_of = |replies, rtype, flags| union_of(replies, rtype, flags).answers.len();
    let plain = Flags::default();
    assert_eq!(three_of([a(1), a(2), a(3)], T::A, plain), 3);
    let dnssec_ok = Flags {
        dnssec_ok: true,
        ..plain
    };
    let checking_disabled = Flags {
        checking_disabled: true,
        ..plain
    };
    assert_eq!(three_of([a(1), a(2), a(3)], T::A, dnssec_ok), 1);
    assert_eq!(three_of([a(1), a(2), a(3)], T::A, checking_disabled), 1);
    for rtype in [T::SOA, T::NS, T::DS, T::DNSKEY] {
        let one = |octet: u8| {
            let data = match rtype {
                T::SOA => Data::Soa(crate::names::Soa {
                    mname: name("a.example"),
                    rname: name("b.example"),
                    serial: u32::from(octet),
                    refresh: 1,
                    retry: 1,
                    expire: 1,
                    minimum: 1,
                }),
                _ => Data::Opaque {
                    rtype,
                    data: vec![octet],
                },
            };
            positive(vec![record("a.example", data)])
        };
        assert_eq!(
            three_of([one(1), one(2), one(3)], rtype, plain),
            1,
            "{rtype:?}"
        );
    }
    let alias = |target: &str, last: u8| {
        positive(vec![
            record("a.example", Data::Cname(name(target))),
            address(target, &format!("198.51.100.{last}")),
        ])
    };
    let mixed = union_of([a(1), alias("b.example", 2), a(3)], T::A, plain);
    assert!(mixed.answers.len() <= 2, "an alias stands alone: {mixed:?}");
    let same = union_of(
        [
            alias("b.example", 1),
            alias("b.example", 2),
            alias("b.example", 1),
        ],
        T::A,
        plain,
    );
    assert_eq!(same.answers.len(), 3, "one alias, two addresses");
}

#[test]
fn r2_7_addresses_of_targets_are_merged_like_the_records() {
    let service = |target: &str, last: u8| {
        let srv = Data::Srv {
            priority: 0,
            weight: 0,
            port: 80,
            target: name(target),
        };
        Reply {
            additional: vec![address(target, &format!("198.51.100.{last}"))],
            ..positive(vec![record("a.example", srv)])
        }
    };
    let replies = [
        service("x.example", 1),
        service("y.example", 2),
        service("x.example", 1),
    ];
    let answer = union_of(replies, T::SRV, Flags::default());
    assert_eq!((answer.answers.len(), answer.additional.len()), (2, 2));
}

#[test]
fn r3_5_types_that_nobody_here_knows_pass_unchanged() {
    let mut bench = Bench::configured(vec![resolver("one", 1)]);
    let rtype = RecordType(64_999);
    let asked = bench.ask_from(MEMBER, "a.example", rtype);
    assert_eq!(bench.queries[0].question.rtype, rtype);
    let data = Data::Opaque {
        rtype,
        data: vec![0, 255, 7],
    };
    bench.reply(0, positive(vec![record("a.example", data.clone())]));
    assert_eq!(bench.answers[&asked].answers[0].data, data);
    let transfer = bench.ask_from(MEMBER, "a.example", RecordType(252));
    assert_eq!(bench.answers[&transfer].rcode, Rcode::REFUSED);
}

#[test]
fn r2_1_aliases_to_nothing_are_told_with_the_denial() {
    let mut reply = code(Rcode::NX_DOMAIN);
    reply.answers = vec![record("a.example", Data::Cname(name("b.example")))];
    let (answer, _) = told_by(resolver("one", 1), reply.clone());
    assert_eq!((answer.rcode, answer.answers.len()), (Rcode::NX_DOMAIN, 1));
    reply.rcode = Rcode::NO_ERROR;
    let (answer, _) = told_by(resolver("one", 1), reply);
    assert_eq!((answer.rcode, answer.answers.len()), (Rcode::NO_ERROR, 1));
}
