//! One TCP listener and its connections: questions of one connection run side by side and are
//! answered as they come (RFC 7766).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use vl3_core::{Backoff, Rng};
use vl3_runtime::CancellationToken;

use super::connections::{Connection, QUESTIONS_MAX};
use super::{Front, Responder};
use crate::engine::{Asked, Command};
use crate::metrics::{Drop, Metrics};
use crate::wire::{HEADER_OCTETS, QUERY_OCTETS_MAX, tcp_frame};

/// A connection without questions is closed after this (RFC 7766 6.2.3).
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// A client that takes no reply for so long is cut.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// What the kernel keeps of replies that a client does not read: two of the largest.
const UNREAD_OCTETS: usize = 128 << 10;

/// Runs until `stop` and until what waits then is accepted.
pub(super) async fn serve(listener: TcpListener, front: Front, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
    let mut rng = Rng::new(rand::random());
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                front.metrics.dropped(Drop::Accept);
                // Descriptors run out, or the client left already: neither may spin.
                tracing::debug!(%error, "accepting a connection failed");
                tokio::time::sleep(backoff.next(&mut rng)).await;
                continue;
            }
        };
        backoff.reset();
        let Some(open) = front.connections.open(client.ip()) else {
            continue;
        };
        let of = front.clone();
        front.tasks.spawn_detached("dns connection", async move {
            connection(stream, client, &open, of).await;
        });
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, open: &Connection, front: Front) {
    // A reply is one write; waiting for more only delays it.
    let _without = stream.set_nodelay(true);
    // Else the kernel keeps megabytes for each client that does not read.
    let _without = setsockopt(&stream, sockopt::SndBuf, &UNREAD_OCTETS);
    let (reader, writer) = stream.into_split();
    let (replies, queue) = mpsc::channel(QUESTIONS_MAX + 1);
    let both = async {
        tokio::join!(
            read(reader, client, open, replies, &front),
            write(writer, queue, &front.metrics)
        )
    };
    tokio::select! {
        _ = both => {}
        () = open.crowded_out() => {}
    }
}

/// Ends with the client's end, its silence, or a message that is none.
async fn read(
    mut stream: OwnedReadHalf,
    client: SocketAddr,
    open: &Connection,
    replies: mpsc::Sender<Vec<u8>>,
    front: &Front,
) {
    let in_flight = open.in_flight();
    let mut message = Vec::new();
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let whole = tokio::select! {
            whole = tokio::time::timeout(IDLE_LIMIT, next(&mut stream, &mut message)) => whole,
            // The writer gave the client up.
            () = replies.closed() => return,
        };
        match whole {
            Ok(Next::Message) => {}
            Ok(Next::End) => return,
            Ok(Next::NotAQuestion) => return front.metrics.dropped(Drop::NotAQuestion),
            Err(_) => return front.metrics.dropped(Drop::Idle),
        }
        if message[2] & 0x80 != 0 {
            return front.metrics.dropped(Drop::IsReply);
        }
        open.spoke();
        let asked = Command::Ask(Asked {
            source: client.ip(),
            message: std::mem::take(&mut message),
            responder: Responder {
                writer: replies.clone(),
                permit,
            },
        });
        let Some(engine) = front.switch.engine(client.ip()) else {
            return;
        };
        if engine.send(asked).await.is_err() {
            return;
        }
    }
}

/// What a stream brought.
enum Next {
    Message,
    End,
    /// A length that no question has, or less than the length says.
    NotAQuestion,
}

async fn next(stream: &mut OwnedReadHalf, message: &mut Vec<u8>) -> Next {
    let Ok(length) = stream.read_u16().await else {
        return Next::End;
    };
    let length = usize::from(length);
    if !(HEADER_OCTETS..=QUERY_OCTETS_MAX).contains(&length) {
        return Next::NotAQuestion;
    }
    message.resize(length, 0);
    match stream.read_exact(message).await {
        Ok(_) => Next::Message,
        Err(_) => Next::NotAQuestion,
    }
}

/// Ends when the reader and every question in flight are gone, or the client does not read.
async fn write(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, metrics: &Metrics) {
    while let Some(octets) = queue.recv().await {
        let Some(frame) = tcp_frame(&octets) else {
            continue;
        };
        match tokio::time::timeout(WRITE_LIMIT, stream.write_all(&frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return metrics.dropped(Drop::SlowReader),
        }
    }
}
