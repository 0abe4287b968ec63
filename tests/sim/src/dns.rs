//! The DNS server beside each router: the resolver's machine, asked and asking over the overlay.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use vl3_core::allocator::Lease;
use vl3_core::forward::PortClass;
use vl3_core::names::{
    Asking, Data as RecordData, DomainServer, Failure, Flags, LocalName, Name, Policy, Question,
    Reading, Record, RecordType, Reply, Resolver, ResolverEffect, ResolverInput, ResolverState,
    View,
};
use vl3_core::router::{self, OWN_PORT};
use vl3_core::{Machine as _, Outbox, Ticket};

use crate::broken::Broken;
use crate::cast::domain_name;
use crate::event::{Data, Event, Node, Packet, Payload};
use crate::faults::Fault;
use crate::world::World;

/// The server's own limit for one query; the machine has earlier ones.
const QUERY_LIMIT: Duration = Duration::from_secs(6);

#[derive(Debug)]
pub struct Dns {
    pub resolver: Resolver,
    sequence: u64,
    /// Packet number -> ticket of the query.
    queries: BTreeMap<u64, Ticket>,
    /// Ticket of the asker -> (its address, packet number).
    askers: BTreeMap<Ticket, (IpAddr, u64)>,
}

impl Dns {
    pub fn new(seed: u64) -> Self {
        Self {
            resolver: Resolver::new(seed),
            sequence: 0,
            queries: BTreeMap::new(),
            askers: BTreeMap::new(),
        }
    }
}

impl World {
    /// The router published what its DNS server needs.
    pub fn dns_view(&mut self, index: usize) -> Result<(), Broken> {
        let router = &mut self.routers[index];
        router.dns.sequence += 1;
        let site = self.cast.routers[router.role].domain;
        let state = ResolverState {
            sequence: router.dns.sequence,
            domain: domain_name(site),
            names: router
                .view
                .names
                .iter()
                .map(|(name, addresses)| {
                    let addresses = addresses.iter().copied().collect::<BTreeSet<_>>();
                    (
                        name.clone(),
                        LocalName {
                            addresses,
                            lease_until: None,
                        },
                    )
                })
                .collect(),
            servers: router.view.servers.iter().filter_map(server_of).collect(),
            clients: router
                .view
                .clients
                .iter()
                .map(|(prefix, class)| (*prefix, class_of(*class)))
                .collect(),
            own_addresses: router.view.own_addresses.clone(),
        };
        let document = Arc::new(router.document().clone());
        let Ok(view) = View::new(document, state, Policy::FirstPositive) else {
            return Err(Broken::new(12, "a document's zone is no name"));
        };
        self.dns_input(index, ResolverInput::View(Arc::new(view)))
    }

    fn dns_input(&mut self, index: usize, input: ResolverInput) -> Result<(), Broken> {
        let now = self.now_at(Node::Router(index));
        let mut out = Outbox::default();
        self.routers[index]
            .dns
            .resolver
            .handle(input, now, &mut out);
        self.dns_effects(index, out)
    }

    pub fn wake_dns(&mut self, index: usize) -> Result<(), Broken> {
        let now = self.now_at(Node::Router(index));
        let mut out = Outbox::default();
        self.routers[index].dns.resolver.wake(now, &mut out);
        self.dns_effects(index, out)
    }

    fn dns_effects(&mut self, index: usize, mut out: Outbox<ResolverEffect>) -> Result<(), Broken> {
        for effect in out.take() {
            self.note(&Node::Router(index), format_args!("dns -> {effect:?}"));
            match effect {
                ResolverEffect::Query(query) => {
                    let server = query.server.ip();
                    let v6 = server.is_ipv6();
                    let source = self.routers[index]
                        .plane
                        .own
                        .iter()
                        .copied()
                        .find(|own| own.is_ipv6() == v6);
                    let Some(source) = source else {
                        let input = ResolverInput::Failed {
                            ticket: query.ticket,
                            failure: Failure::Network,
                        };
                        self.dns_input(index, input)?;
                        continue;
                    };
                    let id = self.number();
                    self.routers[index].dns.queries.insert(id, query.ticket);
                    let to = self.life(Node::Router(index));
                    self.later(QUERY_LIMIT, Event::QueryEnds { to, id });
                    self.speak_as_own(
                        index,
                        id,
                        source,
                        server,
                        Payload::Question(Question::clone(&query.question)),
                    )?;
                }
                ResolverEffect::Forget(ticket) => {
                    self.routers[index]
                        .dns
                        .queries
                        .retain(|_, known| *known != ticket);
                }
                ResolverEffect::Answer(answered) => {
                    let asker = self.routers[index].dns.askers.remove(&answered.asker);
                    if let Some((address, id)) = asker {
                        let v6 = address.is_ipv6();
                        let source = self.routers[index]
                            .plane
                            .own
                            .iter()
                            .copied()
                            .find(|own| own.is_ipv6() == v6);
                        if let Some(source) = source {
                            let reply = self.reply_of(index, address, &answered.reading);
                            self.speak_as_own(
                                index,
                                id,
                                source,
                                address,
                                Payload::Answer(Box::new(reply)),
                            )?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn speak_as_own(
        &mut self,
        index: usize,
        id: u64,
        source: IpAddr,
        destination: IpAddr,
        payload: Payload,
    ) -> Result<(), Broken> {
        let network = self.cast.routers[self.routers[index].role].network;
        let data = Data {
            id,
            source,
            destination,
            payload,
            network,
            forged: false,
            crossed: Vec::new(),
        };
        self.forward(index, OWN_PORT, PortClass::Own, data)
    }

    /// A packet for the router's own address that is about names.
    pub fn dns_receives(&mut self, index: usize, data: Data) -> Result<(), Broken> {
        match data.payload {
            Payload::Question(question) => {
                let asker = Ticket(self.number());
                self.routers[index]
                    .dns
                    .askers
                    .insert(asker, (data.source, data.id));
                let flags = Flags::default();
                self.dns_input(
                    index,
                    ResolverInput::Ask(Asking::new(asker, data.source, question, flags)),
                )
            }
            Payload::Answer(reply) => {
                let Some(ticket) = self.routers[index].dns.queries.remove(&data.id) else {
                    return Ok(());
                };
                self.dns_input(
                    index,
                    ResolverInput::Reply {
                        ticket,
                        reply: *reply,
                    },
                )
            }
            Payload::Echo | Payload::EchoAnswer => Ok(()),
        }
    }

    pub fn query_ends(&mut self, index: usize, id: u64) -> Result<(), Broken> {
        match self.routers[index].dns.queries.remove(&id) {
            Some(ticket) => self.dns_input(
                index,
                ResolverInput::Failed {
                    ticket,
                    failure: Failure::TimedOut,
                },
            ),
            None => Ok(()),
        }
    }

    /// What goes over the wire; a liar puts an address of another domain into it.
    fn reply_of(&mut self, index: usize, asker: IpAddr, reading: &Reading) -> Reply {
        let answer = reading.to_answer();
        let mut reply = Reply {
            rcode: answer.rcode,
            truncated: answer.truncated,
            authenticated: answer.authenticated,
            answers: answer.answers,
            authority: answer.authority,
            additional: answer.additional,
        };
        // Its own workloads are in its hands anyway.
        let own = self.routers[index]
            .lease
            .iter()
            .flat_map(Lease::prefixes)
            .any(|prefix| prefix.contains(&asker));
        if self.routers[index].lies && !own {
            let site = self.site(Node::Router(index));
            let victim = domain_name((site + 1) % self.cast.domains);
            let member = self.routers[index].document().members.get(&victim).cloned();
            if let Some(member) = member {
                for record in &mut reply.answers {
                    if let RecordData::Aaaa(address) = &mut record.data {
                        *address = member.block6.network();
                        self.tally.count(Fault::ForeignName);
                    }
                }
            }
        }
        reply
    }

    /// A workload asks its router's DNS server. False when it has none yet.
    pub fn ask_name(&mut self, index: usize, name: &str, purpose: crate::truth::Asked) -> bool {
        let Some(answer) = &self.workloads[index].answer else {
            return false;
        };
        let Some(server) = answer.dns_servers.iter().copied().find(IpAddr::is_ipv6) else {
            return false;
        };
        let Some(source) = self.workloads[index].address(true) else {
            return false;
        };
        let Ok(name) = Name::parse(name) else {
            return false;
        };
        let id = self.number();
        self.truth.asked.insert(id, purpose);
        let question = Question::new(name, RecordType::AAAA);
        let network = self.cast.workloads[index].network;
        let payload = Payload::Question(question);
        let data = Data {
            id,
            source,
            destination: server,
            payload,
            network,
            forged: false,
            crossed: Vec::new(),
        };
        self.send_from_workload(index, Packet::Data(data));
        true
    }
}

/// Addresses in an answer.
pub fn addresses(records: &[Record]) -> impl Iterator<Item = IpAddr> + '_ {
    records.iter().filter_map(|record| record.data.address())
}

fn server_of(server: &router::DomainServer) -> Option<DomainServer> {
    Some(DomainServer {
        domain: server.domain.clone(),
        router: server.router.clone().or_else(|| "none".parse().ok())?,
        addresses: server.addresses.clone(),
        sibling: server.sibling,
    })
}

const fn class_of(class: router::ClientClass) -> vl3_core::names::ClientClass {
    match class {
        router::ClientClass::Member => vl3_core::names::ClientClass::Member,
        router::ClientClass::Sibling => vl3_core::names::ClientClass::Sibling,
        router::ClientClass::Remote => vl3_core::names::ClientClass::Remote,
    }
}
