//! Who holds TCP connections, and who gives way (R6.4).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio::time::Instant;
use vl3_runtime::CancellationToken;

use crate::metrics::{Drop, Metrics};

/// Questions of one connection in flight; then it is read no further.
pub(super) const QUESTIONS_MAX: usize = 64;

/// Open connections, in all and per client. A client at its limit gets no more. At the limit in
/// all the newcomer takes the place of a connection without a question in flight: of the client
/// that holds most, the one that was silent for longest. So whoever opens very many crowds out
/// itself.
#[derive(Debug)]
pub(crate) struct Connections {
    open: Mutex<Open>,
    all_max: usize,
    per_client_max: usize,
    began: Instant,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Open {
    by_client: HashMap<IpAddr, Vec<Arc<State>>>,
    all: usize,
}

#[derive(Debug)]
struct State {
    in_flight: Arc<Semaphore>,
    /// Milliseconds after the start: of the last question, or of its begin.
    active: AtomicU64,
    crowded_out: CancellationToken,
}

impl State {
    /// The reader holds the permit of the next question.
    fn is_idle(&self) -> bool {
        self.in_flight.available_permits() >= QUESTIONS_MAX - 1
    }
}

/// One open connection; closed when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    of: Arc<Connections>,
    client: IpAddr,
    state: Arc<State>,
}

impl Connections {
    pub(crate) fn new(all_max: usize, per_client_max: usize, metrics: Metrics) -> Self {
        Self {
            open: Mutex::default(),
            all_max,
            per_client_max,
            began: Instant::now(),
            metrics,
        }
    }

    /// `None` at the limit: counted.
    pub(super) fn open(self: &Arc<Self>, client: IpAddr) -> Option<Connection> {
        let state = Arc::new(State {
            in_flight: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            active: AtomicU64::new(self.now()),
            crowded_out: CancellationToken::new(),
        });
        let mut open = self.lock();
        let own = open.by_client.get(&client).map_or(0, Vec::len);
        let has_room = own < self.per_client_max
            && (open.all < self.all_max || self.make_room(&mut open, client));
        if !has_room {
            self.metrics.dropped(Drop::Connections);
            return None;
        }
        open.all += 1;
        let of_client = open.by_client.entry(client).or_default();
        of_client.push(Arc::clone(&state));
        self.metrics.connection_opened();
        Some(Connection {
            of: Arc::clone(self),
            client,
            state,
        })
    }

    /// Never takes from a client that has less than the newcomer would have.
    fn make_room(&self, open: &mut Open, newcomer: IpAddr) -> bool {
        let own = open.by_client.get(&newcomer).map_or(0, Vec::len);
        let idle = open.by_client.iter().flat_map(|(client, states)| {
            let held = states.len();
            let idle = states.iter().filter(|state| state.is_idle());
            idle.map(move |state| (held, *client, state))
        });
        let victim = idle
            .filter(|(held, ..)| *held > own)
            .max_by_key(|(held, _, state)| {
                let silent_first = u64::MAX - state.active.load(Ordering::Relaxed);
                (*held, silent_first)
            })
            .map(|(_, client, state)| (client, Arc::clone(state)));
        let Some((client, state)) = victim else {
            return false;
        };
        self.remove(open, client, &state);
        state.crowded_out.cancel();
        self.metrics.dropped(Drop::CrowdedOut);
        true
    }

    fn remove(&self, open: &mut Open, client: IpAddr, state: &Arc<State>) {
        if open.remove(client, state) {
            self.metrics.connection_closed();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// False when it made room before.
    fn remove(&mut self, client: IpAddr, state: &Arc<State>) -> bool {
        let Some(of_client) = self.by_client.get_mut(&client) else {
            return false;
        };
        let place = of_client.iter().position(|known| Arc::ptr_eq(known, state));
        if let Some(at) = place {
            of_client.swap_remove(at);
            self.all -= 1;
        }
        if of_client.is_empty() {
            self.by_client.remove(&client);
        }
        place.is_some()
    }
}

impl Connection {
    /// What bounds its questions in flight.
    pub(super) fn in_flight(&self) -> Arc<Semaphore> {
        Arc::clone(&self.state.in_flight)
    }

    /// A question came.
    pub(super) fn spoke(&self) {
        self.state.active.store(self.of.now(), Ordering::Relaxed);
    }

    /// Ends when it has to make room.
    pub(super) async fn crowded_out(&self) {
        self.state.crowded_out.cancelled().await;
    }
}

impl core::ops::Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        self.of.remove(&mut open, self.client, &self.state);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn client(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn is_open(connection: &Connection) -> bool {
        !connection.state.crowded_out.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn r6_4_whoever_holds_most_and_says_least_makes_room() {
        let connections = Arc::new(Connections::new(4, 3, Metrics::default()));
        let open = |last| connections.open(client(last));
        let many: Vec<Connection> = (0..3).map(|_| open(1).unwrap()).collect();
        assert!(open(1).is_none(), "three per client");
        let one = open(2).unwrap();
        // The first asks, the second waits for an answer: the third is the idlest.
        tokio::time::advance(Duration::from_secs(1)).await;
        many[0].spoke();
        let _asked = many[1].in_flight().try_acquire_many_owned(2).unwrap();
        let newcomer = open(3).unwrap();
        let are_open: Vec<bool> = many.iter().map(is_open).collect();
        assert_eq!(are_open, [true, true, false]);
        assert!(is_open(&one), "it held one only");
        // What left does not count twice.
        drop(many);
        assert_eq!(connections.lock().all, 2);
        drop((one, newcomer));
        assert!(connections.lock().by_client.is_empty());
    }

    #[test]
    fn r6_4_nobody_makes_room_for_one_that_has_as_much_or_while_it_waits() {
        let connections = Arc::new(Connections::new(2, 2, Metrics::default()));
        let first = connections.open(client(1)).unwrap();
        let _second = connections.open(client(2)).unwrap();
        assert!(connections.open(client(1)).is_none());
        let _asked = first.in_flight().try_acquire_many_owned(2).unwrap();
        let third = connections.open(client(3)).unwrap();
        assert!(is_open(&first) && is_open(&third));
    }
}
