//! A query over TCP, after a reply that was cut (R3.1). One connection each: rare on the overlay.

use std::net::SocketAddr;

use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vl3_core::names::{DEADLINE, Failure, Query, Reply};

use crate::sockets::Dial;
use crate::wire::{encode_query, parse_reply, reply_id, tcp_frame};

pub(super) async fn ask(dial: &Dial, server: SocketAddr, query: &Query) -> Result<Reply, Failure> {
    tokio::time::timeout(DEADLINE, exchange(dial, server, query))
        .await
        .unwrap_or(Err(Failure::TimedOut))
}

async fn exchange(dial: &Dial, server: SocketAddr, query: &Query) -> Result<Reply, Failure> {
    let id = rand::rng().random::<u16>();
    let octets = encode_query(id, &query.question, query.flags);
    let frame = tcp_frame(&octets).ok_or(Failure::Malformed)?;
    let network = |error: std::io::Error| {
        tracing::debug!(%server, %error, "TCP to an upstream failed");
        Failure::Network
    };
    let mut stream = dial.tcp(server).await.map_err(network)?;
    stream.write_all(&frame).await.map_err(network)?;
    let length = stream.read_u16().await.map_err(network)?;
    let mut octets = vec![0; usize::from(length)];
    stream.read_exact(&mut octets).await.map_err(network)?;
    if reply_id(&octets) != Some(id) {
        return Err(Failure::Malformed);
    }
    let reply = parse_reply(&octets, &query.question).map_err(|_| Failure::Malformed)??;
    // Over TCP nothing is cut (R6.1); one that says so is not believed.
    if reply.truncated {
        Err(Failure::Malformed)
    } else {
        Ok(reply)
    }
}
