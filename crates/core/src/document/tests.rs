use std::collections::BTreeSet;

use super::fixture::{admin, chain, document, domain, next, signed};
use super::{Chain, ChainError, Document, DocumentStore, Offer, validate};
use crate::ids::NetworkUid;

#[test]
fn the_uid_binds_the_nonce_and_the_first_admin_keys() {
    let keys = BTreeSet::from([admin(1).public(), admin(2).public()]);
    let uid = NetworkUid::derive(b"nonce", &keys);
    assert_eq!(uid, NetworkUid::derive(b"nonce", &keys));
    assert_ne!(uid, NetworkUid::derive(b"other", &keys));
    assert_ne!(
        uid,
        NetworkUid::derive(b"nonce", &BTreeSet::from([admin(1).public()]))
    );
    let mut forged = document(&["east"]);
    forged.uid = NetworkUid([1; 16]);
    assert!(matches!(
        Chain::verify(vec![signed(forged, &[1])]),
        Err(ChainError::Uid { .. })
    ));
}

#[test]
fn every_version_is_signed_by_an_admin_of_the_one_before() {
    let first = chain(&["east"]);
    let mut second = Document::clone(first.document());
    second.version = 2;
    assert!(matches!(
        first.extend(signed(second.clone(), &[])),
        Err(ChainError::Unsigned { .. })
    ));
    assert!(matches!(
        first.extend(signed(second.clone(), &[2])),
        Err(ChainError::Unsigned { .. })
    ));
    assert!(first.extend(signed(second.clone(), &[2, 1])).is_ok());

    // A key that is handed over signs from the next version on, the old one no longer.
    second.admin_keys = BTreeSet::from([admin(2).public()]);
    let handed_over = first.extend(signed(second.clone(), &[1])).unwrap();
    let third = Document {
        version: 3,
        ..second
    };
    assert!(handed_over.extend(signed(third.clone(), &[1])).is_err());
    let third = handed_over.extend(signed(third, &[2])).unwrap();
    assert_eq!(
        third.links().len(),
        3,
        "the first, the change of keys, the newest"
    );
    assert_eq!(third.key_changes().count(), 2);
}

#[test]
fn a_chain_has_no_gap_at_its_start_and_nothing_superfluous() {
    assert_eq!(Chain::verify(Vec::new()), Err(ChainError::Empty));
    let first = chain(&["east"]);
    let second = next(&first, |_| {});
    let third = next(&second, |_| {});
    let links = |chains: &[&Chain]| chains.iter().map(|chain| chain.newest().clone()).collect();
    assert!(matches!(
        Chain::verify(links(&[&second])),
        Err(ChainError::FirstVersion { version: 2 })
    ));
    assert!(matches!(
        Chain::verify(links(&[&first, &third, &second])),
        Err(ChainError::Superfluous { .. } | ChainError::Order { .. })
    ));
    assert!(matches!(
        Chain::verify(links(&[&first, &second, &third])),
        Err(ChainError::Superfluous { version: 2 })
    ));
    assert_eq!(Chain::verify(links(&[&first, &third])).unwrap(), third);
}

#[test]
fn the_first_version_is_signed_by_an_admin_of_its_own() {
    for admins in [&[][..], &[2]] {
        assert!(
            matches!(
                Chain::verify(vec![signed(document(&["east"]), admins)]),
                Err(ChainError::Unsigned {
                    version: 1,
                    before: 1,
                    ..
                })
            ),
            "{admins:?}"
        );
    }
}

#[test]
fn links_are_of_one_network_and_their_versions_grow() {
    let first = chain(&["east"]);
    let then = |edit: &dyn Fn(&mut Document)| {
        let mut link = Document::clone(first.document());
        (link.version, link.admin_keys) = (2, BTreeSet::from([admin(2).public()]));
        edit(&mut link);
        Chain::verify(vec![first.newest().clone(), signed(link, &[1])])
    };
    assert!(then(&|_| {}).is_ok());
    let of_another = NetworkUid([7; 16]);
    assert_eq!(
        then(&|link| link.uid = of_another),
        Err(ChainError::OtherNetwork {
            version: 2,
            found: of_another,
            expected: first.uid()
        })
    );
    for version in [0, 1] {
        let before = 1;
        assert_eq!(
            then(&|link| link.version = version),
            Err(ChainError::Order { version, before })
        );
    }
}

/// The uid covers the nonce and the first keys, and nothing else of the first version.
#[test]
fn a_first_version_of_other_content_is_a_fork_whatever_stands_on_it() {
    let first = chain(&["east", "west"]);
    let forked = Chain::verify(vec![signed(document(&["east"]), &[1])]).unwrap();
    let fork = Offer::Conflict { version: 1 };
    for held in [first.clone(), next(&first, |_| {})] {
        let store = DocumentStore::new(held);
        assert_eq!(store.decide(&forked), fork);
        let later = next(&next(&forked, |_| {}), |_| {});
        assert_eq!(store.decide(&later), fork);
    }
}

#[test]
fn the_highest_valid_version_wins_and_another_content_changes_nothing() {
    let first = chain(&["east", "west"]);
    let second = next(&first, |document| document.policy.stale_limit_seconds = 1);
    let other = next(&first, |document| document.policy.stale_limit_seconds = 2);
    let third = next(&other, |_| {});
    let mut store = DocumentStore::new(first.clone());
    assert_eq!(store.decide(&first), Offer::Same);
    assert_eq!(store.decide(&second), Offer::Newer(second.clone()));
    store.apply(second.clone());
    assert_eq!(store.decide(&second), Offer::Same);
    assert_eq!(
        store.decide(&first),
        Offer::Older {
            held: 2,
            offered: 1
        }
    );
    assert_eq!(store.decide(&other), Offer::Conflict { version: 2 });
    assert!(matches!(store.decide(&third), Offer::Newer(_)));
    store.apply(first);
    assert_eq!(store.version(), 2, "a lower version is never applied");
    let elsewhere = Chain::verify(vec![{
        let mut document = document(&["east"]);
        document.nonce = vec![8; 16];
        document.uid = NetworkUid::derive(&document.nonce, &document.admin_keys);
        signed(document, &[1])
    }]);
    assert!(matches!(
        store.decide(&elsewhere.unwrap()),
        Offer::OtherNetwork { .. }
    ));
}

#[test]
fn a_key_that_was_taken_away_signs_nothing_any_more() {
    let first = chain(&["east"]);
    let mut second = Document::clone(first.document());
    (second.version, second.admin_keys) = (2, BTreeSet::from([admin(2).public()]));
    let store = DocumentStore::new(first.extend(signed(second, &[1])).unwrap());
    // The old admin goes on as if nothing had happened.
    let mut forged = Document::clone(first.document());
    forged.version = 9;
    let forged = first.extend(signed(forged, &[1])).unwrap();
    assert_eq!(store.decide(&forged), Offer::Conflict { version: 2 });
}

#[test]
fn all_problems_are_named_at_once() {
    let mut bad = document(&["east", "west", "com"]);
    bad.zone = "Red..".to_owned();
    bad.pool4 = Some("10.80.0.0/21".parse().unwrap());
    bad.policy.exclusions = vec![
        "10.80.4.0/22".parse().unwrap(),
        "10.9.9.9/8".parse().unwrap(),
    ];
    bad.policy.shared_names.insert(domain("north"));
    let east = bad.members.get_mut(&domain("east")).unwrap();
    east.contacts.push("nowhere".to_owned());
    east.roles.router = vec!["spiffe://west.test/*".to_owned()];
    let block6 = east.block6;
    let west = bad.members.get_mut(&domain("west")).unwrap();
    west.block6 = block6;
    west.trust_domain = "east.test".to_owned();
    let problems = validate(&bad).unwrap_err();
    let text = problems.to_string();
    for part in [
        "zone: ",
        "members[com].domain: ",
        "members[com].block4: 10.80.12.0/22 lies outside",
        "policy.exclusions: 10.80.4.0/22 leaves nothing of east's",
        "policy.exclusions: 10.9.9.9/8 has host bits",
        "policy.shared_names: north",
        "members[east].contacts: ",
        "members[east].roles.router: ",
        "members[west].trust_domain: ",
        "members[west].block6: fd00:1:2:3:1::/80 overlaps",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(validate(&document(&["east", "west"])).is_ok());
}

#[test]
fn bad_pools_are_refused() {
    for pool6 in ["fd00::/48", "2001:db8::/64", "fd00::1/64"] {
        let mut bad = document(&[]);
        bad.pool6 = pool6.parse().unwrap();
        assert!(
            validate(&bad).unwrap_err().to_string().contains("pool6"),
            "{pool6}"
        );
    }
    for pool4 in [
        "127.0.0.0/16",
        "224.0.0.0/8",
        "10.0.0.1/16",
        "10.0.0.0/30",
        "0.0.0.0/0",
    ] {
        let mut bad = document(&[]);
        bad.pool4 = Some(pool4.parse().unwrap());
        assert!(
            validate(&bad).unwrap_err().to_string().contains("pool4"),
            "{pool4}"
        );
    }
}

#[test]
fn an_exclusion_that_leaves_nothing_of_a_pool_is_refused() {
    for (exclusion, pool) in [
        ("10.0.0.0/8", "10.80.0.0/16"),
        ("fd00::/8", "fd00:1:2:3::/64"),
    ] {
        let mut bad = document(&[]);
        bad.policy.exclusions = vec![exclusion.parse().unwrap()];
        let text = validate(&bad).unwrap_err().to_string();
        let wanted = format!("policy.exclusions: {exclusion} leaves nothing of the pool {pool}");
        assert!(text.contains(&wanted), "{text}");
    }
}

/// Blocks of 250 domains come from one pool, and nobody waits for the check of each other.
#[test]
fn a_document_of_250_members_is_valid_and_two_owners_of_one_block_are_not() {
    let mut big = document(&[]);
    big.pool4 = Some("10.0.0.0/8".parse().unwrap());
    for number in 1..=250_u16 {
        let name = format!("d{number}");
        let mut member = super::fixture::member(&name, 1);
        member.block4 = Some(format!("10.{number}.0.0/22").parse().unwrap());
        member.block6 = format!("fd00:1:2:3:{number:x}::/80").parse().unwrap();
        big.members.insert(domain(&name), member);
    }
    assert_eq!(validate(&big), Ok(()));
    let block4 = big.members[&domain("d7")].block4;
    big.members.get_mut(&domain("d8")).unwrap().block4 = block4;
    let text = validate(&big).unwrap_err().to_string();
    assert_eq!(
        text,
        "members[d8].block4: 10.7.0.0/22 overlaps 10.7.0.0/22 of d7"
    );
}
