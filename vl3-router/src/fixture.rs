//! Documents for tests of every module that reads one.

use std::collections::BTreeSet;

use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid};
use vl3_proto::document::sign;

/// Network red of domain east alone; versions of one chain.
pub(crate) fn chain(version: u64) -> Chain {
    let secret = AdminSecret::from_bytes(&[9; 32]);
    let admin_keys = BTreeSet::from([secret.public()]);
    let nonce = vec![3; 16];
    let east = Member {
        domain: DomainName::new("east").unwrap(),
        bundle: Vec::new(),
        roles: RoleIds::defaults("east.test"),
        trust_domain: "east.test".to_owned(),
        contacts: Vec::new(),
        block4: Some("172.16.0.0/22".parse().unwrap()),
        block6: "fd77:0:0:0:1::/80".parse().unwrap(),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    };
    let document = |version| Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce: nonce.clone(),
        version,
        name: NetworkName::new("red").unwrap(),
        zone: "red.test".to_owned(),
        pool6: "fd77::/64".parse().unwrap(),
        pool4: Some("172.16.0.0/16".parse().unwrap()),
        admin_keys: admin_keys.clone(),
        members: [(east.domain.clone(), east.clone())].into(),
        policy: Policy::default(),
    };
    let mut links = vec![sign(document(1), &[&secret])];
    if version > 1 {
        links.push(sign(document(version), &[&secret]));
    }
    Chain::verify(links).unwrap()
}
