//! Every system call that no safe wrapper offers. The only module with unsafe code.
#![expect(
    unsafe_code,
    reason = "socket options, batches and ioctls that nix and socket2 lack"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets DF while a datagram fits the known path MTU and fragments locally beyond it.
pub(crate) fn discover_path_mtu(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    let (level, name, value) = if v6 {
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_WANT,
        )
    } else {
        (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_WANT,
        )
    };
    set_int(socket, level, name, value)
}

fn set_int(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call and the option value is a live int of the
    // stated size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
