//! The router of one network in one domain: serves workloads, consumes remote routers,
//! announces routes, owns the data plane.
//!
//! [`vl3_core::router::RouterMachine`] decides everything; this crate moves its bytes and
//! time. Start with [`run`] (start-up in the order it happens), then `actor`, which owns the
//! machine, and the files named after what they connect it to.

mod actor;
mod app;
mod config;
mod dial;
mod documents;
mod fd;
#[cfg(test)]
mod fixture;
mod metrics;
mod narrate;
mod own;
mod plane;
mod registry;
mod resolver;
mod routes;
mod service;
mod status;
mod store;
mod tail;
mod tickets;
mod wire;

pub use app::run;
pub use config::Config;
