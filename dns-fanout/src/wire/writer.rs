//! Records into octets, names compressed (RFC 1035 4.1.4) where their readers expect it.

use vl3_core::names::{CLASS_IN, Data, Name, Question, Record, Soa};

use super::HEADER_OCTETS;

/// Places of names that later names may point to; more are written out.
const KNOWN_MAX: usize = 48;
/// Beyond this nothing can be pointed to.
const POINTER_MAX: usize = 0x3fff;
const POINTER: u16 = 0xc000;
/// Where the question's name stands.
const QUESTION_AT: u16 = 12;

/// One message being written: header and question first.
pub(super) struct Writer<'a> {
    asked: &'a Name,
    out: Vec<u8>,
    /// Where labels begin.
    known: Vec<u16>,
    ttls: Vec<u32>,
}

impl<'a> Writer<'a> {
    /// `section` is the question as the client spelled it.
    pub(super) fn new(question: &'a Question, section: &[u8]) -> Self {
        let mut out = Vec::with_capacity(HEADER_OCTETS + section.len() + 128);
        out.resize(HEADER_OCTETS, 0);
        out[5] = 1;
        out.extend_from_slice(section);
        let mut known = Vec::with_capacity(16);
        let mut at = QUESTION_AT;
        for label in question.name.labels().take(KNOWN_MAX / 2) {
            known.push(at);
            at += u16::try_from(label.len() + 1).unwrap_or(0);
        }
        Self {
            asked: &question.name,
            out,
            known,
            ttls: Vec::with_capacity(4),
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.out.len()
    }

    /// The message and where its TTLs stand.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<u32>) {
        (self.out, self.ttls)
    }

    pub(super) fn record(&mut self, record: &Record) {
        if record.owner == *self.asked && !self.asked.is_root() {
            self.u16(POINTER | QUESTION_AT);
        } else {
            self.name(&record.owner, true);
        }
        self.u16(record.data.rtype().0);
        self.u16(CLASS_IN);
        self.ttls.push(u32::try_from(self.out.len()).unwrap_or(0));
        self.u32(record.ttl);
        let length_at = self.out.len();
        self.u16(0);
        self.data(&record.data);
        let length = u16::try_from(self.out.len() - length_at - 2).unwrap_or(0);
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }

    fn data(&mut self, data: &Data) {
        match data {
            Data::A(address) => self.out.extend(address.octets()),
            Data::Aaaa(address) => self.out.extend(address.octets()),
            Data::Cname(target) | Data::Ptr(target) => self.name(target, true),
            // Not compressed (RFC 2782).
            Data::Srv {
                priority,
                weight,
                port,
                target,
            } => {
                for number in [priority, weight, port] {
                    self.u16(*number);
                }
                self.name(target, false);
            }
            Data::Soa(soa) => self.soa(soa),
            Data::Opaque { data, .. } => self.out.extend(data),
        }
    }

    fn soa(&mut self, soa: &Soa) {
        self.name(&soa.mname, true);
        self.name(&soa.rname, true);
        for number in [soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum] {
            self.u32(number);
        }
    }

    fn name(&mut self, name: &Name, compress: bool) {
        let labels: Vec<&[u8]> = name.labels().collect();
        for (written, label) in labels.iter().enumerate() {
            if compress && let Some(at) = self.find(&labels[written..]) {
                self.u16(POINTER | at);
                return;
            }
            let at = self.out.len();
            if at <= POINTER_MAX && self.known.len() < KNOWN_MAX {
                self.known.push(u16::try_from(at).unwrap_or(0));
            }
            // Names hold labels of at most 63 octets.
            self.out.push(u8::try_from(label.len()).unwrap_or(0));
            self.out.extend_from_slice(label);
        }
        self.out.push(0);
    }

    /// Where these labels stand already.
    fn find(&self, labels: &[&[u8]]) -> Option<u16> {
        self.known
            .iter()
            .copied()
            .find(|at| self.stands(usize::from(*at), labels))
    }

    fn stands(&self, mut at: usize, labels: &[&[u8]]) -> bool {
        let mut labels = labels.iter();
        // Pointers lead backwards, so this ends.
        loop {
            match self.out.get(at).copied() {
                Some(0) => return labels.next().is_none(),
                Some(length @ 1..=63) => {
                    let start = at + 1;
                    at = start + usize::from(length);
                    let here = self.out.get(start..at);
                    let same = labels
                        .next()
                        .zip(here)
                        .is_some_and(|(label, here)| here.eq_ignore_ascii_case(label));
                    if !same {
                        return false;
                    }
                }
                Some(high) => {
                    let low = self.out.get(at + 1).copied().unwrap_or(0);
                    at = usize::from(u16::from_be_bytes([high & 0x3f, low]));
                }
                None => return false,
            }
        }
    }

    fn u16(&mut self, number: u16) {
        self.out.extend(number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.out.extend(number.to_be_bytes());
    }
}
