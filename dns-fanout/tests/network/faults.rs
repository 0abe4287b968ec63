//! One of three servers is stopped, closed, lossy, slow or lying: right answers, counted, and
//! nothing that stays behind. How fast, the bench `dns faults` measures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType as T};
use tokio::net::UdpSocket;
use vl3_core::names::{Preference, Upstream as Configured};

use crate::client::{addresses, ask, extended, query, with_edns};
use crate::stage::{Stage, eventually, eventually_true};
use crate::standalone::{Alone, CLIENT, configured};
use crate::upstream::{
    Asked, Behaviour, Sent, Upstream, a_record, alias, knows_nothing, octets, reply, with_addresses,
};

const OWN: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
const LABELS: [&str; 3] = ["one", "two", "three"];

/// Has the names that begin with its own label, and says NXDOMAIN of all others.
fn of_its_own(number: usize, asked: &Asked) -> Message {
    let name = asked.message.queries[0].name().to_lowercase().to_string();
    if name.starts_with(LABELS[number]) {
        with_addresses(asked, &[OWN[number]])
    } else {
        reply(asked, ResponseCode::NXDomain)
    }
}

fn honest(number: usize) -> Behaviour {
    Box::new(move |asked| vec![Sent::Reply(octets(&of_its_own(number, asked)))])
}

/// Three servers, of which the first is as given. Each has names that no other has.
async fn three(first: Behaviour) -> (Alone, Vec<Upstream>) {
    let servers = Upstream::several(vec![first, honest(1), honest(2)]).await;
    let list = servers.iter().zip(LABELS);
    let list = list.map(|(server, label)| overlay(configured(label, server, &[])));
    (Alone::new(list.collect(), |_| {}).await, servers)
}

/// Nobody else has its names.
fn overlay(mut upstream: Configured) -> Configured {
    upstream.class = Preference::Overlay;
    upstream
}

/// Every name of the second and third server is there at once, and each time.
async fn others_are_right(alone: &Alone, round: &str) {
    for number in 0..20 {
        for other in [1, 2] {
            let label = LABELS[other];
            let found = alone
                .ask(&format!("{label}-{round}{number}.test."), T::A)
                .await;
            assert_eq!(addresses(&found), [OWN[other]], "{label} {round} {number}");
        }
    }
}

async fn nothing_stays_behind(alone: &Alone) {
    eventually("no fan-out is in flight", || {
        alone.figure("vl3_dns_in_flight ") == 0
    })
    .await;
}

fn down(alone: &Alone) -> [u64; 3] {
    LABELS.map(|label| {
        alone.figure(&format!(
            "vl3_dns_upstream_went_down_total{{to=\"{label}\"}}"
        ))
    })
}

#[tokio::test]
async fn r3_7_a_server_that_stops_is_found_out_before_a_question_needs_it() {
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = Arc::clone(&stopped);
    let first: Behaviour = Box::new(move |asked| {
        if is_stopped.load(Ordering::SeqCst) {
            Vec::new()
        } else {
            vec![Sent::Reply(octets(&of_its_own(0, asked)))]
        }
    });
    let (alone, servers) = three(first).await;
    assert_eq!(addresses(&alone.ask("one-a.test.", T::A).await), [OWN[0]]);
    stopped.store(true, Ordering::SeqCst);
    // No question needs it, all of them are put to it.
    let asked = AtomicUsize::new(0);
    eventually_true("it is known to be down", || async {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let found = alone.ask(&format!("two-s{number}.test."), T::A).await;
        assert_eq!(addresses(&found), [OWN[1]]);
        down(&alone) == [1, 0, 0]
    })
    .await;
    // What needs it is answered without it, and never denied.
    let before = servers[0].count();
    for name in ["one-a.test.", "one-b.test.", "nobody.test."] {
        let answer = alone.ask(name, T::A).await;
        match name {
            // Told before, and stored.
            "one-a.test." => assert_eq!(addresses(&answer), [OWN[0]]),
            _ => {
                assert_eq!(
                    answer.metadata.response_code,
                    ResponseCode::ServFail,
                    "{name}"
                );
                let (code, text) = extended(&answer).expect("an extended error");
                assert_eq!((code, text.as_str()), (22, "no answer from one"));
            }
        }
    }
    assert_eq!(servers[0].count(), before, "nobody asked it");
    others_are_right(&alone, "d").await;
    // Any reply to a probe brings it back.
    stopped.store(false, Ordering::SeqCst);
    eventually_true("it is asked again", || async {
        !addresses(&alone.ask("one-c.test.", T::A).await).is_empty()
    })
    .await;
    let nobody = alone.ask("nobody.test.", T::A).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    nothing_stays_behind(&alone).await;
}

#[tokio::test]
async fn r3_7_a_server_that_is_closed_is_found_out_by_its_refusal() {
    let servers = Upstream::several(vec![knows_nothing(), honest(1), honest(2)]).await;
    let mut list: Vec<Configured> = servers
        .iter()
        .zip(LABELS)
        .map(|(server, label)| overlay(configured(label, server, &[])))
        .collect();
    list[0].servers = vec![closed().await];
    let alone = Alone::new(list, |_| {}).await;
    let answer = alone.ask("one-a.test.", T::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    others_are_right(&alone, "c").await;
    eventually("it is down", || down(&alone) == [1, 0, 0]).await;
    let answer = alone.ask("one-b.test.", T::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let refused = "vl3_dns_votes_missing_total{reason=\"network\"}";
    let left_out = "vl3_dns_votes_missing_total{reason=\"down\"}";
    eventually("both are counted", || {
        alone.figure(refused) > 0 && alone.figure(left_out) > 0
    })
    .await;
    nothing_stays_behind(&alone).await;
}

/// An address where nobody listens.
async fn closed() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.1.200:0").await.unwrap();
    socket.local_addr().unwrap()
}

#[tokio::test]
async fn r3_6_of_a_server_that_loses_one_in_ten_every_name_is_found() {
    let heard = AtomicUsize::new(0);
    let lossy: Behaviour = Box::new(move |asked| {
        // Every tenth query is lost; one more of those is lost on the way back.
        match heard.fetch_add(1, Ordering::SeqCst) % 10 {
            3 => Vec::new(),
            _ => vec![Sent::Reply(octets(&of_its_own(0, asked)))],
        }
    });
    let (alone, servers) = three(lossy).await;
    for number in 0..100 {
        let found = alone.ask(&format!("one-{number}.test."), T::A).await;
        assert_eq!(addresses(&found), [OWN[0]], "question {number}");
    }
    let repeated = servers[0].count();
    assert!((108..=125).contains(&repeated), "{repeated} queries");
    others_are_right(&alone, "l").await;
    assert_eq!(down(&alone), [0, 0, 0], "loss takes nobody down");
    nothing_stays_behind(&alone).await;
}

#[tokio::test]
async fn r3_6_a_server_that_is_slow_is_waited_for_and_delays_nobody_else() {
    const SLOW: Duration = Duration::from_millis(300);
    let slow: Behaviour = Box::new(|asked| vec![Sent::Later(SLOW, octets(&of_its_own(0, asked)))]);
    let (alone, servers) = three(slow).await;
    let (asking, other) = (UdpSocket::bind((CLIENT, 0)), UdpSocket::bind((CLIENT, 0)));
    let (asking, other) = (asking.await.unwrap(), other.await.unwrap());
    let mut overtaken = 0;
    for round in 0..8 {
        send(&asking, &alone, &format!("one-{round}.test.")).await;
        // Asked later, answered before.
        for number in 0..5 {
            send(&other, &alone, &format!("two-{round}-{number}.test.")).await;
            assert_eq!(addresses(&receive(&other).await), [OWN[1]]);
        }
        let mut buffer = [0; 1232];
        let answer = match asking.try_recv(&mut buffer) {
            Ok(length) => Message::from_vec(&buffer[..length]).unwrap(),
            Err(_) => {
                overtaken += 1;
                receive(&asking).await
            }
        };
        assert_eq!(addresses(&answer), [OWN[0]]);
    }
    // This machine may have stood still for longer.
    assert!(overtaken >= 4, "{overtaken} of 8");
    // Once its round trip is known nothing is asked twice.
    let own = servers[0].all();
    let own = own.iter().filter(|asked| {
        let name = asked.message.queries[0].name().to_string();
        ["one-4.", "one-5.", "one-6.", "one-7."]
            .iter()
            .any(|late| name.starts_with(late))
    });
    let queries = own.count();
    assert!(queries <= 5, "{queries} queries for four questions");
    // Its replies to what others answered are no forgeries.
    let mismatched = |reason: &str| {
        alone.figure(&format!(
            "vl3_dns_mismatched_replies_total{{reason=\"{reason}\"}}"
        ))
    };
    eventually("late replies are counted", || mismatched("late") >= 20).await;
    assert_eq!(mismatched("unknown_id"), 0);
    assert_eq!(down(&alone), [0, 0, 0], "slow is not dead");
    nothing_stays_behind(&alone).await;
}

async fn send(socket: &UdpSocket, alone: &Alone, name: &str) {
    let message = with_edns(query(name, T::A), 1232).to_vec().unwrap();
    socket.send_to(&message, alone.address).await.unwrap();
}

async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 1232];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer));
    let length = received.await.expect("an answer").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

const RIGHT: &[&str] = &["172.16.4.9"];
const FORGED: &[&str] = &["172.16.4.66"];

/// What is wrong with a reply stands in the first label of the question. `true`: the right reply
/// follows, as that of the server itself would follow a forged one.
fn lie(asked: &Asked, kind: &str) -> (Vec<Sent>, bool) {
    let mut forged = with_addresses(asked, FORGED);
    let owner = asked.message.queries[0].name().clone();
    let sent = match kind {
        "id" => {
            forged.metadata.id = forged.metadata.id.wrapping_add(1);
            Sent::Reply(octets(&forged))
        }
        "question" => {
            let other = Name::from_ascii("other.west.red.test.").unwrap();
            forged.queries = vec![Query::query(other, T::A)];
            Sent::Reply(octets(&forged))
        }
        "port" => Sent::Elsewhere(octets(&forged)),
        "stump" => Sent::Reply(octets(&forged)[..7].to_vec()),
        "query" => Sent::Reply(asked.octets.clone()),
        "cut" => {
            let mut cut = with_addresses(asked, if asked.tcp { RIGHT } else { FORGED });
            cut.metadata.truncation = !asked.tcp;
            return (vec![Sent::Reply(octets(&cut))], false);
        }
        "oversized" => {
            let mut long = octets(&forged);
            long.resize(9_000, 0);
            long[7] = 200;
            return (vec![Sent::Reply(long)], false);
        }
        "loop" => {
            let mut message = octets(&reply(asked, ResponseCode::NoError));
            let at = u8::try_from(message.len()).unwrap();
            message[7] = 1;
            // A name that points to itself.
            message.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 172, 16, 4, 66]);
            return (vec![Sent::Reply(message)], false);
        }
        "foreign" => {
            let message = with_addresses(asked, &["8.8.8.8"]);
            return (vec![Sent::Reply(octets(&message))], false);
        }
        "alias" => {
            let mut message = reply(asked, ResponseCode::NoError);
            message.add_answer(alias(&owner, "web.east.red.test."));
            return (vec![Sent::Reply(octets(&message))], false);
        }
        "bank" => {
            let mut message = with_addresses(asked, RIGHT);
            let bank = Name::from_ascii("bank.example.").unwrap();
            message.add_answer(a_record(&bank, RIGHT[0]));
            return (vec![Sent::Reply(octets(&message))], false);
        }
        _ => return (Vec::new(), true),
    };
    (vec![sent], true)
}

/// Lies, what they cost, and where they are counted.
const LIES: [(&str, bool, &str); 11] = [
    (
        "id",
        true,
        "mismatched_replies_total{reason=\"unknown_id\"}",
    ),
    (
        "question",
        true,
        "mismatched_replies_total{reason=\"other_question\"}",
    ),
    ("port", true, ""),
    (
        "stump",
        true,
        "mismatched_replies_total{reason=\"no_reply\"}",
    ),
    (
        "query",
        true,
        "mismatched_replies_total{reason=\"no_reply\"}",
    ),
    ("cut", true, "queries_total{to=\"west\",proto=\"tcp\"}"),
    (
        "oversized",
        false,
        "votes_missing_total{reason=\"malformed\"}",
    ),
    ("loop", false, "votes_missing_total{reason=\"malformed\"}"),
    ("foreign", false, "votes_missing_total{reason=\"foreign\"}"),
    ("alias", false, "votes_missing_total{reason=\"foreign\"}"),
    ("bank", false, "votes_missing_total{reason=\"foreign\"}"),
];

#[tokio::test]
async fn r2_12_r3_2_whatever_a_server_forges_is_counted_and_nothing_stays_behind() {
    let liar: Behaviour = Box::new(|asked| {
        let name = asked.message.queries[0].name().to_string();
        let kind = name.split(['.', '-']).next().unwrap_or_default();
        let (mut sent, follows) = lie(asked, kind);
        if follows {
            sent.push(Sent::Reply(octets(&with_addresses(asked, RIGHT))));
        }
        sent
    });
    let stage = Stage::new(vec![liar, knows_nothing()]).await;
    for (kind, is_found, counted) in LIES {
        let line = format!("vl3_dns_{counted}");
        for round in 1..=3 {
            let before = stage.figure(&line);
            let name = format!("{kind}-{round}.west.red.test.");
            let answer = ask(&stage, &name, T::A).await;
            if is_found {
                assert_eq!(addresses(&answer), RIGHT, "{name}");
            } else {
                assert_eq!(
                    answer.metadata.response_code,
                    ResponseCode::ServFail,
                    "{name}"
                );
                assert!(answer.answers.is_empty(), "{name}");
            }
            if !counted.is_empty() {
                eventually(&format!("{name}: {line}"), || stage.figure(&line) > before).await;
            }
        }
    }
    // What makes no sense says nothing about whether the server lives.
    let west = "vl3_dns_upstream_went_down_total{to=\"west\"}";
    assert_eq!(stage.figure(west), 0);
    let right = ask(&stage, "none-1.west.red.test.", T::A).await;
    assert_eq!(addresses(&right), RIGHT);
    stage.counts("vl3_dns_in_flight ", 0).await;
}

#[tokio::test]
async fn r3_3_nobody_sees_the_letters_in_which_a_name_was_asked() {
    use hickory_proto::rr::rdata::{MX, NS};
    use hickory_proto::rr::{RData, Record};
    // The encoder compresses: what ends in the question's name points into the question.
    let zone: Behaviour = Box::new(|asked| {
        let query = &asked.message.queries[0];
        let owner = query.name().clone();
        let below = Name::from_ascii("Mail").unwrap();
        let below = below.append_domain(&owner).unwrap();
        let mut message = reply(asked, ResponseCode::NoError);
        let data = match query.query_type() {
            T::MX => RData::MX(MX::new(5, below)),
            _ => RData::NS(NS(below)),
        };
        message.add_answer(Record::from_rdata(owner, 60, data));
        vec![Sent::Reply(octets(&message))]
    });
    let servers = Upstream::several(vec![zone]).await;
    let alone = Alone::new(vec![configured("all", &servers[0], &[])], |_| {}).await;
    let spelled = [
        "a-name-with-many-letters.test.",
        "A-NAME-with-many-LETTERS.test.",
    ];
    for rtype in [T::MX, T::NS] {
        for name in spelled {
            let answer = alone.ask(name, rtype).await;
            assert_eq!(answer.queries[0].name().to_ascii(), name);
            let target = match &answer.answers[0].data {
                RData::MX(mx) => mx.exchange.to_ascii(),
                RData::NS(ns) => ns.0.to_ascii(),
                other => panic!("{other:?}"),
            };
            assert_eq!(target, "Mail.a-name-with-many-letters.test.", "{rtype}");
        }
    }
    let is_mixed = |asked: &Asked| asked.message.queries[0].name().to_ascii() != spelled[0];
    assert!(servers[0].all().iter().any(is_mixed), "asked in mixed case");
}
