//! The planner: question, view and asker give an answer at once or the owners to ask.

use std::sync::Arc;

use super::merge::{Ballot, Merge, merge};
use super::overlay::{LOCAL_TTL, local_ttl};
use super::services::{self, Speakers};
use super::special::{Kind, LOCALHOST, special};
use super::view::NEGATIVE_TTL;
use super::{
    Answer, CLASS_IN, ClientClass, Data, Decision, ExtendedError, Failure, Flags, Name, Network,
    Policy, Question, Rcode, Record, RecordType, Upstream, View, Vote, Voter,
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
    pub upstreams: Vec<Arc<Upstream>>,
    pub votes: Vec<Ballot>,
    pub policy: Policy,
    /// The rule that chose them.
    pub rule: &'static str,
}

/// Decides one question for one asker.
///
/// Names match the longest suffix: `<domain>.<zone>` goes to that domain alone, `<zone>` to all
/// that contribute (R1.3, R1.8), any other to the resolvers configured for it; what an asker may
/// get follows the order of packets (R4.1).
pub fn plan(view: &View, question: &Question, asker: ClientClass, now: Now) -> Plan {
    if let Some(refusal) = unsupported(question) {
        return Plan::Answer(refusal);
    }
    let service = view.services().and_then(|services| services.vote(question));
    if let Some(local) = service {
        return match view.network() {
            Some(network) => {
                let context = Context {
                    view,
                    network,
                    question,
                    asker,
                    now,
                };
                service_of(context, local, view.configured_for(&question.name))
            }
            None if asker == ClientClass::Member => {
                Plan::Answer(services::answer(view, question, local))
            }
            None => Plan::Answer(not_for_asker("another router's services")),
        };
    }
    let configured = view.configured_for(&question.name);
    if let Some(network) = view.network() {
        let context = Context {
            view,
            network,
            question,
            asker,
            now,
        };
        if let Some(plan) = in_network(context, configured) {
            return plan;
        }
    }
    outside(view, question, asker, configured)
}

/// What every part of a plan within the network looks at.
#[derive(Clone, Copy)]
struct Context<'a> {
    view: &'a View,
    network: &'a Network,
    question: &'a Question,
    asker: ClientClass,
    now: Now,
}

type Configured<'a> = Option<(usize, &'a [Arc<Upstream>])>;

/// `None`: not a name of the network, or a configured suffix is longer (R1.3).
fn in_network(context: Context<'_>, configured: Configured<'_>) -> Option<Plan> {
    let Context {
        view,
        network,
        question,
        ..
    } = context;
    let matched = configured.map_or(0, |(labels, _)| labels);
    if let Some(labels) = question.name.below(&network.zone) {
        let zone_labels = network.zone.label_count();
        if matched > zone_labels + 1 {
            return None;
        }
        let domain = labels
            .last()
            .and_then(|last| domain_of(last))
            .filter(|domain| is_member(context, domain));
        // A member's tree is the longer suffix, unless a resolver has just that.
        let own_labels = zone_labels + usize::from(domain.is_some() && labels.len() > 1);
        if matched > own_labels {
            return None;
        }
        let also = configured
            .filter(|(labels, _)| *labels == own_labels && context.asker == ClientClass::Member)
            .map_or(&[][..], |(_, list)| list);
        return Some(in_zone(context, &labels, domain.as_ref(), also));
    }
    let prefix = question.name.reverse_prefix()?;
    if prefix.prefix_len() == prefix.max_prefix_len()
        && network.pools().any(|pool| pool.contains(&prefix))
    {
        return Some(reverse(context, prefix.addr()));
    }
    let touches = |pool: ipnet::IpNet| pool.contains(&prefix) || prefix.contains(&pool);
    // Full names exist below: never NXDOMAIN, which would cut them off.
    network.pools().any(touches).then(|| {
        Plan::Answer(negative(
            view,
            &question.name,
            Rcode::NO_ERROR,
            Decision::Structure,
        ))
    })
}

/// Names of nobody in the network: special ones are answered here, others asked of the resolvers
/// whose suffix matches longest.
fn outside(
    view: &View,
    question: &Question,
    asker: ClientClass,
    configured: Configured<'_>,
) -> Plan {
    let name = &question.name;
    let special = special(name)
        .filter(|special| configured.is_none_or(|(labels, _)| labels < special.labels));
    match special.map(|special| special.kind) {
        Some(Kind::Localhost) => return Plan::Answer(localhost(view, question)),
        Some(Kind::NxDomain) => {
            return Plan::Answer(negative(view, name, Rcode::NX_DOMAIN, Decision::SpecialUse));
        }
        None => {}
    }
    let Some((_, upstreams)) = configured else {
        let why = view.network().map_or_else(
            || "no upstream for this name".to_owned(),
            |network| format!("not in {}", network.zone()),
        );
        return Plan::Answer(
            Answer::code(Rcode::REFUSED, Decision::Outside)
                .because(ExtendedError::NOT_AUTHORITATIVE, why),
        );
    };
    if asker != ClientClass::Member {
        // A router asks for what this domain owns; what lies outside it finds by itself.
        return Plan::Answer(not_for_asker("a name outside the network"));
    }
    let upstreams = who_may_be_asked(upstreams, name);
    if upstreams.is_empty() {
        return Plan::Answer(Answer::code(Rcode::REFUSED, Decision::Outside).because(
            ExtendedError::NOT_AUTHORITATIVE,
            "only stock routers are configured for it, and it is no shared name",
        ));
    }
    Plan::Ask(Ask {
        upstreams,
        votes: Vec::new(),
        policy: view.policy_for(name).unwrap_or_default(),
        rule: "R1.3",
    })
}

/// R2.13.
fn who_may_be_asked(configured: &[Arc<Upstream>], name: &Name) -> Vec<Arc<Upstream>> {
    let may = |upstream: &&Arc<Upstream>| upstream.may_be_asked(name);
    configured.iter().filter(may).cloned().collect()
}

fn not_for_asker(why: &str) -> Answer {
    Answer::code(Rcode::REFUSED, Decision::NotForAsker).because(ExtendedError::PROHIBITED, why)
}

fn is_member(context: Context<'_>, domain: &DomainName) -> bool {
    context
        .network
        .document
        .member(domain, context.now.wall)
        .is_some()
}

/// What is refused whoever asks (R3.5, R6.3).
pub(super) fn unsupported(question: &Question) -> Option<Answer> {
    if question.class != CLASS_IN || question.rtype.is_transfer() {
        return Some(Answer::code(Rcode::REFUSED, Decision::Unsupported));
    }
    let is_meta = question.rtype.is_meta() && question.rtype != RecordType::ANY;
    is_meta.then(|| Answer::code(Rcode::NOT_IMP, Decision::Unsupported))
}

/// `also`: resolvers that are configured for just this part of the zone.
fn in_zone(
    context: Context<'_>,
    labels: &[&[u8]],
    domain: Option<&DomainName>,
    also: &[Arc<Upstream>],
) -> Plan {
    let Context {
        view,
        network,
        question,
        ..
    } = context;
    let Some((last, left)) = labels.split_last() else {
        return Plan::Answer(apex(view, question));
    };
    match (left, domain) {
        ([], domain) => shared(context, last, domain.is_some(), also),
        (_, Some(domain)) => {
            let local = match left {
                [name] if domain == network.domain() => local_vote(context, name),
                _ => Vote::nx_domain(),
            };
            owned(context, domain, local, also)
        }
        (_, None) if who_may_be_asked(also, &question.name).is_empty() => Plan::Answer(negative(
            view,
            &question.name,
            Rcode::NX_DOMAIN,
            Decision::NoOwner,
        )),
        (_, None) => Plan::Ask(Ask {
            upstreams: who_may_be_asked(also, &question.name),
            votes: vec![(Voter::Local, Vote::nx_domain())],
            policy: view.policy_for(&question.name).unwrap_or_default(),
            rule: "R1.3",
        }),
    }
}

fn domain_of(label: &[u8]) -> Option<DomainName> {
    DomainName::new(core::str::from_utf8(label).ok()?).ok()
}

/// A name or address of one domain; `local` is this router's own vote, used in its own domain.
fn owned(context: Context<'_>, domain: &DomainName, local: Vote, also: &[Arc<Upstream>]) -> Plan {
    let network = context.network;
    let mut ask = Ask {
        upstreams: Vec::new(),
        votes: Vec::new(),
        policy: context
            .view
            .policy_for(&context.question.name)
            .unwrap_or_default(),
        rule: "R1.8",
    };
    if domain == network.domain() {
        let known = !local.is_nx_domain();
        ask.votes.push((Voter::Local, local));
        if known || context.asker == ClientClass::Sibling {
            return answered(context, &ask);
        }
        ask_siblings(network, &mut ask);
    } else if context.asker == ClientClass::Member {
        ask_domain(network, &mut ask, domain);
    } else {
        // A router asks only for what this domain owns; others it asks itself.
        return Plan::Answer(not_for_asker("another domain's name"));
    }
    let also = who_may_be_asked(also, &context.question.name);
    ask.upstreams.extend(also);
    asked_or_answered(context, ask)
}

/// `<name>.<zone>`: every domain that contributes. A label that is also a member's exists at
/// least as the root of that member's names.
fn shared(context: Context<'_>, label: &[u8], is_domain: bool, also: &[Arc<Upstream>]) -> Plan {
    let Context {
        view,
        network,
        question,
        asker,
        now,
    } = context;
    let mut ask = Ask {
        upstreams: Vec::new(),
        votes: Vec::new(),
        policy: view
            .policy_for(&question.name)
            .unwrap_or(network.shared_policy),
        rule: "R1.8",
    };
    let own_contributes = network
        .contributors(now)
        .any(|member| member.domain == *network.domain());
    let mut local = Vote::nx_domain();
    if own_contributes {
        local = local_vote(context, label);
    }
    let known = !local.is_nx_domain();
    let has_records = local.is_positive();
    if is_domain && !known {
        local = Vote::no_data();
    }
    ask.votes.push((Voter::Local, local));
    // A name that is this router's own needs nobody else, unless all that have it are wanted.
    let settled = match ask.policy {
        Policy::FirstPositive | Policy::Race => known,
        // The own class is the best one.
        Policy::Prefer => has_records,
        Policy::Union | Policy::Weighted => false,
    };
    if settled || asker == ClientClass::Sibling {
        return answered(context, &ask);
    }
    if own_contributes {
        ask_siblings(network, &mut ask);
    }
    if asker == ClientClass::Member {
        for member in network.contributors(now) {
            let domain = &member.domain;
            let mut stock = view.stock_of(domain).peekable();
            // Stock routers speak for it alone where none of ours lives.
            let ours = network.server_of(domain);
            let is_theirs =
                stock.peek().is_some() && ours.is_none_or(|ours| ours.servers.is_empty());
            if domain != network.domain() && !is_theirs {
                ask_domain(network, &mut ask, domain);
            }
            ask.upstreams.extend(stock.cloned());
        }
        ask.upstreams.extend(who_may_be_asked(also, &question.name));
    }
    asked_or_answered(context, ask)
}

/// A name under `clusterset.local`: asked of the domains that a shared name is asked of, or of the
/// cluster in it alone; `local` is what this router knows. Resolvers that were configured for a part
/// of the zone have a say as well.
fn service_of(context: Context<'_>, local: Vote, configured: Configured<'_>) -> Plan {
    let Context {
        view,
        network,
        question,
        asker,
        now,
    } = context;
    let speakers = services::speakers(&question.name);
    let speaks = |domain: &DomainName| match &speakers {
        Some(Speakers::All) => true,
        Some(Speakers::One(cluster)) => domain.as_str() == cluster,
        Some(Speakers::Nobody) | None => false,
    };
    let mut ask = Ask {
        upstreams: Vec::new(),
        votes: vec![(Voter::Local, local.clone())],
        policy: view.policy_for(&question.name).unwrap_or(Policy::Union),
        rule: "R1.7",
    };
    if asker != ClientClass::Sibling {
        for member in network.contributors(now) {
            if !speaks(&member.domain) {
                continue;
            }
            if member.domain == *network.domain() {
                ask_siblings(network, &mut ask);
            } else if asker == ClientClass::Member {
                ask_domain(network, &mut ask, &member.domain);
            }
        }
    }
    let also = configured.filter(|(labels, _)| *labels >= services::ZONE_LABELS);
    if asker == ClientClass::Member
        && let Some((_, upstreams)) = also
    {
        ask.upstreams.extend(upstreams.iter().cloned());
    }
    // Domains without a live router are votes as well.
    if ask.upstreams.is_empty() && ask.votes.len() == 1 {
        return Plan::Answer(services::answer(view, question, local));
    }
    asked_or_answered(context, ask)
}

/// An overlay address: only the domain whose block holds it (R1.3).
fn reverse(context: Context<'_>, address: std::net::IpAddr) -> Plan {
    let Context {
        view,
        network,
        question,
        now,
        ..
    } = context;
    let holder = network
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
    let local = match network.by_address.get(&address) {
        Some(name) if matches!(question.rtype, RecordType::PTR | RecordType::ANY) => {
            match network.canonical(name, network.domain()) {
                Ok(target) => {
                    let lease = network
                        .state
                        .names
                        .get(name)
                        .and_then(|local| local.lease_until);
                    Vote::positive(vec![Record {
                        owner: question.name.clone(),
                        ttl: local_ttl(lease, now),
                        data: Data::Ptr(target),
                    }])
                }
                Err(_) => Vote::no_data(),
            }
        }
        Some(_) => Vote::no_data(),
        None => Vote::nx_domain(),
    };
    match owned(context, &holder.domain, local, &[]) {
        // The block chose it, not a label.
        Plan::Ask(ask) => Plan::Ask(Ask {
            rule: "R1.3",
            ..ask
        }),
        answer @ Plan::Answer(_) => answer,
    }
}

fn local_vote(context: Context<'_>, label: &[u8]) -> Vote {
    let name = core::str::from_utf8(label)
        .ok()
        .and_then(|text| WorkloadName::new(text).ok());
    let Some(local) = name.and_then(|name| context.network.state.names.get(&name)) else {
        return Vote::nx_domain();
    };
    let question = context.question;
    let records = Network::local_records(&question.name, local, question.rtype, context.now);
    if records.is_empty() {
        Vote::no_data()
    } else {
        Vote::positive(records)
    }
}

fn ask_domain(network: &Network, ask: &mut Ask, domain: &DomainName) {
    if let Some(upstream) = network.server_of(domain) {
        ask_server(ask, upstream);
    }
}

fn ask_siblings(network: &Network, ask: &mut Ask) {
    for sibling in network.siblings() {
        ask_server(ask, sibling);
    }
}

fn ask_server(ask: &mut Ask, upstream: &Arc<Upstream>) {
    if upstream.servers.is_empty() {
        let voter = Voter::Upstream(Arc::clone(upstream));
        ask.votes.push((voter, Vote::Failed(Failure::NobodyLive)));
    } else {
        ask.upstreams.push(Arc::clone(upstream));
    }
}

fn asked_or_answered(context: Context<'_>, ask: Ask) -> Plan {
    if ask.upstreams.is_empty() {
        answered(context, &ask)
    } else {
        Plan::Ask(ask)
    }
}

fn answered(context: Context<'_>, ask: &Ask) -> Plan {
    let about = Merge {
        view: context.view,
        question: context.question,
        flags: Flags::default(),
        policy: ask.policy,
        random: 0,
    };
    let mut answer = merge(about, &ask.votes).choose(0).clone();
    if answer.decision == Decision::Merged {
        answer.decision = Decision::Local;
    }
    Plan::Answer(answer)
}

fn apex(view: &View, question: &Question) -> Answer {
    if matches!(question.rtype, RecordType::SOA | RecordType::ANY) {
        let mut answer = Answer::code(Rcode::NO_ERROR, Decision::Structure);
        answer.authoritative = true;
        answer.answers = vec![view.soa(question.name.clone(), NEGATIVE_TTL)];
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
