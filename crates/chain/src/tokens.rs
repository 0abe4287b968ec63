//! What the chain needs of identities, as a trait: issue, read and verify path tokens
//! (nsm-wire 5.2). The identity crate's types stay out of here.

use std::sync::Arc;

use vl3_core::Wall;
use vl3_core::ids::SpiffeId;

use crate::error::Error;

/// The direct TLS peer of a call, and the token it sent as metadata.
#[derive(Clone)]
pub struct Peer {
    pub id: SpiffeId,
    /// Its certificate, DER.
    pub certificate: Arc<[u8]>,
    /// `nsm-client-token`, when it came exactly once.
    pub token: Option<String>,
    /// Our address of the TCP connection; unset on a unix socket.
    pub local: Option<std::net::IpAddr>,
    /// `nsm-client-token-expires`, when it came exactly once and parses.
    pub token_expires: Option<Wall>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The claims of a token that decodes. Says nothing of its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub subject: String,
    pub audience: Vec<String>,
    pub expires: Wall,
}

pub trait Tokens: Send + Sync + 'static {
    fn own_id(&self) -> SpiffeId;

    /// A token of ours for `audience`; its expiry is capped by our certificate's end.
    fn issue(&self, audience: Option<&SpiffeId>) -> Result<(String, Wall), Error>;

    /// The claims, unset when the text is no token at all.
    fn claims(&self, token: &str) -> Option<Claims>;

    /// Whether the key of that certificate (DER) signed the token.
    fn signed_by(&self, token: &str, certificate: &[u8]) -> bool;
}
