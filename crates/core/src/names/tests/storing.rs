//! The cache by itself: keys, lives, room (R5.1, R5.2, R5.4, R5.5).

use std::sync::Arc;
use std::time::Duration;

use super::world::*;
use crate::names::{
    Answer, CACHE_OCTETS, Cache, CacheStamp, ClientClass, Decision, Flags, Key, Look, Question,
    Rcode, RecordType, Reply, Sources,
};
use crate::rng::Rng;

use RecordType as T;

const DAY: Duration = Duration::from_secs(86_400);

fn cache(octets: usize) -> Cache {
    Cache::new(octets, Duration::from_secs(3_600), (1, 2))
}

const fn key(question: &Question) -> Key<'_> {
    Key {
        question,
        flags: Flags {
            recursion_desired: true,
            dnssec_ok: false,
            checking_disabled: false,
        },
        asker: ClientClass::Member,
    }
}

fn answer(text: &str) -> Arc<Answer> {
    let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Merged);
    answer.answers = vec![address(text, "198.51.100.9")];
    Arc::new(answer)
}

fn denial(rcode: Rcode) -> Arc<Answer> {
    Arc::new(Answer::code(rcode, Decision::Merged))
}

fn put(
    cache: &mut Cache,
    question: &Question,
    answer: Arc<Answer>,
    seconds: u64,
    millis: u64,
) -> Option<CacheStamp> {
    let life = Duration::from_secs(seconds);
    cache.store(
        key(question),
        &[(1, answer)],
        life,
        Sources::default(),
        at(millis),
    )
}

fn is_hit(cache: &mut Cache, question: &Question, millis: u64) -> bool {
    matches!(cache.look(key(question), 0, at(millis)), Look::Fresh(_))
}

#[test]
fn r5_1_an_answer_is_stored_by_name_type_flags_and_asker_and_grows_old() {
    let mut cache = cache(1 << 20);
    let asked = question("A.example", T::A);
    put(&mut cache, &asked, answer("a.example"), 30, 0);
    let same = question("a.EXAMPLE", T::A);
    let Look::Fresh(hit) = cache.look(key(&same), 0, at(29_999)) else {
        panic!("stored")
    };
    assert_eq!(hit.age, 29);
    let (name, rtype) = (question("b.example", T::A), question("a.example", T::AAAA));
    let class = Question {
        class: 3,
        ..asked.clone()
    };
    let others = [
        key(&name),
        key(&rtype),
        key(&class),
        Key {
            flags: Flags {
                dnssec_ok: true,
                ..Flags::default()
            },
            ..key(&asked)
        },
        Key {
            flags: Flags {
                checking_disabled: true,
                ..Flags::default()
            },
            ..key(&asked)
        },
        Key {
            asker: ClientClass::Remote,
            ..key(&asked)
        },
    ];
    for other in others {
        assert!(
            matches!(cache.look(other, 0, at(0)), Look::Miss),
            "{other:?}"
        );
    }
    let without_rd = Key {
        flags: Flags::default(),
        ..key(&asked)
    };
    assert!(matches!(cache.look(without_rd, 0, at(0)), Look::Fresh(_)));
    assert!(!is_hit(&mut cache, &asked, 30_000), "its time is over");
}

#[test]
fn r5_2_nxdomain_is_of_a_name_nodata_of_a_type() {
    let mut cache = cache(1 << 20);
    let (a, aaaa) = (question("x.example", T::A), question("x.example", T::AAAA));
    put(&mut cache, &a, denial(Rcode::NX_DOMAIN), 10, 0);
    assert!(is_hit(&mut cache, &aaaa, 1), "of every type");
    put(&mut cache, &a, answer("x.example"), 10, 2);
    assert!(!is_hit(&mut cache, &aaaa, 3), "the name exists");
    put(&mut cache, &aaaa, denial(Rcode::NO_ERROR), 10, 4);
    assert!(is_hit(&mut cache, &a, 5) && is_hit(&mut cache, &aaaa, 5));
    assert!(!is_hit(&mut cache, &question("x.example", T::TXT), 5));
    assert!(!is_hit(&mut cache, &aaaa, 10_004));
    assert_eq!(cache.size().negative_entries, 0, "no stale denial is kept");
}

#[test]
fn r5_1_an_answer_without_a_life_is_not_stored_and_ends_the_one_before() {
    let mut cache = cache(1 << 20);
    let asked = question("a.example", T::A);
    put(&mut cache, &asked, answer("a.example"), 30, 0);
    put(&mut cache, &asked, answer("a.example"), 0, 1);
    assert!(matches!(cache.look(key(&asked), 0, at(1)), Look::Miss));
    assert_eq!(cache.size().positive_octets, 0);
}

#[test]
fn r5_6_a_stamp_ends_with_its_answer() {
    let mut cache = cache(1 << 20);
    let asked = question("a.example", T::A);
    let first = put(&mut cache, &asked, answer("a.example"), 30, 0).unwrap();
    assert_eq!(cache.reuse(first, at(5_500)), Some(5));
    assert_eq!(cache.reuse(first, at(30_000)), None, "expired");
    let second = put(&mut cache, &asked, answer("a.example"), 30, 0).unwrap();
    assert_eq!(cache.reuse(first, at(1)), None, "replaced");
    assert_eq!(cache.reuse(second, at(1)), Some(0));
    cache.remove_name(&name("other.example"));
    assert_eq!(cache.reuse(second, at(1)), Some(0), "others stay");
    cache.remove_name(&name("a.example"));
    assert_eq!(cache.reuse(second, at(1)), None, "removed");
    let third = put(&mut cache, &asked, answer("a.example"), 30, 0).unwrap();
    assert_ne!(second, third);
    assert_eq!(
        cache.reuse(second, at(1)),
        None,
        "another answer in its place"
    );
}

#[test]
fn r5_5_a_popular_answer_asks_to_be_fetched_before_it_expires_once() {
    let mut cache = cache(1 << 20);
    let asked = question("a.example", T::A);
    let stamp = put(&mut cache, &asked, answer("a.example"), 100, 0).unwrap();
    let prefetch =
        |cache: &mut Cache, second: u64| match cache.look(key(&asked), 0, at(second * 1_000)) {
            Look::Fresh(hit) => hit.prefetch,
            other => panic!("{other:?}"),
        };
    assert!(!prefetch(&mut cache, 1));
    assert_eq!(cache.reuse(stamp, at(2_000)), Some(2));
    assert!(!prefetch(&mut cache, 89));
    assert_eq!(
        cache.reuse(stamp, at(91_000)),
        None,
        "the machine is to see it"
    );
    assert!(prefetch(&mut cache, 91));
    assert!(!prefetch(&mut cache, 92), "said once");
    assert_eq!(cache.reuse(stamp, at(93_000)), Some(93));
    let rare = question("b.example", T::A);
    put(&mut cache, &rare, answer("b.example"), 100, 0);
    assert!(matches!(cache.look(key(&rare), 0, at(95_000)), Look::Fresh(hit) if !hit.prefetch));
}

#[test]
fn r3_9_a_source_that_leaves_takes_its_share_only() {
    let mut cache = cache(1 << 20);
    for (text, sources) in [
        ("a.example", [1, 2]),
        ("b.example", [2, 3]),
        ("c.example", [3, 4]),
    ] {
        let asked = question(text, T::A);
        cache.store(
            key(&asked),
            &[(1, answer(text))],
            DAY,
            Sources {
                all: sources.into(),
                ..Sources::default()
            },
            at(0),
        );
    }
    cache.remove_where(|_, sources| sources.contains(&2));
    let left: Vec<bool> = ["a.example", "b.example", "c.example"]
        .map(|text| is_hit(&mut cache, &question(text, T::A), 1))
        .into();
    assert_eq!(left, [false, false, true]);
}

#[test]
fn r2_2_weighted_answers_are_chosen_anew_for_each_reply() {
    let mut cache = cache(1 << 20);
    let asked = question("a.example", T::A);
    let choices = [(3, answer("a.example")), (1, denial(Rcode::NO_ERROR))];
    assert_eq!(
        cache.store(key(&asked), &choices, DAY, Sources::default(), at(0)),
        None,
        "no stamp"
    );
    let heavy = (0..400)
        .filter(|random| matches!(cache.look(key(&asked), *random, at(1)), Look::Fresh(hit) if hit.answer.is_positive()))
        .count();
    assert_eq!(heavy, 300);
}

/// One million names that are asked once, between them the hot set; both kinds of answers.
fn hot_set_under_flood(flood: &Arc<Answer>) -> f64 {
    let mut cache = cache(CACHE_OCTETS);
    let mut rng = Rng::new(9);
    let hot: Vec<Question> = (0..1_000)
        .map(|number| question(&format!("hot{number}.example"), T::A))
        .collect();
    for asked in &hot {
        put(&mut cache, asked, answer("hot.example"), 86_400, 0);
        is_hit(&mut cache, asked, 1);
    }
    let (mut asked, mut hits) = (0_u32, 0_u32);
    for number in 0..1_000_000_u64 {
        let random = question(&format!("{:016x}.example", rng.next_u64()), T::A);
        let now = number / 20;
        if !is_hit(&mut cache, &random, now) {
            put(&mut cache, &random, Arc::clone(flood), 900, now);
        }
        if number % 10 == 0 {
            let wanted = &hot[usize::try_from(rng.below(1_000)).unwrap()];
            asked += 1;
            if is_hit(&mut cache, wanted, now) {
                hits += 1;
            } else {
                put(&mut cache, wanted, answer("hot.example"), 86_400, now);
            }
        }
        if number % 10_000 == 0 {
            let size = cache.size();
            assert!(size.positive_octets + size.negative_octets <= CACHE_OCTETS);
            assert!(size.negative_octets <= CACHE_OCTETS / 3);
        }
    }
    assert!(cache.counters().evictions > 500_000, "{:?}", cache.size());
    f64::from(hits) / f64::from(asked)
}

#[test]
fn r5_4_a_flood_of_names_does_not_push_out_the_hot_set() {
    let denied = hot_set_under_flood(&denial(Rcode::NX_DOMAIN));
    assert!(denied > 0.99, "{denied}");
    let wild = hot_set_under_flood(&answer("wild.example"));
    assert!(wild > 0.95, "{wild}");
}

#[test]
fn r5_4_a_hot_set_that_comes_into_a_full_cache_finds_room() {
    let mut cache = cache(1 << 20);
    for number in 0..20_000 {
        let asked = question(&format!("n{number}.example"), T::A);
        put(&mut cache, &asked, answer("n.example"), 86_400, 0);
    }
    let (mut hits, mut rng) = (0, Rng::new(4));
    for round in 0..20_000_u32 {
        let asked = question(&format!("new{}.example", rng.below(100)), T::A);
        if is_hit(&mut cache, &asked, 1) {
            hits += i32::from(round > 10_000);
        } else {
            put(&mut cache, &asked, answer("new.example"), 86_400, 1);
        }
        let flood = question(&format!("f{round}.example"), T::A);
        put(&mut cache, &flood, answer("f.example"), 86_400, 1);
    }
    assert!(hits > 9_500, "{hits}");
}

#[test]
fn r5_4_names_with_many_types_stay_bounded() {
    let mut cache = cache(1 << 20);
    for number in 256..2_000_u16 {
        let asked = question("a.example", RecordType(number));
        put(&mut cache, &asked, answer("a.example"), 86_400, 0);
    }
    assert_eq!(cache.size().positive_entries, 64);
    assert!(is_hit(
        &mut cache,
        &question("a.example", RecordType(1_999)),
        1
    ));
    let huge = Reply::code(Rcode::NO_ERROR);
    let mut big = Answer::code(huge.rcode, Decision::Merged);
    big.answers = (0..5_000)
        .map(|_| address("a.example", "198.51.100.9"))
        .collect();
    let asked = question("big.example", T::A);
    assert_eq!(
        put(&mut cache, &asked, Arc::new(big), 30, 0),
        None,
        "more than a tenth of all"
    );
}

#[test]
fn r5_6_what_is_removed_from_a_full_cache_is_gone_and_nothing_else() {
    let mut cache = cache(CACHE_OCTETS);
    for number in 0..20_000 {
        let asked = question(&format!("n{number}.example"), T::A);
        put(&mut cache, &asked, answer("n.example"), 86_400, 0);
    }
    for number in (0..20_000).step_by(7) {
        let asked = question(&format!("n{number}.example"), T::A);
        assert!(is_hit(&mut cache, &asked, 1), "{number}");
        cache.remove_name(&asked.name);
        assert!(!is_hit(&mut cache, &asked, 1), "{number}");
    }
    assert!(is_hit(&mut cache, &question("n1.example", T::A), 1));
}
