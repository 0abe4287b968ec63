//! A client of the server, with a source address of its choice.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::stage::{MEMBER, Stage};

/// Longer than the server's own deadline.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    message
}

pub(crate) fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// A member's question with EDNS, over UDP.
pub(crate) async fn ask(stage: &Stage, name: &str, rtype: RecordType) -> Message {
    ask_from(stage, MEMBER, name, rtype).await
}

pub(crate) async fn ask_from(stage: &Stage, from: &str, name: &str, rtype: RecordType) -> Message {
    let octets = with_edns(query(name, rtype), 1232).to_vec().unwrap();
    let reply = exchange(stage.address(), from, &octets)
        .await
        .expect("a reply");
    Message::from_vec(&reply).unwrap()
}

/// One datagram out, the next one in; `None` when none comes.
pub(crate) async fn exchange(server: SocketAddr, from: &str, octets: &[u8]) -> Option<Vec<u8>> {
    exchange_within(server, from, octets, PATIENCE).await
}

pub(crate) async fn exchange_within(
    server: SocketAddr,
    from: &str,
    octets: &[u8],
    limit: Duration,
) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0))
        .await
        .unwrap();
    socket.connect(server).await.unwrap();
    socket.send(octets).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = tokio::time::timeout(limit, socket.recv(&mut buffer))
        .await
        .ok()?
        .ok()?;
    buffer.truncate(length);
    Some(buffer)
}

pub(crate) async fn connect(server: SocketAddr, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    socket.connect(server).await.unwrap()
}

pub(crate) async fn write_frame(stream: &mut TcpStream, octets: &[u8]) {
    let length = u16::try_from(octets.len()).unwrap();
    stream
        .write_all(&[&length.to_be_bytes()[..], octets].concat())
        .await
        .unwrap();
}

/// `None` at the end of the stream.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> Option<Message> {
    let length = tokio::time::timeout(PATIENCE, stream.read_u16())
        .await
        .expect("in time")
        .ok()?;
    let mut octets = vec![0; usize::from(length)];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut octets))
        .await
        .expect("in time")
        .ok()?;
    Some(Message::from_vec(&octets).unwrap())
}

/// Addresses of the answer section, in order.
pub(crate) fn addresses(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .map(|address| address.to_string())
        .collect()
}

/// Code and text of the extended error.
pub(crate) fn extended(message: &Message) -> Option<(u16, String)> {
    match message
        .edns
        .as_ref()?
        .option(EdnsCode::Unknown(15))
        .or_else(|| message.edns.as_ref()?.option(EdnsCode::from(15)))?
    {
        EdnsOption::Unknown(_, octets) => {
            let (code, text) = octets.split_first_chunk::<2>()?;
            Some((
                u16::from_be_bytes(*code),
                String::from_utf8_lossy(text).into_owned(),
            ))
        }
        _ => None,
    }
}
