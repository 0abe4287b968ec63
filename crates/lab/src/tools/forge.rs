use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::Context;
use nix::sys::socket::{
    MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, setsockopt, sockopt,
};

use super::socket;
use crate::host::Host;

/// Sends a complete IP packet as it is, whatever source it claims, by the route to its
/// destination (through `interface` where given). See [`crate::udp_packet`].
pub fn inject(host: &Host, interface: Option<&str>, packet: &[u8]) -> anyhow::Result<()> {
    let target = destination(packet).context("not an IP packet")?;
    // A raw socket of protocol 255 takes the header from the caller (raw(7), and ipv6(7)).
    let made = socket::open(
        host,
        target,
        SockType::Raw,
        Some(SockProtocol::Raw),
        SockFlag::empty(),
        None,
    )?;
    if let Some(interface) = interface {
        setsockopt(&made, sockopt::BindToDevice, &interface.into())?;
    }
    let to = SockaddrStorage::from(SocketAddr::new(target, 0));
    sendto(made.as_raw_fd(), packet, &to, MsgFlags::MSG_NOSIGNAL)
        .map_err(io::Error::from)
        .with_context(|| format!("send a packet to {target}"))?;
    Ok(())
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet
            .get(16..20)?
            .first_chunk::<4>()
            .map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        6 => packet
            .get(24..40)?
            .first_chunk::<16>()
            .map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
        _ => None,
    }
}
