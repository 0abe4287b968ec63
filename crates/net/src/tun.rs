//! TUN devices as the data plane wants them: no packet information, a virtio-net header before
//! each packet, every offload that the kernel offers.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::Error;
use crate::sys::{self, InterfaceName};

/// Packets that may wait for the reader of a TUN, where nothing else is asked for. The kernel's own
/// 500 overflow at 200,000 small packets a second as soon as the reader is off its CPU for three
/// milliseconds; this bridges twenty. Beyond: the kernel drops and counts on the interface.
pub const QUEUE_LENGTH: u32 = 4096;

const DEVICE: &str = "/dev/net/tun";

/// Longest interface name without its terminating NUL.
pub const NAME_LEN_MAX: usize = libc::IFNAMSIZ - 1;

// linux/if_tun.h
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// Makes a TUN with vnet headers in the calling thread's namespace, or opens one more queue of it
/// where it exists and both were asked for as `multi_queue`. An empty name, or one with `%d`, lets
/// the kernel choose. The interface goes with its last descriptor. Offloads: checksum, TCP
/// segmentation and (from Linux 6.2) UDP segmentation; what the kernel refuses is left off.
///
/// Blocking mode is left as it is (blocking). An interface name in use is EBUSY.
pub fn create(name: &str, multi_queue: bool) -> Result<(OwnedFd, String), Error> {
    let queue = if multi_queue {
        libc::IFF_MULTI_QUEUE
    } else {
        0
    };
    let (tun, name) = open(
        name,
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queue,
    )?;
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    let mut last = Ok(());
    for offloads in [tcp | TUN_F_USO4 | TUN_F_USO6, tcp, 0] {
        last = sys::tun_set_offload(tun.as_fd(), offloads);
        if last.is_ok() {
            break;
        }
    }
    last.map_err(|source| Error::kernel(format!("set the offloads of {name}"), source))?;
    Ok((tun, name))
}

/// Makes a TUN without headers and offloads: one complete packet per read and write.
pub fn create_plain(name: &str) -> Result<(OwnedFd, String), Error> {
    open(name, libc::IFF_TUN | libc::IFF_NO_PI)
}

fn open(name: &str, flags: libc::c_int) -> Result<(OwnedFd, String), Error> {
    let wanted = interface_name(name)?;
    let tun: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|source| {
            Error::kernel(format!("open {DEVICE} (is the tun module there?)"), source)
        })?
        .into();
    // All flags used here fit: the largest is IFF_VNET_HDR, 0x4000.
    let flags = i16::try_from(flags).unwrap_or(i16::MAX);
    let made = sys::tun_set_iff(tun.as_fd(), wanted, flags)
        .map_err(|source| Error::kernel(format!("make the TUN interface {name:?}"), source))?;
    Ok((tun, text_of(made)))
}

/// Checks a name for use in a request.
pub(crate) fn interface_name(name: &str) -> Result<InterfaceName, Error> {
    let bytes = name.as_bytes();
    let bad = |byte: &u8| *byte == 0 || *byte == b'/' || byte.is_ascii_whitespace();
    if bytes.len() > NAME_LEN_MAX || bytes.iter().any(bad) {
        return Err(Error::Invalid {
            field: "interface name",
            value: name.to_owned(),
            allowed: "at most 15 bytes without '/' and white space",
        });
    }
    let mut padded = [0_u8; libc::IFNAMSIZ];
    padded[..bytes.len()].copy_from_slice(bytes);
    Ok(InterfaceName(padded))
}

fn text_of(name: InterfaceName) -> String {
    let end = name
        .0
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.0.len());
    String::from_utf8_lossy(&name.0[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_sixteen_bytes_is_refused_with_what_is_allowed() {
        let error = interface_name("sixteen-bytes-xx").expect_err("too long");
        assert!(error.to_string().contains("at most 15 bytes"), "{error}");
    }
}
