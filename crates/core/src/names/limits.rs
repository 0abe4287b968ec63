//! What one client may ask (R6.6): so many questions a second, so many waiting at a time.

use core::time::Duration;
use std::net::IpAddr;

use super::ClientClass;
use super::index::{HashKey, Index};
use crate::time::{Mono, Now};

/// Clients remembered; beyond them newcomers share one allowance.
pub const CLIENTS_MAX: usize = 65_536;
/// Remembered clients that are looked at for one that may be forgotten.
const LOOK_MAX: usize = 16;
/// A router asks for all its workloads.
const ROUTER_SHARE: u32 = 20;

/// Limits of one client; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Questions a second, in the long run; as many may come at once after a second of silence.
    pub per_second: u32,
    /// Questions that wait for an answer at one time.
    pub in_flight: u32,
}

impl ClientLimits {
    pub const DEFAULT: Self = Self {
        per_second: 1_000,
        in_flight: 200,
    };
    /// For a shell that limits clients itself.
    pub const NONE: Self = Self {
        per_second: 0,
        in_flight: 0,
    };
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Where a client is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientPlace(u32);

#[derive(Clone, Copy, Debug)]
struct Client {
    address: IpAddr,
    hash: u32,
    /// When its allowance is whole again.
    whole_at: Mono,
    in_flight: u32,
}

#[derive(Debug)]
pub(super) struct Clients {
    limits: ClientLimits,
    key: HashKey,
    index: Index,
    clients: Vec<Client>,
    hand: usize,
    /// The allowance of those that found no place.
    shared: Mono,
}

impl Clients {
    pub(super) const fn new(limits: ClientLimits, key: HashKey) -> Self {
        Self {
            limits,
            key,
            index: Index::new(),
            clients: Vec::new(),
            hand: 0,
            shared: Mono(0),
        }
    }

    pub(super) const fn set_limits(&mut self, limits: ClientLimits) {
        self.limits = limits;
    }

    /// Takes one question of the client's allowance; false when there is none.
    pub(super) fn admit(&mut self, address: IpAddr, class: ClientClass, now: Now) -> bool {
        let per_second = share(self.limits.per_second, class);
        let Some(interval) = 1_000_000_000_u64.checked_div(per_second.into()) else {
            return true;
        };
        let whole_at = match self.place(address, now) {
            Some(place) => &mut self.clients[place].whole_at,
            None => &mut self.shared,
        };
        let next = (*whole_at).max(now.mono) + Duration::from_nanos(interval.max(1));
        let admitted = next.saturating_since(now.mono) <= Duration::from_secs(1);
        if admitted {
            *whole_at = next;
        }
        admitted
    }

    /// The client waits for one more answer; `Err` at its limit. `Ok(None)`: not counted.
    pub(super) fn waits(
        &mut self,
        address: IpAddr,
        class: ClientClass,
        now: Now,
    ) -> Result<Option<ClientPlace>, ()> {
        let limit = share(self.limits.in_flight, class);
        let Some(place) = self.place(address, now) else {
            return Ok(None);
        };
        let client = &mut self.clients[place];
        if limit > 0 && client.in_flight >= limit {
            return Err(());
        }
        client.in_flight += 1;
        Ok(u32::try_from(place).ok().map(ClientPlace))
    }

    pub(super) fn answered(&mut self, place: Option<ClientPlace>) {
        let client = place.and_then(|place| {
            let at = usize::try_from(place.0).ok()?;
            self.clients.get_mut(at)
        });
        if let Some(client) = client {
            client.in_flight = client.in_flight.saturating_sub(1);
        }
    }

    /// Where the client is, or where it can be.
    fn place(&mut self, address: IpAddr, now: Now) -> Option<usize> {
        let hash = match address {
            IpAddr::V4(address) => self.key.hash(&address.octets(), 4),
            IpAddr::V6(address) => self.key.hash(&address.octets(), 6),
        };
        let known = self.index.find(hash, |place| {
            usize::try_from(place)
                .ok()
                .and_then(|at| self.clients.get(at))
                .is_some_and(|client| client.address == address)
        });
        if let Some(known) = known {
            return usize::try_from(known).ok();
        }
        let client = Client {
            address,
            hash,
            whole_at: now.mono,
            in_flight: 0,
        };
        if self.clients.len() < CLIENTS_MAX {
            let at = self.clients.len();
            self.clients.push(client);
            self.index.insert(hash, u32::try_from(at).ok()?);
            return Some(at);
        }
        for _ in 0..LOOK_MAX {
            self.hand = (self.hand + 1) % self.clients.len();
            let old = self.clients[self.hand];
            if old.in_flight == 0 && old.whole_at <= now.mono {
                let place = u32::try_from(self.hand).ok()?;
                self.index.remove(old.hash, place);
                self.index.insert(hash, place);
                self.clients[self.hand] = client;
                return Some(self.hand);
            }
        }
        None
    }
}

const fn share(limit: u32, class: ClientClass) -> u32 {
    match class {
        ClientClass::Member => limit,
        ClientClass::Remote | ClientClass::Sibling => limit.saturating_mul(ROUTER_SHARE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now {
            mono: Mono(millis * 1_000_000),
            ..Now::default()
        }
    }

    fn clients(per_second: u32, in_flight: u32) -> Clients {
        let limits = ClientLimits {
            per_second,
            in_flight,
        };
        Clients::new(limits, HashKey::new(5, 6))
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn r6_6_a_client_asks_so_often_and_takes_nothing_from_others() {
        let mut clients = clients(1_000, 200);
        let mut admitted = |client, count, now| {
            (0..count)
                .filter(|_| clients.admit(address(client), ClientClass::Member, now))
                .count()
        };
        assert_eq!(admitted(1, 5_000, at(0)), 1_000);
        assert_eq!(admitted(1, 100, at(10)), 10);
        assert_eq!(admitted(2, 100, at(10)), 100);
        assert_eq!(admitted(1, 5_000, at(60_000)), 1_000);
        let router = (0..30_000)
            .filter(|_| clients.admit(address(3), ClientClass::Remote, at(0)))
            .count();
        assert_eq!(router, 20_000, "it asks for its workloads");
    }

    #[test]
    fn r6_6_a_client_waits_for_so_many_answers() {
        let mut clients = clients(0, 2);
        let mut waits = |now| clients.waits(address(1), ClientClass::Member, now);
        let first = waits(at(0)).unwrap();
        assert!(waits(at(0)).is_ok());
        assert_eq!(waits(at(0)), Err(()));
        clients.answered(first);
        assert!(
            clients
                .waits(address(1), ClientClass::Member, at(0))
                .is_ok()
        );
        assert!(
            clients
                .waits(address(2), ClientClass::Member, at(0))
                .is_ok()
        );
    }

    #[test]
    fn r6_6_many_clients_take_bounded_memory_and_are_no_way_around() {
        let mut clients = clients(10, 200);
        let count = u32::try_from(CLIENTS_MAX).unwrap();
        let mut admitted = |from: u32, to: u32, now| {
            (from..to)
                .filter(|client| clients.admit(address(*client), ClientClass::Member, now))
                .count()
        };
        assert_eq!(admitted(0, count, at(0)), CLIENTS_MAX);
        assert_eq!(
            admitted(count, 2 * count, at(0)),
            10,
            "they share one allowance"
        );
        assert_eq!(
            admitted(count, 2 * count, at(1_000)),
            CLIENTS_MAX,
            "old ones make room"
        );
        assert_eq!(
            (clients.clients.len(), clients.index.len()),
            (CLIENTS_MAX, CLIENTS_MAX)
        );
    }
}
