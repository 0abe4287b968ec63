//! What a router asks of its registry and of other routers, and what it is asked.

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use vl3_core::Ticket;
use vl3_core::allocator::Refusal as LeaseRefusal;
use vl3_core::ids::SpiffeId;
use vl3_core::registry::{
    Command, Endpoint as Listed, Marks, Query, Refusal as RegistryRefusal, Reply,
};
use vl3_core::router::{
    Answer, CallId, ConnectionId, Dial, DialAnswer, DialFailure, Endpoint, Input, LeaseAnswer,
    LeaseFailure, MechanismWish, NameAnswer, Request,
};

use crate::broken::Broken;
use crate::event::{Awaits, CallBody, Chore, Event, Node, PipeKind, ReplyBody};
use crate::router::TOKEN_LIFE;
use crate::world::World;

const REGISTRATION_EVERY: Duration = Duration::from_secs(20);

impl World {
    pub fn ask_registry(&mut self, index: usize, command: Command, awaits: Awaits) {
        let domain = self.site(Node::Router(index));
        let body = CallBody::Registry(Box::new(command));
        self.call(Node::Router(index), Node::Registry(domain), body, awaits);
    }

    pub fn register(&mut self, index: usize) {
        let Some(registration) = self.routers[index].registration.clone() else {
            return;
        };
        let role = &self.cast.routers[self.routers[index].role];
        let service = self.cast.networks[role.network].name.to_string();
        let marks = Marks {
            service: service.clone(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid: registration.uid,
            domain: registration.router.domain.clone(),
            name: registration.router.name.to_string(),
            generation: registration.generation,
            dials_only: registration.dials_only,
            udp: None,
        };
        let endpoint = Listed {
            name: role.name.to_string(),
            services: vec![service.clone()],
            labels: BTreeMap::from([(service, marks.labels())]),
            url: format!("tcp://{}", self.routers[index].address),
            registered: None,
            path_ids: vec![role.id.to_string()],
        };
        let command = Command::RegisterEndpoint {
            endpoint,
            lifetime: Some(Duration::from_secs(60)),
        };
        self.ask_registry(index, command, Awaits::Registered);
        let to = self.life(Node::Router(index));
        self.later(
            REGISTRATION_EVERY,
            Event::Chore {
                to,
                chore: Chore::Register,
            },
        );
    }

    pub fn router_chore(&mut self, index: usize, chore: Chore) {
        let node = Node::Router(index);
        match chore {
            Chore::OpenWatch { document } => {
                let uid = self.routers[index].documents.uid();
                let role = &self.cast.routers[self.routers[index].role];
                let service = self.cast.networks[role.network].name.to_string();
                let query = if document {
                    Query::Document(uid)
                } else {
                    endpoints_of(&service)
                };
                let to = Node::Registry(role.domain);
                self.open_pipe(node, to, PipeKind::Watch { query });
            }
            Chore::Register => self.register(index),
            Chore::OpenMonitor { dial } => {
                if let Some((to, connection)) = self.routers[index].dials.get(&dial).cloned() {
                    let pipe = self.open_pipe(node, to, PipeKind::Monitor { dial, connection });
                    self.routers[index].monitors.insert(dial, pipe);
                }
            }
            Chore::Live | Chore::KeepAlive => {}
        }
    }

    pub fn dial(&mut self, index: usize, ticket: Ticket, dial: &Dial) {
        let node = Node::Router(index);
        let life = self.life(node);
        let Some(to) = self.at_address(dial.address.ip()) else {
            let failure = DialFailure::Unreachable("nobody there".to_owned());
            self.local(
                index,
                1000,
                Input::Dialled {
                    ticket,
                    result: Err(failure),
                },
            );
            return;
        };
        // The dial expects the trust domain that the document states.
        if self.id(to).trust_domain() != dial.trust_domain {
            let failure = DialFailure::Unreachable("another trust domain answers".to_owned());
            self.local(
                index,
                1000,
                Input::Dialled {
                    ticket,
                    result: Err(failure),
                },
            );
            return;
        }
        let name = format!("{node}.{}-{}", life.count, dial.dial.0);
        let connection = ConnectionId::new(&name).expect("printable");
        self.routers[index]
            .dials
            .insert(dial.dial, (to, connection.clone()));
        let request = Request {
            connection,
            peer: self.id(node),
            claimed: None,
            hello: Some(dial.hello.clone()),
            name: None,
            mechanism: MechanismWish::WireGuard {
                public_key: dial.public_key,
            },
            addresses: dial.addresses.iter().map(IpNet::addr).collect(),
            excluded: Vec::new(),
            mtu: dial.mtu,
            expires_in: TOKEN_LIFE,
            local: self.place_of(to),
        };
        let awaits = Awaits::Dialled {
            ticket,
            dial: dial.dial,
            to,
        };
        self.call(node, to, CallBody::Request(Box::new(request)), awaits);
    }

    fn place_of(&self, node: Node) -> Option<IpAddr> {
        match node {
            Node::Router(index) => Some(self.routers[index].address.ip()),
            Node::Registry(_) | Node::Dns(_) | Node::Workload(_) | Node::Operator(_) => None,
        }
    }

    pub fn serve_router(
        &mut self,
        index: usize,
        call: u64,
        peer: SpiffeId,
        body: CallBody,
    ) -> Result<(), Broken> {
        match body {
            CallBody::Request(request) => self.router_input(
                index,
                Input::Request {
                    call: CallId(call),
                    request,
                },
            ),
            CallBody::Close { connection } => self.router_input(
                index,
                Input::Close {
                    call: CallId(call),
                    connection,
                    peer,
                },
            ),
            CallBody::Registry(_) => Ok(()),
        }
    }

    pub fn router_answered(
        &mut self,
        index: usize,
        awaits: Awaits,
        body: ReplyBody,
    ) -> Result<(), Broken> {
        let input = match (awaits, body) {
            (Awaits::Lease(ticket), body) => {
                let result = lease_answer(body);
                if let Ok(answer) = &result {
                    self.routers[index].lease = Some(answer.lease.clone());
                    self.lease_granted(index, &answer.lease.clone())?;
                }
                Input::Lease { ticket, result }
            }
            (Awaits::Name(ticket), body) => {
                let answer = match body {
                    ReplyBody::Registry(Ok(Reply::Name { held_by: None })) => NameAnswer::Granted,
                    ReplyBody::Registry(Ok(Reply::Name { held_by: Some(by) })) => {
                        NameAnswer::Held { by: by.to_string() }
                    }
                    _ => NameAnswer::Unreachable,
                };
                Input::Name { ticket, answer }
            }
            (Awaits::Registered, ReplyBody::Registry(Ok(_))) => return Ok(()),
            (Awaits::Registered, _) => {
                let to = self.life(Node::Router(index));
                self.later(
                    Duration::from_millis(1500),
                    Event::Chore {
                        to,
                        chore: Chore::Register,
                    },
                );
                return Ok(());
            }
            (Awaits::Dialled { ticket, dial, to }, body) => {
                let result = self.dial_answer(to, body);
                if result.is_ok() && !self.routers[index].monitors.contains_key(&dial) {
                    self.router_chore(index, Chore::OpenMonitor { dial });
                }
                Input::Dialled { ticket, result }
            }
            (Awaits::Attached | Awaits::Nothing, _) => return Ok(()),
        };
        self.router_input(index, input)
    }

    fn dial_answer(&self, to: Node, body: ReplyBody) -> Result<Box<DialAnswer>, DialFailure> {
        match body {
            ReplyBody::Router(answer) => match *answer {
                Ok(Answer::Link(link)) => Ok(Box::new(DialAnswer {
                    peer: self.id(to),
                    hello: link.hello,
                    public_key: link.public_key,
                    endpoint: Endpoint {
                        remote: SocketAddr::new(link.address, link.port),
                        local: None,
                    },
                    mtu: link.mtu,
                    expires_in: TOKEN_LIFE,
                })),
                Ok(other) => Err(DialFailure::Refused(format!("{other:?}"))),
                Err(refusal) => Err(DialFailure::Refused(refusal.to_string())),
            },
            ReplyBody::Registry(_) | ReplyBody::Nothing => {
                Err(DialFailure::Unreachable("no answer".to_owned()))
            }
        }
    }

    // --- streams
}

fn endpoints_of(service: &str) -> Query {
    Query::Endpoints(vl3_core::registry::EndpointQuery {
        services: vec![service.to_owned()],
        ..vl3_core::registry::EndpointQuery::default()
    })
}

fn lease_answer(body: ReplyBody) -> Result<LeaseAnswer, LeaseFailure> {
    match body {
        ReplyBody::Registry(Ok(Reply::Lease(granted))) => Ok(LeaseAnswer {
            lease: granted.lease,
            renew_after: granted.renew_after,
        }),
        ReplyBody::Registry(Err(RegistryRefusal::Lease(LeaseRefusal::Fenced {
            router,
            generation,
        }))) => Err(LeaseFailure::Fenced(format!(
            "{router} has generation {generation}"
        ))),
        ReplyBody::Registry(Err(refusal)) => Err(LeaseFailure::Refused(refusal.to_string())),
        ReplyBody::Registry(Ok(other)) => Err(LeaseFailure::Refused(format!("{other:?}"))),
        ReplyBody::Router(_) | ReplyBody::Nothing => {
            Err(LeaseFailure::Unreachable("no answer".to_owned()))
        }
    }
}
