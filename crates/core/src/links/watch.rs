//! Who is there, by the registry's watch. What vanishes from it is not dialled anew; links
//! live on their own evidence.

use crate::router::context::Context;
use crate::router::{Discovered, RouterId, WatchEvent};

use super::dial::Dialer;
use super::install::dialable;
use super::{LinkEvent, Links};

#[derive(Debug)]
pub(super) struct Known {
    pub(super) discovered: Discovered,
    epoch: u64,
}

impl Links {
    pub(crate) fn watch(&mut self, event: WatchEvent, ctx: &mut Context<'_>) -> Option<LinkEvent> {
        match event {
            WatchEvent::Opened => {
                self.epoch += 1;
                self.changes += 1;
                self.settles = Some(ctx.now.mono + ctx.config.times.watch_grace);
            }
            WatchEvent::Gone(router) => {
                self.changes += u64::from(self.known.remove(&router).is_some());
                self.drop_idle_dialer(&router);
            }
            WatchEvent::Lost => self.settles = None,
            WatchEvent::Complete => {
                self.changes += u64::from(!self.complete);
                self.complete = true;
            }
            WatchEvent::Found(discovered) => return self.found(discovered, ctx),
        }
        None
    }

    fn found(&mut self, discovered: Discovered, ctx: &mut Context<'_>) -> Option<LinkEvent> {
        let router = discovered.router.clone();
        if discovered.uid != ctx.config.uid || !dialable(discovered.address, ctx) {
            return None;
        }
        if router == ctx.config.router {
            let own = ctx.state.lease.as_ref().map(|lease| lease.generation);
            return own
                .is_some_and(|own| discovered.generation > own)
                .then_some(LinkEvent::Fenced);
        }
        // The registry's latest word counts, a lower generation too: a registry that was restored
        // and a router that lost its disk count anew. What is linked with a higher one stays
        // as long as it lives.
        if !self.known.contains_key(&router) && self.known.len() >= ctx.config.limits.discovered {
            return None;
        }
        let changed = self
            .known
            .get(&router)
            .is_none_or(|known| known.discovered != discovered);
        let before = self.known.insert(
            router.clone(),
            Known {
                discovered,
                epoch: self.epoch,
            },
        );
        self.changes += u64::from(before.is_none());
        let dialer = self
            .dialers
            .entry(router)
            .or_insert_with(|| Dialer::new(ctx));
        if changed {
            dialer.retry_now(ctx.now.mono);
        }
        None
    }

    /// After the grace, what the re-opened watch did not show is gone.
    pub(super) fn forget_unseen(&mut self, ctx: &Context<'_>) {
        if self.settles.is_none_or(|at| at > ctx.now.mono) {
            return;
        }
        self.settles = None;
        let epoch = self.epoch;
        let gone: Vec<RouterId> = self
            .known
            .iter()
            .filter(|(_, known)| known.epoch < epoch)
            .map(|(router, _)| router.clone())
            .collect();
        for router in gone {
            self.changes += u64::from(self.known.remove(&router).is_some());
            self.drop_idle_dialer(&router);
        }
    }

    fn drop_idle_dialer(&mut self, router: &RouterId) {
        if self.dialers.get(router).is_some_and(Dialer::is_idle) {
            self.dialers.remove(router);
        }
    }
}
