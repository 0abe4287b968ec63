//! Watchers that move to another replica when theirs ends the stream, and what each stream told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use vl3_proto::registry::NetworkServiceEndpointResponse;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient as Endpoints;

use super::load::{Caller, Seen, query};

/// Between two tries to open a watch.
const PACE: Duration = Duration::from_millis(40);
/// Wrong events that are said, for people.
const SAID_MAX: usize = 5;

/// One watch of all endpoints of the load's service.
pub(super) struct Watcher {
    pub(super) name: String,
    task: JoinHandle<()>,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    streams: Vec<Stream>,
    /// Events that a stream must not bring.
    wrong: Vec<String>,
    /// Names that a stream showed once more, and where.
    twice: Vec<(String, String)>,
}

/// What one stream told: a snapshot, then changes. No name is registered again that was taken
/// back, so that every event changes something.
#[derive(Default)]
struct Stream {
    replica: usize,
    events: u64,
    view: Seen,
    deleted: BTreeSet<String>,
}

enum Wrong {
    /// This name was shown before.
    Twice(String),
    Event(String),
}

impl Stream {
    /// What is wrong with this event.
    fn take(&mut self, event: NetworkServiceEndpointResponse) -> Result<(), Wrong> {
        self.events += 1;
        let endpoint = event.network_service_endpoint.unwrap_or_default();
        let name = endpoint.name;
        if event.deleted {
            let known = self.view.remove(&name).is_some();
            let first = self.deleted.insert(name.clone());
            return match (known, first) {
                (true, true) => Ok(()),
                (false, true) => Err(Wrong::Event(format!("{name} deleted that was never shown"))),
                (_, false) => Err(Wrong::Event(format!("{name} deleted twice"))),
            };
        }
        if self.deleted.contains(&name) {
            let wrong = format!("{name} shown after it was deleted");
            return Err(Wrong::Event(wrong));
        }
        let before = self.view.insert(name.clone(), endpoint.url);
        before.map_or(Ok(()), |_| Err(Wrong::Twice(name)))
    }
}

impl Watcher {
    pub(super) fn start(name: String, caller: Caller) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let task = tokio::spawn(watch(caller, Arc::clone(&log)));
        Self { name, task, log }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        locked(&self.log)
    }

    /// What its stream makes of its events, from the first one on.
    pub(super) fn view(&self) -> Seen {
        let log = self.log();
        let last = log.streams.last();
        last.map(|stream| stream.view.clone()).unwrap_or_default()
    }

    /// The replicas of its streams, in turn.
    pub(super) fn replicas(&self) -> Vec<usize> {
        let log = self.log();
        log.streams.iter().map(|stream| stream.replica).collect()
    }

    /// No stream brought an event twice or out of turn, but for names that were registered
    /// again because a call had no answer.
    pub(super) fn faultless(&self, again: &BTreeSet<String>) -> anyhow::Result<()> {
        let log = self.log();
        let twice = log.twice.iter().filter(|(name, _)| !again.contains(name));
        let twice = twice.map(|(name, place)| format!("{place}: {name} shown twice"));
        let wrong: Vec<_> = log.wrong.iter().cloned().chain(twice).collect();
        anyhow::ensure!(
            wrong.is_empty(),
            "{}: {} wrong events: {}",
            self.name,
            wrong.len(),
            wrong[..wrong.len().min(SAID_MAX)].join(", ")
        );
        Ok(())
    }

    /// For people.
    pub(super) fn told(&self) -> String {
        let log = self.log();
        let streams = log.streams.iter();
        let told = streams.map(|stream| format!("{} at {}", stream.events, stream.replica));
        format!(
            "{}: events {}; {} shown again",
            self.name,
            told.collect::<Vec<_>>().join(", "),
            log.twice.len()
        )
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens its watch at the next replica whenever it ends.
async fn watch(mut caller: Caller, log: Arc<Mutex<Log>>) {
    let mut pace = tokio::time::interval(PACE);
    loop {
        pace.tick().await;
        let Some(connection) = caller.connection().await else {
            continue;
        };
        let opened = Endpoints::new(connection.nsm()).find(query(true)).await;
        if let Ok(stream) = opened {
            let mut events = stream.into_inner();
            let number = {
                let mut log = locked(&log);
                if let Some(ended) = log.streams.last_mut() {
                    ended.view.clear();
                    ended.deleted.clear();
                }
                let replica = caller.replica();
                log.streams.push(Stream {
                    replica,
                    ..Stream::default()
                });
                log.streams.len() - 1
            };
            while let Ok(Some(event)) = events.message().await {
                let mut log = locked(&log);
                let (replica, wrong) = {
                    let stream = &mut log.streams[number];
                    (stream.replica, stream.take(event))
                };
                let place = format!("stream {number}, replica {replica}");
                match wrong {
                    Ok(()) => {}
                    Err(Wrong::Twice(name)) => log.twice.push((name, place)),
                    Err(Wrong::Event(wrong)) => log.wrong.push(format!("{place}: {wrong}")),
                }
            }
        }
        caller.move_on();
    }
}
