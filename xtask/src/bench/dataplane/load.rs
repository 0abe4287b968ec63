//! Datagrams of 200 bytes from one host to another, numbered.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};
use vl3_lab::Host;

/// Inner IP packets of 200 bytes.
const PAYLOAD: usize = 200 - 28;
/// The receiver must not be what loses them.
const RECEIVE_BUFFER: usize = 32 << 20;
/// After the last packet.
const LINGER: Duration = Duration::from_millis(300);
/// Paced packets leave in bursts of this length.
const BEAT: Duration = Duration::from_millis(1);

/// What a sender sent and a receiver saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagrams {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Came after one with a higher number.
    pub(super) reordered: u64,
    elapsed: Duration,
}

impl Datagrams {
    pub(super) fn per_second(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }

    pub(super) fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

/// As fast as one thread can.
pub(super) fn flood(
    from: &Host,
    to: &Host,
    target: IpAddr,
    duration: Duration,
) -> anyhow::Result<Datagrams> {
    exchange(from, to, target, |socket| {
        let started = Instant::now();
        let mut sent = 0;
        while started.elapsed() < duration {
            for _ in 0..64 {
                send(socket, &mut sent)?;
            }
        }
        Ok((sent, started.elapsed()))
    })
}

/// At a steady rate, in bursts of a millisecond.
pub(super) fn paced(
    from: &Host,
    to: &Host,
    target: IpAddr,
    duration: Duration,
    rate: f64,
) -> anyhow::Result<Datagrams> {
    exchange(from, to, target, |socket| {
        let started = Instant::now();
        let mut sent = 0;
        while started.elapsed() < duration {
            let due = (started.elapsed().as_secs_f64() * rate) as u64;
            // After a pause of the whole machine the rate goes on, without a burst.
            let missed = due
                .saturating_sub(sent)
                .saturating_sub((rate * 0.005) as u64);
            let mut rest = due.saturating_sub(sent + missed);
            while rest > 0 {
                send(socket, &mut sent)?;
                rest -= 1;
            }
            std::thread::sleep(BEAT);
        }
        Ok((sent, started.elapsed()))
    })
}

fn send(socket: &UdpSocket, number: &mut u64) -> io::Result<()> {
    let mut packet = [0; PAYLOAD];
    packet[..8].copy_from_slice(&number.to_be_bytes());
    match socket.send(&packet) {
        // A full queue on the way out is part of an overload.
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error),
    }
    *number += 1;
    Ok(())
}

fn exchange(
    from: &Host,
    to: &Host,
    target: IpAddr,
    sending: impl FnOnce(&UdpSocket) -> io::Result<(u64, Duration)> + Send,
) -> anyhow::Result<Datagrams> {
    let receiver = to
        .run(|| UdpSocket::bind((target, 0)))
        .context("bind the receiver")?;
    setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .context("give the receiver room")?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let address: SocketAddr = receiver.local_addr()?;
    let sender = from.run(|| -> io::Result<UdpSocket> {
        let any: IpAddr = if target.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0; 16].into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        Ok(socket)
    });
    let sender = sender.context("open the sender")?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| count(&receiver, &over));
        let sent = sending(&sender);
        std::thread::sleep(LINGER);
        over.store(true, Relaxed);
        let (received, reordered) = counting
            .join()
            .map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        let (sent, elapsed) = sent.context("send datagrams")?;
        Ok(Datagrams {
            sent,
            received,
            reordered,
            elapsed,
        })
    })
}

fn count(receiver: &UdpSocket, over: &AtomicBool) -> io::Result<(u64, u64)> {
    let (mut received, mut reordered, mut next) = (0, 0, 0);
    let mut packet = [0; 2048];
    loop {
        match receiver.recv(&mut packet) {
            Ok(len) if len == PAYLOAD => {
                let number = packet
                    .first_chunk::<8>()
                    .copied()
                    .map_or(0, u64::from_be_bytes);
                received += 1;
                if number < next {
                    reordered += 1;
                }
                next = next.max(number + 1);
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                if over.load(Relaxed) {
                    return Ok((received, reordered));
                }
            }
            Err(error) => return Err(error),
        }
    }
}
