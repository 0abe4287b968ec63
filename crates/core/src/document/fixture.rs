//! Documents for tests of every module that reads one.

use std::collections::{BTreeMap, BTreeSet};

use super::{AdminSecret, Chain, Document, Member, Policy, RoleIds, SignedDocument};
use crate::ids::{DomainName, Generation, NetworkName, NetworkUid, SpiffeId};

pub(crate) fn admin(seed: u8) -> AdminSecret {
    AdminSecret::from_bytes(&[seed; 32])
}

pub(crate) fn domain(name: &str) -> DomainName {
    DomainName::new(name).unwrap()
}

pub(crate) fn id(domain: &str, path: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://{domain}.test/{path}")).unwrap()
}

/// The number decides the blocks: 10.80.N*4.0/22 and fd00:1:2:3:N::/80.
pub(crate) fn member(name: &str, number: u16) -> Member {
    Member {
        domain: domain(name),
        trust_domain: format!("{name}.test"),
        bundle: Vec::new(),
        roles: RoleIds::defaults(&format!("{name}.test")),
        contacts: vec![format!("registry.{name}.test:5002")],
        block4: Some(format!("10.80.{}.0/22", number * 4).parse().unwrap()),
        block6: format!("fd00:1:2:3:{number}::/80").parse().unwrap(),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    }
}

/// Version 1 with these members, by admin 1.
pub(crate) fn document(members: &[&str]) -> Document {
    let admin_keys = BTreeSet::from([admin(1).public()]);
    let nonce = vec![9; 32];
    let members = (1..)
        .zip(members)
        .map(|(number, name)| (domain(name), member(name, number)));
    Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: NetworkName::new("red").unwrap(),
        zone: "red.vl3".to_owned(),
        pool6: "fd00:1:2:3::/64".parse().unwrap(),
        pool4: Some("10.80.0.0/16".parse().unwrap()),
        admin_keys,
        members: members.collect::<BTreeMap<_, _>>(),
        policy: Policy::default(),
    }
}

/// Any injective encoding will do where nobody decodes.
pub(crate) fn signed(document: Document, admins: &[u8]) -> SignedDocument {
    let secrets: Vec<_> = admins.iter().map(|seed| admin(*seed)).collect();
    let bytes = format!("{document:?}").into_bytes();
    SignedDocument::sign(bytes, document, &secrets.iter().collect::<Vec<_>>())
}

pub(crate) fn chain(members: &[&str]) -> Chain {
    Chain::verify(vec![signed(document(members), &[1])]).unwrap()
}

/// Another network, of the same admin.
pub(crate) fn other_chain(name: &str, members: &[&str], edit: impl FnOnce(&mut Document)) -> Chain {
    let mut document = document(members);
    document.nonce = vec![name.as_bytes()[0]; 32];
    document.uid = NetworkUid::derive(&document.nonce, &document.admin_keys);
    document.name = NetworkName::new(name).unwrap();
    document.zone = format!("{name}.vl3");
    edit(&mut document);
    Chain::verify(vec![signed(document, &[1])]).unwrap()
}

/// The next version, by admin 1.
pub(crate) fn next(chain: &Chain, edit: impl FnOnce(&mut Document)) -> Chain {
    let mut document = Document::clone(chain.document());
    document.version += 1;
    edit(&mut document);
    chain.extend(signed(document, &[1])).unwrap()
}
