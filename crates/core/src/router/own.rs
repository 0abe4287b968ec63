//! The router's own addresses on its own port: handed to the shell one change at a time, again
//! after a failure, until those that stand are those of the lease.

use core::time::Duration;

use ipnet::IpNet;

use crate::backoff::Backoff;
use crate::machine::Ticket;
use crate::router::Effect;
use crate::router::context::Context;
use crate::time::Mono;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(crate) struct OwnAddresses {
    wanted: Option<Vec<IpNet>>,
    /// What the shell confirmed; unset while nothing is known to stand.
    standing: Option<Vec<IpNet>>,
    in_flight: Option<(Ticket, Vec<IpNet>)>,
    retry_at: Option<Mono>,
    backoff: Backoff,
    last_error: Option<String>,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        Self {
            wanted: None,
            standing: None,
            in_flight: None,
            retry_at: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            last_error: None,
        }
    }
}

impl OwnAddresses {
    /// Hands over what the lease says by now, unless it stands or a change is under way.
    pub(crate) fn follow(&mut self, addresses: &[IpNet], ctx: &mut Context<'_>) {
        if self.wanted.as_deref() != Some(addresses) {
            self.wanted = Some(addresses.to_vec());
            // Another change is no repetition of the one that failed.
            self.retry_at = None;
            self.backoff.reset();
        }
        self.hand_over(ctx);
    }

    fn hand_over(&mut self, ctx: &mut Context<'_>) {
        let waits = self.retry_at.is_some_and(|at| at > ctx.now.mono);
        if self.in_flight.is_some() || waits || self.stands() {
            return;
        }
        let Some(addresses) = self.wanted.clone() else {
            return;
        };
        self.retry_at = None;
        let ticket = ctx.ticket();
        self.in_flight = Some((ticket, addresses.clone()));
        ctx.effect(Effect::SetOwnAddresses {
            ticket,
            addresses,
            mtu: ctx.config.mtu,
        });
    }

    /// Whether the ticket was one of these.
    pub(crate) fn installed(
        &mut self,
        ticket: Ticket,
        result: &Result<(), String>,
        ctx: &mut Context<'_>,
    ) -> bool {
        let Some((_, addresses)) = self.in_flight.take_if(|(expected, _)| *expected == ticket)
        else {
            return false;
        };
        match result {
            Ok(()) => {
                self.standing = Some(addresses);
                self.last_error = None;
                self.backoff.reset();
            }
            Err(error) => {
                // Some of the change may have taken effect.
                self.standing = None;
                self.last_error = Some(error.clone());
                if self.wanted.as_ref() == Some(&addresses) {
                    self.retry_at = Some(ctx.now.mono + self.backoff.next(ctx.rng));
                }
            }
        }
        self.hand_over(ctx);
        true
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) {
        self.hand_over(ctx);
    }

    pub(crate) fn next_wake(&self) -> Option<(Mono, &'static str)> {
        self.retry_at.map(|at| (at, "own addresses"))
    }

    /// Whether the addresses that are wanted are there.
    pub(crate) fn stands(&self) -> bool {
        self.wanted.is_some() && self.wanted == self.standing
    }

    pub(crate) fn standing(&self) -> &[IpNet] {
        self.standing.as_deref().unwrap_or_default()
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}
