//! Echo requests to the router's overlay address, through the kernel and the interface as any
//! packet of the workload goes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::task::AbortHandle;
use vl3_core::time::Mono;
use vl3_runtime::{Tasks, clock};

const ECHO_REQUEST_4: u8 = 8;
const ECHO_REPLY_4: u8 = 0;
const ECHO_REQUEST_6: u8 = 128;
const ECHO_REPLY_6: u8 = 129;
/// Type, code, checksum, identifier, sequence.
const HEADER: usize = 8;
/// Send time and cookie.
const PAYLOAD: usize = 16;

/// One answered probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) at: Mono,
    pub(crate) rtt: Duration,
}

/// Probes one address from one address. Dropping it ends its reader.
#[derive(Debug)]
pub(crate) struct Prober {
    socket: Socket,
    target: IpAddr,
    source: IpAddr,
    mark: Mark,
    sequence: u16,
    reader: AbortHandle,
}

/// What tells our replies from others'.
#[derive(Clone, Copy, Debug)]
struct Mark {
    identifier: u16,
    cookie: u64,
}

impl Prober {
    /// Opens a raw socket bound to `source`; every reply goes to `on_reply`.
    pub(crate) fn start(
        source: IpAddr,
        target: IpAddr,
        tasks: &Tasks,
        on_reply: impl Fn(Reply) + Send + 'static,
    ) -> io::Result<Self> {
        let (domain, protocol) = match source {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        // The kernel then passes on what comes from there alone.
        socket.connect(&SocketAddr::new(target, 0).into())?;
        let mark = Mark {
            identifier: rand::random(),
            cookie: rand::random(),
        };
        let reading = vl3_net::async_descriptor(OwnedFd::from(socket.try_clone()?))?;
        let v6 = source.is_ipv6();
        let reader = tasks.spawn_detached("probe replies", async move {
            let mut buffer = [0_u8; 256];
            loop {
                let read = reading
                    .async_io(Interest::READABLE, |socket| {
                        Ok(nix::unistd::read(socket, &mut buffer)?)
                    })
                    .await;
                match read {
                    Ok(length) => {
                        let now = clock::mono();
                        if let Some(sent) = sent_of(&buffer[..length], v6, mark) {
                            on_reply(Reply {
                                at: now,
                                rtt: now.saturating_since(sent),
                            });
                        }
                    }
                    // An ICMP error (unreachable) says nothing that silence does not.
                    Err(error) => tracing::trace!(%error, "probe socket"),
                }
            }
        });
        Ok(Self {
            socket,
            target,
            source,
            mark,
            sequence: 0,
            reader,
        })
    }

    pub(crate) const fn runs_between(&self, source: IpAddr, target: IpAddr) -> bool {
        same(self.source, source) && same(self.target, target)
    }

    /// Sends one probe; what the kernel refuses counts as lost.
    pub(crate) fn probe(&mut self) -> Option<Mono> {
        self.sequence = self.sequence.wrapping_add(1);
        let now = clock::mono();
        let packet = request(self.source.is_ipv6(), self.mark, self.sequence, now);
        match self.socket.send(&packet) {
            Ok(_) => Some(now),
            Err(error) => {
                tracing::debug!(%error, target = %self.target, "probe was not sent");
                None
            }
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

const fn same(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.to_bits() == b.to_bits(),
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() == b.to_bits(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn request(v6: bool, mark: Mark, sequence: u16, now: Mono) -> [u8; HEADER + PAYLOAD] {
    let mut packet = [0; HEADER + PAYLOAD];
    packet[0] = if v6 { ECHO_REQUEST_6 } else { ECHO_REQUEST_4 };
    packet[4..6].copy_from_slice(&mark.identifier.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..16].copy_from_slice(&now.0.to_be_bytes());
    packet[16..24].copy_from_slice(&mark.cookie.to_be_bytes());
    if !v6 {
        // The kernel fills in the one of ICMPv6.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The send time in a reply to one of our probes. A raw IPv4 socket delivers the IP header too.
fn sent_of(packet: &[u8], v6: bool, mark: Mark) -> Option<Mono> {
    let (icmp, reply) = if v6 {
        (packet, ECHO_REPLY_6)
    } else {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        (packet.get(header..)?, ECHO_REPLY_4)
    };
    let field = |at: usize| {
        icmp.get(at..at + 8)?
            .try_into()
            .ok()
            .map(u64::from_be_bytes)
    };
    let ours = *icmp.first()? == reply
        && *icmp.get(4..6)? == mark.identifier.to_be_bytes()
        && field(16)? == mark.cookie;
    if ours { field(8).map(Mono) } else { None }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded above: it fits.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark {
        identifier: 0x1234,
        cookie: 0xfeed,
    };

    #[test]
    fn a_request_has_a_valid_checksum() {
        assert_eq!(checksum(&request(false, MARK, 7, Mono(99))), 0);
    }

    #[test]
    fn only_our_own_replies_are_taken() {
        let mut reply = request(true, MARK, 7, Mono(99));
        assert_eq!(sent_of(&reply, true, MARK), None, "a request is no reply");
        reply[0] = ECHO_REPLY_6;
        assert_eq!(sent_of(&reply, true, MARK), Some(Mono(99)));
        assert_eq!(sent_of(&reply, true, Mark { cookie: 1, ..MARK }), None);
        assert_eq!(sent_of(&reply[..20], true, MARK), None);
    }

    #[test]
    fn the_ip_header_of_a_raw_ipv4_socket_is_skipped() {
        let mut reply = request(false, MARK, 7, Mono(99));
        reply[0] = ECHO_REPLY_4;
        let mut packet = vec![0_u8; 20];
        packet[0] = 0x45;
        packet.extend_from_slice(&reply);
        assert_eq!(sent_of(&packet, false, MARK), Some(Mono(99)));
        assert_eq!(sent_of(&[0x4f], false, MARK), None);
        assert_eq!(sent_of(&[], false, MARK), None);
    }
}
