//! TCP between two hosts: how fast one stream is, and whether a long one survives.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{SockFlag, SockType, SockaddrStorage, connect, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::socket;
use crate::host::Host;

/// How long anything may stand still before it counts as broken.
const STALL_MAX: Duration = Duration::from_secs(5);

/// What one stream carried.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// Received by the reader.
    pub bytes: u64,
    /// From the reader's first byte to its last.
    pub elapsed: Duration,
}

impl Throughput {
    pub fn bits_per_second(self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Sends as fast as one TCP stream can for `duration`, from `from` to `address` of `to`.
pub async fn throughput(
    from: &Host,
    source: Option<IpAddr>,
    to: &Host,
    address: IpAddr,
    duration: Duration,
) -> anyhow::Result<Throughput> {
    let listener = to
        .run(|| TcpListener::bind((address, 0)))
        .context("listen for the stream")?;
    let target = listener.local_addr()?;
    let reader = tokio::task::spawn_blocking(move || receive(&listener));
    let from = from.clone();
    let writer = tokio::task::spawn_blocking(move || {
        let stream = connect_from(&from, source, target)?;
        // The stream ends with its time even where nobody waits for it any more; the host need
        // not live that long.
        drop(from);
        send(stream, duration)
    });
    let (read, written) = tokio::join!(reader, writer);
    written
        .context("the sender panicked")?
        .context("send the stream")?;
    read.context("the receiver panicked")?
        .context("receive the stream")
}

fn receive(listener: &TcpListener) -> io::Result<Throughput> {
    let mut stream = accept(listener)?;
    stream.set_read_timeout(Some(STALL_MAX))?;
    let mut buffer = vec![0_u8; 256 * 1024];
    let mut bytes = 0;
    let mut started = None;
    loop {
        let len = stream.read(&mut buffer)?;
        let began = *started.get_or_insert_with(Instant::now);
        if len == 0 {
            return Ok(Throughput {
                bytes,
                elapsed: began.elapsed(),
            });
        }
        bytes += len as u64;
    }
}

/// Accepts within [`STALL_MAX`].
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(STALL_MAX.as_millis()).unwrap_or(PollTimeout::MAX);
    if poll(
        &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
        timeout,
    )? == 0
    {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody connected"));
    }
    Ok(listener.accept()?.0)
}

fn send(mut stream: TcpStream, duration: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(STALL_MAX))?;
    let buffer = vec![0x76_u8; 256 * 1024];
    let started = Instant::now();
    while started.elapsed() < duration {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)
}

/// Connects from inside `host`, from `source` where given, within [`STALL_MAX`].
fn connect_from(host: &Host, source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let made = socket::open(
        host,
        target.ip(),
        SockType::Stream,
        None,
        SockFlag::empty(),
        source,
    )?;
    // The send time-out bounds connect too (socket(7)).
    setsockopt(
        &made,
        sockopt::SendTimeout,
        &TimeVal::seconds(STALL_MAX.as_secs().cast_signed()),
    )?;
    connect(made.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(TcpStream::from(made))
}

/// A TCP connection that is kept open and spoken over now and then.
#[derive(Debug)]
pub struct LongConnection {
    client: tokio::net::TcpStream,
    server: JoinHandle<io::Result<()>>,
    exchanges: u64,
}

impl LongConnection {
    /// Connects `from` (bound to `source`) to an echo service that it starts at `address` of `to`.
    pub async fn open(
        from: &Host,
        source: Option<IpAddr>,
        to: &Host,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let listener = to
            .run(|| TcpListener::bind((address, 0)))
            .context("listen for the connection")?;
        let target = listener.local_addr()?;
        let accepted = tokio::task::spawn_blocking(move || accept(&listener));
        let from = from.clone();
        let client = tokio::task::spawn_blocking(move || connect_from(&from, source, target))
            .await?
            .context("connect")?;
        let mut served = tokio_stream(accepted.await??)?;
        let server = tokio::spawn(async move {
            let (mut reader, mut writer) = served.split();
            tokio::io::copy(&mut reader, &mut writer).await.map(drop)
        });
        let client = tokio_stream(client)?;
        client.set_nodelay(true)?;
        Ok(Self {
            client,
            server,
            exchanges: 0,
        })
    }

    /// Sends a number and waits for its echo; the round trip with every retransmission.
    pub async fn exchange(&mut self, timeout: Duration) -> anyhow::Result<Duration> {
        self.exchanges += 1;
        let sent = self.exchanges.to_be_bytes();
        let started = Instant::now();
        let mut back = [0_u8; 8];
        tokio::time::timeout(timeout, async {
            self.client.write_all(&sent).await?;
            self.client.read_exact(&mut back).await
        })
        .await
        .with_context(|| format!("no echo on the connection for {timeout:?}"))?
        .context("the connection is broken")?;
        anyhow::ensure!(back == sent, "the connection answered something else");
        Ok(started.elapsed())
    }
}

impl Drop for LongConnection {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn tokio_stream(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
