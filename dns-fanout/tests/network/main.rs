//! The server as a process sees it: a stand-in router with its two sockets, real UDP and TCP on
//! loopback, servers of other domains that behave and misbehave. Tests are named by their rule.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod client;
mod crowds;
mod faults;
mod hostile;
mod levels;
mod lifecycle;
mod load;
mod query_log;
mod router;
mod rules;
mod services;
mod stage;
mod standalone;
mod transport;
mod upstream;
mod views;
