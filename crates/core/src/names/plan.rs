//! The planner: question, view and asker give an answer at once or the owners to ask.

use std::collections::BTreeMap;

use super::special::{LOCALHOST, Special, special};
use super::view::{LOCAL_TTL, NEGATIVE_TTL, local_ttl};
use super::{
    Answer, CLASS_IN, ClientClass, Data, Decision, ExtendedError, Failure, Name, Policy, Question,
    Rcode, Record, RecordType, Upstream, View, Vote, Voter, merge,
};
use crate::ids::{DomainName, WorkloadName};
use crate::time::Now;

/// What to do with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Answer(Answer),
    Ask(Ask),
}

/// One fan-out: whom to ask, and the votes that are in before it starts (the router's own data,
/// domains without a live server).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub upstreams: Vec<Upstream>,
    pub votes: BTreeMap<Voter, Vote>,
    pub policy: Policy,
}

/// Decides one question for one asker.
///
/// Names match the longest suffix: `<domain>.<zone>` goes to that domain alone, `<zone>` to all
/// that contribute (R1.3, R1.8); what an asker may get follows the order of packets (R4.1).
pub fn plan(view: &View, question: &Question, asker: ClientClass, now: Now) -> Plan {
    if let Some(refusal) = unsupported(question) {
        return Plan::Answer(refusal);
    }
    if let Some(labels) = question.name.below(&view.zone) {
        return in_zone(view, question, asker, &labels, now);
    }
    if let Some(prefix) = question.name.reverse_prefix() {
        let pools = [
            view.document.pool4.map(ipnet::IpNet::V4),
            Some(ipnet::IpNet::V6(view.document.pool6)),
        ];
        let mut pools = pools.into_iter().flatten();
        if prefix.prefix_len() == prefix.max_prefix_len()
            && pools.clone().any(|pool| pool.contains(&prefix))
        {
            return reverse(view, question, asker, prefix.addr(), now);
        }
        if pools.any(|pool| pool.contains(&prefix) || prefix.contains(&pool)) {
            // Full names exist below: never NXDOMAIN, which would cut them off.
            return Plan::Answer(negative(
                view,
                &question.name,
                Rcode::NO_ERROR,
                Decision::Structure,
            ));
        }
    }
    match special(&question.name) {
        Some(Special::Localhost) => Plan::Answer(localhost(view, question)),
        Some(Special::NxDomain) => Plan::Answer(negative(
            view,
            &question.name,
            Rcode::NX_DOMAIN,
            Decision::SpecialUse,
        )),
        None => Plan::Answer(Answer::code(Rcode::REFUSED, Decision::Outside).because(
            ExtendedError::NOT_AUTHORITATIVE,
            format!("not in {}", view.zone),
        )),
    }
}

fn unsupported(question: &Question) -> Option<Answer> {
    if question.class != CLASS_IN || question.rtype.is_transfer() {
        return Some(Answer::code(Rcode::REFUSED, Decision::Unsupported));
    }
    let is_meta = question.rtype.is_meta() && question.rtype != RecordType::ANY;
    is_meta.then(|| Answer::code(Rcode::NOT_IMP, Decision::Unsupported))
}

fn in_zone(
    view: &View,
    question: &Question,
    asker: ClientClass,
    labels: &[&[u8]],
    now: Now,
) -> Plan {
    let Some((last, left)) = labels.split_last() else {
        return Plan::Answer(apex(view, question));
    };
    let domain = domain_of(last).filter(|domain| view.document.member(domain, now.wall).is_some());
    match (left, domain) {
        ([], domain) => shared(view, question, asker, last, domain.is_some(), now),
        (_, Some(domain)) => {
            let local = match left {
                [name] if domain == *view.domain() => {
                    local_vote(view, &question.name, name, question.rtype, now)
                }
                _ => Vote::NxDomain,
            };
            owned(view, &question.name, asker, &domain, local)
        }
        (_, None) => Plan::Answer(negative(
            view,
            &question.name,
            Rcode::NX_DOMAIN,
            Decision::NoOwner,
        )),
    }
}

fn domain_of(label: &[u8]) -> Option<DomainName> {
    DomainName::new(core::str::from_utf8(label).ok()?).ok()
}

/// A name or address of one domain; `local` is this router's own vote, used in its own domain.
fn owned(view: &View, name: &Name, asker: ClientClass, domain: &DomainName, local: Vote) -> Plan {
    let mut ask = Ask {
        upstreams: Vec::new(),
        votes: BTreeMap::new(),
        policy: Policy::FirstPositive,
    };
    if domain == view.domain() {
        let known = local != Vote::NxDomain;
        ask.votes.insert(Voter::Local, local);
        if known || asker == ClientClass::Sibling {
            return answered(view, name, &ask);
        }
        ask_siblings(view, &mut ask);
    } else if asker == ClientClass::Member {
        ask_domain(view, &mut ask, domain);
    } else {
        // A router asks only for what this domain owns; others it asks itself.
        return Plan::Answer(
            Answer::code(Rcode::REFUSED, Decision::NotForAsker)
                .because(ExtendedError::PROHIBITED, "another domain's name"),
        );
    }
    asked_or_answered(view, name, ask)
}

/// `<name>.<zone>`: every domain that contributes. A label that is also a member's exists at
/// least as the root of that member's names.
fn shared(
    view: &View,
    question: &Question,
    asker: ClientClass,
    label: &[u8],
    is_domain: bool,
    now: Now,
) -> Plan {
    let name = &question.name;
    let mut ask = Ask {
        upstreams: Vec::new(),
        votes: BTreeMap::new(),
        policy: view.shared_policy,
    };
    let own_contributes = view
        .contributors(now)
        .any(|member| member.domain == *view.domain());
    let mut local = Vote::NxDomain;
    if own_contributes {
        local = local_vote(view, &question.name, label, question.rtype, now);
    }
    let known = local != Vote::NxDomain;
    if is_domain && !known {
        local = Vote::NoData;
    }
    ask.votes.insert(Voter::Local, local);
    // A name that is this router's own needs nobody else, unless all that have it are wanted.
    let settled = known && view.shared_policy == Policy::FirstPositive;
    if settled || asker == ClientClass::Sibling {
        return answered(view, name, &ask);
    }
    if own_contributes {
        ask_siblings(view, &mut ask);
    }
    if asker == ClientClass::Member {
        let others: Vec<DomainName> = view
            .contributors(now)
            .map(|member| member.domain.clone())
            .filter(|domain| domain != view.domain())
            .collect();
        for domain in &others {
            ask_domain(view, &mut ask, domain);
        }
    }
    asked_or_answered(view, name, ask)
}

/// An overlay address: only the domain whose block holds it (R1.3).
fn reverse(
    view: &View,
    question: &Question,
    asker: ClientClass,
    address: std::net::IpAddr,
    now: Now,
) -> Plan {
    let holder = view
        .document
        .holder(address)
        .filter(|member| member.is_live(now.wall));
    let Some(holder) = holder else {
        return Plan::Answer(negative(
            view,
            &question.name,
            Rcode::NX_DOMAIN,
            Decision::NoOwner,
        ));
    };
    let local = match view.by_address.get(&address) {
        Some(name) if matches!(question.rtype, RecordType::PTR | RecordType::ANY) => {
            match view.canonical(name, view.domain()) {
                Ok(target) => {
                    let lease = view
                        .state
                        .names
                        .get(name)
                        .and_then(|local| local.lease_until);
                    let ttl = local_ttl(lease, now);
                    let record = Record {
                        owner: question.name.clone(),
                        ttl,
                        data: Data::Ptr(target),
                    };
                    Vote::Positive {
                        records: vec![record],
                        truncated: false,
                    }
                }
                Err(_) => Vote::NoData,
            }
        }
        Some(_) => Vote::NoData,
        None => Vote::NxDomain,
    };
    owned(view, &question.name, asker, &holder.domain, local)
}

fn local_vote(view: &View, owner: &Name, label: &[u8], rtype: RecordType, now: Now) -> Vote {
    let name = core::str::from_utf8(label)
        .ok()
        .and_then(|text| WorkloadName::new(text).ok());
    let Some(local) = name.and_then(|name| view.state.names.get(&name)) else {
        return Vote::NxDomain;
    };
    let records = view.local_records(owner, local, rtype, now);
    if records.is_empty() {
        Vote::NoData
    } else {
        Vote::Positive {
            records,
            truncated: false,
        }
    }
}

fn ask_domain(view: &View, ask: &mut Ask, domain: &DomainName) {
    match view.server_of(domain) {
        Some(upstream) => ask.upstreams.push(upstream),
        None => {
            let router = nobody();
            ask.votes.insert(
                Voter::Upstream(domain.clone(), router),
                Vote::Failed(Failure::NobodyLive),
            );
        }
    }
}

fn ask_siblings(view: &View, ask: &mut Ask) {
    for sibling in view.siblings() {
        match sibling {
            Ok(upstream) => ask.upstreams.push(upstream),
            Err(server) => {
                let voter = Voter::Upstream(server.domain.clone(), server.router.clone());
                ask.votes.insert(voter, Vote::Failed(Failure::NobodyLive));
            }
        }
    }
}

/// Stands for "no router" in a missing vote.
fn nobody() -> crate::ids::RouterName {
    crate::ids::RouterName::new("-").expect("one allowed character")
}

fn asked_or_answered(view: &View, name: &Name, ask: Ask) -> Plan {
    if ask.upstreams.is_empty() {
        answered(view, name, &ask)
    } else {
        Plan::Ask(ask)
    }
}

fn answered(view: &View, name: &Name, ask: &Ask) -> Plan {
    let mut answer = merge(view, name, ask.policy, &ask.votes, 0);
    if answer.decision == Decision::Merged {
        answer.decision = Decision::Local;
    }
    Plan::Answer(answer)
}

fn apex(view: &View, question: &Question) -> Answer {
    if matches!(question.rtype, RecordType::SOA | RecordType::ANY) {
        let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Structure);
        answer.authoritative = true;
        answer.answers = vec![view.soa(view.zone.clone(), NEGATIVE_TTL)];
        return answer;
    }
    negative(view, &question.name, Rcode::NO_ERROR, Decision::Structure)
}

fn localhost(view: &View, question: &Question) -> Answer {
    let records = LOCALHOST
        .iter()
        .map(|address| Data::from(*address))
        .filter(|data| {
            question.rtype == data.rtype()
                || (question.rtype == RecordType::ANY && data.rtype() == RecordType::A)
        });
    let mut answer = negative(view, &question.name, Rcode::NO_ERROR, Decision::SpecialUse);
    answer.answers = records
        .map(|data| Record {
            owner: question.name.clone(),
            ttl: LOCAL_TTL,
            data,
        })
        .collect();
    if !answer.answers.is_empty() {
        answer.authority.clear();
    }
    answer
}

/// A negative answer from this server's own knowledge, with a SOA that says how long it holds.
fn negative(view: &View, name: &Name, rcode: Rcode, decision: Decision) -> Answer {
    let mut answer = Answer::code(rcode, decision);
    answer.authoritative = true;
    answer.authority = vec![view.soa_above(name, NEGATIVE_TTL)];
    answer
}
