//! The client side: UDP, TCP, EDNS, sizes, garbage (R6).

use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType as T;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{
    addresses, connect, exchange, exchange_within, query, read_frame, with_edns, write_frame,
};
use crate::stage::{MEMBER, Stage, eventually};
use crate::upstream::{Behaviour, Sent, honest, octets, silent, with_addresses};

const WEST: &[&str] = &["172.16.4.9"];

/// Sixty addresses: 1 kB of records, too much for 512 octets.
fn many() -> Behaviour {
    Box::new(|asked| {
        let all: Vec<String> = (1..=60).map(|host| format!("172.16.5.{host}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut message = with_addresses(asked, &all);
        message.metadata.truncation = false;
        vec![Sent::Reply(octets(&message))]
    })
}

#[tokio::test]
async fn r6_1_what_does_not_fit_a_datagram_is_cut_and_whole_over_tcp() {
    let stage = Stage::new(vec![many(), silent()]).await;
    let plain = query("db.west.red.test.", T::A).to_vec().unwrap();
    let reply = exchange(stage.address(), MEMBER, &plain).await.unwrap();
    assert!(reply.len() <= 512);
    let cut = Message::from_vec(&reply).unwrap();
    assert!(
        cut.metadata.truncation && cut.answers.is_empty(),
        "a set goes whole or not at all"
    );
    let wide = ask_proven(&stage, "db.west.red.test.").await;
    assert_eq!((wide.answers.len(), wide.metadata.truncation), (60, false));
    for size in [0, 100, 512] {
        let small = with_edns(query("db.west.red.test.", T::A), size)
            .to_vec()
            .unwrap();
        let reply = exchange(stage.address(), MEMBER, &small).await.unwrap();
        assert!(reply.len() <= 512 && Message::from_vec(&reply).unwrap().metadata.truncation);
    }
    let mut stream = connect(stage.address(), MEMBER).await;
    write_frame(&mut stream, &plain).await;
    let whole = read_frame(&mut stream).await.unwrap();
    assert_eq!(
        (whole.answers.len(), whole.metadata.truncation),
        (60, false)
    );
}

/// Fetches a cookie and asks with it: who proves its address gets all that fits.
async fn ask_proven(stage: &Stage, name: &str) -> Message {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    let mut cookie = vec![7; 8];
    for _ in 0..2 {
        let mut asked = with_edns(query(name, T::A), 1232);
        let own = EdnsOption::Unknown(10, cookie.clone());
        asked.edns.as_mut().unwrap().options_mut().insert(own);
        let asked = asked.to_vec().unwrap();
        let reply = exchange(stage.address(), MEMBER, &asked).await;
        let reply = Message::from_vec(&reply.unwrap()).unwrap();
        let given = reply.edns.as_ref().and_then(|edns| {
            edns.option(EdnsCode::Cookie)
                .or_else(|| edns.option(EdnsCode::Unknown(10)))
        });
        match given {
            Some(EdnsOption::Unknown(_, given)) if cookie.len() == 8 => {
                assert_eq!((&given[..8], given.len()), (&cookie[..], 24));
                cookie.clone_from(given);
            }
            _ => return reply,
        }
    }
    panic!("the second reply is returned");
}

#[tokio::test]
async fn r6_6_a_client_above_its_rate_is_refused_and_others_are_answered() {
    let stage = Stage::with(vec![silent(), silent()], |config| {
        config.queries_per_second_max = 20;
    })
    .await;
    let asked = query("web.red.test.", T::A).to_vec().unwrap();
    let mut refused = 0;
    for _ in 0..60 {
        let reply = exchange(stage.address(), MEMBER, &asked).await.unwrap();
        refused += u32::from(reply[3] & 0x0f == 5);
    }
    assert!(refused > 0, "sixty within less than three seconds");
    let reply = exchange(stage.address(), "127.0.2.77", &asked)
        .await
        .unwrap();
    assert_eq!(reply[3] & 0x0f, 0);
}

#[tokio::test]
async fn r6_2_an_opt_comes_back_exactly_when_one_was_sent() {
    let stage = Stage::new(vec![silent(), silent()]).await;
    let plain = query("web.red.test.", T::A);
    let reply = exchange(stage.address(), MEMBER, &plain.to_vec().unwrap())
        .await
        .unwrap();
    assert!(Message::from_vec(&reply).unwrap().edns.is_none());
    let mut asked = with_edns(plain, 4_096);
    let unknown = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65_001, vec![1, 2, 3]);
    asked.edns.as_mut().unwrap().options_mut().insert(unknown);
    let reply = exchange(stage.address(), MEMBER, &asked.to_vec().unwrap())
        .await
        .unwrap();
    let edns = Message::from_vec(&reply).unwrap().edns.unwrap();
    assert_eq!(
        (
            edns.max_payload(),
            edns.version(),
            edns.options().options.len()
        ),
        (1232, 0, 0)
    );
}

#[tokio::test]
async fn r6_2_a_later_edns_version_is_badvers_and_two_opts_are_formerr() {
    let stage = Stage::new(vec![silent(), silent()]).await;
    let mut later = with_edns(query("web.red.test.", T::A), 1232);
    later.edns.as_mut().unwrap().set_version(1);
    let reply = exchange(stage.address(), MEMBER, &later.to_vec().unwrap())
        .await
        .unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert_eq!(reply.edns.unwrap().version(), 0);

    let mut two = with_edns(query("web.red.test.", T::A), 1232)
        .to_vec()
        .unwrap();
    two[11] = 2;
    two.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    let reply = exchange(stage.address(), MEMBER, &two).await.unwrap();
    assert_eq!(
        Message::from_vec(&reply).unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
}

#[tokio::test]
async fn r6_3_one_question_of_opcode_query_else_an_error_or_nothing() {
    let stage = Stage::new(vec![silent(), silent()]).await;
    let good = query("web.red.test.", T::A);
    let code = |message: Message| {
        let (octets, server) = (message.to_vec().unwrap(), stage.address());
        async move {
            let reply =
                Message::from_vec(&exchange(server, MEMBER, &octets).await.unwrap()).unwrap();
            assert_eq!(reply.metadata.id, message.metadata.id);
            assert_eq!(
                reply.metadata.recursion_desired,
                message.metadata.recursion_desired
            );
            assert!(reply.metadata.recursion_available);
            reply.metadata.response_code
        }
    };
    let mut none = good.clone();
    none.queries.clear();
    assert_eq!(code(none).await, ResponseCode::FormErr);
    let mut two = good.clone();
    two.add_query(good.queries[0].clone());
    assert_eq!(code(two).await, ResponseCode::FormErr);
    for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        let mut other = good.clone();
        other.metadata.op_code = opcode;
        assert_eq!(code(other).await, ResponseCode::NotImp);
    }
    let mut chaos = query("version.bind.", T::TXT);
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    assert_eq!(code(chaos).await, ResponseCode::Refused);

    let short = Duration::from_millis(200);
    let mut reply = good.to_vec().unwrap();
    reply[2] |= 0x80;
    assert!(
        exchange_within(stage.address(), MEMBER, &reply, short)
            .await
            .is_none(),
        "replies are dropped"
    );
    assert!(
        exchange_within(stage.address(), MEMBER, &[1; 11], short)
            .await
            .is_none(),
        "so are stumps"
    );
    for reason in ["is_reply", "short"] {
        stage
            .counts(&format!("vl3_dns_dropped_total{{reason=\"{reason}\"}}"), 1)
            .await;
    }
}

#[tokio::test]
async fn r6_4_questions_of_one_connection_run_side_by_side() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    let mut stream = connect(stage.address(), MEMBER).await;
    let slow = query("db.north.red.test.", T::A);
    let quick = [
        query("db.west.red.test.", T::A),
        query("web.red.test.", T::A),
        query("localhost.", T::A),
    ];
    write_frame(&mut stream, &slow.to_vec().unwrap()).await;
    for message in &quick {
        write_frame(&mut stream, &message.to_vec().unwrap()).await;
    }
    let mut expected: Vec<u16> = quick.iter().map(|message| message.metadata.id).collect();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(read_frame(&mut stream).await.unwrap().metadata.id);
    }
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected, "before the slow one");
    let last = read_frame(&mut stream).await.unwrap();
    assert_eq!(
        (last.metadata.id, last.metadata.response_code),
        (slow.metadata.id, ResponseCode::ServFail)
    );
}

#[tokio::test]
async fn r6_4_connections_beyond_the_limit_are_closed_and_counted() {
    let stage = Stage::new(vec![silent(), silent()]).await;
    let asked = query("web.red.test.", T::A).to_vec().unwrap();
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut stream = connect(stage.address(), MEMBER).await;
        write_frame(&mut stream, &asked).await;
        assert!(read_frame(&mut stream).await.is_some());
        open.push(stream);
    }
    let mut sixth = connect(stage.address(), MEMBER).await;
    assert!(matches!(sixth.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    stage
        .counts("vl3_dns_dropped_total{reason=\"connections\"}", 1)
        .await;
    let mut other = connect(stage.address(), "127.0.2.2").await;
    write_frame(&mut other, &asked).await;
    assert!(
        read_frame(&mut other).await.is_some(),
        "another client is not concerned"
    );
    drop(open);
    eventually("closed connections are forgotten", || {
        stage.figure("vl3_dns_tcp_connections ") == 1
    })
    .await;
}

#[tokio::test]
async fn r6_8_garbage_never_stops_the_server() {
    let stage = Stage::new(vec![honest(WEST), silent()]).await;
    let mut random = vl3_core::Rng::new(7);
    let socket = tokio::net::UdpSocket::bind((MEMBER.parse::<std::net::IpAddr>().unwrap(), 0))
        .await
        .unwrap();
    let good = with_edns(query("db.west.red.test.", T::A), 1232)
        .to_vec()
        .unwrap();
    for round in 0..3_000_u64 {
        let mut octets = good.clone();
        if round % 3 == 0 {
            octets = (0..random.below(600))
                .map(|_| random.next_u64().to_le_bytes()[0])
                .collect();
        } else {
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(octets.len() as u64)).unwrap();
                octets[at] = random.next_u64().to_le_bytes()[0];
            }
        }
        let _full = socket.try_send_to(&octets, stage.address());
        if round % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for octets in [
        &[0_u8, 0][..],
        &[0, 5, 1, 2, 3, 4, 5],
        &[0xff, 0xff, 1],
        &[0, 12, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut stream = connect(stage.address(), "127.0.2.3").await;
        stream.write_all(octets).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(
            matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)),
            "closed: {octets:?}"
        );
    }
    // As clients repeat: the flood may still fill the kernel's queue.
    let mut reply = None;
    for _ in 0..5 {
        let octets = good.as_slice();
        reply = exchange_within(stage.address(), MEMBER, octets, Duration::from_secs(2)).await;
        if reply.is_some() {
            break;
        }
    }
    let reply = Message::from_vec(&reply.expect("a reply")).unwrap();
    assert_eq!(addresses(&reply), WEST);
    assert!(
        stage.figure("vl3_dns_malformed_total{rcode=\"FORMERR\"}") > 0,
        "{}",
        stage.metrics()
    );
}
