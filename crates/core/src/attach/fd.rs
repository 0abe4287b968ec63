//! Descriptors over `fd.sock`: a ticket, used once within its life, turns into a port.

use crate::forward::{PortClass, PortId};
use crate::router::context::Context;
use crate::router::{ConnectionId, Effect, FdEvent, FdGrant, FdSession};

use super::{Attach, Install, fd_reply};

impl Attach {
    pub(crate) fn fd(&mut self, session: FdSession, event: FdEvent, ctx: &mut Context<'_>) {
        match event {
            FdEvent::Attach { secret } => self.fd_attach(session, secret, ctx),
            FdEvent::Reattach { secret } => self.fd_reattach(session, secret, ctx),
            FdEvent::Closed => {
                for served in self
                    .served
                    .values_mut()
                    .filter(|served| served.fd.session == Some(session))
                {
                    served.fd.session = None;
                    served.heard = ctx.now.mono;
                }
            }
        }
    }

    fn fd_attach(&mut self, session: FdSession, secret: [u8; 16], ctx: &mut Context<'_>) {
        let Some(connection) = self.take_ticket(secret, ctx) else {
            return refuse(session, ctx);
        };
        let Some(mtu) = ctx
            .state
            .workloads
            .get(&connection)
            .map(|workload| workload.mtu)
        else {
            return refuse(session, ctx);
        };
        let Some(served) = self.served.get_mut(&connection) else {
            return refuse(session, ctx);
        };
        let port = match served.port {
            Some(port) => port,
            None => *served.port.insert(ctx.port()),
        };
        let ticket = ctx.ticket();
        ctx.effect(Effect::SetTun {
            ticket,
            session,
            port,
            class: PortClass::Member,
            mtu,
        });
        self.installs.insert(
            ticket,
            Install::Tun {
                connection,
                port,
                session,
            },
        );
    }

    fn fd_reattach(&mut self, session: FdSession, secret: [u8; 16], ctx: &mut Context<'_>) {
        let Some(connection) = self.take_ticket(secret, ctx) else {
            return refuse(session, ctx);
        };
        let Some(served) = self.served.get_mut(&connection) else {
            return refuse(session, ctx);
        };
        match served.port.filter(|_| served.live) {
            Some(port) => {
                served.fd.session = Some(session);
                fd_reply(session, Ok(FdGrant::Reattached { port }), ctx);
            }
            None => fd_reply(
                session,
                Err("this router holds no descriptor of the connection".to_owned()),
                ctx,
            ),
        }
    }

    pub(super) fn tun_installed(
        &mut self,
        connection: &ConnectionId,
        port: PortId,
        session: FdSession,
        result: &Result<(), String>,
        ctx: &mut Context<'_>,
    ) {
        let Some(served) = self
            .served
            .get_mut(connection)
            .filter(|served| served.port == Some(port))
        else {
            return fd_reply(
                session,
                Err("the connection was closed meanwhile".to_owned()),
                ctx,
            );
        };
        match result {
            Ok(()) => {
                served.live = true;
                served.heard = ctx.now.mono;
                served.fd.session = Some(session);
                fd_reply(session, Ok(FdGrant::Attached), ctx);
            }
            Err(reason) => {
                if !served.live {
                    served.port = None;
                }
                fd_reply(
                    session,
                    Err(format!("the data plane refuses the descriptor: {reason}")),
                    ctx,
                );
            }
        }
    }

    /// The connection whose ticket this is; the ticket is spent.
    fn take_ticket(&mut self, secret: [u8; 16], ctx: &Context<'_>) -> Option<ConnectionId> {
        let now = ctx.now.mono;
        let (connection, served) = self.served.iter_mut().find(|(_, served)| {
            served
                .fd
                .ticket
                .is_some_and(|(ticket, until)| until > now && same(&ticket, &secret))
        })?;
        served.fd.ticket = None;
        Some(connection.clone())
    }
}

/// Compares without an early end.
fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.iter()
        .zip(b)
        .fold(0, |difference, (x, y)| difference | (x ^ y))
        == 0
}

fn refuse(session: FdSession, ctx: &mut Context<'_>) {
    fd_reply(
        session,
        Err("unknown, used or expired ticket".to_owned()),
        ctx,
    );
}
