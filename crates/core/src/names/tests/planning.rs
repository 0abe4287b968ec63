//! Who is asked, what is answered at once (R1, R4.1, R4.4).

use super::world::*;
use crate::names::{
    ClientClass, Data, Decision, ExtendedError, LocalName, Policy, Question, Rcode, RecordType,
    ResolverState,
};
use crate::time::{Mono, Wall};

use ClientClass::{Member, Remote, Sibling};
use RecordType as T;

#[test]
fn r1_1_the_same_name_has_another_answer_in_another_view() {
    let red = view();
    let mut other = state();
    other.names.clear();
    let mut document = document();
    document.uid.0[0] = 1;
    let blue = view_of(
        document,
        ResolverState {
            servers: Vec::new(),
            ..other
        },
        Policy::FirstPositive,
    );
    let local = |view| answered(planned(view, "web.east.red.test", T::A, Member));
    assert_eq!(addresses(&local(&red)), ["172.16.0.5"]);
    assert_eq!(local(&blue).rcode, Rcode::NX_DOMAIN);
}

#[test]
fn r1_2_whom_to_ask_follows_the_document_not_the_router_alone() {
    let mut document = document();
    document.members.get_mut(&domain("west")).unwrap().revoked = true;
    document
        .members
        .get_mut(&domain("north"))
        .unwrap()
        .not_after = Some(Wall::from_unix_secs(2_000));
    let view = view_of(document, state(), Policy::FirstPositive);
    assert_eq!(
        asked(planned(&view, "db.red.test", T::A, Member)),
        ["red-north"]
    );
    let gone = answered(planned(&view, "db.west.red.test", T::A, Member));
    assert_eq!(gone.rcode, Rcode::NX_DOMAIN);
}

#[test]
fn r1_3_the_longest_suffix_decides_who_is_asked() {
    let view = view();
    assert_eq!(
        asked(planned(&view, "db.west.red.test", T::A, Member)),
        ["red-west"]
    );
    assert_eq!(
        asked(planned(&view, "DB.kiosk.West.RED.test", T::A, Member)),
        ["red-west"],
        "a leaf's names are its domain's"
    );
    assert_eq!(
        asked(planned(&view, "db.red.test", T::A, Member)),
        ["red-north", "red-west"]
    );
}

#[test]
fn r1_3_a_reverse_name_goes_to_the_domain_whose_block_holds_the_address() {
    let view = view();
    assert_eq!(
        asked(planned(&view, "9.4.16.172.in-addr.arpa", T::PTR, Member)),
        ["red-west"]
    );
    let six = crate::names::Name::reverse_of(ip("fd77::3:0:0:9")).to_string();
    assert_eq!(asked(planned(&view, &six, T::PTR, Member)), ["red-north"]);
    let unowned = answered(planned(&view, "9.200.16.172.in-addr.arpa", T::PTR, Member));
    assert_eq!(
        (unowned.rcode, unowned.decision),
        (Rcode::NX_DOMAIN, Decision::NoOwner)
    );
    let part = answered(planned(&view, "16.172.in-addr.arpa", T::SOA, Member));
    assert!(part.is_nodata(), "full names exist below it: {part:?}");
}

#[test]
fn r1_5_local_records_answer_with_authority_and_a_short_life() {
    let mut state = state();
    let leased = LocalName {
        addresses: [ip("172.16.0.7")].into(),
        lease_until: Some(Mono::from_secs(12)),
    };
    state.names.insert("short".parse().unwrap(), leased);
    let view = view_of(document(), state, Policy::FirstPositive);
    for text in ["web.east.red.test", "web.red.test"] {
        let answer = answered(planned(&view, text, T::AAAA, Member));
        assert!(
            answer.authoritative && answer.decision == Decision::Local,
            "{answer:?}"
        );
        assert_eq!(answer.answers, [address(text, "fd77::1:0:0:5")]);
        assert_eq!(answer.answers[0].ttl, 30);
    }
    let short = answered(planned(&view, "short.east.red.test", T::A, Member));
    assert_eq!(short.answers[0].ttl, 12, "never above the remaining lease");
    let pointer = answered(planned(&view, "5.0.16.172.in-addr.arpa", T::PTR, Member));
    assert_eq!(
        pointer.answers[0].data,
        Data::Ptr(name("web.east.red.test"))
    );
    assert!(pointer.authoritative);
}

#[test]
fn r1_5_a_name_that_left_the_state_is_gone_at_once() {
    let mut state = state();
    state.names.clear();
    let view = view_of(document(), state, Policy::FirstPositive);
    assert_eq!(
        answered(planned(&view, "web.east.red.test", T::A, Member)).rcode,
        Rcode::NX_DOMAIN
    );
}

#[test]
fn r1_5_a_known_name_without_the_type_is_nodata_with_a_soa() {
    let view = view();
    for (text, rtype) in [
        ("six.east.red.test", T::A),
        ("six.red.test", T::A),
        ("web.east.red.test", T::TXT),
        ("red.test", T::A),
    ] {
        let answer = answered(planned(&view, text, rtype, Member));
        assert!(answer.is_nodata(), "{text}: {answer:?}");
        assert!(matches!(&answer.authority[..], [soa] if soa.owner == name(ZONE) && soa.ttl == 30));
    }
    let soa = answered(planned(&view, ZONE, T::SOA, Member));
    assert!(matches!(&soa.answers[0].data, Data::Soa(soa) if soa.serial == 4));
    let any = answered(planned(&view, "web.east.red.test", T::ANY, Member));
    assert_eq!(
        addresses(&any),
        ["172.16.0.5"],
        "one type is enough (RFC 8482)"
    );
}

#[test]
fn r1_6_special_names_are_answered_at_once() {
    let view = view();
    let localhost = answered(planned(&view, "localhost", T::AAAA, Member));
    assert_eq!(addresses(&localhost), ["::1"]);
    assert_eq!(
        addresses(&answered(planned(&view, "a.localhost", T::A, Member))),
        ["127.0.0.1"]
    );
    assert!(answered(planned(&view, "localhost", T::TXT, Member)).is_nodata());
    let special = [
        "x.invalid",
        "abc.onion",
        "printer.local",
        "1.1.168.192.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
        "1.2.3.10.in-addr.arpa",
        "9.8.e.f.ip6.arpa",
        "1.64.100.in-addr.arpa",
        "d.f.ip6.arpa",
    ];
    for text in special {
        let answer = answered(planned(&view, text, T::PTR, Member));
        if text == "d.f.ip6.arpa" {
            assert!(
                answer.is_nodata(),
                "the network's own addresses are below it"
            );
            continue;
        }
        assert_eq!(
            (answer.rcode, answer.decision),
            (Rcode::NX_DOMAIN, Decision::SpecialUse),
            "{text}"
        );
        assert!(
            name(text).is_at_or_below(&answer.authority[0].owner),
            "{text}: {:?}",
            answer.authority
        );
    }
}

#[test]
fn r1_6_a_zone_below_a_special_name_is_served() {
    let mut document = document();
    document.zone = "red.local".to_owned();
    let view = view_of(document, state(), Policy::FirstPositive);
    assert_eq!(
        addresses(&answered(planned(&view, "web.red.local", T::A, Member))),
        ["172.16.0.5"]
    );
    assert_eq!(
        answered(planned(&view, "blue.local", T::A, Member)).rcode,
        Rcode::NX_DOMAIN
    );
}

#[test]
fn r1_8_a_domain_label_that_is_no_member_is_nxdomain_at_once() {
    let view = view();
    let answer = answered(planned(&view, "db.south.red.test", T::A, Member));
    assert_eq!(
        (answer.rcode, answer.decision),
        (Rcode::NX_DOMAIN, Decision::NoOwner)
    );
}

#[test]
fn r1_8_shared_names_come_from_domains_that_may_contribute() {
    let mut document = document();
    document.policy.shared_names = [domain("north"), domain("west")].into();
    let view = view_of(document, state(), Policy::FirstPositive);
    assert_eq!(
        asked(planned(&view, "web.red.test", T::A, Member)),
        ["red-north", "red-west"],
        "east may not"
    );
    assert_eq!(
        answered(planned(&view, "web.red.test", T::A, Remote)).rcode,
        Rcode::NX_DOMAIN
    );
    assert!(answered(planned(&view, "web.east.red.test", T::A, Member)).is_positive());
}

#[test]
fn r1_8_a_members_own_label_exists_whatever_the_others_say() {
    let view = view();
    let crate::names::Plan::Ask(ask) = planned(&view, "west.red.test", T::A, Member) else {
        panic!("a shared name could still have it");
    };
    let answer = merged(&view, "west.red.test", ask.policy, &ask.votes);
    assert!(answer.is_nodata());
}

#[test]
fn r1_9_a_domain_without_a_live_server_is_a_missing_vote_at_once() {
    let mut state = state();
    state.servers = vec![
        server("west", "172.16.4.1", false),
        server("north", "", false),
    ];
    let view = view_of(document(), state, Policy::FirstPositive);
    let answer = answered(planned(&view, "db.north.red.test", T::A, Member));
    assert_eq!(answer.rcode, Rcode::SERV_FAIL);
    let extended = answer.extended.unwrap();
    assert_eq!(
        (extended.code, extended.text.as_str()),
        (
            ExtendedError::NO_REACHABLE_AUTHORITY,
            "no answer from north"
        )
    );
    assert_eq!(
        asked(planned(&view, "db.red.test", T::A, Member)),
        ["red-west"],
        "the others are still asked"
    );
}

#[test]
fn r1_9_one_live_server_per_domain_is_asked() {
    let mut state = state();
    state.servers.push(server("west", "172.16.5.1", false));
    let view = view_of(document(), state, Policy::FirstPositive);
    assert_eq!(
        asked(planned(&view, "db.west.red.test", T::A, Member)).len(),
        1
    );
}

/// R1.11: with one search suffix behind the host's own, a resolver of musl tries
/// `www.example.com.red.test` and goes on only after NXDOMAIN.
#[test]
fn r1_11_names_with_the_search_suffix_are_nxdomain_without_asking_anybody() {
    let view = view();
    let answer = answered(planned(&view, "www.example.com.red.test", T::AAAA, Member));
    assert_eq!(answer.rcode, Rcode::NX_DOMAIN);
    let outside = answered(planned(&view, "www.example.com", T::A, Member));
    assert_eq!(
        (outside.rcode, outside.decision),
        (Rcode::REFUSED, Decision::Outside)
    );
}

#[test]
fn r4_1_a_remote_router_gets_our_names_and_our_siblings_only() {
    let mut state = state();
    state.servers.push(server("east", "172.16.1.1", true));
    let view = view_of(document(), state, Policy::FirstPositive);
    assert!(answered(planned(&view, "web.east.red.test", T::A, Remote)).is_positive());
    assert_eq!(
        asked(planned(&view, "db.east.red.test", T::A, Remote)),
        ["red-east-2"]
    );
    assert_eq!(
        asked(planned(&view, "db.red.test", T::A, Remote)),
        ["red-east-2"],
        "never another domain"
    );
    let other = answered(planned(&view, "db.north.red.test", T::A, Remote));
    assert_eq!(
        (other.rcode, other.decision),
        (Rcode::REFUSED, Decision::NotForAsker)
    );
    assert_eq!(
        answered(planned(&view, "9.8.16.172.in-addr.arpa", T::PTR, Remote)).rcode,
        Rcode::REFUSED
    );
}

#[test]
fn r4_1_a_sibling_gets_our_own_names_only() {
    let mut state = state();
    state.servers.push(server("east", "172.16.1.1", true));
    let view = view_of(document(), state, Policy::FirstPositive);
    assert!(answered(planned(&view, "web.red.test", T::A, Sibling)).is_positive());
    for text in ["db.east.red.test", "db.red.test"] {
        let answer = answered(planned(&view, text, T::A, Sibling));
        assert_eq!(answer.rcode, Rcode::NX_DOMAIN, "{text}: asked nobody");
        assert!(answer.authoritative);
    }
    assert_eq!(
        answered(planned(&view, "db.north.red.test", T::A, Sibling)).rcode,
        Rcode::REFUSED
    );
}

#[test]
fn r4_1_a_member_gets_siblings_names_too_and_a_dead_sibling_is_a_missing_vote() {
    let mut state = state();
    state.servers.push(server("east", "172.16.1.1", true));
    let live = view_of(document(), state.clone(), Policy::FirstPositive);
    assert_eq!(
        asked(planned(&live, "db.red.test", T::A, Member)),
        ["red-east-2", "red-north", "red-west"]
    );
    state.servers.last_mut().unwrap().addresses.clear();
    let dead = view_of(document(), state, Policy::FirstPositive);
    let answer = answered(planned(&dead, "db.east.red.test", T::A, Member));
    assert_eq!(answer.rcode, Rcode::SERV_FAIL, "its names may live");
}

#[test]
fn r4_1_who_asks_is_the_longest_prefix_of_the_source() {
    let mut state = state();
    state
        .clients
        .push(("172.16.0.0/16".parse().unwrap(), Remote));
    state
        .clients
        .push(("172.16.0.9/32".parse().unwrap(), Sibling));
    state.clients.push(("fd77::/64".parse().unwrap(), Remote));
    let view = view_of(document(), state, Policy::FirstPositive);
    let class = |text| view.client_class(ip(text));
    assert_eq!(class(MEMBER), Some(Member));
    assert_eq!(class("172.16.0.9"), Some(Sibling));
    assert_eq!(class("172.16.99.1"), Some(Remote));
    assert_eq!(class("::ffff:172.16.0.5"), Some(Member));
    assert_eq!(class("fd77::9"), Some(Remote));
    assert_eq!(class("10.0.0.1"), None);
}

#[test]
fn r4_4_our_own_listener_is_never_an_upstream() {
    let mut state = state();
    state.servers = vec![
        server("west", "172.16.0.1", false),
        server("north", "fd77::1:0:0:1 172.16.8.1", false),
    ];
    let view = view_of(document(), state, Policy::FirstPositive);
    assert_eq!(
        view.network().unwrap().rejected_servers(),
        [ip("172.16.0.1"), ip("fd77::1:0:0:1")]
    );
    assert_eq!(
        answered(planned(&view, "db.west.red.test", T::A, Member)).rcode,
        Rcode::SERV_FAIL
    );
    assert_eq!(
        asked(planned(&view, "db.north.red.test", T::A, Member)),
        ["red-north"]
    );
}

#[test]
fn r6_3_other_classes_and_transfers_are_refused() {
    let view = view();
    let answer = |rtype, class| {
        let question = Question {
            class,
            ..question("version.bind", rtype)
        };
        answered(crate::names::plan(&view, &question, Member, at(0))).rcode
    };
    assert_eq!(answer(T::TXT, 3), Rcode::REFUSED);
    assert_eq!(answer(RecordType(252), 1), Rcode::REFUSED);
    assert_eq!(answer(RecordType(251), 1), Rcode::REFUSED);
    assert_eq!(answer(RecordType(41), 1), Rcode::NOT_IMP);
    assert_eq!(answer(RecordType(0), 1), Rcode::NOT_IMP);
}
