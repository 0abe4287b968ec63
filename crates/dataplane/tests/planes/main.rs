//! Data planes over real sockets and real TUNs, in namespaces of their own. Needs root.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be made fails"
)]

mod bare;
mod faults;
mod interop;
mod paths;
mod world;
