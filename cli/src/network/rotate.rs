//! Versions in which a key or a bundle changes hands.

use anyhow::{Context, anyhow, bail};
use vl3_core::document::{AdminSecret, Chain};
use vl3_core::ids::DomainName;
use vl3_identity::Bundle;
use vl3_proto::document::sign;

use super::edit::{check_admin, checked, extend, next_version};

/// The next version, in which the new key is an admin's and the old one is not.
///
/// The old key signs, as the rule of the chain asks; the new one signs beside it, which shows
/// that somebody holds it.
pub(crate) fn rotate_key(
    chain: &Chain,
    old: &AdminSecret,
    new: &AdminSecret,
) -> anyhow::Result<Chain> {
    let mut document = next_version(chain);
    check_admin(chain, old)?;
    if !document.admin_keys.insert(new.public()) {
        bail!("{} is an admin key already", new.public());
    }
    document.admin_keys.remove(&old.public());
    let version = sign(document, &[old, new]);
    checked(chain.extend(version).context("write the next version")?)
}

/// What a member is trusted by from the next version on.
#[derive(Debug)]
pub(crate) struct Rotated {
    pub(crate) chain: Chain,
    pub(crate) roots: usize,
    /// No root stays: identities of before do not count any more.
    pub(crate) abrupt: bool,
}

/// The next version, in which a member has other roots: the new ones alone, or the old ones
/// too while identities change over.
pub(crate) fn rotate_bundle(
    chain: &Chain,
    domain: &DomainName,
    new: &Bundle,
    keep_old: bool,
    secret: &AdminSecret,
) -> anyhow::Result<Rotated> {
    let mut document = next_version(chain);
    let members: Vec<_> = document.members.keys().map(DomainName::to_string).collect();
    let member = document
        .members
        .get_mut(domain)
        .ok_or_else(|| anyhow!("{domain} is no member, these are: {}", members.join(", ")))?;
    if member.revoked {
        bail!("{domain} is revoked (vl3 network add-member takes it back, with a bundle)");
    }
    let named = new.trust_domains();
    if let Some(other) = named.iter().find(|named| **named != member.trust_domain) {
        bail!(
            "--bundle: it is of trust domain {other}, {domain}'s is {}",
            member.trust_domain
        );
    }
    // A bundle that nobody can read trusts nobody: nothing of it is kept.
    let old = Bundle::from_pem(&member.bundle)
        .map(|bundle| bundle.certificates().to_vec())
        .unwrap_or_default();
    let mut roots = Vec::new();
    let kept = if keep_old { old.as_slice() } else { &[] };
    for root in kept.iter().chain(new.certificates()) {
        if !roots.contains(root) {
            roots.push(root.clone());
        }
    }
    if roots == old {
        bail!("{domain} has exactly these roots already");
    }
    let abrupt = !old.iter().any(|root| roots.contains(root));
    let count = roots.len();
    let bundle = Bundle::from_der(roots).map_err(|error| anyhow!("--bundle: {error}"))?;
    member.bundle = bundle.to_pem().into_bytes();
    Ok(Rotated {
        chain: extend(chain, document, secret)?,
        roots: count,
        abrupt,
    })
}

#[cfg(test)]
mod tests {
    use vl3_core::document::{ChainError, LINKS_MAX};
    use vl3_identity::authority::Authority;
    use vl3_proto::document::{CHAIN_BYTES_MAX, read_armoured, write_armoured};
    use vl3_runtime::clock;

    use super::super::edit::{
        add_member, remove_member,
        tests::{member, network},
    };
    use super::*;

    fn secret(seed: u8) -> AdminSecret {
        AdminSecret::from_bytes(&[seed; 32])
    }

    fn roots(trust_domain: &str) -> Bundle {
        let authority = Authority::create(trust_domain, clock::wall()).unwrap();
        Bundle::from_pem(authority.bundle_pem().as_bytes()).unwrap()
    }

    fn held(chain: &Chain, domain: &str) -> Bundle {
        let domain = DomainName::new(domain).unwrap();
        Bundle::from_pem(&chain.document().members[&domain].bundle).unwrap()
    }

    #[test]
    fn the_old_key_hands_over_to_the_new_one_and_signs_nothing_more() {
        let (chain, old) = network();
        let new = secret(9);
        assert!(rotate_key(&chain, &new, &secret(8)).is_err(), "a stranger");
        let same = rotate_key(&chain, &old, &old).unwrap_err().to_string();
        assert!(same.contains("is an admin key already"), "{same}");
        let rotated = rotate_key(&chain, &old, &new).unwrap();
        assert_eq!(
            rotated.document().admin_keys,
            [new.public()].into_iter().collect()
        );
        // Whoever knows version 1 alone verifies the hand-over, and what follows.
        let read = read_armoured(&write_armoured(&rotated)).unwrap();
        assert_eq!(read, rotated);
        let refused = add_member(&rotated, member("east", "/22"), &old).unwrap_err();
        assert!(refused.to_string().contains("no admin key"), "{refused}");
        let added = add_member(&rotated, member("east", "/22"), &new).unwrap();
        assert_eq!(added.links().len(), 3, "version 1, the change, the newest");
        assert!(read_armoured(&write_armoured(&added)).is_ok());
    }

    #[test]
    fn keys_change_as_often_as_a_chain_may_be_long_and_then_it_is_said() {
        let (mut chain, mut old) = network();
        for seed in 100.. {
            let new = secret(seed);
            match rotate_key(&chain, &old, &new) {
                Ok(next) => (chain, old) = (next, new),
                Err(error) => {
                    let cause = error.downcast_ref::<ChainError>();
                    assert!(
                        matches!(cause, Some(ChainError::TooLong { count }) if *count == LINKS_MAX + 1),
                        "{error:#}"
                    );
                    break;
                }
            }
        }
        assert_eq!(chain.links().len(), LINKS_MAX);
    }

    #[test]
    fn roots_are_added_beside_the_old_ones_or_replace_them() {
        let (chain, admin) = network();
        let (first, second) = (roots("east.test"), roots("east.test"));
        let mut new = member("east", "/22");
        new.bundle = first.to_pem().into_bytes();
        let chain = add_member(&chain, new, &admin).unwrap();
        let east = DomainName::new("east").unwrap();
        let both = rotate_bundle(&chain, &east, &second, true, &admin).unwrap();
        assert_eq!((both.roots, both.abrupt), (2, false));
        let certificates = [first.certificates(), second.certificates()].concat();
        assert_eq!(held(&both.chain, "east").certificates(), certificates);
        let done = rotate_bundle(&both.chain, &east, &second, false, &admin).unwrap();
        assert_eq!((done.roots, done.abrupt), (1, false));
        assert_eq!(held(&done.chain, "east"), second);
        let at_once = rotate_bundle(&chain, &east, &second, false, &admin).unwrap();
        assert!(at_once.abrupt, "nothing of before counts");
        let (before, after) = (chain.document(), at_once.chain.document());
        let blocks = |document: &vl3_core::document::Document| {
            document.members[&east].blocks().collect::<Vec<_>>()
        };
        assert_eq!(blocks(before), blocks(after));
    }

    #[test]
    fn a_bundle_of_another_domain_or_of_nobody_is_refused() {
        let (chain, admin) = network();
        let chain = add_member(&chain, member("east", "/22"), &admin).unwrap();
        let east = DomainName::new("east").unwrap();
        let refused = |chain: &Chain, domain: &str, bundle: &Bundle, secret: &AdminSecret| {
            let domain = DomainName::new(domain).unwrap();
            let refused = rotate_bundle(chain, &domain, bundle, false, secret);
            format!("{:#}", refused.unwrap_err())
        };
        let (own, foreign) = (roots("east.test"), roots("west.test"));
        for (text, part) in [
            (refused(&chain, "west", &own, &admin), "these are: east"),
            (refused(&chain, "east", &foreign, &admin), "west.test"),
            (refused(&chain, "east", &own, &secret(4)), "no admin key"),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let once = rotate_bundle(&chain, &east, &own, false, &admin).unwrap();
        let again = refused(&once.chain, "east", &own, &admin);
        assert!(again.contains("already"), "{again}");
        let gone = remove_member(&once.chain, &east, &admin).unwrap();
        assert!(refused(&gone, "east", &own, &admin).contains("revoked"));
    }

    /// Registries, routers, clients and DNS servers read messages of bounded size: what does
    /// not fit is an error here and not silence there.
    #[test]
    fn a_document_that_would_not_travel_is_refused_by_the_verb_that_would_make_it() {
        let (mut chain, mut admin) = network();
        let bundle = "x".repeat(60 * 1024).into_bytes();
        let mut full = None;
        for number in 0..64 {
            let mut new = member(&format!("d{number}"), "none");
            new.bundle.clone_from(&bundle);
            match add_member(&chain, new, &admin) {
                Ok(next) => chain = next,
                Err(error) => {
                    full = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        let full = full.expect("64 bundles of 60 KiB are too many");
        assert!(full.contains("at most 3145728 are allowed"), "{full}");
        assert!(read_armoured(&write_armoured(&chain)).is_ok());
        // Every change of keys stays in the chain: the second of them is too much.
        let new = secret(9);
        chain = rotate_key(&chain, &admin, &new).unwrap();
        admin = new;
        let error = rotate_key(&chain, &admin, &secret(10)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(&CHAIN_BYTES_MAX.to_string()), "{text}");
    }
}
