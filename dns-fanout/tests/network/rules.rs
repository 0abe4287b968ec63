//! Names, fan-out and merge through the whole server.

use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType as T;
use vl3_proto::vl3::router::v1::{DomainServer, LocalName};

use crate::client::{addresses, ask, ask_from, exchange, extended, query, with_edns};
use crate::stage::{MEMBER, REMOTE, SIBLING, Stage, eventually, eventually_true};
use crate::upstream::{honest, knows_nothing, silent};

const WEST: &[&str] = &["172.16.4.9"];
const NORTH: &[&str] = &["172.16.8.9"];

#[tokio::test]
async fn r1_4_the_question_comes_back_as_it_was_spelled() {
    let stage = Stage::new(vec![honest(WEST), knows_nothing()]).await;
    for name in ["WeB.eAsT.Red.TEST.", "dB.West.rED.test."] {
        let reply = ask(&stage, name, T::A).await;
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        assert_eq!(
            reply.answers[0].name.to_ascii(),
            name,
            "so does the owner of the answer"
        );
    }
    let asked = &stage.upstreams[0].all()[0];
    assert_eq!(
        asked.message.queries[0].name().to_ascii(),
        "db.west.red.test."
    );
}

#[tokio::test]
async fn r1_5_local_names_answer_in_both_families_with_authority() {
    let stage = Stage::new(vec![silent(), silent()]).await;
    for (name, rtype, expected) in [
        ("web.east.red.test.", T::A, "172.16.0.5"),
        ("web.red.test.", T::AAAA, "fd77::1:0:0:5"),
    ] {
        let reply = ask(&stage, name, rtype).await;
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(addresses(&reply), [expected]);
        assert_eq!(reply.answers[0].ttl, 30);
    }
    let pointer = ask(&stage, "5.0.16.172.in-addr.arpa.", T::PTR).await;
    assert_eq!(pointer.answers[0].data.to_string(), "web.east.red.test.");
    assert_eq!(
        stage.upstreams[0].count() + stage.upstreams[1].count(),
        0,
        "nobody was asked"
    );
}

#[tokio::test]
async fn r1_5_names_come_and_go_with_the_routers_state() {
    let stage = Stage::new(vec![knows_nothing(), knows_nothing()]).await;
    stage.change(|state| {
        state.names = vec![LocalName {
            name: "app".to_owned(),
            addresses: vec!["172.16.0.8".to_owned()],
        }];
    });
    eventually_true("app is there", || async {
        addresses(&ask(&stage, "app.east.red.test.", T::A).await) == ["172.16.0.8"]
    })
    .await;
    assert_eq!(
        ask(&stage, "web.east.red.test.", T::A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn r1_8_canonical_names_ask_one_domain_shared_names_all() {
    // A union waits for all: the first positive answer would call the other query off.
    let stage = Stage::with(vec![honest(WEST), honest(NORTH)], |config| {
        config.shared_names = vl3_core::names::Policy::Union;
    })
    .await;
    let counts = || (stage.upstreams[0].count(), stage.upstreams[1].count());
    let (west, north) = counts();
    assert_eq!(
        addresses(&ask(&stage, "db.north.red.test.", T::A).await),
        NORTH
    );
    assert_eq!(counts(), (west, north + 1));
    let shared = ask(&stage, "db.red.test.", T::A).await;
    assert_eq!(shared.answers.len(), WEST.len() + NORTH.len());
    assert_eq!(counts(), (west + 1, north + 2));
}

#[tokio::test]
async fn r2_2_union_gives_all_positive_answers() {
    let stage = Stage::with(vec![honest(WEST), honest(NORTH)], |config| {
        config.shared_names = vl3_core::names::Policy::Union;
    })
    .await;
    let mut found = addresses(&ask(&stage, "db.red.test.", T::A).await);
    found.sort();
    assert_eq!(found, [WEST, NORTH].concat());
}

#[tokio::test]
async fn r2_3_a_silent_domain_does_not_delay_a_positive_answer() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    assert_eq!(addresses(&ask(&stage, "db.red.test.", T::A).await), WEST);
}

#[tokio::test]
async fn r2_4_a_name_that_nobody_has_is_nxdomain_with_a_soa() {
    let stage = Stage::new(vec![knows_nothing(), knows_nothing()]).await;
    let reply = ask(&stage, "nowhere.red.test.", T::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(
        (reply.authorities[0].record_type(), reply.authorities[0].ttl),
        (T::SOA, 30)
    );
    let nodata = ask(&stage, "db.south.red.test.", T::A).await;
    assert_eq!(
        nodata.metadata.response_code,
        ResponseCode::NXDomain,
        "no member, nobody asked"
    );
}

#[tokio::test]
async fn r2_5_a_missing_vote_is_servfail_that_names_the_domain() {
    let stage = Stage::new(vec![knows_nothing(), silent()]).await;
    let reply = ask(&stage, "nowhere.red.test.", T::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(
        extended(&reply),
        Some((22, "no answer from north".to_owned()))
    );
    stage
        .counts("vl3_dns_votes_missing_total{reason=\"timed_out\"}", 1)
        .await;
}

#[tokio::test]
async fn r2_5_a_domain_without_a_live_server_is_servfail_at_once() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    stage.change(|state| state.servers.retain(|server| server.domain != "north"));
    eventually_true("nobody is asked and nobody waited for", || async {
        let start = Instant::now();
        let reply = ask(&stage, "db.north.red.test.", T::A).await;
        assert_eq!(
            extended(&reply),
            Some((22, "no answer from north".to_owned()))
        );
        start.elapsed().as_millis() < 700
    })
    .await;
    let known = ask(&stage, "db.red.test.", T::AAAA).await;
    assert_eq!(
        (known.metadata.response_code, known.authorities[0].ttl),
        (ResponseCode::NoError, 5)
    );
}

#[tokio::test]
async fn r2_12_what_a_domain_may_not_say_is_dropped_and_counted() {
    let stage = Stage::new(vec![honest(&["172.16.8.66"]), honest(NORTH)]).await;
    let lied = ask(&stage, "db.west.red.test.", T::A).await;
    assert_eq!(lied.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(
        addresses(&ask(&stage, "db.red.test.", T::A).await),
        NORTH,
        "the honest one counts"
    );
    eventually("it is counted", || {
        stage.figure("vl3_dns_votes_missing_total{reason=\"foreign\"}") >= 1
    })
    .await;
}

#[tokio::test]
async fn r4_1_routers_get_what_the_order_of_packets_allows_and_start_nothing() {
    let stage = Stage::new(vec![honest(WEST), honest(NORTH)]).await;
    for router in [REMOTE, SIBLING] {
        assert!(!addresses(&ask_from(&stage, router, "web.red.test.", T::A).await).is_empty());
        let shared = ask_from(&stage, router, "db.red.test.", T::A).await;
        assert_eq!(shared.metadata.response_code, ResponseCode::NXDomain);
        let foreign = ask_from(&stage, router, "db.west.red.test.", T::A).await;
        assert_eq!(foreign.metadata.response_code, ResponseCode::Refused);
    }
    assert_eq!(
        stage.upstreams[0].count() + stage.upstreams[1].count(),
        0,
        "none onward"
    );
    let stranger = ask_from(&stage, "127.0.9.9", "web.red.test.", T::A).await;
    assert_eq!(stranger.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn r4_1_overlay_queries_do_not_ask_for_recursion_and_bring_no_options() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    let mut message = with_edns(query("db.west.red.test.", T::A), 4_096);
    let cookie = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(10, vec![1; 8]);
    message.edns.as_mut().unwrap().options_mut().insert(cookie);
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    exchange(stage.address(), MEMBER, &message.to_vec().unwrap())
        .await
        .unwrap();
    let asked = &stage.upstreams[0].all()[0].message;
    assert!(!asked.metadata.recursion_desired);
    let edns = asked.edns.as_ref().unwrap();
    assert_eq!(
        (
            edns.max_payload(),
            edns.flags().dnssec_ok,
            edns.options().options.len()
        ),
        (1232, true, 0)
    );
    assert_ne!(
        asked.metadata.id, message.metadata.id,
        "an ID of our own (as good as always)"
    );
}

#[tokio::test]
async fn r4_4_a_server_at_our_own_address_is_not_asked() {
    let stage = Stage::new(vec![honest(WEST), honest(NORTH)]).await;
    let own = stage.address().ip().to_string();
    stage.change(|state| {
        state.servers = vec![DomainServer {
            domain: "west".to_owned(),
            router: "red-west".to_owned(),
            addresses: vec![own.clone()],
            sibling: false,
        }];
    });
    let turn = std::sync::atomic::AtomicU32::new(0);
    eventually_true("west is not asked", || async {
        // Another name each time: an answer of before is told again.
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ask(&stage, &format!("db{turn}.west.red.test."), T::A)
            .await
            .metadata
            .response_code
            == ResponseCode::ServFail
    })
    .await;
}
