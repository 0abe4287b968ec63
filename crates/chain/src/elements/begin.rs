//! Runs the calls of one connection one after another, those of different connections in
//! parallel, and remembers what was answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use vl3_proto::connection::{Connection, State};
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections, Slots};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;

#[derive(Clone, Copy, Debug)]
pub struct BeginLimits {
    /// Connections remembered; further ones are refused.
    pub connections_max: usize,
    /// Calls that wait for their turn on one connection; further ones are refused.
    pub waiting_max: usize,
}

impl Default for BeginLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            waiting_max: 8,
        }
    }
}

#[derive(Debug)]
pub struct Begin {
    limits: BeginLimits,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
}

/// One connection. Whoever holds the turn alone reads and writes the record; the mutex only
/// lends it out and is never held across an await.
#[derive(Debug)]
struct Entry {
    turn: Semaphore,
    waiting: AtomicUsize,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    connection: Option<Connection>,
    slots: Slots,
    /// Taken out of the map: whoever waited for it starts over.
    gone: bool,
}

/// The right to work on one connection; ends when dropped.
struct Turn<'a> {
    entry: Arc<Entry>,
    begin: &'a Begin,
    id: String,
}

impl Begin {
    pub fn new(limits: BeginLimits) -> Self {
        Self {
            limits,
            entries: Mutex::default(),
        }
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Error> {
        let mut entries = locked(&self.entries);
        if let Some(entry) = entries.get(id) {
            return Ok(Arc::clone(entry));
        }
        if entries.len() >= self.limits.connections_max {
            return Err(Error::Exhausted(format!(
                "connections: the limit of {} is reached",
                self.limits.connections_max
            )));
        }
        let entry = Arc::new(Entry {
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            record: Mutex::default(),
        });
        entries.insert(id.to_owned(), Arc::clone(&entry));
        Ok(entry)
    }

    async fn turn(&self, id: &str) -> Result<Turn<'_>, Error> {
        // Each round means that another call closed the connection meanwhile.
        for _ in 0..=self.limits.waiting_max {
            let entry = self.entry(id)?;
            if entry.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.waiting_max {
                entry.waiting.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            // The permit comes back when the `Turn` is dropped.
            let acquired = entry
                .turn
                .acquire()
                .await
                .map(tokio::sync::SemaphorePermit::forget);
            entry.waiting.fetch_sub(1, Ordering::Relaxed);
            acquired.map_err(|closed| Error::Internal(closed.to_string()))?;
            let gone = locked(&entry.record).gone;
            let turn = Turn {
                entry,
                begin: self,
                id: id.to_owned(),
            };
            if !gone {
                return Ok(turn);
            }
        }
        Err(Error::Unavailable(format!(
            "connection {id:?}: more than {} calls wait for their turn",
            self.limits.waiting_max
        )))
    }
}

impl Turn<'_> {
    /// Lends the record's slots and answer to this call.
    fn take(&self) -> (Option<Connection>, Slots) {
        let mut record = locked(&self.entry.record);
        (record.connection.take(), std::mem::take(&mut record.slots))
    }

    fn put(&self, connection: Connection, slots: Slots) {
        let mut record = locked(&self.entry.record);
        record.connection = Some(connection);
        record.slots = slots;
    }
}

impl Drop for Turn<'_> {
    /// A connection that holds nothing is forgotten; then the next call gets its turn.
    fn drop(&mut self) {
        let mut entries = locked(&self.begin.entries);
        let mut record = locked(&self.entry.record);
        if record.connection.is_none() && !record.gone {
            record.gone = true;
            entries.remove(&self.id);
        }
        self.entry.turn.add_permits(1);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn checked_id(connection: &Connection) -> Result<String, Error> {
    if connection.id.is_empty() {
        return Err(Error::Invalid(
            "connection.id: must not be empty".to_owned(),
        ));
    }
    Ok(connection.id.clone())
}

impl Element<Connections> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            let connection = request.connection.get_or_insert_with(Connection::default);
            let id = checked_id(connection)?;
            let turn = self.turn(&id).await?;
            let (remembered, slots) = turn.take();
            call.known = remembered.is_some();
            call.slots = slots;
            // Reselection keeps the record until the new answer stands: the elements behind
            // see the state and start over, the opener stays bound.
            match next.request(call, request).await {
                Ok(mut answer) => {
                    answer.set_state(State::Up);
                    turn.put(answer.clone(), std::mem::take(&mut call.slots));
                    Ok(answer)
                }
                Err(error) => {
                    if let Some(remembered) = remembered {
                        turn.put(remembered, std::mem::take(&mut call.slots));
                    }
                    Err(error)
                }
            }
        })
    }

    /// A close for an id that is not remembered goes on all the same: the role's machine may
    /// hold the connection from before a restart.
    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        closing: Connection,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let id = checked_id(&closing)?;
            let turn = self.turn(&id).await?;
            let (remembered, slots) = turn.take();
            call.known = remembered.is_some();
            call.slots = slots;
            let mut target = remembered.clone().unwrap_or_else(|| closing.clone());
            if call.peer.is_some() {
                // The remembered connection is closed, with the path of this call.
                target.path.clone_from(&closing.path);
            }
            target.id.clone_from(&id);
            match (next.close(call, target).await, remembered) {
                (Err(denied @ Error::Denied(_)), Some(remembered)) => {
                    turn.put(remembered, std::mem::take(&mut call.slots));
                    Err(denied)
                }
                (result, _) => result,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elements::harness::{Rig, Tail, first_request};
    use crate::elements::updatepath::UpdatePath;

    fn rig(tail: Tail, limits: BeginLimits) -> Rig {
        Rig::with_tail(tail, |b| {
            b.push(UpdatePath::new("nsc", Arc::new(String::new)))
                .push(Begin::new(limits))
        })
    }

    fn closing(id: &str) -> Connection {
        first_request(id).connection.unwrap_or_default()
    }

    #[tokio::test]
    async fn calls_of_one_connection_wait_for_each_other_and_others_do_not() {
        let gate = Arc::new(Semaphore::new(0));
        let tail = Tail::gated(&gate);
        let rig = rig(tail, BeginLimits::default());
        let run = |id: &str| {
            let (chain, call, request) = (rig.chain.clone(), rig.call("a"), first_request(id));
            tokio::spawn(async move { chain.request(call, request).await })
        };
        let (first, second) = (run("x"), run("x"));
        tokio::task::yield_now().await;
        let other = run("y");
        gate.add_permits(2);
        let other = other.await.unwrap().unwrap();
        assert_eq!(other.id, "y");
        assert_eq!(
            rig.tail.requests().len(),
            2,
            "the second call on x has not started"
        );
        gate.add_permits(1);
        let (first, second) = (
            first.await.unwrap().unwrap(),
            second.await.unwrap().unwrap(),
        );
        assert_eq!((first.state(), second.state()), (State::Up, State::Up));
    }

    #[tokio::test]
    async fn limits_refuse_with_their_name() {
        let rig = rig(
            Tail::default(),
            BeginLimits {
                connections_max: 1,
                waiting_max: 1,
            },
        );
        rig.chain
            .request(rig.call("a"), first_request("x"))
            .await
            .unwrap();
        let error = rig
            .chain
            .request(rig.call("a"), first_request("y"))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Exhausted(text) if text.contains("limit of 1")));
        rig.chain.close(rig.call("a"), closing("x")).await.unwrap();
        rig.chain
            .request(rig.call("a"), first_request("y"))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_failed_first_request_leaves_nothing_and_a_failed_refresh_keeps_the_connection() {
        let rig = rig(
            Tail::default(),
            BeginLimits {
                connections_max: 1,
                waiting_max: 1,
            },
        );
        rig.tail.fail_with(Some(Error::Unavailable("later".into())));
        rig.chain
            .request(rig.call("a"), first_request("x"))
            .await
            .unwrap_err();
        rig.tail.fail_with(None);
        rig.chain
            .request(rig.call("a"), first_request("y"))
            .await
            .unwrap();
        rig.tail.fail_with(Some(Error::Unavailable("later".into())));
        rig.chain
            .request(rig.call("a"), first_request("y"))
            .await
            .unwrap_err();
        let other = rig.chain.request(rig.call("a"), first_request("z")).await;
        assert!(matches!(other, Err(Error::Exhausted(_))), "y still counts");
    }

    #[tokio::test]
    async fn a_denied_close_keeps_the_connection() {
        let rig = rig(
            Tail::default(),
            BeginLimits {
                connections_max: 1,
                waiting_max: 1,
            },
        );
        rig.chain
            .request(rig.call("a"), first_request("x"))
            .await
            .unwrap();
        rig.tail.fail_with(Some(Error::Denied("not yours".into())));
        rig.chain
            .close(rig.call("b"), closing("x"))
            .await
            .unwrap_err();
        rig.tail.fail_with(None);
        let other = rig.chain.request(rig.call("a"), first_request("z")).await;
        assert!(matches!(other, Err(Error::Exhausted(_))), "x still counts");
        rig.chain.close(rig.call("a"), closing("x")).await.unwrap();
        rig.chain.close(rig.call("a"), closing("x")).await.unwrap();
        assert_eq!(rig.tail.closes().len(), 3, "every close reaches the tail");
    }
}
