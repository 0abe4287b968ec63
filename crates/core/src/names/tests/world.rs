//! A network of three domains as the DNS server of `east` sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::document::{Document, Member, Policy as DocumentPolicy, RoleIds};
use crate::ids::{DomainName, Generation, NetworkName, NetworkUid, RouterName, WorkloadName};
use crate::names::{
    Answer, Ballot, ClientClass, Data, DomainServer, Flags, LocalName, Merge, Name, Plan, Policy,
    Question, Rcode, Record, RecordType, Reply, ResolverState, View, merge, plan,
};
use crate::time::{Mono, Now, Wall};

pub(super) const ZONE: &str = "red.test";

pub(super) fn at(millis: u64) -> Now {
    Now {
        mono: Mono(0) + Duration::from_millis(millis),
        wall: Wall::from_unix_secs(1_000),
    }
}

pub(super) fn domain(name: &str) -> DomainName {
    DomainName::new(name).unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A server's address and port.
pub(super) fn socket(text: &str) -> SocketAddr {
    SocketAddr::new(ip(text), 53)
}

pub(super) fn member(name: &str, block4: &str, block6: &str) -> Member {
    Member {
        domain: domain(name),
        trust_domain: format!("{name}.test"),
        bundle: Vec::new(),
        roles: RoleIds::defaults(&format!("{name}.test")),
        contacts: Vec::new(),
        block4: Some(block4.parse().unwrap()),
        block6: block6.parse().unwrap(),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    }
}

pub(super) fn document() -> Document {
    let members = [
        member("east", "172.16.0.0/22", "fd77:0:0:0:1::/80"),
        member("west", "172.16.4.0/22", "fd77:0:0:0:2::/80"),
        member("north", "172.16.8.0/22", "fd77:0:0:0:3::/80"),
    ];
    Document {
        uid: NetworkUid([7; 16]),
        nonce: Vec::new(),
        version: 4,
        name: NetworkName::new("red").unwrap(),
        zone: ZONE.to_owned(),
        pool6: "fd77::/64".parse().unwrap(),
        pool4: Some("172.16.0.0/16".parse().unwrap()),
        admin_keys: BTreeSet::new(),
        members: members
            .into_iter()
            .map(|member| (member.domain.clone(), member))
            .collect(),
        policy: DocumentPolicy::default(),
    }
}

pub(super) fn server(name: &str, address: &str, sibling: bool) -> DomainServer {
    DomainServer {
        domain: domain(name),
        router: RouterName::new(&format!("red-{name}{}", if sibling { "-2" } else { "" })).unwrap(),
        addresses: address.split_whitespace().map(ip).collect(),
        sibling,
    }
}

pub(super) fn state() -> ResolverState {
    let local = |addresses: &[&str]| LocalName {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        lease_until: None,
    };
    let names = [
        ("web", local(&["172.16.0.5", "fd77::1:0:0:5"])),
        ("six", local(&["fd77::1:0:0:6"])),
    ];
    ResolverState {
        sequence: 1,
        domain: domain("east"),
        names: names
            .into_iter()
            .map(|(name, local)| (WorkloadName::new(name).unwrap(), local))
            .collect(),
        servers: vec![
            server("west", "172.16.4.1", false),
            server("north", "172.16.8.1", false),
        ],
        clients: vec![
            ("172.16.0.0/24".parse().unwrap(), ClientClass::Member),
            ("172.16.1.0/24".parse().unwrap(), ClientClass::Sibling),
            ("172.16.4.0/22".parse().unwrap(), ClientClass::Remote),
        ],
        own_addresses: vec![ip("172.16.0.1"), ip("fd77::1:0:0:1")],
    }
}

pub(super) const MEMBER: &str = "172.16.0.5";
pub(super) const SIBLING: &str = "172.16.1.1";
pub(super) const REMOTE: &str = "172.16.4.1";

pub(super) fn view_of(document: Document, state: ResolverState, policy: Policy) -> Arc<View> {
    Arc::new(View::new(Arc::new(document), state, policy).unwrap())
}

pub(super) fn view() -> Arc<View> {
    view_of(document(), state(), Policy::FirstPositive)
}

/// Merges votes about a name of any type, without flags.
pub(super) fn merged(view: &View, text: &str, policy: Policy, votes: &[Ballot]) -> Answer {
    let question = question(text, RecordType::A);
    let about = Merge {
        view,
        question: &question,
        flags: Flags::default(),
        policy,
        random: 0,
    };
    merge(about, votes).choose(0).clone()
}

pub(super) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(super) fn question(text: &str, rtype: RecordType) -> Question {
    Question::new(name(text), rtype)
}

pub(super) fn planned(view: &View, text: &str, rtype: RecordType, asker: ClientClass) -> Plan {
    plan(view, &question(text, rtype), asker, at(0))
}

/// The domains asked, sorted; panics on an answer at once.
pub(super) fn asked(plan: Plan) -> Vec<String> {
    match plan {
        Plan::Ask(ask) => {
            let mut domains: Vec<String> = ask
                .upstreams
                .iter()
                .map(|upstream| match &upstream.owner {
                    Some(owner) => owner.router.to_string(),
                    None => upstream.id.to_string(),
                })
                .collect();
            domains.sort();
            domains
        }
        Plan::Answer(answer) => panic!("answered at once: {answer:?}"),
    }
}

pub(super) fn answered(plan: Plan) -> Answer {
    match plan {
        Plan::Answer(answer) => answer,
        Plan::Ask(ask) => panic!("asks {:?}", ask.upstreams),
    }
}

pub(super) fn record(owner: &str, data: Data) -> Record {
    Record {
        owner: name(owner),
        ttl: 30,
        data,
    }
}

pub(super) fn address(owner: &str, text: &str) -> Record {
    record(owner, Data::from(ip(text)))
}

pub(super) fn positive(records: Vec<Record>) -> Reply {
    Reply {
        answers: records,
        ..Reply::code(Rcode::NO_ERROR)
    }
}

pub(super) fn code(rcode: Rcode) -> Reply {
    Reply::code(rcode)
}

/// Addresses of an answer, in order.
pub(super) fn addresses(answer: &Answer) -> Vec<String> {
    answer
        .answers
        .iter()
        .filter_map(|record| record.data.address())
        .map(|address| address.to_string())
        .collect()
}

pub(super) fn counts<K: Ord, V: Copy>(map: &BTreeMap<K, V>, key: &K) -> Option<V> {
    map.get(key).copied()
}
