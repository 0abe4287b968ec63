//! What is said on streams: a greeting, then changes, to whom they concern.

use core::time::Duration;
use std::sync::Arc;

use super::{Event, Federation, SYNC_VERSION, Stream, SyncMessage};
use crate::document::Chain;
use crate::ids::{DomainName, NetworkUid};
use crate::machine::Outbox;
use crate::registry::Endpoint;

type Out<'a> = &'a mut Outbox<Event>;

impl Federation {
    /// Says who we are, the newest documents and everything we offer to that domain.
    pub fn greet(
        &mut self,
        domain: &DomainName,
        documents: Vec<Chain>,
        snapshot: Vec<(NetworkUid, Arc<Endpoint>, Duration)>,
        out: Out<'_>,
    ) {
        let (own, epoch) = (self.domain.clone(), self.epoch);
        let Some(remote) = self.remotes.get_mut(domain) else {
            return;
        };
        let Some(stream) = &mut remote.stream else {
            return;
        };
        let uids = stream.scope.uids().collect();
        let mut messages = vec![SyncMessage::Open {
            version: SYNC_VERSION,
            domain: own,
            epoch,
            uids,
        }];
        messages.extend(documents.into_iter().map(SyncMessage::Document));
        for (uid, endpoint, lifetime) in snapshot {
            let sequence = stream.next_sequence();
            messages.push(SyncMessage::Upsert {
                sequence,
                uid,
                endpoint,
                lifetime,
            });
        }
        messages.push(SyncMessage::EndOfSnapshot {
            sequence: stream.next_sequence(),
        });
        out.push(Event::Send {
            stream: stream.id,
            messages,
        });
    }

    pub fn upsert(
        &mut self,
        uid: NetworkUid,
        endpoint: &Arc<Endpoint>,
        lifetime: Duration,
        out: Out<'_>,
    ) {
        self.tell(uid, out, |sequence| SyncMessage::Upsert {
            sequence,
            uid,
            endpoint: endpoint.clone(),
            lifetime,
        });
    }

    pub fn remove(&mut self, uid: NetworkUid, name: &str, out: Out<'_>) {
        let name: Arc<str> = name.into();
        self.tell(uid, out, |sequence| SyncMessage::Remove {
            sequence,
            uid,
            name: name.clone(),
        });
    }

    pub fn document(&mut self, chain: &Chain, out: Out<'_>) {
        let uid = chain.uid();
        let streams = self
            .remotes
            .values()
            .filter_map(|remote| remote.stream.as_ref());
        for stream in streams.filter(|stream| stream.scope.contains(uid)) {
            let messages = vec![SyncMessage::Document(chain.clone())];
            out.push(Event::Send {
                stream: stream.id,
                messages,
            });
        }
    }

    fn tell(&mut self, uid: NetworkUid, out: Out<'_>, message: impl Fn(u64) -> SyncMessage) {
        let remotes = self.remotes.values_mut();
        let streams = remotes.filter_map(|remote| remote.stream.as_mut());
        for stream in streams.filter(|stream| stream.scope.contains(uid)) {
            let messages = vec![message(stream.next_sequence())];
            out.push(Event::Send {
                stream: stream.id,
                messages,
            });
        }
    }
}

impl Stream {
    const fn next_sequence(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }
}
