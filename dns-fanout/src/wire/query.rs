//! Queries to upstreams (R3.1, R3.3, R3.4, R4.2).

use rand::Rng;
use vl3_core::names::{Flags, LoopMark, Question};

use super::HEADER_OCTETS;
use super::options::{OPT, put_way};
use super::reply::EDNS_SIZE;

/// One query, but for its ID: made once for all upstreams that are asked the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    octets: Box<[u8]>,
    /// Where the question section ends.
    question_end: usize,
    /// Whether the name is in mixed case (R3.3).
    pub(crate) mixed: bool,
}

impl Encoded {
    /// An OPT of our own, without any of the client's options (R3.4); `flags` as they are sent.
    pub(crate) fn new(
        question: &Question,
        flags: Flags,
        mixed: bool,
        mark: Option<&LoopMark>,
        random: &mut impl Rng,
    ) -> Self {
        let mut octets = Vec::with_capacity(96);
        octets.extend([0, 0, u8::from(flags.recursion_desired)]);
        octets.push(if flags.checking_disabled { 0x10 } else { 0 });
        octets.extend([0, 1, 0, 0, 0, 0, 0, 1]);
        for label in question.name.labels() {
            // Names hold labels of at most 63 octets.
            octets.push(u8::try_from(label.len()).unwrap_or(0));
            octets.extend_from_slice(label);
        }
        octets.push(0);
        if mixed {
            mix(&mut octets[HEADER_OCTETS..], random);
        }
        octets.extend(question.rtype.0.to_be_bytes());
        octets.extend(question.class.to_be_bytes());
        let question_end = octets.len();
        octets.push(0);
        octets.extend(OPT.to_be_bytes());
        octets.extend(EDNS_SIZE.to_be_bytes());
        octets.extend([0, 0, if flags.dnssec_ok { 0x80 } else { 0 }, 0]);
        let length_at = octets.len();
        octets.extend([0, 0]);
        if let Some(mark) = mark {
            put_way(&mut octets, mark);
        }
        let length = u16::try_from(octets.len() - length_at - 2).unwrap_or(0);
        octets[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        Self {
            octets: octets.into(),
            question_end,
            mixed,
        }
    }

    /// Name, type and class as they are sent.
    pub(super) fn section(&self) -> &[u8] {
        &self.octets[HEADER_OCTETS..self.question_end]
    }

    pub(crate) fn write(&self, id: u16, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.octets);
        out[start..start + 2].copy_from_slice(&id.to_be_bytes());
    }
}

/// Turns letters at random: lengths of labels are below any letter.
fn mix(name: &mut [u8], random: &mut impl Rng) {
    let mut bits = 0_u64;
    let mut left = 0;
    for octet in name.iter_mut().filter(|octet| octet.is_ascii_lowercase()) {
        if left == 0 {
            bits = random.next_u64();
            left = 64;
        }
        if bits & 1 == 1 {
            *octet = octet.to_ascii_uppercase();
        }
        bits >>= 1;
        left -= 1;
    }
}
