//! Opening sync streams to other domains' registries, with their identity as the documents
//! state it. When to dial is the machine's decision.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Streaming;
use vl3_core::document::{Chain, Document, Role};
use vl3_core::federation::StreamId;
use vl3_core::ids::DomainName;
use vl3_core::registry::Peer;
use vl3_identity::{Scope, Trust, Verified};
use vl3_proto::vl3::registry::v1 as wire;
use vl3_proto::vl3::registry::v1::sync_client::SyncClient;
use vl3_runtime::grpc::{Connection, DialUrl, Dialer, Expect};
use vl3_runtime::{CancellationToken, Tasks, clock};

use crate::handle::{Handle, Message, Outgoing, SYNC_BATCHES};
use crate::services::{MESSAGE_BYTES_MAX, peer_of, read_stream, wire_messages};

/// Why a stream ended that we closed.
const CLOSED: &str = "closed";
/// How long a stream that we close waits for the other end to have heard everything.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(crate) struct Dialler {
    dialer: Dialer,
    trust: Trust,
    tasks: Arc<Tasks>,
    /// Ends attempts and streams that were dialled.
    dialled: BTreeMap<StreamId, CancellationToken>,
}

impl Dialler {
    pub(crate) const fn new(dialer: Dialer, trust: Trust, tasks: Arc<Tasks>) -> Self {
        Self {
            dialer,
            trust,
            tasks,
            dialled: BTreeMap::new(),
        }
    }

    /// Takes a document's bundles; one that cannot be read trusts nobody.
    pub(crate) fn trust(&self, document: &Document) {
        if let Err(errors) = self.trust.set_document(document, clock::wall()) {
            for error in errors {
                tracing::warn!(network = %document.name, %error, "a member's bundle is not usable");
            }
        }
    }

    pub(crate) fn forget(&mut self, stream: StreamId) {
        if let Some(cancel) = self.dialled.remove(&stream) {
            cancel.cancel();
        }
    }

    pub(crate) fn dial(
        &mut self,
        stream: StreamId,
        domain: DomainName,
        contacts: Vec<String>,
        documents: Vec<Chain>,
        handle: Handle,
    ) {
        let cancel = CancellationToken::new();
        self.dialled.insert(stream, cancel.clone());
        let dialer = self.dialer.clone();
        self.tasks.spawn_detached("sync-dial", async move {
            let attempt = connect(
                &dialer, &domain, &contacts, &documents, stream, &handle, &cancel,
            );
            let reached = tokio::select! {
                () = cancel.cancelled() => None,
                reached = attempt => Some(reached),
            };
            let reason = match reached {
                None => CLOSED.to_owned(),
                Some(Ok((_connection, incoming))) => {
                    carry(incoming, stream, &handle, &cancel).await
                }
                Some(Err(reason)) => {
                    tracing::info!(%domain, reason, "registry not reached");
                    reason
                }
            };
            handle
                .send(Message::SyncClosed { id: stream, reason })
                .await;
        });
    }
}

/// The registry of that domain, in a network whose document says so.
fn expect(domain: &DomainName, documents: &[Chain]) -> Expect {
    let wall = clock::wall();
    let members: Vec<_> = documents
        .iter()
        .filter_map(|chain| Some((chain.uid(), chain.document().member(domain, wall)?.clone())))
        .collect();
    Expect::new(
        format!("the registry of {domain}"),
        move |peer: &Verified| {
            members.iter().any(|(uid, member)| {
                member.grants(Role::Registry, &peer.id)
                    && peer.scopes.contains(&Scope::Network(*uid))
            })
        },
    )
}

/// Until the stream ends; returns why. Where we close it, our half ends first: what was said
/// last, such as the version that removes the other domain, still goes out.
async fn carry(
    incoming: Streaming<wire::SyncMessage>,
    stream: StreamId,
    handle: &Handle,
    cancel: &CancellationToken,
) -> String {
    let reading = read_stream(incoming, stream, handle);
    tokio::pin!(reading);
    tokio::select! {
        reason = &mut reading => reason,
        () = cancel.cancelled() => {
            // Err: the other end does not close its half.
            let _late = tokio::time::timeout(LAST_WORDS, reading).await;
            CLOSED.to_owned()
        }
    }
}

/// The first contact that answers.
async fn connect(
    dialer: &Dialer,
    domain: &DomainName,
    contacts: &[String],
    documents: &[Chain],
    stream: StreamId,
    handle: &Handle,
    cancel: &CancellationToken,
) -> Result<(Connection, Streaming<wire::SyncMessage>), String> {
    let mut reason = "no contact address".to_owned();
    for contact in contacts {
        let url: DialUrl = match contact.parse() {
            Ok(url) => url,
            Err(error) => {
                reason = error.to_string();
                continue;
            }
        };
        match dialer.dial(&url, expect(domain, documents)).await {
            Err(error) => reason = chain_text(&error),
            Ok(connection) => {
                let (batches, outgoing) = mpsc::channel(SYNC_BATCHES);
                let messages = wire_messages(outgoing);
                let mut client = SyncClient::new(connection.plain())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX);
                let incoming = client
                    .sync(messages)
                    .await
                    .map_err(|status| status.message().to_owned())?;
                let peer: Peer = peer_of(&connection.peer());
                let opened = Outgoing {
                    batches,
                    closed: cancel.clone(),
                };
                handle
                    .send(Message::SyncDialled {
                        id: stream,
                        peer,
                        stream: opened,
                    })
                    .await;
                return Ok((connection, incoming.into_inner()));
            }
        }
    }
    Err(reason)
}

/// An error with its causes.
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
