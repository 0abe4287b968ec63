//! The DNS server of one network in one domain: local names, fan-out to the other domains over
//! the overlay, one merged answer.
//!
//! [`vl3_core::names`] decides; this crate moves messages. One thread, the `engine`, owns the
//! resolver machine and all UDP sockets; TCP connections (`serve`, `upstream`) are tasks that it
//! hears from. `standing` puts together what it shall do: the configuration, commands of people,
//! and what the router says of the network, which `follow` keeps watching. Beside a router
//! sockets are bound by it at its own address and passed to us (`sockets`). The rules are in
//! `docs/dns.md`.

mod app;
mod config;
mod descriptors;
mod engine;
mod follow;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod metrics;
mod query_log;
mod reload;
mod serve;
mod slab;
mod sockets;
mod standing;
mod state;
mod switch;
mod upstream;
mod wire;

pub use app::run;
pub use config::Config;
pub use config::service::Export;
pub use config::view::View as ViewConfig;
pub use reload::Reload;
