//! The elements that every component needs, in the order in which they stand.

pub mod authorize;
pub mod begin;
pub mod expire;
pub mod monitor;
pub mod token;
pub mod trim;
pub mod updatepath;

#[cfg(test)]
pub(crate) mod harness;
