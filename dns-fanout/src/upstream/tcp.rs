//! Queries over TCP: after a reply that was cut (R3.1), and to upstreams of that transport. One
//! connection per server, used again, several queries at a time (RFC 7766).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use vl3_core::Ticket;
use vl3_core::names::{DEADLINE, Failure, Question};

use super::{Completion, Surroundings};
use crate::engine::{Command, Sender};
use crate::metrics::ToFigures;
use crate::sockets::Dial;
use crate::wire::{Encoded, echoes, parse_reply, reply_id, tcp_frame};

/// Queries that wait for the connection; more fail at once.
const WAITING_MAX: usize = 64;
/// Queries on one connection at one time.
const OUTSTANDING_MAX: usize = 256;
/// A silent connection is closed before the server does it (RFC 7766 6.2.3).
const IDLE_LIMIT: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) ticket: Ticket,
    pub(super) question: Arc<Question>,
    pub(super) encoded: Arc<Encoded>,
}

/// Dropping it ends the connection when its queries have ended.
#[derive(Debug)]
pub(super) struct Handle(mpsc::Sender<Asked>);

impl Handle {
    pub(super) fn ask(&self, asked: Asked) -> Result<(), Failure> {
        self.0.try_send(asked).map_err(|_| Failure::Local)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

pub(super) fn start(
    server: SocketAddr,
    dial: &Dial,
    figures: &Arc<ToFigures>,
    around: &Surroundings,
) -> Handle {
    let (sender, queue) = mpsc::channel(WAITING_MAX);
    let task = Task {
        server,
        dial: dial.clone(),
        figures: Arc::clone(figures),
        engine: around.engine.clone(),
        queue,
    };
    let _in_runtime = around.runtime.enter();
    around.tasks.spawn_detached("upstream tcp", task.run());
    Handle(sender)
}

struct Task {
    server: SocketAddr,
    dial: Dial,
    figures: Arc<ToFigures>,
    engine: Sender,
    queue: mpsc::Receiver<Asked>,
}

struct Outstanding {
    asked: Asked,
    sent: Instant,
    until: Instant,
}

/// Why a connection ended.
enum End {
    /// Nothing was outstanding, or nobody asks any more.
    Quiet,
    Lost(HashMap<u16, Outstanding>),
}

impl Task {
    /// One connection after the other, as queries come.
    async fn run(mut self) {
        let mut again: Vec<Asked> = Vec::new();
        loop {
            let first = match again.pop() {
                Some(asked) => asked,
                None => match self.queue.recv().await {
                    Some(asked) => asked,
                    None => return,
                },
            };
            let dialled = tokio::time::timeout(DEADLINE, self.dial.tcp(self.server)).await;
            let stream = match dialled {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(server = %self.server, %error, "TCP to an upstream failed");
                    self.fail_waiting(first, &mut again).await;
                    continue;
                }
                Err(_) => {
                    self.fail_waiting(first, &mut again).await;
                    continue;
                }
            };
            again.push(first);
            let mut answered = 0;
            match self
                .serve(stream, std::mem::take(&mut again), &mut answered)
                .await
            {
                End::Quiet => {}
                // An idle connection may close just when it is used: once more on a new one.
                End::Lost(lost) if answered > 0 => {
                    again = lost.into_values().map(|lost| lost.asked).collect();
                }
                End::Lost(lost) => {
                    for lost in lost.into_values() {
                        self.fail(lost.asked.ticket).await;
                    }
                }
            }
        }
    }

    /// No connection: whoever waits knows at once.
    async fn fail_waiting(&mut self, first: Asked, again: &mut Vec<Asked>) {
        self.fail(first.ticket).await;
        for asked in again.drain(..) {
            self.fail(asked.ticket).await;
        }
        while let Ok(asked) = self.queue.try_recv() {
            self.fail(asked.ticket).await;
        }
    }

    async fn serve(&mut self, stream: TcpStream, first: Vec<Asked>, answered: &mut u64) -> End {
        // A query is one write; waiting for more only delays it.
        let _without = stream.set_nodelay(true);
        let (mut reader, mut writer) = stream.into_split();
        let mut outstanding = HashMap::new();
        for asked in first {
            if self
                .write(&mut writer, asked, &mut outstanding)
                .await
                .is_err()
            {
                return End::Lost(outstanding);
            }
        }
        let mut frame = Frame::default();
        loop {
            tokio::select! {
                read = frame.read(&mut reader) => match read {
                    Ok(()) => {
                        let octets = std::mem::take(&mut frame).octets;
                        *answered += u64::from(self.take(&octets, &mut outstanding).await);
                    }
                    Err(_) if outstanding.is_empty() => return End::Quiet,
                    Err(_) => return End::Lost(outstanding),
                },
                asked = self.queue.recv() => match asked {
                    Some(asked) => {
                        if self.write(&mut writer, asked, &mut outstanding).await.is_err() {
                            return End::Lost(outstanding);
                        }
                    }
                    None if outstanding.is_empty() => return End::Quiet,
                    None => {
                        self.last_replies(&mut reader, frame, &mut outstanding).await;
                        return End::Lost(outstanding);
                    }
                },
                () = tokio::time::sleep(IDLE_LIMIT) => return End::Lost(outstanding),
            }
        }
    }

    /// Nobody asks any more; those who asked may still be answered.
    async fn last_replies(
        &self,
        reader: &mut OwnedReadHalf,
        mut frame: Frame,
        outstanding: &mut HashMap<u16, Outstanding>,
    ) {
        let until = Instant::now() + DEADLINE;
        while !outstanding.is_empty() {
            match tokio::time::timeout_at(until, frame.read(reader)).await {
                Ok(Ok(())) => {
                    let octets = std::mem::take(&mut frame).octets;
                    let _is_other = self.take(&octets, outstanding).await;
                }
                _ => return,
            }
        }
    }

    async fn write(
        &self,
        writer: &mut OwnedWriteHalf,
        asked: Asked,
        outstanding: &mut HashMap<u16, Outstanding>,
    ) -> io::Result<()> {
        let now = Instant::now();
        outstanding.retain(|_, one| one.until > now);
        let id = (0..64)
            .map(|_| rand::rng().random::<u16>())
            .find(|id| !outstanding.contains_key(id))
            .filter(|_| outstanding.len() < OUTSTANDING_MAX);
        let mut octets = Vec::new();
        asked.encoded.write(id.unwrap_or(0), &mut octets);
        let (Some(id), Some(frame)) = (id, tcp_frame(&octets)) else {
            self.fail(asked.ticket).await;
            return Ok(());
        };
        let until = now + DEADLINE;
        outstanding.insert(
            id,
            Outstanding {
                asked,
                sent: now,
                until,
            },
        );
        tokio::time::timeout(DEADLINE, writer.write_all(&frame)).await?
    }

    /// Whether it answers one of the queries.
    async fn take(&self, octets: &[u8], outstanding: &mut HashMap<u16, Outstanding>) -> bool {
        let Some(Outstanding { asked, sent, .. }) =
            reply_id(octets).and_then(|id| outstanding.remove(&id))
        else {
            return false;
        };
        let ticket = asked.ticket;
        // Whoever speaks TCP for the server is the server: letters prove nothing more (R3.3).
        let reply = echoes(octets, &asked.encoded)
            .map_err(|_| Failure::Malformed)
            .and_then(|_| parse_reply(octets, &asked.question))
            // Over TCP nothing is cut (R6.1); one that says so is not believed.
            .and_then(|reply| {
                if reply.truncated {
                    Err(Failure::Malformed)
                } else {
                    Ok(reply)
                }
            });
        if let Ok(reply) = &reply {
            self.figures.said(reply.rcode, sent.elapsed());
        }
        self.complete(match reply {
            Ok(reply) => Completion::Reply { ticket, reply },
            Err(failure) => Completion::Failed { ticket, failure },
        })
        .await;
        true
    }

    async fn fail(&self, ticket: Ticket) {
        let failure = Failure::Network;
        self.complete(Completion::Failed { ticket, failure }).await;
    }

    async fn complete(&self, completion: Completion) {
        // Err: the server stopped.
        let _stopped = self.engine.send(Command::Completed(completion)).await;
    }
}

/// A message behind its length, read in pieces: giving up a read loses nothing.
#[derive(Default)]
struct Frame {
    head: [u8; 2],
    head_read: usize,
    octets: Vec<u8>,
    read: usize,
}

impl Frame {
    async fn read(&mut self, reader: &mut OwnedReadHalf) -> io::Result<()> {
        while self.head_read < 2 {
            let read = reader.read(&mut self.head[self.head_read..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.head_read += read;
        }
        self.octets
            .resize(usize::from(u16::from_be_bytes(self.head)), 0);
        while self.read < self.octets.len() {
            let read = reader.read(&mut self.octets[self.read..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.read += read;
        }
        Ok(())
    }
}
