//! A client's message: a question, a reason to refuse it at once, or to drop it (R6.2, R6.3).
//!
//! Read by hand and without allocation: most questions are answered from stored packets, and
//! reading them is most of that work.

use vl3_core::names::{Flags, Name, Question, Rcode, RecordType};

use super::options::{ClientOptions, OPT, read_options};
use super::{HEADER_OCTETS, labels::Labels, labels::skip_name, reply};

/// Length of a question's type and class.
const TYPE_AND_CLASS: usize = 4;
/// Length of a record behind its owner: type, class, TTL, length of the data.
const RECORD_FIXED: usize = 10;

/// What became of an incoming message.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    Ask(Asked<'a>),
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

/// A checked message that asks one question, where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) id: u16,
    pub(crate) flags: Flags,
    /// AD: the client wants to know whether the answer was validated (RFC 6840 5.7).
    pub(crate) authentic_wanted: bool,
    /// Name, type and class exactly as the client spelled them (R1.4).
    pub(crate) section: &'a [u8],
    pub(crate) rtype: RecordType,
    pub(crate) class: u16,
    pub(crate) edns: Option<ClientEdns>,
    pub(crate) options: ClientOptions,
    /// Octets of the whole message.
    pub(crate) length: usize,
}

/// One question and how its asker wants the reply: what outlives the message.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: u16,
    pub(crate) flags: Flags,
    pub(crate) authentic_wanted: bool,
    pub(crate) question: Question,
    /// The question section exactly as the client spelled it (R1.4).
    pub(crate) section: Box<[u8]>,
    pub(crate) edns: Option<ClientEdns>,
    pub(crate) options: ClientOptions,
    pub(crate) length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientEdns {
    /// Largest UDP reply that the client takes, at least 512.
    pub(crate) size: u16,
    pub(crate) dnssec_ok: bool,
}

impl Asked<'_> {
    /// Octets of the name, the final root included.
    pub(crate) const fn name_octets(&self) -> usize {
        self.section.len() - TYPE_AND_CLASS
    }

    /// `None` for a name beyond the protocol's bounds, which [`parse`] has ruled out.
    pub(crate) fn to_request(self) -> Option<Request> {
        let mut labels = Labels::of(self.section);
        let name = Name::from_labels(&mut labels).ok()?;
        Some(Request {
            id: self.id,
            flags: self.flags,
            authentic_wanted: self.authentic_wanted,
            question: Question {
                name,
                rtype: self.rtype,
                class: self.class,
            },
            section: self.section.into(),
            edns: self.edns,
            options: self.options,
            length: self.length,
        })
    }
}

impl Request {
    /// As it was asked.
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            id: self.id,
            flags: self.flags,
            authentic_wanted: self.authentic_wanted,
            section: &self.section,
            rtype: self.question.rtype,
            class: self.question.class,
            edns: self.edns,
            options: self.options,
            length: self.length,
        }
    }
}

pub(crate) fn parse(octets: &[u8]) -> Parsed<'_> {
    let Some(header) = octets.first_chunk::<HEADER_OCTETS>() else {
        return Parsed::Drop(Dropped::Short);
    };
    if header[2] & 0x80 != 0 {
        return Parsed::Drop(Dropped::IsReply);
    }
    if header[2] & 0x78 != 0 {
        return refuse(header, Rcode::NOT_IMP);
    }
    let Some((section, records)) = question_section(octets, header) else {
        return refuse(header, Rcode::FORM_ERR);
    };
    let Some(opt) = find_opt(octets, header, records) else {
        return refuse(header, Rcode::FORM_ERR);
    };
    let [.., t0, t1, c0, c1] = *section else {
        return refuse(header, Rcode::FORM_ERR);
    };
    let mut asked = Asked {
        id: u16::from_be_bytes([header[0], header[1]]),
        flags: Flags {
            recursion_desired: header[2] & 0x01 != 0,
            dnssec_ok: false,
            checking_disabled: header[3] & 0x10 != 0,
        },
        authentic_wanted: header[3] & 0x20 != 0,
        section,
        rtype: RecordType(u16::from_be_bytes([t0, t1])),
        class: u16::from_be_bytes([c0, c1]),
        edns: None,
        options: ClientOptions::default(),
        length: octets.len(),
    };
    if let Some(opt) = opt {
        if opt.version > 0 {
            let reply = reply::bad_version(&asked);
            return Parsed::Reply(reply, Rcode::BAD_VERS);
        }
        let Some(options) = read_options(opt.data) else {
            return refuse(header, Rcode::FORM_ERR);
        };
        asked.options = options;
        asked.flags.dnssec_ok = opt.dnssec_ok;
        asked.edns = Some(ClientEdns {
            size: opt.size.max(512),
            dnssec_ok: opt.dnssec_ok,
        });
    }
    Parsed::Ask(asked)
}

/// The one question, as octets, and where the records begin. A first name has nothing before it
/// that it could point to.
fn question_section<'a>(
    octets: &'a [u8],
    header: &[u8; HEADER_OCTETS],
) -> Option<(&'a [u8], usize)> {
    if u16::from_be_bytes([header[4], header[5]]) != 1 {
        return None;
    }
    let mut at = HEADER_OCTETS;
    loop {
        match *octets.get(at)? {
            0 => break,
            length @ 1..=63 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
    let end = at + 1;
    if end - HEADER_OCTETS > vl3_core::names::NAME_OCTETS_MAX {
        return None;
    }
    let section = octets.get(HEADER_OCTETS..end + TYPE_AND_CLASS)?;
    Some((section, end + TYPE_AND_CLASS))
}

struct Opt<'a> {
    size: u16,
    version: u8,
    dnssec_ok: bool,
    data: &'a [u8],
}

/// Walks all records; `None` when one is cut or there is more than one OPT. As many records as
/// fit the octets are looked at, whatever the header counts.
fn find_opt<'a>(
    octets: &'a [u8],
    header: &[u8; HEADER_OCTETS],
    mut at: usize,
) -> Option<Option<Opt<'a>>> {
    let count = |high: usize| u32::from(u16::from_be_bytes([header[high], header[high + 1]]));
    let mut found = None;
    for _ in 0..count(6) + count(8) + count(10) {
        let owner = at;
        at = skip_name(octets, at)?;
        let fixed = octets.get(at..at + RECORD_FIXED)?;
        let data_at = at + RECORD_FIXED;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = octets.get(data_at..data_at + length)?;
        at = data_at + length;
        if u16::from_be_bytes([fixed[0], fixed[1]]) != OPT {
            continue;
        }
        if found.is_some() || octets.get(owner) != Some(&0) {
            return None;
        }
        found = Some(Opt {
            size: u16::from_be_bytes([fixed[2], fixed[3]]),
            version: fixed[5],
            dnssec_ok: fixed[6] & 0x80 != 0,
            data,
        });
    }
    Some(found)
}

/// A header alone: ID, opcode and RD of the query, QR=1, RA=1.
fn refuse(header: &[u8; HEADER_OCTETS], rcode: Rcode) -> Parsed<'static> {
    let mut reply = [0; HEADER_OCTETS];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = 0x80 | u8::try_from(rcode.0 & 0x0f).unwrap_or(0);
    Parsed::Reply(reply.to_vec(), rcode)
}
