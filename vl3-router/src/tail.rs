//! The last element: hands the call to the machine and waits for its answer.

use core::time::Duration;
use std::path::PathBuf;

use nsm_chain::{BoxFuture, Call, Connections, Element, Error, Next};
use vl3_core::document::Role;
use vl3_core::ids::{DomainName, SpiffeId};
use vl3_core::router::{ConnectionId, Refusal};
use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_runtime::Documents;

use crate::actor::{Command, Handle};
use crate::wire::request::Expected;
use crate::wire::{answer, claim, request};

/// Stock's clients give a try 15 s; what takes longer is answered while they still listen.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) expected: Expected,
    pub(crate) handle: Handle,
    pub(crate) fd_socket: PathBuf,
    pub(crate) documents: Documents,
    pub(crate) domain: DomainName,
}

impl Element<Connections> for Tail {
    fn name(&self) -> &'static str {
        "router"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath", "begin", "authorize", "expire"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        message: NetworkServiceRequest,
        _next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            let (Some(peer), Some(expires)) = (&call.peer, call.expires) else {
                return Err(Error::Internal(
                    "a Request without caller or expiry reached the router".to_owned(),
                ));
            };
            let life = expires.remaining(call.now.wall);
            let intermediary =
                |id: &SpiffeId| self.documents.grants(&self.domain, Role::Intermediary, id);
            let path = message
                .connection
                .as_ref()
                .and_then(|connection| connection.path.as_ref());
            let claimed = claim::behind(path, &peer.id, intermediary)?;
            let (wanted, chosen) = request::to_core(
                &self.expected,
                &message,
                peer,
                claimed,
                life,
                rand::random(),
            )?;
            let asked = self.handle.call(|reply| Command::Request {
                request: Box::new(wanted),
                reply,
            });
            let answered = within(asked).await?;
            let connection = message.connection.unwrap_or_default();
            Ok(answer::to_connection(
                connection,
                chosen,
                answered,
                &self.expected,
                &self.fd_socket,
            )?)
        })
    }

    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        closing: Connection,
        _next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            // The machine's own close: it has nothing left to do.
            let Some(peer) = &call.peer else {
                return Ok(());
            };
            let connection = ConnectionId::new(&closing.id)
                .map_err(|error| Error::Invalid(format!("connection.id: {error}")))?;
            let peer = peer.id.clone();
            within(self.handle.call(|reply| Command::Close {
                connection,
                peer,
                reply,
            }))
            .await
            .map(drop)
        })
    }
}

async fn within<T>(asked: impl Future<Output = Result<T, Refusal>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(result) => result.map_err(refused),
        Err(_) => Err(Error::Unavailable(format!(
            "no answer within {ANSWER_WITHIN:?}"
        ))),
    }
}

fn refused(refusal: Refusal) -> Error {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid { .. } => Error::Invalid(text),
        Refusal::Denied { .. } => Error::Denied(text),
        Refusal::Precondition { .. } => Error::Precondition(text),
        Refusal::Exhausted { .. } | Refusal::Share { .. } => Error::Exhausted(text),
        Refusal::Unavailable { .. } => Error::Unavailable(text),
    }
}
