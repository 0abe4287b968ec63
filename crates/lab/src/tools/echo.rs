//! ICMP and ICMPv6 echo (RFC 792, RFC 4443) over raw sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::socket;
use crate::host::Host;
use crate::packet::{fold, sum};

/// What one echo request led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Answered after this round trip.
    After(Duration),
    /// The host or a router on the way says that it cannot be delivered.
    Unreachable,
    /// Nothing came in time.
    Silence,
}

impl Answered {
    pub fn is_answered(self) -> bool {
        matches!(self, Self::After(_))
    }
}

/// Sends one echo request and waits for its answer, at most `timeout`.
pub async fn echo(
    host: &Host,
    source: Option<IpAddr>,
    target: IpAddr,
    timeout: Duration,
) -> anyhow::Result<Answered> {
    let mut socket = match EchoSocket::open(host, source, target) {
        Ok(socket) => socket,
        Err(error) if is_unreachable(&error) => return Ok(Answered::Unreachable),
        Err(error) => return Err(error.into()),
    };
    let sent = Instant::now();
    match socket.send(1).await {
        Ok(()) => {}
        Err(error) if is_unreachable(&error) => return Ok(Answered::Unreachable),
        Err(error) => return Err(error.into()),
    }
    match tokio::time::timeout(timeout, socket.receive()).await {
        Ok(Ok(_)) => Ok(Answered::After(sent.elapsed())),
        Ok(Err(error)) if is_unreachable(&error) => Ok(Answered::Unreachable),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(Answered::Silence),
    }
}

/// Repeats echo requests every 50 ms until one is answered; the time since the call, or `None`
/// when `timeout` is over.
pub async fn echo_until(
    host: &Host,
    source: Option<IpAddr>,
    target: IpAddr,
    timeout: Duration,
) -> anyhow::Result<Option<Duration>> {
    let started = Instant::now();
    while started.elapsed() < timeout {
        if echo(host, source, target, REPEAT).await?.is_answered() {
            return Ok(Some(started.elapsed()));
        }
        // An immediate refusal must not turn into a busy loop.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(None)
}

const REPEAT: Duration = Duration::from_millis(50);

fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EADDRNOTAVAIL
                | libc::EACCES
                | libc::EINVAL
        )
    )
}

/// Echo requests at a steady rate until it is stopped.
#[derive(Debug)]
pub struct Continuous {
    shared: Arc<Mutex<EchoReport>>,
    task: JoinHandle<()>,
}

/// What a steady stream of echo requests saw; entry n is request n.
#[derive(Clone, Debug, Default)]
pub struct EchoReport {
    /// When sent, and when answered.
    pub probes: Vec<(Instant, Option<Instant>)>,
}

/// Requests that one report remembers; sending stops there.
const PROBES_MAX: usize = 60_000;

impl Continuous {
    /// Starts at once. Errors of single sends count as no answer.
    pub fn start(
        host: &Host,
        source: Option<IpAddr>,
        target: IpAddr,
        interval: Duration,
    ) -> anyhow::Result<Self> {
        let mut socket = EchoSocket::open(host, source, target)?;
        let shared = Arc::new(Mutex::new(EchoReport::default()));
        let report = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {
                        let number = {
                            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                            if report.probes.len() >= PROBES_MAX {
                                return;
                            }
                            report.probes.push((Instant::now(), None));
                            report.probes.len() - 1
                        };
                        // The sequence number wraps; the newest request with it is meant.
                        let _ = socket.send(number as u16).await;
                    }
                    answer = socket.receive() => {
                        let Ok(sequence) = answer else { continue };
                        let now = Instant::now();
                        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                        let newest = report.probes.len().saturating_sub(1);
                        let back = usize::from((newest as u16).wrapping_sub(sequence));
                        if let Some(probe) = newest.checked_sub(back).and_then(|at| report.probes.get_mut(at)) {
                            probe.1.get_or_insert(now);
                        }
                    }
                }
            }
        });
        Ok(Self { shared, task })
    }

    /// What was seen so far.
    pub fn report(&self) -> EchoReport {
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits a last `grace` for answers under way, then stops.
    pub async fn stop(self, grace: Duration) -> EchoReport {
        tokio::time::sleep(grace).await;
        let mut report = self.report();
        // Requests of the grace itself have not had their time.
        let end = Instant::now();
        report
            .probes
            .retain(|(sent, answered)| answered.is_some() || end.duration_since(*sent) >= grace);
        report
    }
}

impl Drop for Continuous {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EchoReport {
    pub fn sent(&self) -> usize {
        self.probes.len()
    }

    pub fn lost(&self) -> usize {
        self.probes
            .iter()
            .filter(|(_, answered)| answered.is_none())
            .count()
    }

    /// Longest time without an answer, from one answer to the next.
    pub fn longest_gap(&self) -> Duration {
        let mut answers: Vec<Instant> = self
            .probes
            .iter()
            .filter_map(|(_, answered)| *answered)
            .collect();
        answers.sort();
        answers
            .windows(2)
            .map(|pair| pair[1].duration_since(pair[0]))
            .max()
            .unwrap_or(Duration::MAX)
    }

    /// From `moment` to the first answer to a request; `None` when none came.
    pub fn first_answer_after(&self, moment: Instant) -> Option<Duration> {
        let answers = self.probes.iter().filter_map(|(_, answered)| *answered);
        answers
            .filter(|answered| *answered >= moment)
            .min()
            .map(|answered| answered.duration_since(moment))
    }
}

struct EchoSocket {
    socket: AsyncFd<OwnedFd>,
    target: IpAddr,
    identifier: u16,
}

impl EchoSocket {
    fn open(host: &Host, source: Option<IpAddr>, target: IpAddr) -> io::Result<Self> {
        let protocol = if target.is_ipv4() {
            SockProtocol::Icmp
        } else {
            SockProtocol::IcmpV6
        };
        let made = socket::open(
            host,
            target,
            SockType::Raw,
            Some(protocol),
            SockFlag::SOCK_NONBLOCK,
            source,
        )?;
        Ok(Self {
            socket: vl3_net::async_descriptor(made)?,
            target,
            identifier: rand::random(),
        })
    }

    async fn send(&mut self, sequence: u16) -> io::Result<()> {
        let message = request(self.target, self.identifier, sequence);
        let to = SockaddrStorage::from(SocketAddr::new(self.target, 0));
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                Ok(sendto(
                    socket.as_raw_fd(),
                    &message,
                    &to,
                    MsgFlags::MSG_NOSIGNAL,
                )?)
            })
            .await
            .map(drop)
    }

    /// Waits for the answer to any of this socket's requests; its sequence number.
    async fn receive(&mut self) -> io::Result<u16> {
        let mut buffer = [0_u8; 2048];
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    Ok(recvfrom::<SockaddrStorage>(
                        socket.as_raw_fd(),
                        &mut buffer,
                    )?)
                })
                .await;
            let (len, from) = received?;
            let Some(from) = from.and_then(address_of) else {
                continue;
            };
            if from != self.target {
                continue;
            }
            if let Some(sequence) = answer(&buffer[..len], self.target, self.identifier) {
                return Ok(sequence);
            }
        }
    }
}

fn address_of(address: SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(four), _) => Some(IpAddr::V4(four.ip())),
        (_, Some(six)) => Some(IpAddr::V6(six.ip())),
        _ => None,
    }
}

/// Fills a request to a usual size, so that it is recognised in a capture.
const PATTERN: [u8; 48] = [0x76; 48];

fn request(target: IpAddr, identifier: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![if target.is_ipv4() { 8 } else { 128 }, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(PATTERN);
    if target.is_ipv4() {
        // The kernel fills in that of ICMPv6.
        let checksum = fold(sum(&message));
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

/// The sequence number, if this is an answer to `identifier`. IPv4 raw sockets deliver the IP
/// header too.
fn answer(received: &[u8], target: IpAddr, identifier: u16) -> Option<u16> {
    let (message, reply) = if target.is_ipv4() {
        (
            received.get(usize::from(received.first()? & 0x0f) * 4..)?,
            0,
        )
    } else {
        (received, 129)
    };
    let head: &[u8; 8] = message.first_chunk()?;
    let id = u16::from_be_bytes([head[4], head[5]]);
    (head[0] == reply && id == identifier).then(|| u16::from_be_bytes([head[6], head[7]]))
}
