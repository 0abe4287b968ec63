//! Names, records and votes out of octets: any octets make some, none make the smallest.

use vl3_core::names::{
    Answer, Data, Decision, Failure, Name, Negative, Positive, Preference, Question, Rcode, Record,
    RecordType, Soa, Turns, Upstream, Vote, Voter,
};

use super::{TYPES, data};

/// Labels that names share, so that there is something to compress.
const LABELS: [&[u8]; 8] = [
    b"a",
    b"B",
    b"www",
    b"WwW",
    b"red",
    b"test",
    b"\x00\xff",
    b"abcdefghijklmnopqrstuvwxyz-abcdefghijklmnopqrstuvwxyz-0123456789",
];
/// Longest name, in labels, but for one that is made to be at the bounds.
const LABELS_MAX: u8 = 8;
const RECORDS_MAX: u8 = 40;

pub(super) struct Source<'a> {
    octets: &'a [u8],
}

impl<'a> Source<'a> {
    pub(super) const fn new(octets: &'a [u8]) -> Self {
        Self { octets }
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.octets
    }

    pub(super) fn octet(&mut self) -> u8 {
        match self.octets.split_first() {
            Some((first, rest)) => {
                self.octets = rest;
                *first
            }
            None => 0,
        }
    }

    pub(super) fn octets<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.octet())
    }

    pub(super) fn name(&mut self) -> Name {
        let count = self.octet();
        let mut labels: Vec<&[u8]> = if count == u8::MAX {
            vec![b"a"; 127]
        } else {
            (0..count % (LABELS_MAX + 1))
                .map(|_| LABELS[usize::from(self.octet()) % LABELS.len()])
                .collect()
        };
        loop {
            match Name::from_labels(labels.iter().copied()) {
                Ok(name) => return name,
                Err(_) => drop(labels.pop()),
            }
        }
    }

    pub(super) fn rtype(&mut self) -> RecordType {
        TYPES[usize::from(self.octet()) % TYPES.len()]
    }

    pub(super) fn soa(&mut self) -> Soa {
        Soa {
            mname: self.name(),
            rname: self.name(),
            serial: self.octet().into(),
            refresh: 1,
            retry: 2,
            expire: 3,
            minimum: self.octet().into(),
        }
    }

    /// At least one octet, and well-formed as a text: a length and as many octets.
    pub(super) fn opaque(&mut self) -> Vec<u8> {
        let length = self.octet() % 64;
        let text = (0..length).map(|_| self.octet());
        std::iter::once(length).chain(text).collect()
    }

    fn record(&mut self) -> Record {
        let rtype = self.rtype();
        Record {
            owner: self.name(),
            ttl: u32::from(self.octet()) * 60,
            data: data(rtype, self),
        }
    }

    fn records(&mut self, max: u8) -> Vec<Record> {
        (0..self.octet() % (max + 1))
            .map(|_| self.record())
            .collect()
    }

    /// Often a set at the question's name, whose order turns.
    pub(super) fn answer(&mut self) -> (Answer, Question) {
        let question = Question::new(self.name(), RecordType::A);
        let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
        answer.answers = self.records(3);
        let aliases = answer.answers.len();
        if self.octet() & 1 == 1 {
            answer.answers.clear();
        }
        for _ in 0..self.octet() % RECORDS_MAX {
            answer.answers.push(Record {
                owner: question.name.clone(),
                ttl: self.octet().into(),
                data: Data::A(self.octets().into()),
            });
        }
        let place = |octet: u8| u16::from(octet) % (u16::from(RECORDS_MAX) + 4);
        if self.octet() & 1 == 1 {
            let local = u16::try_from(aliases).unwrap_or(0);
            let others = local.max(place(self.octet()));
            answer.turns = Turns { local, others };
        }
        answer.authority = self.records(2);
        answer.additional = self.records(2);
        (answer, question)
    }

    /// One server's vote about a question.
    pub(super) fn ballot(&mut self, number: u8, question: &Question) -> Option<(Voter, Vote)> {
        if self.octets.is_empty() {
            return None;
        }
        let mut upstream = Upstream::outside(&format!("u{number}"), Vec::new());
        let kind = self.octet();
        upstream.class = Preference::ALL[usize::from(kind) % Preference::ALL.len()];
        upstream.weight = u32::from(self.octet());
        let vote = match kind >> 4 {
            0..8 => self.positive(question),
            8 | 9 => Vote::NoData(self.negative()),
            10 | 11 => Vote::NxDomain(self.negative()),
            12 => Vote::NoOpinion,
            _ => Vote::Failed(Failure::ALL[usize::from(kind) % Failure::ALL.len()]),
        };
        Some((Voter::Upstream(std::sync::Arc::new(upstream)), vote))
    }

    fn positive(&mut self, question: &Question) -> Vote {
        let mut records = self.records(3);
        for _ in 0..=self.octet() % RECORDS_MAX {
            records.push(Record {
                owner: question.name.clone(),
                ttl: self.octet().into(),
                data: data(question.rtype, self),
            });
        }
        Vote::Positive(Positive {
            records,
            additional: self.records(2),
            truncated: self.octet() & 1 == 1,
            ..Positive::default()
        })
    }

    fn negative(&mut self) -> Negative {
        Negative {
            aliases: self.records(1),
            authority: self.records(1),
            authenticated: self.octet() & 1 == 1,
        }
    }

    pub(super) fn section(&mut self, question: &Question) -> Vec<u8> {
        self.spelled(&section_of(question))
    }

    /// The same question in other letters.
    pub(super) fn spelled(&mut self, section: &[u8]) -> Vec<u8> {
        let mut spelled = section.to_vec();
        let name = spelled.len().saturating_sub(4);
        for octet in &mut spelled[..name] {
            // Lengths of labels are below any letter.
            if octet.is_ascii_alphabetic() && self.octet() & 1 == 1 {
                *octet ^= 0x20;
            }
        }
        spelled
    }
}

/// Name, type and class as they stand in a message.
pub(super) fn section_of(question: &Question) -> Vec<u8> {
    let mut section = Vec::new();
    for label in question.name.labels() {
        section.push(u8::try_from(label.len()).unwrap_or(0));
        section.extend(label);
    }
    section.push(0);
    section.extend(question.rtype.0.to_be_bytes());
    section.extend(question.class.to_be_bytes());
    section
}
