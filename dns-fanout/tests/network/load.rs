//! Many questions at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType as T;
use tokio::net::UdpSocket;

use crate::client::{addresses, query};
use crate::stage::{MEMBER, Stage};
use crate::upstream::{Behaviour, Sent, octets, silent, with_addresses};

/// Answers with an address made of the number in the name, after the others had their turn.
fn numbered() -> Behaviour {
    Box::new(|asked| {
        let name = asked.message.queries[0].name().to_ascii();
        let number: u32 = name
            .trim_start_matches('n')
            .split('.')
            .next()
            .unwrap()
            .parse()
            // A probe of its health, which asks for the zone.
            .unwrap_or_default();
        let address = format!("172.16.{}.{}", 4 + number / 250, number % 250);
        vec![Sent::Reply(octets(&with_addresses(asked, &[&address])))]
    })
}

#[tokio::test]
async fn hundreds_of_questions_at_once_get_each_their_own_answer() {
    let stage = Stage::new(vec![numbered(), silent()]).await;
    let socket = UdpSocket::bind((MEMBER.parse::<IpAddr>().unwrap(), 0))
        .await
        .unwrap();
    socket.connect(stage.address()).await.unwrap();
    let mut buffer = [0; 1500];
    for round in 0..5_u16 {
        let numbers = round * 100..(round + 1) * 100;
        for number in numbers.clone() {
            let mut message = query(&format!("n{number}.west.red.test."), T::A);
            message.metadata.id = number;
            socket.send(&message.to_vec().unwrap()).await.unwrap();
        }
        let mut open: BTreeSet<u16> = numbers.collect();
        while !open.is_empty() {
            let received =
                tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
            let length = received.expect("every question is answered").unwrap();
            let reply = Message::from_vec(&buffer[..length]).unwrap();
            let number = reply.metadata.id;
            assert!(open.remove(&number), "answered twice");
            let expected = format!("172.16.{}.{}", 4 + number / 250, number % 250);
            assert_eq!(addresses(&reply), [expected]);
        }
    }
}

#[tokio::test]
async fn r2_11_equal_questions_of_many_clients_are_one_query() {
    let slow: Behaviour = Box::new(|_| Vec::new());
    let stage = Stage::new(vec![slow, silent()]).await;
    let mut clients = Vec::new();
    for client in 0..20_u16 {
        let socket = UdpSocket::bind((MEMBER.parse::<IpAddr>().unwrap(), 0))
            .await
            .unwrap();
        socket.connect(stage.address()).await.unwrap();
        let mut message = query("db.west.red.test.", T::A);
        message.metadata.id = client;
        socket.send(&message.to_vec().unwrap()).await.unwrap();
        clients.push(socket);
    }
    for (id, socket) in (0..).zip(clients) {
        let mut buffer = [0; 512];
        let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
        let length = received.expect("a reply").unwrap();
        assert_eq!(
            Message::from_vec(&buffer[..length]).unwrap().metadata.id,
            id,
            "each with its own ID"
        );
    }
    assert_eq!(stage.upstreams[0].count(), 2, "one query and its repeat");
    stage.counts("vl3_dns_coalesced_total", 19).await;
}
