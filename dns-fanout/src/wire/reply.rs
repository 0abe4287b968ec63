//! Our reply to a client (R6.1, R6.2): an answer is rendered once into a [`Body`], and written
//! for each client with its ID, spelling, flags, size, OPT and the age of the answer.

use vl3_core::names::{Answer, Question, Rcode, Record};

use super::options::{COOKIE, EXTENDED_ERROR, KEEPALIVE, OPT, put_option};
use super::writer::Writer;
use super::{Asked, HEADER_OCTETS};

/// Our own EDNS size, towards clients and upstreams: fits any path of 1,280 octets.
pub(crate) const EDNS_SIZE: u16 = 1232;
/// Largest UDP reply without EDNS (RFC 1035 2.3.4).
const PLAIN_SIZE: u16 = 512;
/// Longest text of an extended error, octets.
const EXTENDED_TEXT_MAX: usize = 200;
/// An OPT without options: root, type, size, extended flags, length.
const OPT_OCTETS: usize = 11;
/// Cookie of a client and ours, with code and length (RFC 9018 4).
const COOKIE_OCTETS: usize = 4 + FULL_COOKIE;
const FULL_COOKIE: usize = 24;
/// How long a silent connection lives, in 100 ms (RFC 7828): what R6.4 says.
const KEEPALIVE_TIME: u16 = 100;
/// A reply to a client whose address is not proven is at most so many times its query (R6.6).
const AMPLIFICATION_MAX: usize = 10;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const AD: u8 = 0x20;
const CD: u8 = 0x10;

/// An answer in octets, without an OPT; ID, RD and CD are zero.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    octets: Vec<u8>,
    /// Where TTLs stand.
    ttls: Vec<u32>,
    /// Where the records of the answer section begin that begin a set, with how many records
    /// lie before.
    sets: Vec<(u32, u16)>,
    /// Where the answer section ends, and its records.
    answers: (usize, u16),
    /// Where the authority section ends, and its records.
    authority: (usize, u16),
    additional: u16,
    /// AD, for clients that want to know.
    authenticated: bool,
    /// The two parts of the answer section that turn (R2.7); `None` where octets cannot be
    /// turned.
    turning: Option<[Turning; 2]>,
    /// Value of the extended error's option.
    extended: Vec<u8>,
}

/// Records of one length, into which nothing points.
#[derive(Clone, Copy, Debug, Default)]
struct Turning {
    start: usize,
    end: usize,
    each: usize,
}

/// How one client wants its reply.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    /// `None` over TCP.
    pub(crate) limit: Option<usize>,
    /// DO of the client's OPT.
    pub(crate) edns: Option<bool>,
    pub(crate) cookie: Option<[u8; FULL_COOKIE]>,
    pub(crate) keepalive: bool,
    /// Seconds since the answer was made.
    pub(crate) age: u32,
    /// Which order the records have (R2.7).
    pub(crate) turn: u32,
    /// AD or DO of the query.
    pub(crate) authentic_wanted: bool,
}

impl Terms {
    /// `proven`: the client showed by a cookie that its address is its own. `cookie` is what to
    /// return.
    pub(crate) fn of(
        asked: &Asked<'_>,
        udp: bool,
        proven: bool,
        cookie: Option<[u8; FULL_COOKIE]>,
    ) -> Self {
        let size = asked
            .edns
            .map_or(PLAIN_SIZE, |client| client.size.min(EDNS_SIZE));
        let unproven = asked.length.saturating_mul(AMPLIFICATION_MAX);
        let limit = if proven { usize::MAX } else { unproven };
        Self {
            id: asked.id,
            recursion_desired: asked.flags.recursion_desired,
            checking_disabled: asked.flags.checking_disabled,
            limit: udp.then(|| usize::from(size).min(limit)),
            edns: asked.edns.map(|client| client.dnssec_ok),
            cookie,
            keepalive: asked.options.keepalive && !udp,
            age: 0,
            turn: 0,
            authentic_wanted: asked.authentic_wanted || asked.flags.dnssec_ok,
        }
    }

    /// Octets of the OPT but for the extended error.
    fn opt_octets(&self) -> usize {
        if self.edns.is_none() {
            return 0;
        }
        let cookie = if self.cookie.is_some() {
            COOKIE_OCTETS
        } else {
            0
        };
        let keepalive = if self.keepalive { 6 } else { 0 };
        OPT_OCTETS + cookie + keepalive
    }
}

impl Body {
    /// Renders an answer to a question, in its first order and without age; `section` is the
    /// question as somebody spelled it.
    pub(crate) fn render(question: &Question, section: &[u8], answer: &Answer) -> Self {
        let mut writer = Writer::new(question, section);
        let mut sets = Vec::with_capacity(2);
        let mut starts = Vec::with_capacity(answer.answers.len() + 1);
        let mut before: Option<&Record> = None;
        for (count, record) in (0_u16..).zip(&answer.answers) {
            if before.is_none_or(|before| !same_set(before, record)) {
                sets.push((place(writer.len()), count));
            }
            before = Some(record);
            starts.push(writer.len());
            writer.record(record);
        }
        starts.push(writer.len());
        let answers = (writer.len(), count(&answer.answers));
        let rest = answer.authority.iter();
        rest.for_each(|record| writer.record(record));
        let authority = (writer.len(), count(&answer.authority));
        let rest = answer.additional.iter();
        rest.for_each(|record| writer.record(record));
        let (mut octets, ttls) = writer.finish();
        octets[2] = QR | if answer.authoritative { AA } else { 0 };
        if answer.truncated {
            octets[2] |= TC;
        }
        octets[3] = RA | u8::try_from(answer.rcode.0 & 0x0f).unwrap_or(0);
        octets[6..8].copy_from_slice(&answers.1.to_be_bytes());
        octets[8..10].copy_from_slice(&authority.1.to_be_bytes());
        let extended = answer.extended.as_ref().map_or_else(Vec::new, |error| {
            let text = error.text.as_bytes();
            let text = &text[..text.len().min(EXTENDED_TEXT_MAX)];
            [&error.code.to_be_bytes()[..], text].concat()
        });
        Self {
            octets,
            ttls,
            sets,
            answers,
            authority,
            additional: count(&answer.additional),
            authenticated: answer.authenticated,
            turning: turning(answer, &starts),
            extended,
        }
    }

    /// Whether [`Terms::turn`] can be obeyed by moving octets.
    pub(crate) const fn turns(&self) -> bool {
        self.turning.is_some()
    }

    /// Gives back what it has room for and does not hold.
    pub(crate) fn shrink(&mut self) {
        self.octets.shrink_to_fit();
        self.ttls.shrink_to_fit();
        self.sets.shrink_to_fit();
        self.extended.shrink_to_fit();
    }

    /// Octets held, about.
    pub(crate) fn octets(&self) -> usize {
        self.octets.len()
            + self.extended.len()
            + self.ttls.len() * size_of::<u32>()
            + self.sets.len() * size_of::<(u32, u16)>()
    }

    /// Appends the reply for one client. `section` is the same question as this client spelled
    /// it. Over UDP whole record sets are left out from the end until it fits, with TC=1 when
    /// the answer section was cut; over TCP nothing is.
    pub(crate) fn write(&self, out: &mut Vec<u8>, to: &Terms, section: &[u8]) {
        let limit = to.limit.unwrap_or(usize::MAX);
        let opt = to.opt_octets();
        let extended = self.explained(to, opt, limit);
        let with = match extended.len() {
            0 => opt,
            length => opt + 4 + length,
        };
        let (end, kept) = self.cut(limit.saturating_sub(with));
        let start = out.len();
        out.extend_from_slice(&self.octets[..end]);
        let reply = &mut out[start..];
        reply[..2].copy_from_slice(&to.id.to_be_bytes());
        if to.recursion_desired {
            reply[2] |= RD;
        }
        if to.checking_disabled {
            reply[3] |= CD;
        }
        if self.authenticated && to.authentic_wanted {
            reply[3] |= AD;
        }
        if to.limit.is_none() {
            reply[2] &= !TC;
        } else if kept < self.answers.1 {
            reply[2] |= TC;
        }
        reply[6..8].copy_from_slice(&kept.to_be_bytes());
        if end < self.authority.0 {
            reply[8..10].copy_from_slice(&[0, 0]);
        }
        let additional = if end < self.octets.len() {
            0
        } else {
            self.additional
        };
        let opts = u16::from(to.edns.is_some());
        reply[10..12].copy_from_slice(&additional.saturating_add(opts).to_be_bytes());
        if let Some(spelled) = reply.get_mut(HEADER_OCTETS..HEADER_OCTETS + section.len()) {
            spelled.copy_from_slice(section);
        }
        if to.age > 0 {
            self.age(reply, to.age);
        }
        if to.turn > 0 && kept == self.answers.1 {
            self.turn(reply, to.turn);
        }
        if let Some(dnssec_ok) = to.edns {
            write_opt(out, dnssec_ok, 0, to.cookie, to.keepalive, extended);
        }
    }

    /// The extended error, where there is room: it goes before any record does.
    fn explained(&self, to: &Terms, opt: usize, limit: usize) -> &[u8] {
        let with = opt + 4 + self.extended.len();
        let fits = self.octets.len() + with <= limit
            || (self.answers.1 == 0 && self.answers.0 + with <= limit);
        if to.edns.is_some() && fits {
            &self.extended
        } else {
            &[]
        }
    }

    /// Where to end so that it fits, and how many records of the answer section are left.
    fn cut(&self, room: usize) -> (usize, u16) {
        let whole = [self.octets.len(), self.authority.0, self.answers.0];
        if let Some(end) = whole.into_iter().find(|end| *end <= room) {
            return (end, self.answers.1);
        }
        let fitting = self
            .sets
            .iter()
            .rev()
            .find(|(start, _)| *start as usize <= room)
            .or(self.sets.first());
        // Without sets the answer section ends where the question does.
        fitting.map_or(self.answers, |(start, before)| (*start as usize, *before))
    }

    fn age(&self, reply: &mut [u8], age: u32) {
        for at in &self.ttls {
            let at = *at as usize;
            if let Some(ttl) = reply.get_mut(at..at + 4) {
                let left = ttl
                    .iter()
                    .fold(0_u32, |ttl, octet| ttl << 8 | u32::from(*octet));
                ttl.copy_from_slice(&left.saturating_sub(age).to_be_bytes());
            }
        }
    }

    fn turn(&self, reply: &mut [u8], turn: u32) {
        for part in self.turning.iter().flatten() {
            let Some(records) = reply.get_mut(part.start..part.end) else {
                continue;
            };
            let count = records.len().checked_div(part.each).unwrap_or(0);
            if let Some(by) = (turn as usize).checked_rem(count) {
                records.rotate_left(by * part.each);
            }
        }
    }
}

/// The turning parts as octets; `None` when a part's records differ in length, or could be
/// pointed into (a pointer would lead elsewhere after a turn).
fn turning(answer: &Answer, starts: &[usize]) -> Option<[Turning; 2]> {
    let all = answer.answers.len();
    let local = usize::from(answer.turns.local).min(all);
    let others = usize::from(answer.turns.others).clamp(local, all);
    let part = |from: usize, to: usize| {
        if to - from < 2 {
            return Some(Turning::default());
        }
        let each = starts[from + 1] - starts[from];
        let same = starts[from..=to]
            .windows(2)
            .all(|pair| pair[1] - pair[0] == each);
        let records = &answer.answers[from..to];
        let addresses = records.iter().all(|record| record.data.address().is_some());
        // All of them point to one name that stands before.
        let one_owner = records
            .windows(2)
            .all(|pair| pair[0].owner == pair[1].owner);
        (same && addresses && one_owner).then_some(Turning {
            start: starts[from],
            end: starts[to],
            each,
        })
    };
    Some([part(local, others)?, part(others, all)?])
}

/// At most 65,535 records: a reply is at most so many octets.
fn count(records: &[Record]) -> u16 {
    u16::try_from(records.len()).unwrap_or(u16::MAX)
}

fn same_set(before: &Record, record: &Record) -> bool {
    before.data.rtype() == record.data.rtype() && before.owner == record.owner
}

/// Messages end at 65,535 octets, sets beyond are never reached.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn write_opt(
    out: &mut Vec<u8>,
    dnssec_ok: bool,
    high_rcode: u8,
    cookie: Option<[u8; FULL_COOKIE]>,
    keepalive: bool,
    extended: &[u8],
) {
    out.push(0);
    out.extend(OPT.to_be_bytes());
    out.extend(EDNS_SIZE.to_be_bytes());
    out.extend([high_rcode, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    let length_at = out.len();
    out.extend([0, 0]);
    if let Some(cookie) = cookie {
        put_option(out, COOKIE, &cookie);
    }
    if keepalive {
        put_option(out, KEEPALIVE, &KEEPALIVE_TIME.to_be_bytes());
    }
    if !extended.is_empty() {
        put_option(out, EXTENDED_ERROR, extended);
    }
    let length = u16::try_from(out.len() - length_at - 2).unwrap_or(0);
    out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
}

/// BADVERS: we speak version 0 alone (R6.2).
pub(super) fn bad_version(asked: &Asked<'_>) -> Vec<u8> {
    bare(asked, Rcode::BAD_VERS, None, false)
}

/// A code without records; an OPT where the client has one, or the code needs it.
pub(crate) fn bare(
    asked: &Asked<'_>,
    rcode: Rcode,
    cookie: Option<[u8; FULL_COOKIE]>,
    truncated: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_OCTETS + asked.section.len() + OPT_OCTETS);
    out.extend(asked.id.to_be_bytes());
    let rd = if asked.flags.recursion_desired { RD } else { 0 };
    let low = u8::try_from(rcode.0 & 0x0f).unwrap_or(0);
    out.extend([QR | rd | if truncated { TC } else { 0 }, RA | low]);
    let with_opt = asked.edns.is_some() || rcode.0 > 0x0f;
    out.extend([0, 1, 0, 0, 0, 0, 0, u8::from(with_opt)]);
    out.extend(asked.section);
    if with_opt {
        let high = u8::try_from(rcode.0 >> 4).unwrap_or(0);
        write_opt(&mut out, asked.flags.dnssec_ok, high, cookie, false, &[]);
    }
    out
}

/// A message as TCP carries it, behind its length (RFC 1035 4.2.2).
pub(crate) fn tcp_frame(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut frame = Vec::with_capacity(message.len() + 2);
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    Some(frame)
}
