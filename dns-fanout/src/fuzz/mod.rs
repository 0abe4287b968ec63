//! What must hold for any octets (R6.8): bodies of the fuzz targets in `fuzz/`, which the tests
//! here run over the seeds and mutations of them. Each panics where it finds a fault.

mod build;
mod seeds;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;
use vl3_core::names::{
    Answer, Asking, Ballot, ClientClass, Data, Decision, Failure, Flags, MERGED_RECORDS_MAX, Merge,
    Name, Policy, Question, Rcode, Reading, Record, RecordType, Reply, Resolver, ResolverEffect,
    ResolverInput, Upstream, View, ViewParts, Vote, classify, merge,
};
use vl3_core::{Machine as _, Mono, Now, Outbox, Ticket, Wall};

use crate::wire::{
    Asked, Body, Dropped, Encoded, HEADER_OCTETS, Parsed, Terms, bare, echoes, parse, parse_reply,
    reply_id,
};
use build::Source;
pub use seeds::{TARGETS, Target};

const CLIENT: [u8; 4] = [192, 0, 2, 1];
const NOW: Now = Now {
    mono: Mono(0),
    wall: Wall::from_unix_secs(1_000),
};

fn view() -> Arc<View> {
    let net = "192.0.2.0/24".parse().expect("a prefix");
    let servers = vec![([198, 51, 100, 1], 53).into()];
    let parts = ViewParts {
        upstreams: vec![Upstream::outside("one", servers)],
        clients: vec![(net, ClientClass::Member)],
        ..ViewParts::default()
    };
    Arc::new(View::assemble(parts).expect("a view"))
}

/// A client's message, through the resolver, to its reply over UDP and over TCP.
pub fn message(octets: &[u8]) {
    match parse(octets) {
        Parsed::Drop(Dropped::Short) => assert!(octets.len() < HEADER_OCTETS),
        Parsed::Drop(Dropped::IsReply) => assert!(octets[2] & 0x80 != 0),
        Parsed::Reply(reply, _) => {
            assert_eq!(reply[..2], octets[..2], "its ID");
            is_final(&reply);
            assert!(reply.len() <= octets.len() + 11, "more than was asked");
        }
        Parsed::Ask(asked) => answered(&asked),
    }
}

fn answered(asked: &Asked<'_>) {
    let request = asked.to_request().expect("a name within bounds");
    assert_eq!(request.section.as_ref(), asked.section);
    is_final(&bare(asked, Rcode::REFUSED, None, true));
    let mut resolver = Resolver::new(1);
    let mut out = Outbox::default();
    resolver.handle(ResolverInput::View(view()), NOW, &mut out);
    out.take();
    let source = IpAddr::from(CLIENT);
    let mut asking = Asking::new(Ticket(7), source, request.question.clone(), request.flags);
    asking.mark = asked.options.way.mark();
    resolver.handle(ResolverInput::Ask(asking), NOW, &mut out);
    let mut reading = None;
    for _ in 0..8 {
        for effect in out.take() {
            match effect {
                ResolverEffect::Answer(answered) => reading = Some(answered.reading),
                ResolverEffect::Query(query) => {
                    let ticket = query.ticket;
                    let reply = upstreams_word(&query.question, query.flags, query.mixed_case);
                    let input = match reply {
                        Ok(reply) => ResolverInput::Reply { ticket, reply },
                        Err(failure) => ResolverInput::Failed { ticket, failure },
                    };
                    resolver.handle(input, NOW, &mut out);
                }
                ResolverEffect::Forget(_) => {}
            }
        }
    }
    let reading = reading.expect("an answer");
    let body = Body::render(&request.question, &request.section, &reading);
    for udp in [true, false] {
        let terms = Terms::of(asked, udp, true, None);
        let mut reply = Vec::new();
        body.write(&mut reply, &terms, asked.section);
        is_reply_to(&reply, asked, &terms);
    }
}

/// One address, as a server that echoes the question says it.
fn upstreams_word(question: &Question, flags: Flags, mixed: bool) -> Result<Reply, Failure> {
    let mut random = StdRng::seed_from_u64(1);
    let query = Encoded::new(question, flags, mixed, None, &mut random);
    let mut octets = Vec::new();
    query.write(3, &mut octets);
    octets.truncate(HEADER_OCTETS + build::section_of(question).len());
    octets[2] |= 0x80;
    (octets[7], octets[11]) = (1, 0);
    octets.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 9]);
    assert!(echoes(&octets, &query).is_ok());
    parse_reply(&octets, question)
}

/// A server that gets it does not answer: two servers never talk for ever.
fn is_final(reply: &[u8]) {
    assert!(matches!(parse(reply), Parsed::Drop(Dropped::IsReply)));
}

fn is_reply_to(reply: &[u8], asked: &Asked<'_>, terms: &Terms) {
    is_final(reply);
    assert_eq!(reply_id(reply), Some(asked.id));
    let end = HEADER_OCTETS + asked.section.len();
    assert_eq!(reply.get(HEADER_OCTETS..end), Some(asked.section), "R1.4");
    let limit = terms.limit.unwrap_or(usize::from(u16::MAX));
    // A question that alone is longer is answered with what it asked.
    assert!(reply.len() <= limit.max(end + 11), "R6.1");
    assert!(terms.limit.is_some() || reply[2] & 0x02 == 0, "R6.1");
    let message = Message::from_vec(reply).expect("a message to others, too");
    assert_eq!(message.edns.is_some(), asked.edns.is_some(), "R6.2");
}

/// What an upstream sends: any octets; and behind the right question any rest. What can be read
/// can be judged, and told to a client.
pub fn upstream_reply(octets: &[u8]) {
    let mut source = Source::new(octets);
    let mixed = source.octet() & 1 == 1;
    let question = Question::new(source.name(), source.rtype());
    let mut random = StdRng::seed_from_u64(1);
    let query = Encoded::new(&question, Flags::default(), mixed, None, &mut random);
    let _not_ours = echoes(source.rest(), &query);
    let _any = parse_reply(source.rest(), &question);

    let mut reply = Vec::new();
    query.write(1, &mut reply);
    reply.truncate(HEADER_OCTETS + build::section_of(&question).len());
    reply[2] = 0x80 | (source.octet() & 0x07);
    reply[3] = source.octet();
    for count in [7, 9, 11] {
        reply[count] = source.octet() & 0x0f;
    }
    reply.extend(source.rest());
    assert!(echoes(&reply, &query).is_ok());
    let Ok(said) = parse_reply(&reply, &question) else {
        return;
    };
    let view = view();
    let upstream = Upstream::outside("one", Vec::new());
    let vote = classify(&view, &question, Flags::default(), &upstream, &said).vote;
    if let Vote::Positive(positive) = &vote {
        assert!(!positive.records.is_empty());
    }
    let records = said.answers.len() + said.authority.len() + said.additional.len();
    let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
    answer.answers = said.answers;
    answer.authority = said.authority;
    answer.additional = said.additional;
    let told = rendered(&question, &answer);
    let read = Message::from_vec(&told).map(|message| {
        message.answers.len() + message.authorities.len() + message.additionals.len()
    });
    // Others look into data that we pass on as they are, and may refuse them.
    assert!(read.is_err() || read.is_ok_and(|read| read <= records));
}

/// Votes of up to four servers: one answer, whatever order they came in.
pub fn votes(octets: &[u8]) {
    let mut source = Source::new(octets);
    let policy = Policy::ALL[usize::from(source.octet()) % Policy::ALL.len()];
    let question = Question::new(source.name(), source.rtype());
    let flags = Flags {
        dnssec_ok: source.octet() & 1 == 1,
        ..Flags::default()
    };
    let random = u64::from(source.octet());
    let votes: Vec<Ballot> = (0..4)
        .map_while(|number| source.ballot(number, &question))
        .collect();
    let view = view();
    let about = Merge {
        view: &view,
        question: &question,
        flags,
        policy,
        random,
    };
    let merged = merge(about, &votes);
    let mut other_order = votes.clone();
    other_order.reverse();
    assert_eq!(merge(about, &other_order), merged, "R2.6");
    other_order.rotate_left(votes.len() / 2);
    assert_eq!(merge(about, &other_order), merged, "R2.6");
    let any = |holds: fn(&Ballot) -> bool| votes.iter().any(holds);
    for (_, answer) in &merged.choices {
        assert!(answer.is_positive() || !any(|(_, vote)| vote.is_positive()));
        let denies = answer.rcode == Rcode::NX_DOMAIN;
        let knows = any(|(_, vote)| matches!(vote, Vote::NoData(_)));
        assert!(!denies || policy == Policy::Race || !knows, "R2.4");
        let owner_missing = any(|(voter, vote)| voter.is_owner() && vote.is_missing(true));
        assert!(!denies || policy == Policy::Race || !owner_missing, "R2.5");
        if policy == Policy::Union && votes.len() > 1 {
            let most = votes.iter().map(|(_, vote)| match vote {
                Vote::Positive(positive) => positive.records.len(),
                _ => 0,
            });
            let most = most.max().unwrap_or(0).max(MERGED_RECORDS_MAX);
            assert!(answer.answers.len() <= most, "R2.7");
        }
        for record in &answer.answers {
            let is_it = |said: &Record| said.owner == record.owner && said.data == record.data;
            let said = votes.iter().any(|(_, vote)| match vote {
                Vote::Positive(positive) => positive.records.iter().any(is_it),
                Vote::NoData(no) | Vote::NxDomain(no) => no.aliases.iter().any(is_it),
                Vote::NoOpinion | Vote::Failed(_) => false,
            });
            assert!(said, "nobody said {record:?}");
        }
    }
}

/// A stored message, patched for a client: the same as one that is written for it.
pub fn patch(octets: &[u8]) {
    let mut source = Source::new(octets);
    let (answer, question) = source.answer();
    let section = source.section(&question);
    let stored = Body::render(&question, &section, &answer);
    let spelled = source.spelled(&section);
    let mut terms = Terms {
        id: u16::from_be_bytes([source.octet(), source.octet()]),
        recursion_desired: source.octet() & 1 == 1,
        checking_disabled: source.octet() & 1 == 1,
        limit: Some(512 + usize::from(source.octet()) * 3),
        edns: (source.octet() & 1 == 1).then_some(source.octet() & 1 == 1),
        age: u32::from(source.octet()) * 100,
        turn: u32::from(source.octet()),
        ..Terms::default()
    };
    if !stored.turns() {
        terms.turn = 0;
    }
    let answer = Arc::new(answer);
    for limit in [None, terms.limit] {
        terms.limit = limit;
        let mut patched = Vec::new();
        stored.write(&mut patched, &terms, &spelled);
        // What is cut does not turn.
        let is_cut = patched[2] & 0x02 != 0;
        let reading = Reading {
            answer: Arc::clone(&answer),
            age: terms.age,
            turn: if is_cut { 0 } else { terms.turn },
        };
        let fresh = Body::render(&question, &spelled, &reading.to_answer());
        let plain = Terms {
            age: 0,
            turn: 0,
            ..terms
        };
        let mut written = Vec::new();
        fresh.write(&mut written, &plain, &spelled);
        assert_eq!(patched, written);
    }
}

/// Records with names that share their ends: written, they are read back as they were.
pub fn compression(octets: &[u8]) {
    let mut source = Source::new(octets);
    let (answer, question) = source.answer();
    let told = rendered(&question, &answer);
    let read = parse_reply(&told, &question).expect("our own message");
    assert_eq!(read.answers, answer.answers);
    assert_eq!(read.authority, answer.authority);
    let message = Message::from_vec(&told).expect("a message to others, too");
    assert_eq!(message.answers.len(), answer.answers.len());
    for (theirs, ours) in message.answers.iter().zip(&answer.answers) {
        let name = Name::from_labels(theirs.name.iter()).expect("a name");
        assert_eq!(name, ours.owner);
    }
}

/// A message over TCP, which nothing cuts.
fn rendered(question: &Question, answer: &Answer) -> Vec<u8> {
    let section = build::section_of(question);
    let body = Body::render(question, &section, answer);
    let mut octets = Vec::new();
    body.write(&mut octets, &Terms::default(), &section);
    octets
}

/// Types that the targets make data of.
const TYPES: [RecordType; 8] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CNAME,
    RecordType::PTR,
    RecordType::SRV,
    RecordType::SOA,
    RecordType::TXT,
    RecordType(65_280),
];

/// Data of a type as it comes.
fn data(rtype: RecordType, source: &mut Source<'_>) -> Data {
    match rtype {
        RecordType::A => Data::A(source.octets().into()),
        RecordType::AAAA => Data::Aaaa(source.octets().into()),
        RecordType::CNAME => Data::Cname(source.name()),
        RecordType::PTR => Data::Ptr(source.name()),
        RecordType::SRV => Data::Srv {
            priority: source.octet().into(),
            weight: source.octet().into(),
            port: source.octet().into(),
            target: source.name(),
        },
        RecordType::SOA => Data::Soa(source.soa()),
        rtype => Data::Opaque {
            rtype,
            data: source.opaque(),
        },
    }
}
