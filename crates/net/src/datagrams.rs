//! Many datagrams per system call: `recvmmsg` into buffers that are made once, `sendmmsg` out of
//! one arena. For servers of small messages, whose cost is the calls. Nothing here waits.
#![expect(
    unsafe_code,
    reason = "recvmmsg and sendmmsg over preallocated headers have no safe wrapper"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use socket2::{SockAddr, SockAddrStorage};

/// Room for packet info of either family.
const CONTROL: usize = 64;

/// Control data aligned like its headers.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Asks the kernel to say where each datagram was sent to: for sockets bound to the unspecified
/// address, whose replies must leave from there.
pub fn receive_packet_info(socket: impl AsFd, v6: bool) -> io::Result<()> {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    };
    let value: libc::c_int = 1;
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
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The buffers of one receive call.
pub struct ReceiveBatch {
    octets: usize,
    bytes: Box<[u8]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    /// Held for the headers that point to them.
    _pieces: Box<[libc::iovec]>,
    messages: Box<[libc::mmsghdr]>,
    count: usize,
}

// SAFETY: the pointers inside the headers lead to heap memory that the batch itself owns and
// that does not move with it.
unsafe impl Send for ReceiveBatch {}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// One datagram as received.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Cut to the batch's buffers; see `truncated`.
    pub bytes: &'a [u8],
    /// Unset on sockets of other families.
    pub remote: Option<SocketAddr>,
    /// Where it was sent to, on sockets of [`receive_packet_info`].
    pub local: Option<IpAddr>,
    pub truncated: bool,
}

impl ReceiveBatch {
    /// Room for `messages` datagrams of at most `octets` each.
    pub fn new(messages: usize, octets: usize) -> Self {
        let octets = octets.max(1);
        // SAFETY: all of them are plain old data, for which all zeroes is a value.
        let (address, header): (libc::sockaddr_storage, libc::mmsghdr) =
            unsafe { std::mem::zeroed() };
        let mut bytes = vec![0; messages * octets].into_boxed_slice();
        let mut addresses = vec![address; messages].into_boxed_slice();
        let mut controls = vec![Control([0; CONTROL]); messages].into_boxed_slice();
        let mut pieces: Box<[libc::iovec]> = bytes
            .chunks_exact_mut(octets)
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: octets,
            })
            .collect();
        let mut headers = vec![header; messages].into_boxed_slice();
        for (((message, piece), address), control) in headers
            .iter_mut()
            .zip(&mut pieces)
            .zip(&mut addresses)
            .zip(&mut controls)
        {
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = (&raw mut *address).cast();
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        }
        let mut batch = Self {
            octets,
            bytes,
            addresses,
            controls,
            _pieces: pieces,
            messages: headers,
            count: messages,
        };
        batch.rearm();
        batch
    }

    /// The kernel wrote these lengths into the headers that it used.
    fn rearm(&mut self) {
        for message in self.messages.iter_mut().take(self.count) {
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_hdr.msg_controllen = CONTROL as _;
            message.msg_hdr.msg_flags = 0;
        }
        self.count = 0;
    }

    /// Receives what is there, up to all buffers; says how many. What was received before is
    /// gone.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.rearm();
        // SAFETY: every header points to a buffer, an address and control data of the stated
        // sizes, which live on the heap for as long as `self`.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(self.count)
    }

    /// Whether the last call filled every buffer: more may wait.
    pub const fn is_full(&self) -> bool {
        self.count == self.messages.len()
    }

    /// The datagrams of the last call, in order.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.count).filter_map(|index| self.get(index))
    }

    pub fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let message = self.messages.get(index).filter(|_| index < self.count)?;
        let start = index * self.octets;
        let length = (message.msg_len as usize).min(self.octets);
        let has_control = message.msg_hdr.msg_controllen > 0;
        Some(Datagram {
            bytes: &self.bytes[start..start + length],
            remote: self.addresses.get(index).and_then(read_address),
            local: has_control
                .then(|| read_control(&message.msg_hdr, self.controls.get(index)?))
                .flatten(),
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

fn read_control(header: &libc::msghdr, control: &Control) -> Option<IpAddr> {
    let mut header = *header;
    header.msg_control = control.0.as_ptr().cast_mut().cast();
    // SAFETY: the kernel has filled `msg_controllen` bytes of the control data, which the CMSG
    // macros do not leave; data is read unaligned with the type that level and type stand for.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(head) = entry.as_ref() {
            let data = libc::CMSG_DATA(entry);
            match (head.cmsg_level, head.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let address = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                    return Some(IpAddr::V4(address));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                _ => {}
            }
            entry = libc::CMSG_NXTHDR(&raw const header, entry);
        }
    }
    None
}

/// Datagrams that wait for one socket, in one arena.
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    start: usize,
    end: usize,
    remote: Option<SocketAddr>,
    local: Option<IpAddr>,
}

impl Outgoing {
    /// Adds what `write` appends; nothing when that is nothing. `remote` is unset on connected
    /// sockets; `local` is where it is to leave from.
    pub fn write(
        &mut self,
        remote: Option<SocketAddr>,
        local: Option<IpAddr>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let end = self.bytes.len();
        if end > start {
            self.items.push(Item {
                start,
                end,
                remote,
                local,
            });
        }
    }

    pub const fn len(&self) -> usize {
        self.items.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }
}

/// The headers of one send call.
pub struct SendCall {
    messages: Box<[libc::mmsghdr]>,
    pieces: Box<[libc::iovec]>,
    addresses: Box<[Option<SockAddr>]>,
    controls: Box<[Control]>,
}

// SAFETY: the pointers inside the headers are only read within a call that has set them anew.
unsafe impl Send for SendCall {}

impl std::fmt::Debug for SendCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendCall").finish_non_exhaustive()
    }
}

impl SendCall {
    pub fn new(messages: usize) -> Self {
        // SAFETY: all of them are plain old data, for which all zeroes is a value.
        let (header, piece): (libc::mmsghdr, libc::iovec) = unsafe { std::mem::zeroed() };
        Self {
            messages: vec![header; messages].into_boxed_slice(),
            pieces: vec![piece; messages].into_boxed_slice(),
            addresses: vec![None; messages].into_boxed_slice(),
            controls: vec![Control([0; CONTROL]); messages].into_boxed_slice(),
        }
    }

    /// Sends all and empties `outgoing`. `failed` gets the place of each datagram that could not
    /// be sent and why; a full socket fails the rest.
    pub fn send(
        &mut self,
        socket: impl AsFd,
        outgoing: &mut Outgoing,
        mut failed: impl FnMut(usize, &io::Error),
    ) {
        let mut next = 0;
        while next < outgoing.items.len() {
            match self.call(&socket, outgoing, next) {
                Ok(sent) => next += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    (next..outgoing.items.len()).for_each(|index| failed(index, &error));
                    break;
                }
                Err(error) => {
                    failed(next, &error);
                    next += 1;
                }
            }
        }
        outgoing.clear();
    }

    fn call(&mut self, socket: &impl AsFd, outgoing: &Outgoing, from: usize) -> io::Result<usize> {
        let items = &outgoing.items[from..];
        let count = items.len().min(self.messages.len());
        for (index, item) in items.iter().enumerate().take(count) {
            let bytes = &outgoing.bytes[item.start..item.end];
            self.pieces[index] = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_iov = &raw mut self.pieces[index];
            header.msg_iovlen = 1;
            let address = &mut self.addresses[index];
            *address = item.remote.map(SockAddr::from);
            (header.msg_name, header.msg_namelen) = match address {
                Some(address) => (address.as_ptr().cast_mut().cast(), address.len()),
                None => (std::ptr::null_mut(), 0),
            };
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
            if let Some(local) = item.local {
                self.controls[index] = Control([0; CONTROL]);
                header.msg_control = self.controls[index].0.as_mut_ptr().cast();
                header.msg_controllen = CONTROL as _;
                header.msg_controllen = write_control(header, local) as _;
            }
        }
        // SAFETY: every header points to bytes, an address and control data of the stated sizes
        // that live for the call; the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Fills in the source address; returns the bytes used.
fn write_control(header: &libc::msghdr, local: IpAddr) -> usize {
    // SAFETY: `header` points to CONTROL zeroed bytes, aligned for headers, of which the one
    // entry takes at most 40.
    unsafe {
        let Some(entry) = libc::CMSG_FIRSTHDR(header).as_mut() else {
            return 0;
        };
        let data = libc::CMSG_DATA(entry);
        let mut put = |level: libc::c_int, kind: libc::c_int, octets: &[u8]| {
            entry.cmsg_level = level;
            entry.cmsg_type = kind;
            entry.cmsg_len = libc::CMSG_LEN(octets.len() as _) as _;
            std::ptr::copy_nonoverlapping(octets.as_ptr(), data, octets.len());
            libc::CMSG_SPACE(octets.len() as _) as usize
        };
        match local {
            // ipi_ifindex, ipi_spec_dst, ipi_addr: the second is where it leaves from.
            IpAddr::V4(local) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&local.octets());
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
            }
            // ipi6_addr, ipi6_ifindex.
            IpAddr::V6(local) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&local.octets());
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
            }
        }
    }
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let mut address = SockAddrStorage::zeroed();
    // SAFETY: the kernel wrote an address of the family that the storage names, or left zeroes.
    unsafe {
        *address.view_as::<libc::sockaddr_storage>() = *storage;
        SockAddr::new(address, size_of::<libc::sockaddr_storage>() as _).as_socket()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_batch_brings_every_datagram_with_its_sender_and_replies_reach_them() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let clients: Vec<UdpSocket> = (0..5)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        for (number, client) in (0..).zip(&clients) {
            client.connect(at).unwrap();
            client.send(&[number, 1]).unwrap();
        }
        let mut batch = ReceiveBatch::new(3, 16);
        let mut outgoing = Outgoing::default();
        let mut seen = Vec::new();
        while seen.len() < 5 {
            let count = batch.receive(&server).unwrap();
            assert_eq!(batch.is_full(), count == 3);
            for datagram in batch.iter() {
                seen.push((datagram.bytes[0], datagram.remote));
                outgoing.write(datagram.remote, None, |out| {
                    out.push(datagram.bytes[0] + 100)
                });
            }
        }
        let expected: Vec<_> = (0..)
            .zip(&clients)
            .map(|(number, client)| (number, client.local_addr().ok()))
            .collect();
        assert_eq!(seen, expected);
        assert_eq!(
            batch.receive(&server).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        SendCall::new(2).send(&server, &mut outgoing, |_, error| panic!("{error}"));
        assert!(outgoing.is_empty());
        for (number, client) in (100..).zip(&clients) {
            let mut buffer = [0; 4];
            assert_eq!(client.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], number);
        }
    }

    #[test]
    fn a_long_datagram_is_cut_and_says_so_and_the_next_is_whole() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        client.send(&[7; 40]).unwrap();
        client.send(&[8; 8]).unwrap();
        let mut batch = ReceiveBatch::new(4, 16);
        assert_eq!(batch.receive(&server).unwrap(), 2);
        let seen: Vec<_> = batch
            .iter()
            .map(|datagram| (datagram.bytes.len(), datagram.truncated))
            .collect();
        assert_eq!(seen, [(16, true), (8, false)]);
    }

    #[test]
    fn a_socket_on_every_address_answers_from_the_one_that_was_asked() {
        for (any, asked) in [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1")] {
            let Ok(server) = UdpSocket::bind(any) else {
                assert!(any.starts_with('['), "IPv4 is always there");
                continue;
            };
            receive_packet_info(&server, any.starts_with('[')).unwrap();
            let port = server.local_addr().unwrap().port();
            let asked: IpAddr = asked.parse().unwrap();
            let client = UdpSocket::bind(SocketAddr::new(asked, 0)).unwrap();
            client.connect(SocketAddr::new(asked, port)).unwrap();
            client.send(&[1]).unwrap();
            let mut batch = ReceiveBatch::new(2, 16);
            let mut outgoing = Outgoing::default();
            assert_eq!(batch.receive(&server).unwrap(), 1);
            for datagram in batch.iter() {
                assert_eq!(datagram.local, Some(asked));
                outgoing.write(datagram.remote, datagram.local, |out| out.push(2));
            }
            SendCall::new(2).send(&server, &mut outgoing, |_, error| panic!("{error}"));
            // Connected: only what comes from the asked address arrives.
            assert_eq!(client.recv(&mut [0; 4]).unwrap(), 1);
        }
    }
}
