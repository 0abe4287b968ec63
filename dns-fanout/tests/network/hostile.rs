//! Servers of other domains that lie, stammer or send garbage.

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType as T};

use crate::client::{addresses, ask};
use crate::stage::Stage;
use crate::upstream::{
    Behaviour, Sent, alias, honest, knows_nothing, octets, reply, silent, with_addresses,
};

const RIGHT: &[&str] = &["172.16.4.9"];
const FORGED: &[&str] = &["172.16.4.66"];

/// A forged reply first, then the right one.
fn after(forge: impl Fn(&crate::upstream::Asked) -> Sent + Send + Sync + 'static) -> Behaviour {
    Box::new(move |asked| {
        vec![
            forge(asked),
            Sent::Reply(octets(&with_addresses(asked, RIGHT))),
        ]
    })
}

async fn gets_the_right_answer(west: Behaviour, counted: &str) {
    let stage = Stage::new(vec![west, silent()]).await;
    // Names of their own, or the first answer would be told again.
    for name in [
        "db.west.red.test.",
        "db1.west.red.test.",
        "db2.west.red.test.",
    ] {
        assert_eq!(
            addresses(&ask(&stage, name, T::A).await),
            RIGHT,
            "{counted}"
        );
    }
    if !counted.is_empty() {
        let figure = stage.figure(&format!(
            "vl3_dns_mismatched_replies_total{{reason=\"{counted}\"}}"
        ));
        assert!(figure >= 3, "{counted}: {figure}\n{}", stage.metrics());
    }
}

#[tokio::test]
async fn r3_2_a_reply_with_another_id_is_ignored() {
    let forge = |asked: &crate::upstream::Asked| {
        let mut message = with_addresses(asked, FORGED);
        message.metadata.id = message.metadata.id.wrapping_add(1);
        Sent::Reply(octets(&message))
    };
    gets_the_right_answer(after(forge), "unknown_id").await;
}

#[tokio::test]
async fn r3_2_a_reply_to_another_question_is_ignored() {
    let forge = |asked: &crate::upstream::Asked| {
        let mut message = with_addresses(asked, FORGED);
        message.queries = vec![Query::query(
            Name::from_ascii("other.west.red.test.").unwrap(),
            T::A,
        )];
        Sent::Reply(octets(&message))
    };
    gets_the_right_answer(after(forge), "other_question").await;
}

#[tokio::test]
async fn r3_2_a_reply_with_two_questions_or_none_is_ignored() {
    for questions in [0, 2] {
        let forge = move |asked: &crate::upstream::Asked| {
            let mut message = with_addresses(asked, FORGED);
            let query = message.queries[0].clone();
            message.queries = vec![query; questions];
            Sent::Reply(octets(&message))
        };
        gets_the_right_answer(after(forge), "no_reply").await;
    }
}

#[tokio::test]
async fn r3_2_a_query_that_looks_like_a_reply_is_ignored() {
    gets_the_right_answer(after(|asked| Sent::Reply(asked.octets.clone())), "no_reply").await;
}

#[tokio::test]
async fn r3_2_a_reply_from_another_port_never_arrives() {
    gets_the_right_answer(
        after(|asked| Sent::Elsewhere(octets(&with_addresses(asked, FORGED)))),
        "",
    )
    .await;
}

#[tokio::test]
async fn r3_2_ids_and_ports_differ_between_queries() {
    let stage = Stage::new(vec![honest(RIGHT), silent()]).await;
    for number in 0..40 {
        ask(&stage, &format!("db{number}.west.red.test."), T::A).await;
    }
    let asked = stage.upstreams[0].all();
    let ports: std::collections::BTreeSet<u16> =
        asked.iter().map(|query| query.from.port()).collect();
    let mut ids: Vec<u16> = asked
        .iter()
        .map(|query| query.message.metadata.id)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ports.len(), 4, "every socket of the pool is used");
    assert!(ids.len() >= 38, "IDs repeat: {}", ids.len());
}

#[tokio::test]
async fn r3_1_a_cut_reply_is_fetched_over_tcp() {
    let cut: Behaviour = Box::new(|asked| {
        let mut message = with_addresses(asked, if asked.tcp { RIGHT } else { FORGED });
        message.metadata.truncation = !asked.tcp;
        vec![Sent::Reply(octets(&message))]
    });
    let stage = Stage::new(vec![cut, silent()]).await;
    let answer = ask(&stage, "db.west.red.test.", T::A).await;
    assert_eq!(
        (addresses(&answer), answer.metadata.truncation),
        (vec![RIGHT[0].to_owned()], false)
    );
    stage
        .counts("vl3_dns_queries_total{to=\"west\",proto=\"tcp\"}", 1)
        .await;
}

#[tokio::test]
async fn r3_1_a_cut_reply_is_passed_on_as_cut_when_tcp_fails() {
    let cut: Behaviour = Box::new(|asked| {
        let mut message = with_addresses(asked, RIGHT);
        message.metadata.truncation = true;
        if asked.tcp {
            Vec::new()
        } else {
            vec![Sent::Reply(octets(&message))]
        }
    });
    let stage = Stage::new(vec![cut, silent()]).await;
    let answer = ask(&stage, "db.west.red.test.", T::A).await;
    assert_eq!(
        (addresses(&answer), answer.metadata.truncation),
        (vec![RIGHT[0].to_owned()], true)
    );
}

#[tokio::test]
async fn r3_6_a_lost_query_is_repeated_from_another_port() {
    let once = std::sync::atomic::AtomicBool::new(false);
    let loses_one: Behaviour = Box::new(move |asked| {
        let first = !once.swap(true, std::sync::atomic::Ordering::SeqCst);
        if first {
            Vec::new()
        } else {
            vec![Sent::Reply(octets(&with_addresses(asked, RIGHT)))]
        }
    });
    let stage = Stage::new(vec![loses_one, silent()]).await;
    assert_eq!(
        addresses(&ask(&stage, "db.west.red.test.", T::A).await),
        RIGHT
    );
    let asked = stage.upstreams[0].all();
    assert_eq!(asked.len(), 2);
    assert_ne!(asked[0].from.port(), asked[1].from.port());
}

#[tokio::test]
async fn r2_12_aliases_and_addresses_of_others_are_not_believed() {
    let lies: [fn(&crate::upstream::Asked) -> Sent; 3] = [
        |asked| Sent::Reply(octets(&with_addresses(asked, &["8.8.8.8"]))),
        |asked| {
            let mut message = reply(asked, ResponseCode::NoError);
            let owner = asked.message.queries[0].name().clone();
            message.add_answer(alias(&owner, "web.east.red.test."));
            Sent::Reply(octets(&message))
        },
        |asked| {
            let mut message = with_addresses(asked, RIGHT);
            let bank = Name::from_ascii("bank.example.").unwrap();
            message.add_answer(crate::upstream::a_record(&bank, RIGHT[0]));
            Sent::Reply(octets(&message))
        },
    ];
    for lie in lies {
        let stage = Stage::new(vec![
            Box::new(move |asked| vec![lie(asked)]),
            knows_nothing(),
        ])
        .await;
        let answer = ask(&stage, "db.west.red.test.", T::A).await;
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len()),
            (ResponseCode::ServFail, 0)
        );
    }
}

/// Octets after the question: what a decoder must survive.
fn garbage_after_question(asked: &crate::upstream::Asked, tail: &[u8], answers: u8) -> Sent {
    let mut octets = octets(&reply(asked, ResponseCode::NoError));
    octets[7] = answers;
    octets.extend(tail);
    Sent::Reply(octets)
}

#[tokio::test]
async fn r6_8_compression_loops_and_other_garbage_are_a_missing_vote() {
    // A pointer to itself; a pointer forward; a label that runs out; counts without records; a
    // record whose length lies.
    let tails: [(&[u8], u8); 5] = [
        (&[0xc0, 0x00, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4], 1),
        (&[0xc0, 0xff, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4], 1),
        (&[63, b'a'], 1),
        (&[], 200),
        (&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 1], 1),
    ];
    for (tail, answers) in tails {
        let west: Behaviour =
            Box::new(move |asked| vec![garbage_after_question(asked, tail, answers)]);
        let stage = Stage::new(vec![west, silent()]).await;
        let answer = ask(&stage, "db.west.red.test.", T::A).await;
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::ServFail,
            "{tail:?}"
        );
        assert_eq!(
            addresses(&ask(&stage, "web.red.test.", T::A).await),
            ["172.16.0.5"],
            "still serving"
        );
    }
    let floods: Behaviour = Box::new(|_| {
        (0..50_u8)
            .map(|n| Sent::Reply(vec![n; usize::from(n)]))
            .collect()
    });
    let stage = Stage::new(vec![floods, silent()]).await;
    let answer = ask(&stage, "db.west.red.test.", T::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}
