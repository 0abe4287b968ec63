//! Our own NSM connection to one router: dialled when it is our turn, refreshed, healed.

use core::time::Duration;

use crate::backoff::Backoff;
use crate::heal::{Heal, verdict};
use crate::machine::Ticket;
use crate::router::context::Context;
use crate::router::{
    Dial, DialAnswer, DialEvent, DialFailure, DialId, Discovered, Effect, RouterId, RoutesOpen,
    StreamId,
};
use crate::time::Mono;

use super::{LinkEvent, Links, Turn, turn};

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A dial without an answer is over after that long (NSM's request timeout).
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// The client side of one link, and of one router that has none yet.
#[derive(Debug)]
pub(super) struct Dialer {
    backoff: Backoff,
    stream_backoff: Backoff,
    /// Not before.
    next: Mono,
    /// Since when this router would dial if it were its turn.
    wanting_since: Option<Mono>,
    /// The wait of the side that lets the other dial first, jitter included.
    wait: Duration,
    in_flight: Option<InFlight>,
    held: Option<Held>,
    last_error: Option<String>,
}

#[derive(Debug)]
struct InFlight {
    ticket: Ticket,
    dial: DialId,
    target: Discovered,
    until: Mono,
    refresh: bool,
}

/// A connection that the other side has answered.
#[derive(Debug)]
struct Held {
    dial: DialId,
    target: Discovered,
    refresh_at: Mono,
    monitor_up: bool,
    stream: Option<StreamId>,
    /// When to ask for the stream (again); unset while one is asked for or open.
    stream_at: Option<Mono>,
    /// Asked for and neither open nor refused.
    stream_asked_until: Option<Mono>,
    refresh_asked: bool,
}

impl Dialer {
    pub(super) fn new(ctx: &mut Context<'_>) -> Self {
        let wait = ctx.config.times.dial_wait;
        let quarter = u64::try_from((wait / 4).as_nanos()).unwrap_or(u64::MAX);
        Self {
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            stream_backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            next: ctx.now.mono,
            wanting_since: None,
            wait: wait + Duration::from_nanos(ctx.rng.below(quarter.saturating_add(1))),
            in_flight: None,
            held: None,
            last_error: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_none() && self.in_flight.is_none()
    }

    pub(super) const fn holds(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn is(&self, dial: DialId) -> bool {
        self.held.as_ref().is_some_and(|held| held.dial == dial)
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.clone()
    }

    /// The world changed: do not wait for the back-off.
    pub(super) fn retry_now(&mut self, now: Mono) {
        self.backoff.reset();
        self.next = self.next.min(now);
    }

    /// Gives the connection up, telling the other side.
    pub(super) fn close(&mut self, ctx: &mut Context<'_>) {
        if let Some(held) = self.held.take() {
            ctx.effect(Effect::CloseDial { dial: held.dial });
        }
        if let Some(in_flight) = self.in_flight.take().filter(|in_flight| !in_flight.refresh) {
            ctx.effect(Effect::CloseDial {
                dial: in_flight.dial,
            });
        }
        self.next = ctx.now.mono + self.backoff.next(ctx.rng);
        self.wanting_since = None;
    }

    pub(super) fn stream(&mut self, stream: StreamId, up: bool, ctx: &mut Context<'_>) {
        let Some(held) = &mut self.held else { return };
        if up {
            held.stream = Some(stream);
            held.stream_at = None;
            held.stream_asked_until = None;
        } else if held.stream == Some(stream) {
            held.stream = None;
            held.stream_at = Some(ctx.now.mono + self.stream_backoff.next(ctx.rng));
            // Control may be down: ask at once.
            held.refresh_asked = true;
        }
    }

    pub(super) fn stream_failed(&mut self, ctx: &mut Context<'_>) {
        let Some(held) = &mut self.held else { return };
        held.stream_asked_until = None;
        held.stream_at = Some(ctx.now.mono + self.stream_backoff.next(ctx.rng));
    }

    pub(super) fn next_wake(&self) -> Option<(Mono, &'static str)> {
        let in_flight = self
            .in_flight
            .as_ref()
            .map(|in_flight| (in_flight.until, "dial timeout"));
        if in_flight.is_some() {
            return in_flight;
        }
        let Some(held) = &self.held else {
            let wanted = self.wanting_since.map(|since| self.next.max(since));
            return wanted.map(|at| (at, "dial"));
        };
        let refresh = if held.refresh_asked {
            self.next
        } else {
            held.refresh_at.max(self.next)
        };
        let stream = held.stream_at.or(held.stream_asked_until);
        let stream = stream.map(|at| (at, "routes stream"));
        [Some((refresh, "link refresh")), stream]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Links {
    /// The answer to a dial.
    pub(crate) fn dialled(
        &mut self,
        ticket: Ticket,
        result: Result<Box<DialAnswer>, DialFailure>,
        key_in_use: impl Fn(&DialAnswer) -> bool,
        ctx: &mut Context<'_>,
    ) -> Option<LinkEvent> {
        let found = self.dialers.iter_mut().find(|(_, dialer)| {
            dialer
                .in_flight
                .as_ref()
                .is_some_and(|in_flight| in_flight.ticket == ticket)
        });
        let (router, dialer) = found?;
        let router = router.clone();
        let in_flight = dialer.in_flight.take()?;
        let answer = match result {
            Ok(answer) => answer,
            Err(failure) => {
                self.dial_failed(&router, failure.to_string(), ctx);
                if !in_flight.refresh {
                    ctx.effect(Effect::CloseDial {
                        dial: in_flight.dial,
                    });
                }
                return None;
            }
        };
        let checked = self
            .check_peer(
                &answer.peer,
                &answer.hello,
                answer.public_key,
                key_in_use(&answer),
                Some(answer.endpoint),
                answer.mtu,
                ctx,
            )
            .map_err(|refusal| refusal.to_string())
            .and_then(|(answered, stored)| {
                if answered == router {
                    Ok(stored)
                } else {
                    Err(format!("{answered} answered in place of {router}"))
                }
            });
        let stored = match checked {
            Ok(stored) => stored,
            Err(reason) => {
                self.dial_failed(&router, reason, ctx);
                ctx.effect(Effect::CloseDial {
                    dial: in_flight.dial,
                });
                if in_flight.refresh
                    && let Some(dialer) = self.dialers.get_mut(&router)
                {
                    dialer.held = None;
                }
                return None;
            }
        };
        let down = self.links.get(&router).is_some_and(|link| !link.data_up());
        let event = self.establish(&router, stored, down && !in_flight.refresh, ctx);
        let now = ctx.now.mono;
        if let Some(link) = self.links.get_mut(&router) {
            link.holds.restored_until = None;
            link.holds.dialled_until = Some(now + answer.expires_in);
            link.down_since = link.down_since.map(|_| now);
        }
        let Some(dialer) = self.dialers.get_mut(&router) else {
            return event;
        };
        dialer.backoff.reset();
        dialer.last_error = None;
        dialer.wanting_since = None;
        // A failed refresh must not be repeated in a tight loop even when tokens are short.
        dialer.next = now + RETRY_FIRST;
        let refresh_at = now + refresh_after(answer.expires_in, ctx);
        match &mut dialer.held {
            Some(held) if held.dial == in_flight.dial => {
                held.refresh_at = refresh_at;
                held.refresh_asked = false;
                // The answer proves control; the shell opens the monitor again.
                held.monitor_up = true;
                if event.is_some() {
                    held.stream = None;
                    held.stream_at = Some(now);
                }
            }
            held => {
                if let Some(old) = held.take() {
                    ctx.effect(Effect::CloseDial { dial: old.dial });
                }
                *held = Some(Held {
                    dial: in_flight.dial,
                    target: in_flight.target,
                    refresh_at,
                    monitor_up: true,
                    stream: None,
                    stream_at: Some(now),
                    stream_asked_until: None,
                    refresh_asked: false,
                });
            }
        }
        event
    }

    fn dial_failed(&mut self, router: &RouterId, reason: String, ctx: &mut Context<'_>) {
        if let Some(dialer) = self.dialers.get_mut(router) {
            dialer.last_error = Some(reason);
            dialer.next = ctx.now.mono + dialer.backoff.next(ctx.rng);
        }
    }

    /// What the monitor of our connection says.
    pub(crate) fn dial_event(
        &mut self,
        dial: DialId,
        event: DialEvent,
        ctx: &mut Context<'_>,
    ) -> Option<LinkEvent> {
        let (router, dialer) = self
            .dialers
            .iter_mut()
            .find(|(_, dialer)| dialer.is(dial))?;
        let router = router.clone();
        let held = dialer.held.as_mut()?;
        match event {
            DialEvent::Up => held.monitor_up = true,
            DialEvent::Down => {
                held.monitor_up = false;
                held.refresh_asked = true;
            }
            DialEvent::RefreshRequested => held.refresh_asked = true,
            DialEvent::Deleted => {
                dialer.held = None;
                dialer.next = ctx.now.mono + dialer.backoff.next(ctx.rng);
                let link = self.links.get_mut(&router)?;
                link.holds.dialled_until = None;
                if link.holds.is_empty() {
                    return self.remove(&router, "closed by the other side", ctx);
                }
            }
        }
        None
    }

    /// Whoever is to be dialled, refreshed or healed by now. After every input: any may have
    /// changed whose turn it is.
    pub(crate) fn dial_due(&mut self, ctx: &mut Context<'_>) {
        if ctx.fenced || ctx.state.lease.is_none() {
            return;
        }
        let routers: Vec<_> = self.dialers.keys().cloned().collect();
        for router in routers {
            self.step(&router, ctx);
        }
    }

    fn step(&mut self, router: &RouterId, ctx: &mut Context<'_>) {
        let now = ctx.now.mono;
        let Some(dialer) = self.dialers.get_mut(router) else {
            return;
        };
        if let Some(in_flight) = &dialer.in_flight {
            if in_flight.until > now {
                return;
            }
            let (dial, refresh) = (in_flight.dial, in_flight.refresh);
            dialer.in_flight = None;
            if !refresh {
                ctx.effect(Effect::CloseDial { dial });
            }
            self.dial_failed(router, "no answer in time".to_owned(), ctx);
            return;
        }
        if dialer.held.is_some() {
            self.tend(router, ctx)
        } else {
            self.consider(router, ctx)
        }
    }

    /// Our connection stands: refresh it, keep its stream, heal it.
    fn tend(&mut self, router: &RouterId, ctx: &mut Context<'_>) {
        let now = ctx.now.mono;
        let link = self.links.get(router);
        let data = link.is_some_and(super::Link::data_up);
        // Down for as long as it takes a fresh peer to shake hands: then not again at once.
        let settled = link
            .and_then(|link| link.down_since)
            .is_some_and(|since| now.saturating_since(since) >= ctx.config.times.data_down_after);
        let Some(dialer) = self.dialers.get_mut(router) else {
            return;
        };
        let Some(held) = &mut dialer.held else { return };
        if held.stream_asked_until.is_some_and(|until| until <= now) {
            held.stream_asked_until = None;
            held.stream_at = Some(now + dialer.stream_backoff.next(ctx.rng));
        }
        if held.stream_at.is_some_and(|at| at <= now) {
            held.stream_at = None;
            held.stream_asked_until = Some(now + DIAL_TIMEOUT);
            let dial = held.dial;
            let open = open(ctx);
            ctx.effect(Effect::OpenRoutes { dial, open });
        }
        if dialer.next > now {
            return;
        }
        let control = held.monitor_up && !held.refresh_asked;
        let target = held.target.clone();
        let newer = self
            .known
            .get(router)
            .map(|known| known.discovered.clone())
            .filter(|known| *known != target && known.generation >= target.generation);
        let heal = if newer.is_some() {
            Heal::Reselect
        } else {
            verdict(control, data || !settled)
        };
        let refresh = match heal {
            Heal::Nothing if held.refresh_at > now => return,
            Heal::Nothing | Heal::Refresh => true,
            Heal::Reselect | Heal::ReselectWithBackoff => false,
        };
        let dial = held.dial;
        // Until the answer comes the back-off counts from here.
        dialer.next = now + dialer.backoff.next(ctx.rng);
        self.send(
            router,
            newer.unwrap_or(target),
            refresh.then_some(dial),
            ctx,
        );
    }

    /// No connection of our own: dial if it is our turn.
    fn consider(&mut self, router: &RouterId, ctx: &mut Context<'_>) {
        let now = ctx.now.mono;
        let Some(target) = self.known.get(router).map(|known| known.discovered.clone()) else {
            self.dialers.remove(router);
            return;
        };
        let linked = self.links.get(router).is_some_and(|link| {
            let down_long = link
                .down_since
                .is_some_and(|since| now.saturating_since(since) >= ctx.config.times.dial_wait);
            !link.holds.accepted.is_empty() && !down_long
        });
        let own = &ctx.config.router;
        let turn = turn(own, ctx.config.dials_only, router, target.dials_only);
        let full = !self.links.contains_key(router) && self.links.len() >= ctx.config.limits.links;
        let member = ctx.document.member(&router.domain, ctx.now.wall).is_some();
        let Some(dialer) = self.dialers.get_mut(router) else {
            return;
        };
        if linked || full || !member || turn == Turn::Never {
            dialer.wanting_since = None;
            return;
        }
        let since = *dialer.wanting_since.get_or_insert(now);
        if turn == Turn::Later && now.saturating_since(since) < dialer.wait {
            dialer.next = dialer.next.max(since + dialer.wait);
        }
        if dialer.next > now {
            return;
        }
        self.send(router, target, None, ctx);
    }

    fn send(
        &mut self,
        router: &RouterId,
        target: Discovered,
        refresh: Option<DialId>,
        ctx: &mut Context<'_>,
    ) {
        let Some(member) = ctx.document.member(&router.domain, ctx.now.wall) else {
            return;
        };
        let trust_domain = member.trust_domain.clone();
        let dial = refresh.unwrap_or_else(|| {
            self.next_dial += 1;
            DialId(self.next_dial)
        });
        let ticket = ctx.ticket();
        let lease = ctx.state.lease.as_ref();
        let own = lease.map(|lease| {
            lease
                .addresses()
                .map(Into::into)
                .chain(lease.prefixes())
                .collect()
        });
        let message = Dial {
            dial,
            router: router.clone(),
            address: target.address,
            trust_domain,
            hello: ctx.hello(),
            public_key: ctx.config.public_key,
            udp_port: ctx.config.udp_port,
            mtu: ctx.config.mtu,
            addresses: own.unwrap_or_default(),
            refresh: refresh.is_some(),
        };
        if let Some(dialer) = self.dialers.get_mut(router) {
            let until = ctx.now.mono + DIAL_TIMEOUT;
            dialer.in_flight = Some(InFlight {
                ticket,
                dial,
                target,
                until,
                refresh: refresh.is_some(),
            });
        }
        ctx.effect(Effect::Dial {
            ticket,
            dial: Box::new(message),
        });
    }
}

fn open(ctx: &Context<'_>) -> RoutesOpen {
    let hello = ctx.hello();
    RoutesOpen {
        uid: hello.uid,
        router: ctx.config.router.clone(),
        instance: hello.instance,
        generation: hello.generation,
    }
}

/// A fifth of the life (NSM's rule for the first client of a path), up to a quarter earlier.
fn refresh_after(life: Duration, ctx: &mut Context<'_>) -> Duration {
    let fifth = life / 5;
    let quarter = u64::try_from((fifth / 4).as_nanos()).unwrap_or(u64::MAX);
    fifth - Duration::from_nanos(ctx.rng.below(quarter.saturating_add(1)))
}
