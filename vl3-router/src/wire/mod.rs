//! Between NSM messages and the machine's types, checked once.

pub(crate) mod answer;
pub(crate) mod claim;
pub(crate) mod hello;
pub(crate) mod request;
