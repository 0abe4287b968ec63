//! `vl3.registry.v1.Sync`: streams to and from other domains' registries.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use vl3_core::federation::{StreamId, SyncMessage};
use vl3_proto::objects::{decode_sync, encode_sync};
use vl3_proto::vl3::registry::v1 as wire;
use vl3_proto::vl3::registry::v1::sync_server::Sync;
use vl3_runtime::CancellationToken;

use super::caller::peer;
use crate::handle::{Handle, Message, Outgoing, SYNC_BATCHES};

pub(super) struct Streams(pub(super) Handle);

#[tonic::async_trait]
impl Sync for Streams {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<wire::SyncMessage, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<wire::SyncMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = peer(request.extensions())?;
        let (batches, outgoing) = mpsc::channel(SYNC_BATCHES);
        let closed = CancellationToken::new();
        let stream = Outgoing {
            batches,
            closed: closed.clone(),
        };
        let stopping = || Status::unavailable("the registry is stopping");
        let id = self
            .0
            .sync_accepted(peer, stream)
            .await
            .ok_or_else(stopping)?;
        let (handle, incoming) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let reason = tokio::select! {
                () = closed.cancelled() => "closed".to_owned(),
                reason = read_stream(incoming, id, &handle) => reason,
            };
            handle.send(Message::SyncClosed { id, reason }).await;
        });
        Ok(Response::new(Box::pin(wire_messages(outgoing).map(Ok))))
    }
}

/// Hands every message to the machine; returns why the stream ended.
pub(crate) async fn read_stream(
    mut incoming: Streaming<wire::SyncMessage>,
    id: StreamId,
    handle: &Handle,
) -> String {
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return "ended by the other side".to_owned(),
            Err(status) => return status.message().to_owned(),
        };
        match decode_sync(message) {
            Ok(Some(message)) => {
                if !handle.send(Message::SyncReceived { id, message }).await {
                    return "stopping".to_owned();
                }
            }
            Ok(None) => {}
            Err(error) => return format!("malformed message: {error}"),
        }
    }
}

/// Batches for one stream as wire messages; ends with its sender.
pub(crate) fn wire_messages(
    batches: mpsc::Receiver<Vec<SyncMessage>>,
) -> impl Stream<Item = wire::SyncMessage> + Send + 'static {
    let batches = tokio_stream::wrappers::ReceiverStream::new(batches);
    batches.flat_map(|batch| stream::iter(batch.iter().map(encode_sync).collect::<Vec<_>>()))
}
