//! The codec against random octets and random answers (R6.1, R6.8).

use hickory_proto::op::Message;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use vl3_core::names::{
    Answer, Data, Decision, ExtendedError, Flags, LABEL_OCTETS_MAX, Name, Question, Rcode, Record,
    RecordType, Soa,
};

use super::*;

fn request(name: &Name, edns: Option<u16>) -> Request {
    let question = Question::new(name.clone(), RecordType::A);
    let mut octets = Vec::new();
    encoded(&question).write(7, &mut octets);
    match edns {
        // The OPT is the last record: its class holds the size.
        Some(size) => {
            let at = octets.len() - 8;
            octets[at..at + 2].copy_from_slice(&size.to_be_bytes());
        }
        None => {
            octets.truncate(octets.len() - 11);
            octets[11] = 0;
        }
    }
    asked(&octets).to_request().expect("a question")
}

fn encoded(question: &Question) -> Encoded {
    let mut random = StdRng::seed_from_u64(1);
    Encoded::new(question, Flags::default(), false, None, &mut random)
}

fn asked(octets: &[u8]) -> Asked<'_> {
    match parse(octets) {
        Parsed::Ask(asked) => asked,
        other => panic!("{other:?}"),
    }
}

fn build(request: &Request, answer: &Answer, udp: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let terms = Terms::of(&request.asked(), udp, true, None);
    let body = Body::render(&request.question, &request.section, answer);
    body.write(&mut out, &terms, &request.section);
    out
}

prop_compose! {
    fn any_name()(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=LABEL_OCTETS_MAX), 0..12)) -> Name {
        let mut labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        loop {
            match Name::from_labels(labels.iter().copied()) {
                Ok(name) => return name,
                Err(_) => drop(labels.pop()),
            }
        }
    }
}

fn any_data() -> impl Strategy<Value = Data> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| Data::A(octets.into())),
        any::<[u8; 16]>().prop_map(|octets| Data::Aaaa(octets.into())),
        any_name().prop_map(Data::Cname),
        any_name().prop_map(Data::Ptr),
        (any::<[u16; 3]>(), any_name()).prop_map(|([priority, weight, port], target)| Data::Srv {
            priority,
            weight,
            port,
            target
        }),
        (any_name(), any_name(), any::<u32>()).prop_map(|(mname, rname, serial)| Data::Soa(Soa {
            mname,
            rname,
            serial,
            refresh: 1,
            retry: 2,
            expire: 3,
            minimum: 4
        })),
        prop::collection::vec(any::<u8>(), 1..200).prop_map(|data| Data::Opaque {
            rtype: RecordType(65_280),
            data
        }),
    ]
}

prop_compose! {
    fn any_record()(owner in any_name(), ttl in 0..=0x7fff_ffff_u32, data in any_data()) -> Record {
        Record { owner, ttl, data }
    }
}

proptest! {
    #[test]
    fn r6_8_no_octets_can_stop_the_parser(octets in prop::collection::vec(any::<u8>(), 0..600)) {
        let _any = parse(&octets);
        let _any = parse_reply(&octets, &Question::new(Name::root(), RecordType::A));
    }

    /// Changes a few octets of a message that makes sense, and cuts it anywhere.
    #[test]
    fn r6_8_no_damage_can_stop_the_parser(
        name in any_name(),
        records in prop::collection::vec(any_record(), 0..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let question = Question::new(name.clone(), RecordType::A);
        let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
        answer.answers = records;
        let mut octets = build(&request(&name, Some(1232)), &answer, false);
        for (at, octet) in damage {
            let at = at.index(octets.len());
            octets[at] = octet;
        }
        octets.truncate(cut.index(octets.len() + 1));
        let _any = parse_reply(&octets, &question);
        if let Some(flags) = octets.get_mut(2) {
            *flags &= 0x7f;
        }
        let _any = parse(&octets);
    }

    #[test]
    fn r6_1_a_reply_fits_and_says_when_it_was_cut(
        name in any_name(),
        records in prop::collection::vec(any_record(), 0..40),
        authority in prop::collection::vec(any_record(), 0..2),
        size in prop::option::of(any::<u16>()),
        text in ".{0,400}",
    ) {
        let request = request(&name, size);
        let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged).because(22, text);
        answer.answers = records;
        answer.authority = authority;
        let octets = build(&request, &answer, true);
        let limit = size.map_or(512, |size| size.clamp(512, 1232));
        // A name of 255 octets, an OPT and a long text may need more than 512 together; then the
        // text goes.
        prop_assert!(octets.len() <= usize::from(limit), "{} of {limit}", octets.len());
        let reply = Message::from_vec(&octets).unwrap();
        prop_assert_eq!(reply.metadata.truncation, reply.answers.len() < answer.answers.len());
        prop_assert_eq!(reply.edns.is_some(), size.is_some());

        let whole = build(&request, &answer, false);
        let reply = Message::from_vec(&whole).unwrap();
        prop_assert!(!reply.metadata.truncation);
        prop_assert_eq!(reply.answers.len(), answer.answers.len());
    }

    /// What we write another codec reads, and we read it back.
    #[test]
    fn records_survive_the_wire(name in any_name(), records in prop::collection::vec(any_record(), 0..10)) {
        let question = Question::new(name.clone(), RecordType::A);
        let mut answer = Answer::code(Rcode::NX_DOMAIN, Decision::Merged);
        answer.answers.clone_from(&records);
        let octets = build(&request(&name, Some(1232)), &answer, false);
        let reply = parse_reply(&octets, &question).unwrap();
        prop_assert_eq!(reply.answers, records);
        prop_assert_eq!(reply.rcode, Rcode::NX_DOMAIN);
    }
}

#[test]
fn r6_8_names_at_the_bounds_survive() {
    let label = "a".repeat(LABEL_OCTETS_MAX);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    for text in [longest, ["a"; 127].join("."), String::new()] {
        let name = Name::parse(&text).unwrap();
        let request = request(&name, None);
        assert_eq!(request.question.name, name);
        let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
        answer.answers = vec![Record {
            owner: name.clone(),
            ttl: 1,
            data: Data::Cname(name),
        }];
        let reply = Message::from_vec(&build(&request, &answer, false)).unwrap();
        assert_eq!(reply.answers.len(), 1);
    }
}

#[test]
fn r2_5_the_extended_error_goes_to_who_speaks_edns() {
    let name = Name::parse("db.red.test").unwrap();
    let answer = Answer::code(Rcode::SERV_FAIL, Decision::VotesMissing).because(
        ExtendedError::NO_REACHABLE_AUTHORITY,
        "no answer from north",
    );
    let with = build(&request(&name, Some(1232)), &answer, true);
    assert!(with.windows(20).any(|part| part == b"no answer from north"));
    let without = build(&request(&name, None), &answer, true);
    assert!(
        !without
            .windows(20)
            .any(|part| part == b"no answer from north")
    );
}

/// A pointer to itself, to later octets, and a chain of pointers.
#[test]
fn r6_8_compression_loops_are_no_question() {
    for pointer in [12_u8, 13, 14, 200] {
        let octets = [
            0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, pointer, 0, 1, 0, 1,
        ];
        assert!(
            matches!(parse(&octets), Parsed::Reply(_, Rcode::FORM_ERR)),
            "{pointer}"
        );
    }
    let many = [
        0_u8, 1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    assert!(matches!(parse(&many), Parsed::Reply(_, Rcode::FORM_ERR)));
}

#[test]
fn r2_7_a_turn_moves_whole_records_and_ttls_lose_the_age() {
    let name = Name::parse("www.red.test").unwrap();
    let request = request(&name, Some(1232));
    let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
    answer.answers = (1..=3)
        .map(|last| Record {
            owner: name.clone(),
            ttl: 100,
            data: Data::A([192, 0, 2, last].into()),
        })
        .collect();
    answer.turns.local = 0;
    answer.turns.others = 1;
    let body = Body::render(&request.question, &request.section, &answer);
    assert!(body.turns());
    let mut terms = Terms::of(&request.asked(), true, true, None);
    (terms.turn, terms.age) = (1, 30);
    let mut out = Vec::new();
    body.write(&mut out, &terms, &request.section);
    let reply = parse_reply(&out, &request.question).unwrap();
    let last = |record: &Record| match record.data {
        Data::A(address) => (address.octets()[3], record.ttl),
        _ => panic!("{record:?}"),
    };
    let seen: Vec<_> = reply.answers.iter().map(last).collect();
    assert_eq!(
        seen,
        [(1, 70), (3, 70), (2, 70)],
        "the local part stands first"
    );
    let expected: Vec<_> = answer.turned(1).map(|record| last(record).0).collect();
    let seen: Vec<_> = seen.into_iter().map(|(last, _)| last).collect();
    assert_eq!(seen, expected, "as the core turns them");
}

#[test]
fn r1_4_a_stored_answer_repeats_the_spelling_of_each_client() {
    let name = Name::parse("www.red.test").unwrap();
    let stored = request(&name, None);
    let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
    answer.answers = vec![Record {
        owner: name,
        ttl: 9,
        data: Data::A([192, 0, 2, 1].into()),
    }];
    let body = Body::render(&stored.question, &stored.section, &answer);
    let mut octets = vec![0x12, 0x34, 0x01, 0x10, 0, 1, 0, 0, 0, 0, 0, 0];
    octets.extend(b"\x03wWw\x03ReD\x04tEST\x00\x00\x01\x00\x01");
    let asked = asked(&octets);
    let mut out = Vec::new();
    body.write(
        &mut out,
        &Terms::of(&asked, true, true, None),
        asked.section,
    );
    let reply = Message::from_vec(&out).unwrap();
    assert_eq!(reply.metadata.id, 0x1234);
    assert!(reply.metadata.recursion_desired && reply.metadata.checking_disabled);
    assert_eq!(reply.queries[0].name().to_ascii(), "wWw.ReD.tEST.");
    assert_eq!(reply.answers[0].name.to_ascii(), "wWw.ReD.tEST.");
    assert!(reply.edns.is_none());
}

#[test]
fn r6_2_two_opts_and_broken_options_are_no_question() {
    let opt = |data: &[u8]| {
        let mut opt = vec![0, 0, 41, 4, 0xd0, 0, 0, 0, 0];
        opt.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        opt.extend(data);
        opt
    };
    let message = |opts: &[Vec<u8>]| {
        let mut octets = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        octets[11] = u8::try_from(opts.len()).unwrap();
        octets.extend(b"\x01a\x00\x00\x01\x00\x01");
        octets.extend(opts.concat());
        octets
    };
    let cookie = [&[0, 10, 0, 8][..], &[5; 8]].concat();
    let unknown = [0xfd, 0xe8, 0, 1, 9];
    for (good, options) in [
        (&cookie[..], "cookie"),
        (&unknown, "unknown"),
        (&[], "none"),
    ] {
        let octets = message(&[opt(good)]);
        let asked = asked(&octets);
        assert_eq!(
            asked.options.cookie.is_some(),
            options == "cookie",
            "{options}"
        );
    }
    let short_cookie = [0, 10, 0, 7, 1, 2, 3, 4, 5, 6, 7];
    for bad in [
        vec![opt(&[]), opt(&[])],
        vec![opt(&short_cookie)],
        vec![opt(&[0, 10, 0])],
    ] {
        let octets = message(&bad);
        assert!(
            matches!(parse(&octets), Parsed::Reply(_, Rcode::FORM_ERR)),
            "{bad:?}"
        );
    }
}

#[test]
fn r3_3_mixed_case_must_come_back_letter_by_letter() {
    let name = Name::parse("a-long-enough-name.example").unwrap();
    let question = Question::new(name, RecordType::A);
    let mut random = StdRng::seed_from_u64(3);
    let query = Encoded::new(&question, Flags::default(), true, None, &mut random);
    let mut octets = Vec::new();
    query.write(1, &mut octets);
    assert!(octets.iter().any(u8::is_ascii_uppercase));
    octets[2] |= 0x80;
    assert_eq!(echoes(&octets, &query), Ok(Spelling::Same));
    octets[HEADER_OCTETS..].make_ascii_lowercase();
    assert_eq!(echoes(&octets, &query), Ok(Spelling::Other));
    octets[HEADER_OCTETS + 3] = b'x';
    assert_eq!(echoes(&octets, &query), Err(Mismatch::OtherQuestion));
}

/// `wWw.ReD.tEST`, with data that point into the question, and a part that they spell themselves.
/// Names that we look into are lower case anyway.
#[test]
fn r3_3_the_letters_of_a_question_show_in_no_name_that_points_to_it() {
    let mixed = b"\x03wWw\x03ReD\x04tEST\x00";
    let reply = |rtype: u8, data: &[u8]| {
        let mut octets = vec![0, 1, 0x84, 0, 0, 1, 0, 3, 0, 0, 0, 0];
        octets.extend(mixed);
        octets.extend([0, rtype, 0, 1]);
        // At the question's name, below its last two labels, and in letters of its own.
        for owner in [
            &b"\xc0\x0c"[..],
            b"\x02Ns\xc0\x10",
            b"\x03WWW\x03RED\x04TEST\x00",
        ] {
            octets.extend(owner);
            octets.extend([0, rtype, 0, 1, 0, 0, 0, 9, 0]);
            octets.push(u8::try_from(data.len()).unwrap());
            octets.extend(data);
        }
        octets
    };
    let cases: [(u8, &[u8], &[u8]); 4] = [
        (5, b"\x04MaIl\xc0\x10", b"mail.red.test."),
        (12, b"\xc0\x0c", b"www.red.test."),
        // Opaque to us: hickory expands what they point to.
        (2, b"\x04MaIl\xc0\x10", b"\x04MaIl\x03red\x04test\x00"),
        (
            15,
            b"\x00\x05\xc0\x0c",
            b"\x00\x05\x03www\x03red\x04test\x00",
        ),
    ];
    for (rtype, data, expected) in cases {
        let name = Name::parse("wWw.ReD.tEST").unwrap();
        let question = Question::new(name, RecordType(rtype.into()));
        let read = parse_reply(&reply(rtype, data), &question).unwrap();
        let owners: Vec<String> = read.answers[1..]
            .iter()
            .map(|record| record.owner.to_string())
            .collect();
        assert_eq!(owners, ["ns.red.test.", "www.red.test."], "type {rtype}");
        for record in &read.answers {
            let seen = match &record.data {
                Data::Cname(target) | Data::Ptr(target) => target.to_string().into_bytes(),
                Data::Opaque { data, .. } => data.clone(),
                other => panic!("{other:?}"),
            };
            assert_eq!(seen, expected, "type {rtype}");
        }
    }
}

#[test]
fn r6_6_who_did_not_prove_its_address_gets_ten_times_its_query_at_most() {
    let name = Name::parse("a.b").unwrap();
    let request = request(&name, Some(1232));
    let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
    answer.answers = (0..60)
        .map(|last| Record {
            owner: name.clone(),
            ttl: 9,
            data: Data::A([192, 0, 2, last].into()),
        })
        .collect();
    let body = Body::render(&request.question, &request.section, &answer);
    for proven in [false, true] {
        let mut out = Vec::new();
        let terms = Terms::of(&request.asked(), true, proven, None);
        body.write(&mut out, &terms, &request.section);
        assert_eq!(out.len() <= request.length * 10, !proven);
        assert_eq!(out[2] & 0x02 != 0, !proven, "TC sends it to TCP");
    }
}
