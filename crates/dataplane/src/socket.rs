//! The UDP sockets of the workers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

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
    crate::sys::discover_path_mtu(&socket, address.is_ipv6())?;
    // FORCE passes the system's limit and needs CAP_NET_ADMIN; without it take what is given.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
