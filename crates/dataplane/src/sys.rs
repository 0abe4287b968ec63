//! Every system call that no safe wrapper offers. The only module with unsafe code.
#![expect(
    unsafe_code,
    reason = "socket options, batched messages and TUN ioctls that nix and socket2 lack"
)]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use socket2::{SockAddr, SockAddrStorage};

use crate::limits::{RECEIVE_BATCH, RECEIVE_BUFFER, SEND_BATCH};

/// Room for packet info of either family and a segment size.
const CONTROL: usize = 128;
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;

/// Control data aligned like its headers.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

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

/// Asks the kernel to coalesce datagrams of one sender; since Linux 5.0.
pub(crate) fn receive_coalesced(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, UDP_GRO, 1)
}

/// Whether trains can be sent at all; since Linux 4.18.
pub(crate) fn can_send_trains(socket: &impl AsFd) -> bool {
    set_int(socket, libc::SOL_UDP, UDP_SEGMENT, 0).is_ok()
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

/// The flags that a TUN was opened with.
pub(crate) fn tun_flags(tun: &impl AsFd) -> io::Result<i32> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value; TUNGETIFF writes one
    // `ifreq`, which lives for the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        check(libc::ioctl(
            tun.as_fd().as_raw_fd(),
            libc::TUNGETIFF as _,
            &raw mut request,
        ))?;
        // The kernel's flags do not fit a positive short: IFF_VNET_HDR is 0x4000, others 0x8000.
        Ok(i32::from(request.ifr_ifru.ifru_flags.cast_unsigned()))
    }
}

/// Sets the length of the header in front of each packet.
pub(crate) fn set_vnet_header_len(tun: &impl AsFd, len: usize) -> io::Result<()> {
    let len = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives for the call.
    check(unsafe {
        libc::ioctl(
            tun.as_fd().as_raw_fd(),
            libc::TUNSETVNETHDRSZ as _,
            &raw const len,
        )
    })
}

/// Which super-packets the reader understands.
pub(crate) fn set_offloads(tun: &impl AsFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe {
        libc::ioctl(
            tun.as_fd().as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            libc::c_ulong::from(offloads),
        )
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The buffers of one receive call.
pub(crate) struct ReceiveBatch {
    bytes: Box<[u8]>,
    meta: Vec<ReceiveMeta>,
}

struct ReceiveMeta {
    address: libc::sockaddr_storage,
    control: Control,
    header: libc::msghdr,
    len: usize,
}

/// One buffer as received: one datagram, or several of one sender, `segment` bytes each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where `bytes` starts in the batch.
    pub(crate) offset: usize,
    pub(crate) segment: usize,
    pub(crate) remote: SocketAddr,
    /// Where it was sent to.
    pub(crate) local: Option<IpAddr>,
    pub(crate) truncated: bool,
}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch")
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl ReceiveBatch {
    /// Bytes of all buffers.
    pub(crate) const BYTES: usize = RECEIVE_BATCH * RECEIVE_BUFFER;

    pub(crate) fn new() -> Self {
        // SAFETY: address, control and header are plain old data, for which all zeroes is a
        // value.
        let meta = || unsafe { MaybeUninit::<ReceiveMeta>::zeroed().assume_init() };
        Self {
            bytes: vec![0; Self::BYTES].into_boxed_slice(),
            meta: (0..RECEIVE_BATCH).map(|_| meta()).collect(),
        }
    }

    /// Receives what is there, up to all buffers. Never waits.
    pub(crate) fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        // SAFETY: all zeroes is an empty `mmsghdr`.
        let mut messages: [libc::mmsghdr; RECEIVE_BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: all zeroes is an empty `iovec`.
        let mut pieces: [libc::iovec; RECEIVE_BATCH] = unsafe { std::mem::zeroed() };
        let buffers = self.bytes.chunks_exact_mut(RECEIVE_BUFFER);
        for (((message, piece), meta), buffer) in messages
            .iter_mut()
            .zip(&mut pieces)
            .zip(&mut self.meta)
            .zip(buffers)
        {
            *piece = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            };
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = (&raw mut meta.address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_hdr.msg_control = meta.control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: every header points to a buffer, an address and control data of the stated
        // sizes, all of which live in `self` or on this stack frame for the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                messages.as_mut_ptr(),
                RECEIVE_BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for (meta, message) in self.meta.iter_mut().zip(&messages).take(count as usize) {
            meta.header = message.msg_hdr;
            meta.len = message.msg_len as usize;
        }
        Ok(count as usize)
    }

    /// The buffer `index` of the last call. `None` when its sender has no usable address.
    pub(crate) fn get(&self, index: usize) -> Option<Received<'_>> {
        let meta = self.meta.get(index)?;
        let offset = index * RECEIVE_BUFFER;
        let bytes = &self.bytes[offset..offset + meta.len.min(RECEIVE_BUFFER)];
        let mut received = Received {
            bytes,
            offset,
            segment: bytes.len(),
            remote: read_address(&meta.address)?,
            local: None,
            truncated: meta.header.msg_flags & libc::MSG_TRUNC != 0,
        };
        let mut header = meta.header;
        header.msg_control = meta.control.0.as_ptr().cast_mut().cast();
        // SAFETY: the kernel has filled `msg_controllen` bytes of the control data, which the
        // CMSG macros do not leave; data is read unaligned with the type that the level and
        // type stand for.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(&raw const header);
            while let Some(entry) = control.as_ref() {
                let data = libc::CMSG_DATA(control);
                match (entry.cmsg_level, entry.cmsg_type) {
                    (libc::SOL_UDP, UDP_GRO) => {
                        let segment = data.cast::<libc::c_int>().read_unaligned();
                        received.segment = usize::try_from(segment).unwrap_or(0).max(1);
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        received.local = Some(IpAddr::V4(Ipv4Addr::from(
                            info.ipi_addr.s_addr.to_ne_bytes(),
                        )));
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        received.local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                    }
                    _ => {}
                }
                control = libc::CMSG_NXTHDR(&raw const header, control);
            }
        }
        Some(received)
    }
}

// SAFETY: the pointers inside the headers are only read again after a call has set them anew.
unsafe impl Send for ReceiveBatch {}

/// One message to send: a datagram, or a train of datagrams of `segment` bytes each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) segment: Option<u16>,
    pub(crate) remote: SocketAddr,
    /// Where it is to leave from.
    pub(crate) local: Option<IpAddr>,
}

/// Sends up to [`SEND_BATCH`] messages in order. Returns how many were sent; an error is
/// about the first.
pub(crate) fn send_batch(socket: &impl AsFd, outgoing: &[Outgoing<'_>]) -> io::Result<usize> {
    let count = outgoing.len().min(SEND_BATCH);
    // SAFETY: all zeroes is an empty message header and iovec.
    let (mut messages, mut pieces): ([libc::mmsghdr; SEND_BATCH], [libc::iovec; SEND_BATCH]) =
        unsafe { std::mem::zeroed() };
    let mut addresses = [const { None::<SockAddr> }; SEND_BATCH];
    let mut controls = [Control([0; CONTROL]); SEND_BATCH];
    for (index, message) in outgoing.iter().enumerate().take(count) {
        pieces[index] = libc::iovec {
            iov_base: message.bytes.as_ptr().cast_mut().cast(),
            iov_len: message.bytes.len(),
        };
        let header = &mut messages[index].msg_hdr;
        header.msg_iov = &raw mut pieces[index];
        header.msg_iovlen = 1;
        let address = addresses[index].insert(message.remote.into());
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = address.len();
        header.msg_control = controls[index].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
        let used = write_control(header, message);
        header.msg_controllen = used as _;
        if used == 0 {
            header.msg_control = std::ptr::null_mut();
        }
    }
    // SAFETY: every header points to bytes, an address and control data of the stated sizes
    // that live for the call; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

/// Fills in segment size and source address. Returns the bytes used.
fn write_control(header: &libc::msghdr, message: &Outgoing<'_>) -> usize {
    let mut used = 0;
    // SAFETY: `header` points to CONTROL zeroed bytes, aligned for headers, of which the two
    // entries take at most 24 + 40; CMSG_NXTHDR stays inside them.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        let mut put = |level: libc::c_int, kind: libc::c_int, data: &[u8]| {
            if let Some(entry) = control.as_mut() {
                entry.cmsg_level = level;
                entry.cmsg_type = kind;
                entry.cmsg_len = libc::CMSG_LEN(data.len() as _) as _;
                std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(control), data.len());
                used += libc::CMSG_SPACE(data.len() as _) as usize;
                control = libc::CMSG_NXTHDR(header, control);
            }
        };
        if let Some(segment) = message.segment {
            put(libc::SOL_UDP, UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match message.local {
            // ipi_ifindex, ipi_spec_dst, ipi_addr: the second is where it leaves from.
            Some(IpAddr::V4(local)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&local.octets());
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            // ipi6_addr, ipi6_ifindex.
            Some(IpAddr::V6(local)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&local.octets());
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
    }
    used
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let mut address = SockAddrStorage::zeroed();
    // SAFETY: the kernel wrote an address of the family that the storage names, or left zeroes.
    unsafe {
        *address.view_as::<libc::sockaddr_storage>() = *storage;
        SockAddr::new(address, size_of::<libc::sockaddr_storage>() as _).as_socket()
    }
}
