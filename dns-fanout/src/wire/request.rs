//! A client's message: a question, a reason to refuse it at once, or to drop it (R6.2, R6.3).

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr as hickory;
use vl3_core::names::{Flags, Question, Rcode, RecordType};

use super::HEADER_OCTETS;
use super::convert::name_in;
use super::reply::EDNS_SIZE;

/// What became of an incoming message.
#[derive(Debug)]
pub(crate) enum Parsed {
    Ask(Request),
    /// Answered here; the resolver never sees it.
    Reply(Vec<u8>, Rcode),
    Drop(Dropped),
}

/// Why a message gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dropped {
    /// Shorter than a header.
    Short,
    /// QR=1: answering replies would let two servers talk for ever.
    IsReply,
}

/// One question and how its asker wants the reply.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: u16,
    pub(crate) flags: Flags,
    pub(crate) question: Question,
    /// Exactly as the client spelled it (R1.4).
    pub(super) query: hickory_proto::op::Query,
    pub(crate) edns: Option<ClientEdns>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientEdns {
    /// Largest UDP reply that the client takes, at least 512.
    pub(crate) size: u16,
    pub(crate) dnssec_ok: bool,
}

impl Request {
    pub(crate) fn spelled(&self) -> &hickory::Name {
        self.query.name()
    }
}

pub(crate) fn parse(octets: &[u8]) -> Parsed {
    let Some(header) = octets.first_chunk::<HEADER_OCTETS>() else {
        return Parsed::Drop(Dropped::Short);
    };
    if header[2] & 0x80 != 0 {
        return Parsed::Drop(Dropped::IsReply);
    }
    if header[2] & 0x78 != 0 {
        return refuse(header, Rcode::NOT_IMP);
    }
    // Also keeps the decoder from making room for 65,535 questions.
    if u16::from_be_bytes([header[4], header[5]]) != 1 {
        return refuse(header, Rcode::FORM_ERR);
    }
    let Ok(message) = Message::from_vec(octets) else {
        return refuse(header, Rcode::FORM_ERR);
    };
    let Some((query, name)) = message
        .queries
        .first()
        .and_then(|query| Some((query, name_in(query.name())?)))
    else {
        return refuse(header, Rcode::FORM_ERR);
    };
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return bad_version(&message);
    }
    let edns = message.edns.as_ref().map(|edns| ClientEdns {
        size: edns.max_payload().max(512),
        dnssec_ok: edns.flags().dnssec_ok,
    });
    Parsed::Ask(Request {
        id: message.metadata.id,
        flags: Flags {
            recursion_desired: message.metadata.recursion_desired,
            dnssec_ok: edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: message.metadata.checking_disabled,
        },
        question: Question {
            name,
            rtype: RecordType(query.query_type().into()),
            class: query.query_class().into(),
        },
        query: query.clone(),
        edns,
    })
}

/// A header alone: ID, opcode and RD of the query, QR=1, RA=1.
fn refuse(header: &[u8; HEADER_OCTETS], rcode: Rcode) -> Parsed {
    let mut reply = [0; HEADER_OCTETS];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = 0x80 | u8::try_from(rcode.0 & 0x0f).unwrap_or(0);
    Parsed::Reply(reply.to_vec(), rcode)
}

fn bad_version(query: &Message) -> Parsed {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = ResponseCode::from(1, 0);
    message.add_queries(query.queries.iter().cloned());
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_SIZE);
    message.set_edns(edns);
    match message.to_vec() {
        Ok(octets) => Parsed::Reply(octets, Rcode::BAD_VERS),
        Err(_) => Parsed::Drop(Dropped::Short),
    }
}
