//! SPIFFE identities: where they come from, whom to trust, TLS, path tokens, the built-in CA.

pub mod authority;
mod certificate;
mod error;
mod files;
mod identity;
mod peer;
mod source;
pub mod tls;
pub mod token;
mod trust;
mod workload;

pub use error::Error;
pub use identity::{Bundle, Identity};
pub use peer::{PeerIdentity, Scope, Scopes};
pub use source::Source;
pub use trust::{Trust, Verified};

/// Installs the ring provider for the process; a second call changes nothing. First thing in
/// `main` and in every test that uses TLS.
pub fn install_crypto_provider() {
    // Err: one is installed already.
    let _already = rustls::crypto::ring::default_provider().install_default();
}
