//! A router's streams: watches of the registry, routes, monitors; and what a liar puts into them.

use core::time::Duration;
use std::collections::BTreeSet;

use ipnet::IpNet;
use vl3_core::document::{Chain, Offer};
use vl3_core::ids::SpiffeId;
use vl3_core::registry::{Endpoint as Listed, Marks, Query, WatchEvent as RegistryEvent};
use vl3_core::router::{
    ConnectionId, DialEvent, DialId, Discovered, Input, RouterId, RouterMachine, RoutesEvent,
    RoutesMessage, RoutesOpen, StreamId, WatchEvent,
};

use crate::broken::Broken;
use crate::cast::domain_name;
use crate::event::{Chore, Event, Node, PipeBody, PipeKind};
use crate::faults::Fault;
use crate::world::World;

impl World {
    pub fn router_accepts(
        &mut self,
        index: usize,
        pipe: u64,
        peer: SpiffeId,
        kind: PipeKind,
    ) -> Result<(), Broken> {
        match kind {
            PipeKind::Routes { open, .. } => {
                let words = self.routers[index]
                    .machine
                    .as_ref()
                    .map(RouterMachine::routes_open);
                self.accept_pipe(pipe, words);
                let stream = StreamId(pipe * 2 + 1);
                self.router_input(
                    index,
                    Input::Routes {
                        stream,
                        event: RoutesEvent::Started {
                            peer,
                            open,
                            dialled: false,
                        },
                    },
                )
            }
            PipeKind::Monitor { connection, .. } => {
                self.accept_pipe(pipe, None);
                let machine = self.routers[index].machine.as_ref();
                let known = machine.is_some_and(|machine| machine.knows(&connection));
                let event = if known {
                    DialEvent::Up
                } else {
                    DialEvent::Deleted
                };
                self.send(pipe, 1, PipeBody::Monitor(event));
                Ok(())
            }
            PipeKind::Watch { .. } | PipeKind::Sync { .. } => Ok(()),
        }
    }

    pub fn router_pipe_ready(
        &mut self,
        index: usize,
        pipe: u64,
        peer: SpiffeId,
        kind: PipeKind,
        answer: Option<RoutesOpen>,
    ) -> Result<(), Broken> {
        match (kind, answer) {
            (PipeKind::Watch { query }, _) => {
                let document = matches!(query, Query::Document(_));
                self.routers[index].watches.insert(pipe, false);
                if document {
                    Ok(())
                } else {
                    self.router_input(index, Input::Watch(WatchEvent::Opened))
                }
            }
            (PipeKind::Routes { .. }, Some(open)) => {
                let event = RoutesEvent::Started {
                    peer,
                    open,
                    dialled: true,
                };
                self.router_input(
                    index,
                    Input::Routes {
                        stream: StreamId(pipe * 2),
                        event,
                    },
                )
            }
            (PipeKind::Routes { .. } | PipeKind::Monitor { .. } | PipeKind::Sync { .. }, _) => {
                Ok(())
            }
        }
    }

    pub fn router_pipe_failed(&mut self, index: usize, kind: &PipeKind) -> Result<(), Broken> {
        let to = self.life(Node::Router(index));
        match kind {
            PipeKind::Watch { query } => {
                let document = matches!(query, Query::Document(_));
                let after = Duration::from_millis(500 + self.rng.below(500));
                self.later(
                    after,
                    Event::Chore {
                        to,
                        chore: Chore::OpenWatch { document },
                    },
                );
                Ok(())
            }
            PipeKind::Routes { dial, .. } => self.router_input(
                index,
                Input::RoutesFailed {
                    dial: *dial,
                    reason: "no answer".to_owned(),
                },
            ),
            PipeKind::Monitor { dial, .. } => self.monitor_lost(index, *dial),
            PipeKind::Sync { .. } => Ok(()),
        }
    }

    fn monitor_lost(&mut self, index: usize, dial: DialId) -> Result<(), Broken> {
        self.routers[index].monitors.remove(&dial);
        if !self.routers[index].dials.contains_key(&dial) {
            return Ok(());
        }
        let to = self.life(Node::Router(index));
        self.later(
            Duration::from_secs(1),
            Event::Chore {
                to,
                chore: Chore::OpenMonitor { dial },
            },
        );
        self.router_input(
            index,
            Input::Dial {
                dial,
                event: DialEvent::Down,
            },
        )
    }

    pub fn router_pipe_ended(
        &mut self,
        index: usize,
        pipe: u64,
        side: usize,
        kind: &PipeKind,
    ) -> Result<(), Broken> {
        match kind {
            PipeKind::Watch { .. } => {
                self.routers[index].watches.remove(&pipe);
                if shows_routers(kind) {
                    self.router_input(index, Input::Watch(WatchEvent::Lost))?;
                }
                self.router_pipe_failed(index, kind)
            }
            PipeKind::Routes { .. } => {
                let stream = StreamId(pipe * 2 + u64::from(side == 1));
                self.router_input(
                    index,
                    Input::Routes {
                        stream,
                        event: RoutesEvent::Ended,
                    },
                )
            }
            PipeKind::Monitor { dial, .. } if side == 0 => {
                if self.routers[index].monitors.get(dial) == Some(&pipe) {
                    self.monitor_lost(index, *dial)
                } else {
                    Ok(())
                }
            }
            PipeKind::Monitor { .. } | PipeKind::Sync { .. } => Ok(()),
        }
    }

    pub fn router_pipe_data(
        &mut self,
        index: usize,
        pipe: u64,
        side: usize,
        kind: &PipeKind,
        body: PipeBody,
    ) -> Result<(), Broken> {
        match (body, kind) {
            (PipeBody::Watch(events), _) => {
                // The first message of a watch is its snapshot: it fits one page here.
                let watch = self.routers[index].watches.get_mut(&pipe);
                let snapshot = watch.is_some_and(|watch| !core::mem::replace(watch, true));
                for event in events {
                    match event {
                        RegistryEvent::Document(chain) => self.document_offered(index, chain)?,
                        RegistryEvent::Endpoint { found, deleted } => {
                            if let Some(event) = watch_event(&found.shown.endpoint(), deleted) {
                                self.router_input(index, Input::Watch(event))?;
                            }
                        }
                        RegistryEvent::Service { .. } => {}
                    }
                }
                if snapshot && shows_routers(kind) {
                    self.router_input(index, Input::Watch(WatchEvent::Complete))?;
                }
                Ok(())
            }
            (PipeBody::Routes(message), _) => {
                let stream = StreamId(pipe * 2 + u64::from(side == 1));
                self.router_input(
                    index,
                    Input::Routes {
                        stream,
                        event: RoutesEvent::Message(message),
                    },
                )
            }
            (PipeBody::Monitor(event), PipeKind::Monitor { dial, .. }) => {
                let dial = *dial;
                if event == DialEvent::Deleted {
                    self.close_pipe(pipe, 0);
                    self.routers[index].monitors.remove(&dial);
                }
                self.router_input(index, Input::Dial { dial, event })
            }
            (PipeBody::Monitor(_) | PipeBody::Sync(_), _) => Ok(()),
        }
    }

    fn document_offered(&mut self, index: usize, chain: Chain) -> Result<(), Broken> {
        if let Offer::Newer(chain) = self.routers[index].documents.decide(&chain) {
            let bytes = chain.newest().bytes.clone();
            let document = Box::new(vl3_core::document::Document::clone(chain.document()));
            self.routers[index].documents.apply(chain);
            self.router_input(index, Input::Document { document, bytes })?;
        }
        Ok(())
    }

    pub fn send_routes(&mut self, index: usize, stream: StreamId, messages: Vec<RoutesMessage>) {
        let (pipe, side) = (stream.0 / 2, usize::from(stream.0 % 2 == 1));
        for message in messages {
            let message = if self.routers[index].lies {
                self.lie(index, message)
            } else {
                message
            };
            self.send(pipe, side, PipeBody::Routes(message));
        }
    }

    /// Announces a prefix of another domain in place of its own.
    fn lie(&mut self, index: usize, message: RoutesMessage) -> RoutesMessage {
        let RoutesMessage::Announce {
            sequence,
            preference,
            mtu,
            ..
        } = message
        else {
            return message;
        };
        let site = self.site(Node::Router(index));
        let victim = (site + 1) % self.cast.domains;
        let members = &self.routers[index].document().members;
        let Some(member) = members.get(&domain_name(victim)) else {
            return message;
        };
        let blocks: BTreeSet<IpNet> = member.blocks().collect();
        let pick = usize::try_from(self.rng.below(blocks.len() as u64)).unwrap_or(0);
        let Some(prefix) = blocks.into_iter().nth(pick) else {
            return message;
        };
        self.tally.count(Fault::ForeignPrefix);
        RoutesMessage::Announce {
            sequence,
            prefix,
            preference,
            mtu,
        }
    }

    pub fn connection_closed(&mut self, index: usize, connection: &ConnectionId) {
        let life = self.life(Node::Router(index));
        for pipe in self.pipes_to(
            life,
            |kind| matches!(kind, PipeKind::Monitor { connection: c, .. } if c == connection),
        ) {
            self.send(pipe, 1, PipeBody::Monitor(DialEvent::Deleted));
        }
    }
}

const fn shows_routers(kind: &PipeKind) -> bool {
    matches!(
        kind,
        PipeKind::Watch {
            query: Query::Endpoints(_)
        }
    )
}

/// What a registry's object says about a router, as the real shell reads it.
fn watch_event(listed: &Listed, deleted: bool) -> Option<WatchEvent> {
    let marks = Marks::of(listed)?;
    let router = RouterId {
        name: marks.name.parse().ok()?,
        domain: marks.domain,
    };
    if deleted {
        return Some(WatchEvent::Gone(router));
    }
    let address = listed.url.strip_prefix("tcp://")?.parse().ok()?;
    Some(WatchEvent::Found(Discovered {
        router,
        uid: marks.uid,
        generation: marks.generation,
        dials_only: marks.dials_only,
        address,
    }))
}
