//! Every target over its seeds and a bounded number of mutations of them, the same each time.

use vl3_core::Rng;

use super::TARGETS;

/// Mutations of each seed: seconds for all of them.
const MUTATIONS: u64 = 1_000;
/// Changes of one mutation.
const CHANGES_MAX: u64 = 5;
const LENGTH_MAX: usize = 1_500;

#[test]
fn r6_8_message() {
    bounded("message");
}

#[test]
fn r6_8_upstream_reply() {
    bounded("upstream_reply");
}

#[test]
fn r6_8_votes() {
    bounded("votes");
}

#[test]
fn r6_8_patch() {
    bounded("patch");
}

#[test]
fn r6_8_compression() {
    bounded("compression");
}

fn bounded(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target");
    let seeds: Vec<Vec<u8>> = target.seeds().collect();
    let mut random = Rng::new(0x5eed);
    (target.body)(&[]);
    for seed in &seeds {
        run(target.body, seed);
        for _ in 0..MUTATIONS {
            let other = &seeds[at(&mut random, seeds.len())];
            let mutated = mutate(seed, other, &mut random);
            run(target.body, &mutated);
        }
    }
}

/// Says which octets they were, should they be a fault.
fn run(body: fn(&[u8]), octets: &[u8]) {
    let Err(panic) = std::panic::catch_unwind(|| body(octets)) else {
        return;
    };
    let text: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    let shown = panic.downcast_ref::<String>();
    let shown = shown.map_or("no text", String::as_str);
    panic!("{shown}; the octets: {text}");
}

fn mutate(seed: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut octets = seed.to_vec();
    for _ in 0..=random.below(CHANGES_MAX) {
        let place = at(random, octets.len() + 1);
        match random.below(8) {
            0 => octets.truncate(place),
            1 => octets.insert(place, random.next_u64().to_le_bytes()[0]),
            2 if place < octets.len() => drop(octets.remove(place)),
            // A part of another seed.
            3 => {
                let from = at(random, other.len() + 1);
                octets.extend_from_slice(&other[from..]);
            }
            // A part of itself, once more.
            4 => {
                let part = octets[place..].to_vec();
                octets.extend(part);
            }
            5 if place < octets.len() => {
                let edges = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff];
                octets[place] = edges[at(random, edges.len())];
            }
            _ if place < octets.len() => octets[place] ^= 1 << random.below(8),
            _ => {}
        }
    }
    octets.truncate(LENGTH_MAX);
    octets
}

fn at(random: &mut Rng, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap_or(0)
}
