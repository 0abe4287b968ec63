//! Messages with descriptors over SOCK_SEQPACKET unix sockets (SCM_RIGHTS).
//!
//! One message is one datagram with up to [`DESCRIPTORS_MAX`] descriptors; a longer or fuller one
//! is an error at the receiver, and whatever descriptors came with it are closed.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, socketpair,
    sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Longest message in bytes.
pub const MESSAGE_LEN_MAX: usize = 4096;

/// Most descriptors in one message.
pub const DESCRIPTORS_MAX: usize = 16;

/// Connections that wait for `accept`; more are refused by the kernel.
const BACKLOG: i32 = 64;

/// Sends one message; may block where the socket is blocking.
pub fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if message.is_empty() || message.len() > MESSAGE_LEN_MAX || descriptors.len() > DESCRIPTORS_MAX
    {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let socket = socket.as_fd().as_raw_fd();
    // A datagram goes whole or not at all.
    sendmsg::<()>(
        socket,
        &[IoSlice::new(message)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message; `None` when the other end has closed.
pub fn recv(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0_u8; MESSAGE_LEN_MAX];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let socket = socket.as_fd().as_raw_fd();
    let received = recvmsg::<()>(
        socket,
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let (len, flags) = (received.bytes, received.flags);
    let mut descriptors = Vec::new();
    if let Ok(messages) = received.cmsgs() {
        for message in messages {
            if let ControlMessageOwned::ScmRights(raw) = message {
                descriptors.extend(raw.into_iter().map(sys::adopt));
            }
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message or descriptors beyond the limit",
        ));
    }
    if len == 0 {
        return Ok(None);
    }
    buffer.truncate(len);
    Ok(Some((buffer, descriptors)))
}

/// Who is at the other end, as the kernel recorded it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// One connected SOCK_SEQPACKET socket on a tokio runtime.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to `path`. Must be called inside a tokio runtime.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = seqpacket()?;
        // A unix connect completes at once or fails (EAGAIN when the backlog is full).
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::from_descriptor(socket)
    }

    /// Connects to a [`Listener::bind_abstract`] of the thread's network namespace.
    pub fn connect_abstract(name: &str) -> io::Result<Self> {
        let socket = seqpacket()?;
        connect(
            socket.as_raw_fd(),
            &UnixAddr::new_abstract(name.as_bytes())?,
        )?;
        Self::from_descriptor(socket)
    }

    /// Two connected ends, for tests and for children that inherit one.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags())?;
        Ok((Self::from_descriptor(one)?, Self::from_descriptor(two)?))
    }

    /// Takes over a connected, non-blocking socket.
    pub fn from_descriptor(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: sys::async_descriptor(socket)?,
        })
    }

    /// Sends one message with descriptors; waits while the other end does not read.
    pub async fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                send(socket, message, descriptors)
            })
            .await
    }

    /// Receives one message; `None` when the other end has closed. Cancel-safe.
    pub async fn recv(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.socket
            .async_io(Interest::READABLE, |socket| recv(socket))
            .await
    }

    pub fn peer(&self) -> io::Result<PeerCredentials> {
        let credentials = getsockopt(self.socket.get_ref(), sockopt::PeerCredentials)?;
        Ok(PeerCredentials {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// A listening SOCK_SEQPACKET socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: Option<PathBuf>,
}

impl Listener {
    /// Listens at `path`, replacing a socket file that a dead process left. Must be called inside
    /// a tokio runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = seqpacket()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(Self {
            socket: sys::async_descriptor(socket)?,
            path: Some(path.to_owned()),
        })
    }

    /// Listens under a name that is no file and ends with the listener; it belongs to the network
    /// namespace of the calling thread, and anyone there can connect: check
    /// [`Connection::peer`]. A name in use is EADDRINUSE.
    pub fn bind_abstract(name: &str) -> io::Result<Self> {
        let socket = seqpacket()?;
        bind(
            socket.as_raw_fd(),
            &UnixAddr::new_abstract(name.as_bytes())?,
        )?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(Self {
            socket: sys::async_descriptor(socket)?,
            path: None,
        })
    }

    /// Waits for a client. Cancel-safe.
    pub async fn accept(&self) -> io::Result<Connection> {
        let accepted = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                Ok(sys::adopt(accept4(socket.as_raw_fd(), flags())?))
            })
            .await?;
        Connection::from_descriptor(accepted)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Best effort: the next `bind` replaces what stays.
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags(),
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[tokio::test]
    async fn descriptors_arrive_with_their_message_and_the_end_is_none() {
        let (one, two) = Connection::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        one.send(b"take", &[reader.as_fd()]).await.unwrap();
        drop((one, reader));
        let (message, mut descriptors) = two.recv().await.unwrap().expect("a message");
        assert_eq!(message, b"take");
        nix::unistd::write(&writer, b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(descriptors.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
        assert!(two.recv().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_listener_replaces_a_dead_file_and_knows_its_client() {
        let path = std::env::temp_dir().join(format!("vl3-net-fdpass-{}", std::process::id()));
        std::fs::write(&path, b"left over").unwrap();
        let listener = Listener::bind(&path).unwrap();
        let client = Connection::connect(&path).unwrap();
        let served = listener.accept().await.unwrap();
        assert_eq!(
            served.peer().unwrap().pid,
            i32::try_from(std::process::id()).unwrap()
        );
        client.send(b"hello", &[]).await.unwrap();
        assert_eq!(served.recv().await.unwrap().expect("a message").0, b"hello");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_oversized_message_is_refused_before_it_is_sent() {
        let (one, _two) = Connection::pair().unwrap();
        let error = one.send(&[0; MESSAGE_LEN_MAX + 1], &[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
