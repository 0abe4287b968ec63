//! Replies of upstreams (R3.2): first whether they answer what was asked, then what they say.

use std::borrow::Cow;

use hickory_proto::op::Message;
use hickory_proto::rr as hickory;
use vl3_core::names::{
    CLASS_IN, Data, Failure, Name, Question, Rcode, Record, RecordType, Reply, Soa,
};

use super::convert::record_in;
use super::labels::{Labels, skip_name};
use super::options::OPT;
use super::{Encoded, HEADER_OCTETS};

/// Why a datagram is no reply to any query of ours: counted and ignored (R3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mismatch {
    /// No message with QR=1 and one question.
    NoReply,
    /// An ID that is not outstanding on this socket.
    UnknownId,
    /// To a query that was given up: others answered first.
    Late,
    OtherQuestion,
}

/// How a reply spells the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    Same,
    /// As the names compare, but not letter by letter (R3.3).
    Other,
}

/// The ID of what may be a reply.
pub(crate) fn reply_id(octets: &[u8]) -> Option<u16> {
    let header = octets.first_chunk::<HEADER_OCTETS>()?;
    Some(u16::from_be_bytes([header[0], header[1]]))
}

/// Whether a datagram with the right ID answers this query.
pub(crate) fn echoes(octets: &[u8], query: &Encoded) -> Result<Spelling, Mismatch> {
    let header = octets
        .first_chunk::<HEADER_OCTETS>()
        .ok_or(Mismatch::NoReply)?;
    let is_reply = header[2] & 0x80 != 0 && header[2] & 0x78 == 0;
    if !is_reply || u16::from_be_bytes([header[4], header[5]]) != 1 {
        return Err(Mismatch::NoReply);
    }
    let sent = query.section();
    let echoed = octets.get(HEADER_OCTETS..HEADER_OCTETS + sent.len());
    match echoed {
        None => Err(Mismatch::NoReply),
        Some(echoed) if echoed == sent => Ok(Spelling::Same),
        Some(echoed) if is_same(echoed, sent) => Ok(Spelling::Other),
        Some(_) => Err(Mismatch::OtherQuestion),
    }
}

/// Letters of the name may differ in case; type and class, the last four octets, may not.
fn is_same(echoed: &[u8], sent: &[u8]) -> bool {
    let name = sent.len().saturating_sub(4);
    echoed[name..] == sent[name..] && echoed[..name].eq_ignore_ascii_case(&sent[..name])
}

/// What a reply that [`echoes`] a question says, or that it makes no sense.
pub(crate) fn parse_reply(octets: &[u8], question: &Question) -> Result<Reply, Failure> {
    let header = octets
        .first_chunk::<HEADER_OCTETS>()
        .ok_or(Failure::Malformed)?;
    let octets = plain_question(octets);
    let parsed = match Reader::new(&octets, question).read(header) {
        Read::Reply(reply) => Some(reply),
        Read::Broken => None,
        Read::NamesInside => with_hickory(&octets),
    };
    match parsed {
        Some(reply) => Ok(reply),
        // A cut message may end within a record; the header says enough to go on over TCP.
        None if header[2] & 0x02 != 0 => Ok(cut()),
        None => Err(Failure::Malformed),
    }
}

/// The message with its question in lower case. Names of records point into the question, and
/// would show whoever gets them, from the cache too, the letters that we made up (R3.3) or that
/// another client chose. What a record spells itself stays.
fn plain_question(octets: &[u8]) -> Cow<'_, [u8]> {
    let mut at = HEADER_OCTETS;
    let mut is_plain = true;
    while let Some(length @ 1..=63) = octets.get(at).copied() {
        let end = at + 1 + usize::from(length);
        let label = octets.get(at + 1..end).unwrap_or_default();
        is_plain &= !label.iter().any(u8::is_ascii_uppercase);
        at = end;
    }
    if is_plain {
        return Cow::Borrowed(octets);
    }
    let mut plain = octets.to_vec();
    let end = at.min(plain.len());
    // Lengths of labels are below any letter.
    plain[HEADER_OCTETS..end].make_ascii_lowercase();
    Cow::Owned(plain)
}

fn cut() -> Reply {
    Reply {
        truncated: true,
        ..Reply::code(Rcode::SERV_FAIL)
    }
}

/// The whole message by a decoder that knows every type: for types whose data hold names, which
/// may be compressed (RFC 3597 4).
fn with_hickory(octets: &[u8]) -> Option<Reply> {
    let message = Message::from_vec(octets).ok()?;
    let all =
        |records: &[hickory::Record]| records.iter().map(record_in).collect::<Option<Vec<_>>>();
    Some(Reply {
        rcode: Rcode(message.metadata.response_code.into()),
        truncated: message.metadata.truncation,
        answers: all(&message.answers)?,
        authority: all(&message.authorities)?,
        additional: message.additionals.iter().filter_map(record_in).collect(),
        authenticated: message.metadata.authentic_data,
    })
}

enum Read {
    Reply(Reply),
    Broken,
    /// A type that only hickory looks into.
    NamesInside,
}

/// Reads the types that nearly all replies consist of.
struct Reader<'a> {
    octets: &'a [u8],
    question: &'a Question,
    at: usize,
}

enum Additional {
    /// The high bits of the code.
    Opt {
        high: u16,
    },
    Address(Record),
    Other,
}

/// A record's outside.
struct Raw<'a> {
    rtype: RecordType,
    class: u16,
    ttl: u32,
    data_at: usize,
    data: &'a [u8],
}

impl<'a> Reader<'a> {
    const fn new(octets: &'a [u8], question: &'a Question) -> Self {
        Self {
            octets,
            question,
            at: HEADER_OCTETS,
        }
    }

    fn read(mut self, header: &[u8; HEADER_OCTETS]) -> Read {
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let Some(after) = skip_name(self.octets, self.at) else {
            return Read::Broken;
        };
        self.at = after + 4;
        let mut sections = [Vec::new(), Vec::new()];
        for (section, at) in sections.iter_mut().zip([6, 8]) {
            for _ in 0..count(at) {
                match self.record() {
                    Ok(Some(record)) => section.push(record),
                    Ok(None) => return Read::NamesInside,
                    Err(Broken) => return Read::Broken,
                }
            }
        }
        let mut high = 0_u16;
        let mut additional = Vec::new();
        for _ in 0..count(10) {
            match self.additional() {
                Ok(Additional::Opt { high: found }) => high = found,
                Ok(Additional::Address(record)) => additional.push(record),
                Ok(Additional::Other) => {}
                Err(Broken) => return Read::Broken,
            }
        }
        let [answers, authority] = sections;
        Read::Reply(Reply {
            rcode: Rcode(high << 4 | u16::from(header[3] & 0x0f)),
            truncated: header[2] & 0x02 != 0,
            authenticated: header[3] & 0x20 != 0,
            answers,
            authority,
            additional,
        })
    }

    /// `None` for a type that is not read here.
    fn record(&mut self) -> Result<Option<Record>, Broken> {
        let owner = self.name_at(self.at)?;
        let raw = self.raw()?;
        if raw.class != CLASS_IN {
            return Err(Broken);
        }
        let data = match raw.rtype {
            RecordType::A => Data::A(fixed::<4>(raw.data)?.into()),
            RecordType::AAAA => Data::Aaaa(fixed::<16>(raw.data)?.into()),
            RecordType::CNAME => Data::Cname(self.only_name(&raw)?),
            RecordType::PTR => Data::Ptr(self.only_name(&raw)?),
            RecordType::SRV => self.srv(&raw)?,
            RecordType::SOA => Data::Soa(self.soa(&raw)?),
            // An OPT stands in the additional section alone.
            RecordType(OPT) => return Err(Broken),
            other if other.hides_names() => return Ok(None),
            rtype => Data::Opaque {
                rtype,
                data: raw.data.to_vec(),
            },
        };
        Ok(Some(Record {
            owner,
            ttl: raw.ttl,
            data,
        }))
    }

    /// The record whose owner begins here, without looking at its name; steps behind it.
    fn raw(&mut self) -> Result<Raw<'a>, Broken> {
        let fixed_at = skip_name(self.octets, self.at).ok_or(Broken)?;
        let head = self.octets.get(fixed_at..fixed_at + 10).ok_or(Broken)?;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        let data_at = fixed_at + 10;
        let data = self.octets.get(data_at..data_at + length).ok_or(Broken)?;
        self.at = data_at + length;
        Ok(Raw {
            rtype: RecordType(u16::from_be_bytes([head[0], head[1]])),
            class: u16::from_be_bytes([head[2], head[3]]),
            ttl: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            data_at,
            data,
        })
    }

    /// Addresses and the OPT; what else stands there nobody uses.
    fn additional(&mut self) -> Result<Additional, Broken> {
        let start = self.at;
        let raw = self.raw()?;
        match raw.rtype {
            RecordType(OPT) => Ok(Additional::Opt {
                high: u16::from(raw.ttl.to_be_bytes()[0]),
            }),
            RecordType::A | RecordType::AAAA if raw.class == CLASS_IN => {
                self.at = start;
                let record = self.record()?;
                Ok(record.map_or(Additional::Other, Additional::Address))
            }
            _ => Ok(Additional::Other),
        }
    }

    fn name_at(&self, at: usize) -> Result<Name, Broken> {
        // What nearly every record begins with: a pointer to the question.
        if self.octets.get(at..at + 2) == Some(&[0xc0, 0x0c]) {
            return Ok(self.question.name.clone());
        }
        self.name(at).map(|(name, _)| name)
    }

    fn name(&self, at: usize) -> Result<(Name, usize), Broken> {
        let mut labels = Labels::at(self.octets, at);
        let name = Name::from_labels(&mut labels).map_err(|_| Broken)?;
        let after = labels.after().filter(|_| labels.is_whole());
        Ok((name, after.ok_or(Broken)?))
    }

    /// Data that are one name.
    fn only_name(&self, raw: &Raw<'_>) -> Result<Name, Broken> {
        self.last_name(raw, raw.data_at)
    }

    /// A name that ends where the data do.
    fn last_name(&self, raw: &Raw<'_>, at: usize) -> Result<Name, Broken> {
        let (name, after) = self.name(at)?;
        if after == raw.data_at + raw.data.len() {
            Ok(name)
        } else {
            Err(Broken)
        }
    }

    fn srv(&self, raw: &Raw<'_>) -> Result<Data, Broken> {
        let head = raw.data.first_chunk::<6>().ok_or(Broken)?;
        let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        Ok(Data::Srv {
            priority: number(0),
            weight: number(2),
            port: number(4),
            target: self.last_name(raw, raw.data_at + 6)?,
        })
    }

    fn soa(&self, raw: &Raw<'_>) -> Result<Soa, Broken> {
        let (mname, after) = self.name(raw.data_at)?;
        let (rname, after) = self.name(after)?;
        let numbers = after
            .checked_sub(raw.data_at)
            .and_then(|at| raw.data.get(at..))
            .ok_or(Broken)?;
        let numbers = fixed::<20>(numbers)?;
        let number = |at: usize| {
            let [.., a, b, c, d] = numbers[..at * 4 + 4] else {
                return 0;
            };
            u32::from_be_bytes([a, b, c, d])
        };
        Ok(Soa {
            mname,
            rname,
            serial: number(0),
            refresh: number(1),
            retry: number(2),
            expire: number(3),
            minimum: number(4),
        })
    }
}

#[derive(Debug)]
struct Broken;

fn fixed<const N: usize>(data: &[u8]) -> Result<[u8; N], Broken> {
    data.try_into().map_err(|_| Broken)
}
