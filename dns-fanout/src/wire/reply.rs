//! Our reply to a client (R6.1, R6.2).

use hickory_proto::op::{Edns, Message, OpCode};
use hickory_proto::rr as hickory;
use hickory_proto::rr::rdata::opt::EdnsOption;
use vl3_core::names::{Answer, ExtendedError};

use super::Request;
use super::convert::record_out;

/// Our own EDNS size, towards clients and upstreams: fits any path of 1,280 octets.
pub(crate) const EDNS_SIZE: u16 = 1232;
/// Largest UDP reply without EDNS (RFC 1035 2.3.4).
const PLAIN_SIZE: u16 = 512;
/// Option number of extended errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
/// Longest text of an extended error, octets.
const EXTENDED_TEXT_MAX: usize = 200;

/// Encodes an answer. Over UDP whole record sets are left out from the end until it fits, with
/// TC=1 when the answer section was cut; over TCP nothing is.
pub(crate) fn build(request: &Request, answer: &Answer, udp: bool) -> Vec<u8> {
    let mut message = Message::response(request.id, OpCode::Query);
    message.metadata.authoritative = answer.authoritative;
    message.metadata.recursion_desired = request.flags.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = request.flags.checking_disabled;
    message.metadata.truncation = answer.truncated && udp;
    message.metadata.response_code = answer.rcode.0.into();
    message.add_query(request.query.clone());
    let out = |record| record_out(record, &request.question.name, request.spelled());
    message.add_answers(answer.answers.iter().map(out));
    message.add_authorities(answer.authority.iter().map(out));
    message.add_additionals(answer.additional.iter().map(out));
    if let Some(client) = request.edns {
        message.set_edns(edns(client.dnssec_ok, answer.extended.as_ref()));
    }
    if !udp {
        return encode(&message);
    }
    let limit = request
        .edns
        .map_or(PLAIN_SIZE, |client| client.size.min(EDNS_SIZE));
    fit(message, usize::from(limit))
}

/// A message as TCP carries it, behind its length (RFC 1035 4.2.2).
pub(crate) fn tcp_frame(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut frame = Vec::with_capacity(message.len() + 2);
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    Some(frame)
}

fn edns(dnssec_ok: bool, extended: Option<&ExtendedError>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_SIZE).set_dnssec_ok(dnssec_ok);
    if let Some(error) = extended {
        let mut octets = error.code.to_be_bytes().to_vec();
        let text = error.text.as_bytes();
        octets.extend(&text[..text.len().min(EXTENDED_TEXT_MAX)]);
        edns.options_mut()
            .insert(EdnsOption::Unknown(EXTENDED_ERROR, octets));
    }
    edns
}

fn fit(mut message: Message, limit: usize) -> Vec<u8> {
    loop {
        let octets = encode(&message);
        if octets.len() <= limit {
            return octets;
        }
        if !message.additionals.is_empty() {
            message.additionals.clear();
        } else if !message.authorities.is_empty() {
            message.authorities.clear();
        } else if let Some(last) = message.answers.last() {
            let kept = set_start(&message.answers, last);
            message.answers.truncate(kept);
            message.metadata.truncation = true;
        } else {
            // A header, a question and an OPT always fit 512 octets, short of a long text.
            message.edns = message
                .edns
                .map(|edns| self::edns(edns.flags().dnssec_ok, None));
            return encode(&message);
        }
    }
}

/// Where the last record set begins.
fn set_start(records: &[hickory::Record], last: &hickory::Record) -> usize {
    let same = |record: &hickory::Record| {
        record.record_type() == last.record_type() && record.name == last.name
    };
    records
        .iter()
        .rposition(|record| !same(record))
        .map_or(0, |at| at + 1)
}

/// Empty when it cannot be encoded, which 64 records of bounded names rule out.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}
