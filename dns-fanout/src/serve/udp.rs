//! One UDP listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use vl3_core::{Backoff, Rng};
use vl3_runtime::CancellationToken;

use super::{Front, Responder};
use crate::engine::{Asked, Command};
use crate::metrics::{Drop, Proto};
use crate::wire::{Dropped, Parsed, QUERY_OCTETS_MAX, parse};

/// Runs until the engine is gone, or until `stop` and what waits then is read: a listener that
/// is replaced loses no question.
pub(super) async fn serve(socket: Arc<UdpSocket>, front: Front, stop: CancellationToken) {
    let mut buffer = [0; QUERY_OCTETS_MAX];
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
    let mut rng = Rng::new(rand::random());
    loop {
        let received = tokio::select! {
            biased;
            received = socket.recv_from(&mut buffer) => received,
            () = stop.cancelled() => return,
        };
        match received {
            Ok((length, client)) => {
                backoff.reset();
                if take(&buffer[..length], client, &socket, &front)
                    .await
                    .is_none()
                {
                    return;
                }
            }
            Err(error) => {
                // An ICMP error of an earlier reply, or a dead socket, which must not spin.
                tracing::debug!(%error, "receiving questions failed");
                tokio::time::sleep(backoff.next(&mut rng)).await;
            }
        }
    }
}

/// `None` when the engine is gone.
async fn take(
    octets: &[u8],
    client: SocketAddr,
    socket: &Arc<UdpSocket>,
    front: &Front,
) -> Option<()> {
    match parse(octets) {
        Parsed::Ask(request) => {
            front.metrics.request(Proto::udp, request.question.rtype);
            let responder = Responder::Udp {
                socket: Arc::clone(socket),
                client,
            };
            let asked = Asked {
                source: client.ip(),
                request,
                responder,
            };
            front.engine.send(Command::Ask(asked)).await.ok()?;
        }
        Parsed::Reply(octets, rcode) => {
            front.metrics.malformed(rcode);
            if socket.try_send_to(&octets, client).is_err() {
                front.metrics.dropped(Drop::ReplyBlocked);
            }
        }
        Parsed::Drop(Dropped::Short) => front.metrics.dropped(Drop::Short),
        Parsed::Drop(Dropped::IsReply) => front.metrics.dropped(Drop::IsReply),
    }
    Some(())
}
