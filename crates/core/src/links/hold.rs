//! What holds a link: NSM connections from either side, each as long as its token.

use std::collections::BTreeMap;

use crate::ids::SpiffeId;
use crate::router::context::Context;
use crate::router::{Answer, CallId, ConnectionId, Effect, Refusal, RouterId};
use crate::time::Mono;

use super::{LinkEvent, Links};

#[derive(Debug, Default)]
pub(super) struct Holds {
    /// Accepted connections: who opened each, and until when.
    pub(super) accepted: BTreeMap<ConnectionId, (SpiffeId, Mono)>,
    /// End of the last token of our own connection.
    pub(super) dialled_until: Option<Mono>,
    /// A link from the store, until somebody holds it again.
    pub(super) restored_until: Option<Mono>,
}

impl Holds {
    pub(super) fn expires(&self) -> Mono {
        let accepted = self.accepted.values().map(|(_, until)| *until);
        accepted
            .chain(self.dialled_until)
            .chain(self.restored_until)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.accepted.is_empty() && self.dialled_until.is_none() && self.restored_until.is_none()
    }
}

/// Connections that one router may hold at once on one link; the one that ends first gives way.
const ACCEPTED_MAX: usize = 8;

impl Links {
    pub(crate) fn serves(&self, connection: &ConnectionId) -> bool {
        self.links
            .values()
            .any(|link| link.holds.accepted.contains_key(connection))
    }

    pub(super) fn hold(
        &mut self,
        router: &RouterId,
        connection: &ConnectionId,
        peer: &SpiffeId,
        until: Mono,
        ctx: &mut Context<'_>,
    ) {
        let Some(link) = self.links.get_mut(router) else {
            return;
        };
        link.holds.restored_until = None;
        link.holds
            .accepted
            .insert(connection.clone(), (peer.clone(), until));
        if link.holds.accepted.len() > ACCEPTED_MAX {
            let first = link
                .holds
                .accepted
                .iter()
                .filter(|(other, _)| *other != connection)
                .min_by_key(|(_, (_, until))| *until)
                .map(|(other, _)| other.clone());
            if let Some(connection) = first {
                link.holds.accepted.remove(&connection);
                ctx.effect(Effect::ConnectionClosed {
                    connection,
                    reason: "too many connections on one link",
                });
            }
        }
    }

    /// Close of an accepted connection by its owner.
    pub(crate) fn close(
        &mut self,
        call: CallId,
        connection: &ConnectionId,
        peer: &SpiffeId,
        ctx: &mut Context<'_>,
    ) -> Option<LinkEvent> {
        let found = self
            .links
            .iter_mut()
            .find(|(_, link)| link.holds.accepted.contains_key(connection));
        let Some((router, link)) = found else {
            ctx.effect(Effect::Answer {
                call,
                result: Ok(Answer::Closed),
            });
            return None;
        };
        if link
            .holds
            .accepted
            .get(connection)
            .is_some_and(|(owner, _)| owner != peer)
        {
            let what = format!("close connection {connection}, which another identity opened");
            ctx.refuse(
                call,
                Refusal::Denied {
                    id: peer.clone(),
                    what,
                },
            );
            return None;
        }
        link.holds.accepted.remove(connection);
        let router = router.clone();
        let event = link
            .holds
            .is_empty()
            .then(|| self.remove(&router, "closed by its last holder", ctx))
            .flatten();
        ctx.effect(Effect::Answer {
            call,
            result: Ok(Answer::Closed),
        });
        event
    }

    /// Links that nothing holds any more and that are silent, or stale for too long.
    pub(super) fn end_expired(&mut self, ctx: &mut Context<'_>) -> Vec<LinkEvent> {
        let stale_limit = crate::attach::stale_limit(ctx);
        let silent_after = ctx.config.times.silent_after;
        let due: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.end(stale_limit, silent_after) <= ctx.now.mono)
            .map(|(router, _)| router.clone())
            .collect();
        due.iter()
            .filter_map(|router| self.remove(router, "expired and silent", ctx))
            .collect()
    }
}
