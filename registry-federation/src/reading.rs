//! Readers: a Find or a watch gives one object at a time, as its reader takes them, and fetches
//! the next page when the one before is taken.

use std::vec;

use tokio::sync::mpsc;
use vl3_core::registry::{
    Command, EndpointQuery, FoundEndpoint, Peer, Place, Refusal, Reply, WatchEvent, WatcherId,
};

use crate::backlog::Handed;
use crate::handle::{Handle, Message};

/// Events on their way to a watch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<WatchEvent>,
    /// The snapshot goes on once these are taken.
    pub(crate) rest: bool,
    pub(crate) handed: Handed,
}

/// The events of one watch; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    batches: mpsc::Receiver<Result<Batch, Refusal>>,
    events: vec::IntoIter<WatchEvent>,
    rest: bool,
    handed: Option<Handed>,
    watcher: WatcherId,
    handle: Handle,
}

impl Watch {
    pub(crate) fn new(
        batches: mpsc::Receiver<Result<Batch, Refusal>>,
        watcher: WatcherId,
        handle: Handle,
    ) -> Self {
        Self {
            batches,
            events: Vec::new().into_iter(),
            rest: false,
            handed: None,
            watcher,
            handle,
        }
    }

    /// None when the watcher was cut.
    pub(crate) async fn next(&mut self) -> Option<Result<WatchEvent, Refusal>> {
        loop {
            if let Some(event) = self.events.next() {
                return Some(Ok(event));
            }
            self.handed = None;
            if std::mem::take(&mut self.rest) {
                let watcher = self.watcher;
                self.handle.send(Message::WatchRest { watcher }).await;
            }
            match self.batches.recv().await? {
                Ok(batch) => {
                    self.events = batch.events.into_iter();
                    self.rest = batch.rest;
                    self.handed = Some(batch.handed);
                }
                Err(refusal) => return Some(Err(refusal)),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.ended(self.watcher);
    }
}

/// The answer to one Find.
#[derive(Debug)]
pub(crate) struct Found {
    found: vec::IntoIter<FoundEndpoint>,
    next: Option<Place>,
    handed: Option<Handed>,
    peer: Peer,
    query: EndpointQuery,
    handle: Handle,
}

impl Found {
    /// With the first page.
    pub(crate) async fn open(
        handle: Handle,
        peer: Peer,
        query: EndpointQuery,
    ) -> Result<Self, Refusal> {
        let mut of = Self {
            found: Vec::new().into_iter(),
            next: None,
            handed: None,
            peer,
            query,
            handle,
        };
        of.turn(None).await?;
        Ok(of)
    }

    /// One page is the answer to one command, asked in the caller's name.
    async fn turn(&mut self, after: Option<Place>) -> Result<(), Refusal> {
        let query = self.query.clone();
        let command = Command::FindEndpoints { query, after };
        let page = match self.handle.ask_machine(self.peer.clone(), command).await? {
            Reply::Endpoints(page) => page,
            other => {
                let reason = format!("a Find was answered by {other:?}");
                return Err(Refusal::Unavailable { reason });
            }
        };
        let bytes = page.found.iter().map(|found| found.shown.bytes()).sum();
        self.handed = Some(self.handle.hand(&self.peer, bytes)?);
        self.found = page.found.into_iter();
        self.next = page.next;
        Ok(())
    }

    /// None at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<FoundEndpoint, Refusal>> {
        loop {
            if let Some(found) = self.found.next() {
                return Some(Ok(found));
            }
            self.handed = None;
            let after = self.next.take()?;
            if let Err(refusal) = self.turn(Some(after)).await {
                return Some(Err(refusal));
            }
        }
    }
}
