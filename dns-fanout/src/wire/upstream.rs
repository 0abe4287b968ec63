//! Queries to upstreams and their replies (R3.1, R3.2, R3.4).

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query};
use hickory_proto::rr as hickory;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use vl3_core::names::{Failure, Flags, Question, Rcode, Reply};

use super::HEADER_OCTETS;
use super::convert::{name_in, name_out, record_in};
use super::reply::EDNS_SIZE;

/// Why a datagram is no reply to any query of ours: counted and ignored (R3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mismatch {
    /// No message with QR=1 and one question.
    NoReply,
    /// An ID that is not outstanding on this socket.
    UnknownId,
    OtherQuestion,
}

/// RD as the upstream wants it (R4.1); an OPT of our own, without any of the client's options (R3.4).
pub(crate) fn encode_query(id: u16, question: &Question, flags: Flags) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = flags.recursion_desired;
    message.metadata.checking_disabled = flags.checking_disabled;
    let mut query = Query::query(name_out(&question.name), question.rtype.0.into());
    query.set_query_class(question.class.into());
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_SIZE)
        .set_dnssec_ok(flags.dnssec_ok);
    message.set_edns(edns);
    // A header, a question and an OPT: no name that we can hold makes it fail.
    message.to_vec().unwrap_or_default()
}

/// The ID of what may be a reply.
pub(crate) fn reply_id(octets: &[u8]) -> Option<u16> {
    let header = octets.first_chunk::<HEADER_OCTETS>()?;
    Some(u16::from_be_bytes([header[0], header[1]]))
}

/// Checks a datagram with the right ID against the question; then what it says, or that what
/// it says makes no sense.
pub(crate) fn parse_reply(
    octets: &[u8],
    question: &Question,
) -> Result<Result<Reply, Failure>, Mismatch> {
    let header = octets
        .first_chunk::<HEADER_OCTETS>()
        .ok_or(Mismatch::NoReply)?;
    let is_reply = header[2] & 0x80 != 0 && header[2] & 0x78 == 0;
    if !is_reply || u16::from_be_bytes([header[4], header[5]]) != 1 {
        return Err(Mismatch::NoReply);
    }
    let mut decoder = BinDecoder::new(octets);
    let echoed = Header::read(&mut decoder)
        .ok()
        .and_then(|_| Query::read(&mut decoder).ok());
    let echoed = echoed.ok_or(Mismatch::NoReply)?;
    if !is_same(&echoed, question) {
        return Err(Mismatch::OtherQuestion);
    }
    let Ok(message) = Message::from_vec(octets) else {
        // A cut message may end within a record; the header says enough to go on over TCP.
        let truncated = header[2] & 0x02 != 0;
        let cut = Reply {
            truncated: true,
            ..Reply::code(Rcode::SERV_FAIL)
        };
        return Ok(if truncated {
            Ok(cut)
        } else {
            Err(Failure::Malformed)
        });
    };
    let all =
        |records: &[hickory::Record]| records.iter().map(record_in).collect::<Option<Vec<_>>>();
    let (Some(answers), Some(authority)) = (all(&message.answers), all(&message.authorities))
    else {
        return Ok(Err(Failure::Malformed));
    };
    // What cannot be taken is left out: nothing depends on it.
    let additional = message.additionals.iter().filter_map(record_in).collect();
    Ok(Ok(Reply {
        rcode: Rcode(message.metadata.response_code.into()),
        truncated: message.metadata.truncation,
        authenticated: message.metadata.authentic_data,
        answers,
        authority,
        additional,
    }))
}

fn is_same(echoed: &Query, question: &Question) -> bool {
    u16::from(echoed.query_type()) == question.rtype.0
        && u16::from(echoed.query_class()) == question.class
        && name_in(echoed.name()).is_some_and(|name| name == question.name)
}
