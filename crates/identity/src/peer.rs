//! Who is at the other end of a TLS connection.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use rustls_pki_types::CertificateDer;
use vl3_core::Wall;
use vl3_core::ids::{NetworkUid, SpiffeId};

/// By whose word a peer's certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// It is of our own trust domain, by our own bundle.
    Own,
    /// By the bundle that this network's document gives for the peer's trust domain.
    Network(NetworkUid),
}

/// The scopes of one live connection; they follow the documents while it lasts.
#[derive(Clone, Debug, Default)]
pub struct Scopes(Arc<RwLock<Vec<Scope>>>);

impl Scopes {
    pub fn new(scopes: Vec<Scope>) -> Self {
        Self(Arc::new(RwLock::new(scopes)))
    }

    pub fn to_vec(&self) -> Vec<Scope> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn replace(&self, scopes: Vec<Scope>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = scopes;
    }
}

/// The authenticated direct peer of a connection. A request extension of every served call:
/// `request.extensions().get::<PeerIdentity>()`.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    pub id: SpiffeId,
    pub certificate_der: CertificateDer<'static>,
    pub not_after: Wall,
    /// Why the certificate is trusted: a network's admin can vouch inside that network only.
    pub scopes: Scopes,
    /// The address that was dialled; unset on unix sockets.
    pub local_addr: Option<SocketAddr>,
    pub remote_addr: Option<SocketAddr>,
    pub unix: bool,
}

impl PeerIdentity {
    /// Whether the identity counts within that network: it is of our own trust domain, or the
    /// network's own document vouches for it.
    pub fn trusted_in(&self, network: &NetworkUid) -> bool {
        self.scopes.to_vec().iter().any(|scope| match scope {
            Scope::Own => true,
            Scope::Network(uid) => uid == network,
        })
    }
}
