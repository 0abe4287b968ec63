//! `connection.MonitorConnection`: the server's own view of each connection, told only to the
//! identity that opened it (nsm-wire 3.5).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use vl3_core::ids::SpiffeId;
use vl3_proto::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, PathSegment, State,
};
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;

#[derive(Clone, Copy, Debug)]
pub struct MonitorLimits {
    /// Streams at once; further ones are refused.
    pub watchers_max: usize,
    /// Streams at once of one identity.
    pub watchers_per_identity_max: usize,
    /// Events that wait for a slow reader; then its stream ends, and it starts over.
    pub backlog_max: usize,
}

impl Default for MonitorLimits {
    fn default() -> Self {
        Self {
            watchers_max: 1024,
            watchers_per_identity_max: 32,
            backlog_max: 64,
        }
    }
}

/// The element and the service's state; shared.
#[derive(Debug)]
pub struct Monitor {
    limits: MonitorLimits,
    state: Mutex<MonitorState>,
}

#[derive(Debug, Default)]
struct MonitorState {
    /// By the server's id: who opened it, and its view.
    connections: BTreeMap<String, (SpiffeId, Connection)>,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    identity: SpiffeId,
    selector: MonitorScopeSelector,
    events: mpsc::Sender<ConnectionEvent>,
}

pub type EventStream = Pin<Box<dyn Stream<Item = Result<ConnectionEvent, tonic::Status>> + Send>>;

impl Monitor {
    pub fn new(limits: MonitorLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    /// The first event holds all that match, none is an event too; then one per change, until
    /// the caller ends the stream or falls behind.
    pub fn watch(
        &self,
        identity: &SpiffeId,
        selector: MonitorScopeSelector,
    ) -> Result<EventStream, Error> {
        let mut state = self.locked();
        state.watchers.retain(|watcher| !watcher.events.is_closed());
        let own = state
            .watchers
            .iter()
            .filter(|watcher| watcher.identity == *identity)
            .count();
        if state.watchers.len() >= self.limits.watchers_max
            || own >= self.limits.watchers_per_identity_max
        {
            return Err(Error::Exhausted(
                "monitor streams: the limit is reached".to_owned(),
            ));
        }
        let initial = state
            .connections
            .iter()
            .filter(|(_, (opener, connection))| {
                opener == identity && selects(&selector, connection)
            })
            .map(|(id, (_, connection))| (id.clone(), connection.clone()))
            .collect();
        let (events, receiver) = mpsc::channel(self.limits.backlog_max.max(1));
        let first = event(ConnectionEventType::InitialStateTransfer, initial);
        if events.try_send(first).is_err() {
            return Err(Error::Internal("a new monitor stream is full".to_owned()));
        }
        state.watchers.push(Watcher {
            identity: identity.clone(),
            selector,
            events,
        });
        Ok(Box::pin(ReceiverStream::new(receiver).map(Ok)))
    }

    /// Tells the opener that its connection changed from this side: REFRESH_REQUESTED asks it
    /// to send a Request now, DOWN to heal.
    pub fn set_state(&self, id: &str, new: State) {
        let mut state = self.locked();
        let Some((opener, mut connection)) = state.connections.get(id).cloned() else {
            return;
        };
        connection.set_state(new);
        state.tell(ConnectionEventType::Update, &opener, id, &connection);
    }

    fn update(&self, opener: &SpiffeId, connection: &Connection) {
        let mut state = self.locked();
        let id = connection.id.clone();
        state
            .connections
            .insert(id.clone(), (opener.clone(), connection.clone()));
        state.tell(ConnectionEventType::Update, opener, &id, connection);
    }

    fn remove(&self, id: &str) {
        let mut state = self.locked();
        if let Some((opener, connection)) = state.connections.remove(id) {
            state.tell(ConnectionEventType::Delete, &opener, id, &connection);
        }
    }

    fn locked(&self) -> MutexGuard<'_, MonitorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MonitorState {
    fn tell(&mut self, kind: ConnectionEventType, opener: &SpiffeId, id: &str, view: &Connection) {
        self.watchers.retain(|watcher| {
            if watcher.identity != *opener || !selects(&watcher.selector, view) {
                return !watcher.events.is_closed();
            }
            let one = BTreeMap::from([(id.to_owned(), view.clone())]);
            // A full backlog ends the stream: the reader opens a new one and gets all of it.
            watcher.events.try_send(event(kind, one)).is_ok()
        });
    }
}

fn event(kind: ConnectionEventType, connections: BTreeMap<String, Connection>) -> ConnectionEvent {
    ConnectionEvent {
        r#type: kind.into(),
        connections,
    }
}

/// All listed services, and the selector's segments as a contiguous part of the path; empty
/// strings match anything.
fn selects(selector: &MonitorScopeSelector, connection: &Connection) -> bool {
    let services = &selector.network_services;
    if !services.is_empty() && !services.contains(&connection.network_service) {
        return false;
    }
    let wanted = &selector.path_segments;
    if wanted.is_empty() {
        return true;
    }
    let fits = |wanted: &PathSegment, got: &PathSegment| {
        [
            (&wanted.name, &got.name),
            (&wanted.id, &got.id),
            (&wanted.token, &got.token),
        ]
        .iter()
        .all(|(wanted, got)| wanted.is_empty() || wanted == got)
    };
    connection.path.as_ref().is_some_and(|path| {
        path.path_segments.windows(wanted.len()).any(|window| {
            wanted
                .iter()
                .zip(window)
                .all(|(wanted, got)| fits(wanted, got))
        })
    })
}

impl Element<Connections> for Arc<Monitor> {
    fn name(&self) -> &'static str {
        "monitor"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath", "begin", "authorize"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            let opener = call.peer.as_ref().map(|peer| peer.id.clone());
            let mut answer = next.request(call, request).await?;
            // Success is UP, whatever the request asked for (reselection too).
            answer.set_state(State::Up);
            if let Some(opener) = opener {
                self.update(&opener, &answer);
            }
            Ok(answer)
        })
    }

    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        closing: Connection,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let id = closing.id.clone();
            let result = next.close(call, closing).await;
            if !matches!(result, Err(Error::Denied(_))) {
                self.remove(&id);
            }
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elements::harness::{Rig, first_request, spiffe};
    use crate::server::tests_support::full_rig;

    async fn next(stream: &mut EventStream) -> ConnectionEvent {
        stream.next().await.expect("still open").expect("no error")
    }

    fn everything() -> MonitorScopeSelector {
        MonitorScopeSelector::default()
    }

    #[tokio::test]
    async fn the_first_event_comes_even_when_there_is_nothing() {
        let (_, monitor) = full_rig();
        let mut stream = monitor.watch(&spiffe("a"), everything()).unwrap();
        let first = next(&mut stream).await;
        assert_eq!(first.r#type(), ConnectionEventType::InitialStateTransfer);
        assert!(first.connections.is_empty());
    }

    #[tokio::test]
    async fn the_opener_sees_updates_and_the_end_and_a_stranger_sees_nothing() {
        let (rig, monitor): (Rig, _) = full_rig();
        let mut own = monitor.watch(&spiffe("a"), everything()).unwrap();
        let mut other = monitor.watch(&spiffe("b"), everything()).unwrap();
        let answer = rig
            .chain
            .request(rig.call("a"), first_request("nsc-0"))
            .await
            .unwrap();
        monitor.set_state("fresh-0", State::RefreshRequested);
        rig.chain.close(rig.call("a"), answer).await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..4 {
            let event = next(&mut own).await;
            for (id, connection) in &event.connections {
                assert_eq!(
                    (id.as_str(), connection.path.as_ref().unwrap().index),
                    ("fresh-0", 1)
                );
            }
            kinds.push((
                event.r#type(),
                event.connections.values().next().map(Connection::state),
            ));
        }
        use ConnectionEventType::{Delete, InitialStateTransfer, Update};
        assert_eq!(
            kinds,
            [
                (InitialStateTransfer, None),
                (Update, Some(State::Up)),
                (Update, Some(State::RefreshRequested)),
                (Delete, Some(State::Up)),
            ]
        );
        assert_eq!(next(&mut other).await.r#type(), InitialStateTransfer);
        drop(rig);
        drop(monitor);
        assert!(
            other.next().await.is_none(),
            "a stranger heard nothing until the end"
        );
    }

    #[tokio::test]
    async fn a_reselected_connection_is_told_as_up() {
        let (rig, monitor): (Rig, _) = full_rig();
        let mut own = monitor.watch(&spiffe("a"), everything()).unwrap();
        let mut request = first_request("nsc-0");
        request
            .connection
            .as_mut()
            .unwrap()
            .set_state(State::ReselectRequested);
        rig.chain.request(rig.call("a"), request).await.unwrap();
        let _initial = next(&mut own).await;
        let update = next(&mut own).await;
        assert_eq!(update.connections["fresh-0"].state(), State::Up);
    }

    #[test]
    fn a_selector_matches_a_contiguous_part_of_the_path() {
        let connection = first_request("nsc-0").connection.unwrap();
        let by = |name: &str, id: &str| MonitorScopeSelector {
            path_segments: vec![PathSegment {
                name: name.into(),
                id: id.into(),
                ..PathSegment::default()
            }],
            network_services: Vec::new(),
        };
        assert!(selects(&by("nsc", "nsc-0"), &connection));
        assert!(selects(&by("", "nsc-0"), &connection));
        assert!(!selects(&by("", "other"), &connection));
        let service = MonitorScopeSelector {
            network_services: vec!["blue".into()],
            ..Default::default()
        };
        assert!(!selects(&service, &connection));
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_cut_and_streams_are_limited() {
        let limits = MonitorLimits {
            watchers_max: 9,
            watchers_per_identity_max: 1,
            backlog_max: 2,
        };
        let monitor = Monitor::new(limits);
        let mut stream = monitor.watch(&spiffe("a"), everything()).unwrap();
        assert!(matches!(
            monitor.watch(&spiffe("a"), everything()),
            Err(Error::Exhausted(_))
        ));
        let connection = first_request("x").connection.unwrap();
        for _ in 0..5 {
            monitor.update(&spiffe("a"), &connection);
        }
        let mut seen = 0;
        while stream.next().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, 2);
        let _again = monitor.watch(&spiffe("a"), everything()).unwrap();
    }
}
