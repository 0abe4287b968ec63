//! Messages on the wire: clients' queries and our replies, our queries and upstreams' replies.
//! Whatever arrives is bounded and checked here, once; nothing in it can panic (R6.8).

mod convert;
mod reply;
mod request;
mod upstream;

pub(crate) use reply::{build, tcp_frame};
pub(crate) use request::{Dropped, Parsed, Request, parse};
pub(crate) use upstream::{Mismatch, encode_query, parse_reply, reply_id};

/// Octets of a message header (RFC 1035 4.1.1).
pub(crate) const HEADER_OCTETS: usize = 12;
/// Longer messages are no questions: also what a client can make one question cost (R3.10).
pub(crate) const QUERY_OCTETS_MAX: usize = 4_096;

#[cfg(test)]
mod tests;
