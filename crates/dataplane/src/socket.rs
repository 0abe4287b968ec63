//! The UDP sockets of the workers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::outbound::Wire;
use crate::sys::{self, Outgoing};

/// Receive and send buffer of each socket, bytes: default buffers lose trains.
const SOCKET_BUFFER: usize = 8 << 20;
/// Tries to find one free port for both families.
const PORT_TRIES: usize = 16;

/// One worker's sockets: one per family, of the same port as every other worker's.
#[derive(Debug)]
pub struct UdpSockets {
    pub(crate) v4: Option<UdpSocket>,
    pub(crate) v6: Option<UdpSocket>,
}

impl UdpSockets {
    /// The port that all sockets of the group share.
    pub fn local_port(&self) -> io::Result<u16> {
        let socket = self
            .v4
            .as_ref()
            .or(self.v6.as_ref())
            .ok_or(io::ErrorKind::NotConnected)?;
        Ok(socket.local_addr()?.port())
    }
}

/// Binds one group of sockets per worker in the calling thread's network namespace.
///
/// An unspecified address of either family takes both families, as far as the system has
/// them; any other address takes its own. Port 0 is one free port for all. A port that
/// another program holds is an error, although the group itself shares it.
pub fn bind_udp(listen: SocketAddr, workers: usize) -> io::Result<Vec<UdpSockets>> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        match bind_group(listen, workers.max(1)) {
            Err(error) if listen.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {
                last = error
            }
            done => return done,
        }
    }
    Err(last)
}

fn bind_group(listen: SocketAddr, workers: usize) -> io::Result<Vec<UdpSockets>> {
    let (v4, v6) = match listen.ip() {
        ip if ip.is_unspecified() => (
            Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ),
        ip @ IpAddr::V4(_) => (Some(ip), None),
        ip @ IpAddr::V6(_) => (None, Some(ip)),
    };
    let mut port = listen.port();
    // A group shares its port with whoever also asks to share: without this look, a second
    // router on the same port would silently take half of the packets.
    for ip in [v4, v6].into_iter().flatten() {
        match bind_one(SocketAddr::new(ip, port), false) {
            Ok(probe) => port = probe.local_addr()?.port(),
            Err(error) if v4.is_some() && ip.is_ipv6() && no_family(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let mut group = Vec::with_capacity(workers);
    for _ in 0..workers {
        let v4 = v4
            .map(|ip| bind_one(SocketAddr::new(ip, port), true))
            .transpose()?;
        let v6 = match v6
            .map(|ip| bind_one(SocketAddr::new(ip, port), true))
            .transpose()
        {
            Err(error) if v4.is_some() && no_family(&error) => None,
            bound => bound?,
        };
        group.push(UdpSockets { v4, v6 });
    }
    Ok(group)
}

fn no_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::ReusePort, &shared)?;
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    // DF while a packet fits the known path, local fragments when it does not: a tunnel over
    // a path of 1280 bytes still carries the 1280 that IPv6 needs.
    sys::discover_path_mtu(&socket, address.is_ipv6())?;
    // FORCE passes the system's limit and needs CAP_NET_ADMIN; without it take what is given.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    // Best effort: without it every datagram comes alone.
    let _ = sys::receive_coalesced(&socket);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A worker's way out.
#[derive(Debug)]
pub(crate) struct WorkerWire {
    pub(crate) sockets: Arc<UdpSockets>,
    /// The kernel has them, and no way out has refused them yet.
    trains: bool,
}

impl WorkerWire {
    pub(crate) fn new(sockets: Arc<UdpSockets>) -> Self {
        let trains = [&sockets.v4, &sockets.v6]
            .into_iter()
            .flatten()
            .all(sys::can_send_trains);
        Self { sockets, trains }
    }

    fn socket(&self, v6: bool) -> io::Result<&UdpSocket> {
        let socket = if v6 {
            &self.sockets.v6
        } else {
            &self.sockets.v4
        };
        socket
            .as_ref()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
    }
}

impl Wire for WorkerWire {
    fn send(&mut self, v6: bool, messages: &[Outgoing<'_>]) -> io::Result<usize> {
        sys::send_batch(self.socket(v6)?, messages)
    }

    fn wait(&mut self, v6: bool, at_most: Duration) {
        if let Ok(socket) = self.socket(v6) {
            let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            let _ = ppoll(&mut room, Some(at_most.into()), None);
        }
    }

    fn trains(&self) -> bool {
        self.trains
    }

    fn refuse_trains(&mut self) {
        if self.trains {
            tracing::info!("the way out takes no trains: datagrams go singly");
        }
        self.trains = false;
    }
}
