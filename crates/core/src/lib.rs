//! Every decision of the vL3 interconnect as a pure machine: no async, clock, socket,
//! protobuf or global. Shells move bytes and time; the simulation drives the same code.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod attach;
pub mod backoff;
pub mod caller;
mod deadlines;
pub mod document;
pub mod federation;
pub mod fib;
pub mod forward;
pub mod heal;
pub mod ids;
pub mod links;
pub mod machine;
pub mod names;
#[cfg(feature = "plants")]
pub mod plants;
pub mod rate;
pub mod registry;
pub mod rng;
pub mod router;
pub mod routes;
pub mod time;
pub mod unread;

pub use backoff::Backoff;
pub use machine::{Machine, Outbox, Ticket, TicketCounter};
pub use rng::Rng;
pub use time::{Mono, Now, Wall};
