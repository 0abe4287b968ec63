//! The codec against random octets and random answers (R6.1, R6.8).

use hickory_proto::op::Message;
use proptest::prelude::*;
use vl3_core::names::{
    Answer, Data, Decision, ExtendedError, Flags, LABEL_OCTETS_MAX, Name, Question, Rcode, Record,
    RecordType, Soa,
};

use super::*;

fn request(name: &Name, edns: Option<u16>) -> Request {
    let mut octets = encode_query(
        7,
        &Question::new(name.clone(), RecordType::A),
        Flags::default(),
    );
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
    match parse(&octets) {
        Parsed::Ask(request) => request,
        other => panic!("{other:?}"),
    }
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
        let reply = parse_reply(&octets, &question).unwrap().unwrap();
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
