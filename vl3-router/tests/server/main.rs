//! The router's NSM server over loopback: real mutual TLS, real tokens, a registry in memory.
//! Needs root, as a router does: its own address stands on a TUN in a namespace of its own.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod document;
mod leave;
mod registry;
mod requests;
mod stage;
