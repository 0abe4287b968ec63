//! The DNS server of one network in one domain: local names, fan-out to the other domains over
//! the overlay, one merged answer.
//!
//! [`vl3_core::names`] decides; this crate moves messages. One `engine` task owns the resolver
//! machine. Listeners (`serve`) parse questions (`wire`) and hand them to it; it hands
//! queries to sockets (`upstream`), which hand back what came. Sockets are bound by the router
//! at its own address and passed to us (`sockets`); what the network looks like is the
//! router's state, which `follow` keeps watching. The rules are in `docs/dns.md`.

mod app;
mod config;
mod engine;
mod follow;
mod metrics;
mod serve;
mod sockets;
mod state;
mod upstream;
mod wire;

pub use app::run;
pub use config::Config;
