//! Domains, networks and workloads out of real processes of the real binary, in the lab.
//!
//! Everything is made by the binary's own verbs (`vl3 identity`, `vl3 network`) and configured by
//! files, as an operator would. Nothing is skipped: where namespaces, `/dev/net/tun` or the binary
//! are missing, a test fails and says what is missing.

mod binary;
mod country;
mod domain;
mod service;
mod wait;
mod workload;

pub use binary::verb;
pub use country::{Country, NetworkFile, NetworkSpec};
pub use domain::Domain;
pub use service::Service;
pub use wait::{eventually, eventually_some};
pub use workload::{Addresses, Mechanism, Workload};
