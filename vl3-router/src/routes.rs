//! `vl3.router.v1.Routes`: one bidirectional stream per link, opened by the link's NSM client.

use core::time::Duration;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use vl3_core::ids::{Generation, NetworkUid, SpiffeId};
use vl3_core::router::{Input, RouterId, RoutesEvent, RoutesMessage, RoutesOpen, StreamId};
use vl3_proto::FieldError;
use vl3_proto::vl3::router::v1 as wire;
use vl3_proto::vl3::router::v1::routes_client::RoutesClient;
use vl3_proto::vl3::router::v1::routes_message::Body;
use vl3_proto::vl3::router::v1::routes_server::Routes;
use vl3_runtime::{CancellationToken, grpc};

use crate::actor::{Command, Handle};
use crate::service::identity;

const VERSION: u32 = 1;
/// Messages that wait for a slow reader; then its stream is cut.
const BACKLOG_MAX: usize = 4096;
/// The first message of the other side.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// The serving side.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) handle: Handle,
    pub(crate) uid: NetworkUid,
}

/// The actor's end of a stream; the stream ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    messages: mpsc::Sender<RoutesMessage>,
    closing: CancellationToken,
}

impl Writer {
    /// False: the reader is gone or falls behind.
    pub(crate) fn send(&self, message: RoutesMessage) -> bool {
        self.messages.try_send(message).is_ok()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<wire::RoutesMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Routes for Service {
    type RoutesStream = Outgoing;

    async fn routes(
        &self,
        request: Request<Streaming<wire::RoutesMessage>>,
    ) -> Result<Response<Self::RoutesStream>, Status> {
        let peer = identity(&request, &self.uid)?.id;
        let mut incoming = request.into_inner();
        let theirs = first(&mut incoming).await?;
        let (outgoing, receiver) = mpsc::channel(BACKLOG_MAX);
        let own = self
            .handle
            .routes_open()
            .await
            .ok_or_else(|| Status::unavailable("the router is stopping"))?;
        let own = open_message(&own);
        let handle = self.handle.clone();
        tokio::spawn(async move { run(&handle, peer, theirs, false, outgoing, incoming).await });
        let stream = futures_util::stream::iter([Ok(own)])
            .chain(ReceiverStream::new(receiver).map(|message| Ok(to_wire(message))));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Opens a stream over a dialled link and follows it in the background of the caller.
pub(crate) async fn open(
    handle: &Handle,
    transport: &grpc::Connection,
    own: RoutesOpen,
) -> anyhow::Result<()> {
    let (outgoing, receiver) = mpsc::channel(BACKLOG_MAX);
    let stream = futures_util::stream::iter([open_message(&own)])
        .chain(ReceiverStream::new(receiver).map(to_wire));
    let mut incoming = RoutesClient::new(transport.plain())
        .routes(stream)
        .await?
        .into_inner();
    let theirs = first(&mut incoming)
        .await
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let peer = transport.peer().id.clone();
    run(handle, peer, theirs, true, outgoing, incoming).await;
    Ok(())
}

/// The other side's open, in time.
async fn first(incoming: &mut Streaming<wire::RoutesMessage>) -> Result<RoutesOpen, Status> {
    let first = tokio::time::timeout(OPEN_WITHIN, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no RoutesOpen in time"))??;
    match first.and_then(|message| message.body) {
        Some(Body::Open(open)) => Ok(read_open(&open)?),
        _ => Err(Status::invalid_argument(
            "the first message must be RoutesOpen",
        )),
    }
}

/// From the opens to the end, whichever side ends it.
async fn run(
    handle: &Handle,
    peer: SpiffeId,
    open: RoutesOpen,
    dialled: bool,
    outgoing: mpsc::Sender<RoutesMessage>,
    mut incoming: Streaming<wire::RoutesMessage>,
) {
    let stream = StreamId(handle.number());
    let who = open.router.clone();
    let closing = CancellationToken::new();
    let writer = Writer {
        messages: outgoing,
        closing: closing.clone(),
    };
    let event = RoutesEvent::Started {
        peer,
        open,
        dialled,
    };
    handle
        .send(Command::RoutesOpened {
            stream,
            writer,
            event,
        })
        .await;
    let ended = loop {
        let next = tokio::select! {
            message = incoming.message() => message,
            () = closing.cancelled() => break "closed by this side".to_owned(),
        };
        match next {
            Ok(Some(message)) => match read(message) {
                Ok(Some(message)) => {
                    handle
                        .tell(Input::Routes {
                            stream,
                            event: RoutesEvent::Message(message),
                        })
                        .await;
                }
                Ok(None) => {}
                Err(error) => break error.to_string(),
            },
            Ok(None) => break "closed by the other side".to_owned(),
            Err(status) => break status.message().to_owned(),
        }
    };
    tracing::debug!(router = %who, reason = ended, "routes stream ended");
    handle
        .tell(Input::Routes {
            stream,
            event: RoutesEvent::Ended,
        })
        .await;
}

fn open_message(open: &RoutesOpen) -> wire::RoutesMessage {
    let open = wire::RoutesOpen {
        version: VERSION,
        uid: open.uid.0.to_vec(),
        domain: open.router.domain.to_string(),
        router: open.router.name.to_string(),
        instance: open.instance.0.to_vec(),
        generation: open.generation.0,
    };
    wire::RoutesMessage {
        body: Some(Body::Open(open)),
    }
}

fn read_open(open: &wire::RoutesOpen) -> Result<RoutesOpen, FieldError> {
    if open.version != VERSION {
        return Err(FieldError::new(
            "open.version",
            open.version.to_string(),
            "1",
        ));
    }
    let named = |field: &str, error: vl3_core::ids::InvalidName| {
        FieldError::new(field, error.value, error.allowed)
    };
    Ok(RoutesOpen {
        uid: vl3_proto::network_uid("open.uid", &open.uid)?,
        router: RouterId {
            name: open
                .router
                .parse()
                .map_err(|error| named("open.router", error))?,
            domain: open
                .domain
                .parse()
                .map_err(|error| named("open.domain", error))?,
        },
        instance: vl3_proto::instance_id("open.instance", &open.instance)?,
        generation: Generation(open.generation),
    })
}

fn to_wire(message: RoutesMessage) -> wire::RoutesMessage {
    let body = match message {
        RoutesMessage::Announce {
            sequence,
            prefix,
            preference,
            mtu,
        } => Body::Change(wire::RouteChange {
            sequence,
            withdraw: false,
            prefix: prefix.to_string(),
            preference,
            mtu: u32::from(mtu),
        }),
        RoutesMessage::Withdraw { sequence, prefix } => Body::Change(wire::RouteChange {
            sequence,
            withdraw: true,
            prefix: prefix.to_string(),
            ..wire::RouteChange::default()
        }),
        RoutesMessage::End { sequence } => Body::End(wire::RoutesEnd { sequence }),
        RoutesMessage::KeepAlive { sequence } => Body::KeepAlive(wire::KeepAlive { sequence }),
    };
    wire::RoutesMessage { body: Some(body) }
}

/// Unset for messages of a later version, which are skipped.
fn read(message: wire::RoutesMessage) -> Result<Option<RoutesMessage>, FieldError> {
    Ok(Some(match message.body {
        Some(Body::Change(change)) => {
            let prefix = vl3_proto::prefix("change.prefix", &change.prefix)?;
            let sequence = change.sequence;
            if change.withdraw {
                RoutesMessage::Withdraw { sequence, prefix }
            } else {
                let mtu = u16::try_from(change.mtu).map_err(|_| {
                    FieldError::new("change.mtu", change.mtu.to_string(), "0 to 65535")
                })?;
                RoutesMessage::Announce {
                    sequence,
                    prefix,
                    preference: change.preference,
                    mtu,
                }
            }
        }
        Some(Body::End(end)) => RoutesMessage::End {
            sequence: end.sequence,
        },
        Some(Body::KeepAlive(keep)) => RoutesMessage::KeepAlive {
            sequence: keep.sequence,
        },
        Some(Body::Open(_)) => {
            return Err(FieldError::new(
                "body",
                "open",
                "a change, an end or a keep-alive after the first message",
            ));
        }
        None => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let prefix = "10.9.0.0/26".parse().unwrap();
        for message in [
            RoutesMessage::Announce {
                sequence: 1,
                prefix,
                preference: 1,
                mtu: 1400,
            },
            RoutesMessage::Withdraw {
                sequence: 2,
                prefix,
            },
            RoutesMessage::End { sequence: 3 },
            RoutesMessage::KeepAlive { sequence: 4 },
        ] {
            assert_eq!(read(to_wire(message.clone())).unwrap(), Some(message));
        }
    }

    #[test]
    fn a_bad_prefix_or_a_second_open_is_named() {
        let change = wire::RouteChange {
            prefix: "10.0.0.0/40".into(),
            ..Default::default()
        };
        let error = read(wire::RoutesMessage {
            body: Some(Body::Change(change)),
        })
        .unwrap_err();
        assert_eq!(error.field, "change.prefix");
        let open = wire::RoutesMessage {
            body: Some(Body::Open(wire::RoutesOpen::default())),
        };
        assert_eq!(read(open).unwrap_err().field, "body");
        let bad = wire::RoutesOpen {
            version: 9,
            ..Default::default()
        };
        assert_eq!(read_open(&bad).unwrap_err().field, "open.version");
    }
}
