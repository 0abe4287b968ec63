//! Messages on the wire: clients' queries and our replies, our queries and upstreams' replies.
//! Whatever arrives is bounded and checked here, once; nothing in it can panic (R6.8).
//!
//! Headers, questions and the few types that nearly all replies consist of are read and written
//! by hand; hickory reads the types whose data hold names that only a decoder of the type finds.

mod convert;
mod labels;
mod options;
mod query;
mod reply;
mod request;
mod upstream;
mod writer;

pub(crate) use options::Cookie;
pub(crate) use query::Encoded;
pub(crate) use reply::{Body, Terms, bare, tcp_frame};
pub(crate) use request::{Asked, Dropped, Parsed, Request, parse};
pub(crate) use upstream::{Mismatch, Spelling, echoes, parse_reply, reply_id};

/// Octets of a message header (RFC 1035 4.1.1).
pub(crate) const HEADER_OCTETS: usize = 12;
/// Longer messages are no questions: also what a client can make one question cost (R3.10).
pub(crate) const QUERY_OCTETS_MAX: usize = 4_096;

#[cfg(test)]
mod tests;
