//! The calls of an attachment: started here, answered as events.

use vl3_core::Ticket;
use vl3_core::heal::{Input, MonitorEvent, RequestKind};
use vl3_proto::connection::{Connection, Mechanism as WireMechanism, Path};
use vl3_runtime::clock;
use vl3_runtime::grpc::{self, DialUrl};

use super::{Attachment, EARLIER_LIMIT, Event, Shell};
use crate::answer::Excluded;
use crate::control::{self, Followee};
use crate::request::{self, Wish};
use crate::tun::Tun;

impl Attachment {
    /// Starts a call whose answer comes back as an event.
    fn call(&self, name: &'static str, call: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        self.parts.tasks.spawn_detached(name, async move {
            let event = call.await;
            // The attachment may have ended meanwhile.
            let _ended = events.send(event).await;
        });
    }

    pub(super) fn find(&mut self, ticket: Ticket) {
        self.first_dial.get_or_insert_with(clock::mono);
        let control = self.parts.control.clone();
        self.call("find", async move {
            Event::Machine(Input::Found {
                ticket,
                result: control.find().await,
            })
        });
    }

    pub(super) async fn request(&mut self, ticket: Ticket, url: String, kind: RequestKind) {
        self.first_dial.get_or_insert_with(clock::mono);
        let preference = self.preference(&url).await;
        let mut excluded = Excluded {
            ranges: self.parts.exclude.clone(),
            held: self.parts.host.held_by_others(self.parts.position),
        };
        let addresses = self
            .accepted
            .as_ref()
            .map_or(&[][..], |accepted| &accepted.addresses);
        let wish = Wish {
            kind,
            last: self
                .last
                .as_ref()
                .filter(|(at, _)| *at == url)
                .map(|(_, last)| last),
            addresses,
            excluded: &excluded,
            preference,
        };
        let mut request = self.parts.template.request(&wish);
        let via = self.via_of(&url);
        let control = self.parts.control.clone();
        let (host, position) = (self.parts.host.clone(), self.parts.position);
        self.call("request", async move {
            if kind == RequestKind::First {
                host.earlier_hold(position, EARLIER_LIMIT).await;
                excluded.held = host.held_by_others(position);
                request::exclude(&mut request, &excluded);
            }
            let outcome = control.request(&url, via, request, excluded).await;
            Event::Answered {
                ticket,
                url,
                outcome,
            }
        });
    }

    async fn preference(&self, url: &str) -> WireMechanism {
        match &self.shell {
            Shell::Tun(_) => Tun::preference(&self.parts.interface),
            Shell::Wireguard(plane) => {
                // The machine's urls come from checked configuration or a checked Find.
                let url = url.parse().unwrap_or(DialUrl::Unix(url.into()));
                plane
                    .preference(&url, &self.parts.interface, &self.parts.netlink)
                    .await
            }
        }
    }

    fn via_of(&self, url: &str) -> Option<grpc::Connection> {
        self.via
            .as_ref()
            .filter(|(at, _)| at == url)
            .map(|(_, via)| via.clone())
    }

    pub(super) fn close(&mut self, ticket: Ticket, url: String) {
        let last = self
            .last
            .as_ref()
            .filter(|(at, _)| *at == url)
            .map(|(_, last)| last.clone());
        let connection = last.unwrap_or_else(|| Connection {
            id: self.parts.template.id.clone(),
            network_service: self.parts.template.network.to_string(),
            path: Some(Path {
                index: 0,
                path_segments: vec![self.parts.template.segment()],
            }),
            ..Connection::default()
        });
        let via = self.via_of(&url);
        let control = self.parts.control.clone();
        self.call("close", async move {
            let ok = control.close(&url, via, connection).await;
            Event::Machine(Input::Closed { ticket, ok })
        });
    }

    pub(super) fn monitor(&mut self, ticket: Ticket, url: &str) {
        self.stop_followers();
        let Some(via) = self.via_of(url) else {
            let ended = Input::Monitor {
                ticket,
                event: MonitorEvent::Ended,
            };
            return self.call("monitor", async move { Event::Machine(ended) });
        };
        let followee = Followee {
            name: self.parts.template.name.clone(),
            id: self.parts.template.id.clone(),
            server_id: self.server_id.subscribe(),
        };
        let followed = control::monitor(via.clone(), followee, ticket, self.events.clone());
        self.followers
            .push(self.parts.tasks.spawn_detached("monitor", followed));
        let documents = self.parts.control.documents.clone();
        self.followers.push(
            self.parts
                .tasks
                .spawn_detached("document", control::follow_document(via, documents)),
        );
    }

    pub(super) fn stop_followers(&mut self) {
        for follower in self.followers.drain(..) {
            follower.abort();
        }
    }
}
