//! From a socket to an authenticated connection; what is live is known, so that a withdrawn
//! bundle ends it.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use vl3_identity::{Identity, PeerIdentity, Scopes, Source, Trust};

use super::shares::Share;

/// A TCP or unix stream below TLS.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn pinned(self: Pin<&mut Self>) -> Pin<&mut dyn Stream> {
        let stream: &mut dyn Stream = match self.get_mut() {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        };
        Pin::new(stream)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pinned().poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pinned().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_shutdown(cx)
    }
}

/// The connections that stand on a trust decision and on the own certificate.
#[derive(Debug)]
pub(super) struct Live {
    own: Source,
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    chain: Vec<CertificateDer<'static>>,
    scopes: Scopes,
    /// The own leaf that the handshake showed.
    shown: CertificateDer<'static>,
    withdrawn: CancellationToken,
}

/// Removes its entry when the connection ends.
#[derive(Debug)]
struct Membership {
    of: Arc<Live>,
    key: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.of.lock().remove(&self.key);
    }
}

impl Live {
    pub(super) fn new(own: Source) -> Self {
        Self {
            own,
            next: AtomicU64::new(0),
            entries: Mutex::default(),
        }
    }

    /// What a handshake shows now.
    pub(super) fn own(&self) -> Arc<Identity> {
        self.own.current()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges every live connection again: a chain that no longer verifies is cut, and so is a
    /// connection that shows a former own certificate: tokens are signed with the new key, and a
    /// peer checks them by the certificate that it was shown. The scopes of the others are
    /// brought up to date.
    pub(super) fn review(&self, trust: &Trust) {
        let now = UnixTime::now();
        let own = self.own();
        for entry in self.lock().values() {
            if Some(&entry.shown) != own.leaf() {
                tracing::debug!("connection closed: the own identity was renewed");
                entry.withdrawn.cancel();
                continue;
            }
            match trust.verify(&entry.chain, now) {
                Ok(verified) => entry.scopes.replace(verified.scopes),
                Err(reason) => {
                    tracing::info!(reason, "connection closed: its peer is no longer trusted");
                    entry.withdrawn.cancel();
                }
            }
        }
    }

    /// Ends every connection: the server does not wait any longer.
    pub(super) fn cut(&self) {
        for entry in self.lock().values() {
            entry.withdrawn.cancel();
        }
    }

    /// Follows the bundles and the own identity (whose bundle is the own trust domain's) until
    /// its owner is gone.
    pub(super) async fn follow(live: std::sync::Weak<Self>, trust: Trust) {
        let Some(mut own) = live.upgrade().map(|live| live.own.subscribe()) else {
            return;
        };
        let mut foreign = trust.subscribe();
        let mut bundle = trust.source().subscribe();
        loop {
            tokio::select! {
                () = renewed(&mut foreign) => {}
                () = renewed(&mut bundle) => {}
                () = renewed(&mut own) => {}
            }
            let Some(live) = live.upgrade() else { return };
            live.review(&trust);
        }
    }
}

/// A fixed source never changes.
async fn renewed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending().await
    }
}

/// An authenticated connection, as tonic serves it or dials it.
pub(super) struct Secured {
    stream: TlsStream<Socket>,
    peer: PeerIdentity,
    withdrawn: Pin<Box<WaitForCancellationFutureOwned>>,
    _member: Membership,
    _permit: Option<tokio::sync::OwnedSemaphorePermit>,
    _open: Option<(Open, Share)>,
}

/// Counts a connection while it is open.
struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Secured {
    /// Verifies the chain that TLS accepted once more, for its scopes. `own` is the identity that
    /// the handshake showed.
    pub(super) fn new(
        stream: TlsStream<Socket>,
        own: &Identity,
        trust: &Trust,
        live: &Arc<Live>,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> Result<Self, String> {
        let (socket, session) = stream.get_ref();
        let chain: Vec<CertificateDer<'static>> = session
            .peer_certificates()
            .ok_or("the peer sent no certificate")?
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let verified = trust.verify(&chain, UnixTime::now())?;
        let certificate_der = chain.first().ok_or("the peer sent no certificate")?.clone();
        let canonical = |address: std::net::SocketAddr| {
            std::net::SocketAddr::new(address.ip().to_canonical(), address.port())
        };
        let (local_addr, remote_addr, unix) = match socket {
            Socket::Tcp(stream) => (
                stream.local_addr().ok().map(canonical),
                stream.peer_addr().ok().map(canonical),
                false,
            ),
            Socket::Unix(_) => (None, None, true),
        };
        let scopes = Scopes::new(verified.scopes);
        let withdrawn = CancellationToken::new();
        let key = live.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            chain,
            scopes: scopes.clone(),
            shown: own.leaf().ok_or("the own identity is empty")?.clone(),
            withdrawn: withdrawn.clone(),
        };
        live.lock().insert(key, entry);
        // Renewed between the handshake and the entry: the review has not seen it.
        if live.own().leaf() != own.leaf() {
            withdrawn.cancel();
        }
        let peer = PeerIdentity {
            id: verified.id,
            certificate_der,
            not_after: verified.not_after,
            scopes,
            local_addr,
            remote_addr,
            unix,
        };
        Ok(Self {
            stream,
            peer,
            withdrawn: Box::pin(withdrawn.cancelled_owned()),
            _member: Membership {
                of: Arc::clone(live),
                key,
            },
            _permit: permit,
            _open: None,
        })
    }

    pub(super) fn counted(mut self, gauge: Gauge, share: Share) -> Self {
        gauge.inc();
        self._open = Some((Open(gauge), share));
        self
    }

    pub(super) fn peer(&self) -> &PeerIdentity {
        &self.peer
    }
}

impl Connected for Secured {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.withdrawn.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "trust withdrawn, identity renewed or server stopped",
            )));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
