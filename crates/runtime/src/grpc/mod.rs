//! gRPC with mutual TLS on TCP and unix sockets alike.

mod accept;
mod dial;
mod metadata;
mod serve;
mod shares;
mod url;

pub use dial::{Connection, DialError, Dialer, Expect, NsmChannel};
pub use metadata::{
    CallerToken, PATH, TOKEN, TOKEN_EXPIRES, caller_token, registry_path, set_registry_path,
};
pub use serve::{ServeOptions, Server};
pub use url::{DialUrl, Listen};
pub use vl3_identity::{PeerIdentity, Scope};
