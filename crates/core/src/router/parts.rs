//! The parts of the router while one input is handled: what goes to which.

use crate::attach::Attach;
use crate::ids::SpiffeId;
use crate::links::{LinkEvent, Links};
use crate::machine::Ticket;
use crate::routes::Routes;

use super::call::{MechanismWish, Refusal, Request};
use super::context::Context;
use super::io::{CallId, ConnectionId, HelloRole, PortSample, RoutesEvent, StreamId};
use super::lease::LeaseClient;
use super::own::OwnAddresses;

/// The parts of the router, while one input is handled.
pub(super) struct Parts<'a> {
    pub(super) attach: &'a mut Attach,
    pub(super) links: &'a mut Links,
    pub(super) routes: &'a mut Routes,
    pub(super) lease: &'a mut LeaseClient,
    pub(super) own: &'a mut OwnAddresses,
    /// The store does not keep up.
    pub(super) full: bool,
    pub(super) fence: bool,
}

impl Parts<'_> {
    pub(super) fn linked(
        &mut self,
        events: impl IntoIterator<Item = LinkEvent>,
        ctx: &mut Context<'_>,
    ) {
        for event in events {
            match event {
                LinkEvent::Removed(router) => self.routes.link_gone(&router, ctx),
                LinkEvent::Replaced(router) => {
                    self.routes.link_gone(&router, ctx);
                    if ctx.state.routes.contains_key(&router) {
                        // The older life's routes hold until the newer one has spoken: both
                        // are the same router's prefixes unless its lease changed.
                        self.routes.judge_again(ctx);
                    }
                }
                LinkEvent::Fenced => self.fence = true,
            }
        }
    }

    /// Ends and disbelieves what the document no longer grants.
    pub(super) fn members_changed(&mut self, ctx: &mut Context<'_>) {
        let events = self.links.document_changed(ctx);
        self.linked(events, ctx);
        self.attach.document_changed(ctx);
        self.routes.judge_again(ctx);
    }

    pub(super) fn request(&mut self, call: CallId, request: &Request, ctx: &mut Context<'_>) {
        if self.full {
            let reason = "the state store does not keep up".to_owned();
            return ctx.refuse(call, Refusal::Unavailable { reason });
        }
        let hello = request
            .hello
            .as_ref()
            .filter(|hello| hello.role == HelloRole::Router);
        match (hello, &request.mechanism) {
            (Some(hello), MechanismWish::WireGuard { public_key }) => {
                if self.attach.serves(&request.connection) {
                    let what = format!(
                        "turn the workload connection {} into a link",
                        request.connection
                    );
                    return deny(call, request, what, ctx);
                }
                let in_use = self.attach.uses_key(*public_key, ctx);
                let event = self
                    .links
                    .request(call, request, hello, *public_key, in_use, ctx);
                self.linked(event, ctx);
            }
            (Some(_), MechanismWish::Tun { .. }) => ctx.refuse(
                call,
                Refusal::Invalid {
                    field: "mechanism.type",
                    value: "TUN".to_owned(),
                    allowed: "WIREGUARD between routers".to_owned(),
                },
            ),
            (None, mechanism) => {
                if self.links.serves(&request.connection) {
                    let what = format!(
                        "turn the link connection {} into a workload's",
                        request.connection
                    );
                    return deny(call, request, what, ctx);
                }
                let in_use = match mechanism {
                    MechanismWish::WireGuard { public_key } => {
                        self.links.uses_key(*public_key, ctx)
                    }
                    MechanismWish::Tun { .. } => false,
                };
                self.attach.request(call, request, in_use, ctx);
            }
        }
    }

    pub(super) fn close(
        &mut self,
        call: CallId,
        connection: &ConnectionId,
        peer: &SpiffeId,
        ctx: &mut Context<'_>,
    ) {
        if self.attach.serves(connection) {
            self.attach.close(call, connection, peer, ctx);
        } else {
            let event = self.links.close(call, connection, peer, ctx);
            self.linked(event, ctx);
        }
    }

    pub(super) fn routes_event(
        &mut self,
        stream: StreamId,
        event: RoutesEvent,
        ctx: &mut Context<'_>,
    ) {
        match event {
            RoutesEvent::Started {
                peer,
                open,
                dialled,
            } => {
                if self.routes.started(stream, &peer, &open, dialled, ctx) && dialled {
                    self.links.stream(&open.router, stream, true, ctx);
                }
            }
            RoutesEvent::Message(message) => {
                self.routes.message(stream, &message, ctx);
            }
            RoutesEvent::Ended => {
                if let Some(router) = self.routes.ended(stream, ctx) {
                    self.links.stream(&router, stream, false, ctx);
                }
            }
        }
    }

    pub(super) fn installed(
        &mut self,
        ticket: Ticket,
        result: &Result<(), String>,
        ctx: &mut Context<'_>,
    ) {
        if self.own.installed(ticket, result, ctx) {
            return;
        }
        match self.links.installed(ticket, result, ctx) {
            Some(events) => self.linked(events, ctx),
            None => {
                self.attach.installed(ticket, result, ctx);
            }
        }
    }

    /// The data plane as it is: what an event that was lost would have said is made up for.
    pub(super) fn sampled(&mut self, samples: &[PortSample], ctx: &mut Context<'_>) {
        let of_port = self.attach.by_port();
        for sample in samples {
            let link = self.links.sampled(
                sample.port,
                sample.last_send,
                sample.last_receive,
                ctx.now.mono,
            );
            let learned = sample.endpoint.filter(|_| sample.last_receive.is_some());
            if link {
                if let Some(endpoint) = learned {
                    self.links.learned(sample.port, endpoint, ctx);
                }
            } else if let Some(connection) = of_port.get(&sample.port) {
                self.attach.sampled(connection, sample, learned, ctx);
            }
        }
    }

    pub(super) fn wake(&mut self, ctx: &mut Context<'_>) {
        self.lease.wake(ctx);
        self.own.wake(ctx);
        self.attach.wake(ctx);
        for (router, stream) in self.routes.wake(ctx) {
            self.links.stream(&router, stream, false, ctx);
        }
        let events = self.links.wake(ctx);
        self.linked(events, ctx);
    }
}

fn deny(call: CallId, request: &Request, what: String, ctx: &mut Context<'_>) {
    let id = request.peer.clone();
    ctx.refuse(call, Refusal::Denied { id, what });
}
