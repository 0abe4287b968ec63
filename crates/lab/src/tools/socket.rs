use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket,
};

use crate::host::Host;

/// Opens a socket inside `host`, bound to `source` where given.
pub(super) fn open(
    host: &Host,
    family: IpAddr,
    kind: SockType,
    protocol: Option<SockProtocol>,
    flags: SockFlag,
    source: Option<IpAddr>,
) -> io::Result<OwnedFd> {
    host.run(move || {
        let domain = if family.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let made = socket(domain, kind, flags | SockFlag::SOCK_CLOEXEC, protocol)?;
        if let Some(source) = source {
            bind(
                made.as_raw_fd(),
                &SockaddrStorage::from(SocketAddr::new(source, 0)),
            )?;
        }
        Ok(made)
    })
}
