//! Three domains of one network, and what their routers are given.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::allocator::Lease;
use crate::document::{Document, Member, Policy, RoleIds};
use crate::ids::*;
use crate::router::*;

pub(super) const UID: NetworkUid = NetworkUid([7; 16]);
pub(super) const DOMAINS: [&str; 3] = ["east", "north", "west"];

pub(super) fn document() -> Document {
    let member = |index: usize, domain: &str| Member {
        domain: domain.parse().unwrap(),
        trust_domain: format!("{domain}.test"),
        bundle: Vec::new(),
        roles: RoleIds::defaults(&format!("{domain}.test")),
        contacts: Vec::new(),
        block4: Some(format!("10.0.{}.0/22", index * 4).parse().unwrap()),
        block6: format!("fd00:7:0:0:{index}::/80").parse().unwrap(),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    };
    Document {
        uid: UID,
        nonce: vec![1],
        version: 1,
        name: "red".parse().unwrap(),
        zone: "red.vl3".to_owned(),
        pool6: "fd00:7::/64".parse().unwrap(),
        pool4: Some("10.0.0.0/16".parse().unwrap()),
        admin_keys: BTreeSet::new(),
        members: DOMAINS
            .iter()
            .enumerate()
            .map(|(i, d)| (d.parse().unwrap(), member(i, d)))
            .collect(),
        policy: Policy {
            stale_limit_seconds: 86_400,
            ..Policy::default()
        },
    }
}

pub(super) fn router_id(domain: &str) -> RouterId {
    RouterId {
        name: format!("red-{domain}").parse().unwrap(),
        domain: domain.parse().unwrap(),
    }
}

pub(super) fn config(domain: &str) -> Config {
    let index = u8::try_from(DOMAINS.iter().position(|d| *d == domain).unwrap()).unwrap();
    Config {
        router: router_id(domain),
        uid: UID,
        instance: InstanceId([index; 16]),
        public_key: PublicKey([index; 32]),
        dials_only: false,
        udp_port: 51820,
        advertise: Some(IpAddr::from([192, 0, 2, index + 1])),
        exclusions: Vec::new(),
        prefix_len4: 0,
        mtu: 1420,
        limits: Limits::default(),
        times: Times::default(),
        seed: u64::from(index),
    }
}

pub(super) fn lease(config: &Config, generation: u64) -> Lease {
    let member = &document().members[&config.router.domain];
    Lease {
        uid: UID,
        router: config.router.name.clone(),
        instance: config.instance,
        generation: Generation(generation),
        prefix4: Some(
            format!("{}/24", member.block4.unwrap().network())
                .parse()
                .unwrap(),
        ),
        prefix6: format!("{}/96", member.block6.network()).parse().unwrap(),
    }
}
