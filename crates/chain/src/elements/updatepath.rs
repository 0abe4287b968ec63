//! Moves every call into this component's own path segment, and its answer back.

use std::sync::Arc;

use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;
use crate::path;

/// Makes a UUIDv4.
pub type NewId = Arc<dyn Fn() -> String + Send + Sync>;

pub struct UpdatePath {
    name: String,
    new_id: NewId,
}

impl std::fmt::Debug for UpdatePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UpdatePath({})", self.name)
    }
}

impl UpdatePath {
    /// `name` is the component's NSM name: stable over restarts, not its neighbour's.
    pub fn new(name: &str, new_id: NewId) -> Self {
        Self {
            name: name.to_owned(),
            new_id,
        }
    }
}

impl Element<Connections> for UpdatePath {
    fn name(&self) -> &'static str {
        "updatepath"
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            let Some(connection) = request.connection.as_mut() else {
                return Err(Error::Invalid("connection: must be set".to_owned()));
            };
            let view = path::advance(connection, &self.name, || (self.new_id)())?;
            let mut answer = next.request(call, request).await?;
            path::restore(&mut answer, &view);
            Ok(answer)
        })
    }

    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        mut closing: Connection,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            // A close that the component decided itself already carries its own view.
            if call.peer.is_some() {
                path::advance(&mut closing, &self.name, || (self.new_id)())?;
            }
            next.close(call, closing).await
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::elements::harness::{Rig, first_request};

    use super::*;

    #[tokio::test]
    async fn the_tail_sees_its_own_segment_and_the_caller_its_own() {
        let rig = Rig::new(|b| b.push(UpdatePath::new("router", Arc::new(|| "fresh".into()))));
        let answer = rig
            .chain
            .request(rig.call("a"), first_request("nsc-0"))
            .await
            .unwrap();
        assert_eq!(answer.id, "nsc-0");
        assert_eq!(answer.path.unwrap().path_segments[1].id, "fresh");
        assert_eq!(
            rig.tail.requests()[0].connection.as_ref().unwrap().id,
            "fresh"
        );
    }

    #[tokio::test]
    async fn a_request_without_connection_is_refused() {
        let rig = Rig::new(|b| b.push(UpdatePath::new("router", Arc::new(String::new))));
        let error = rig
            .chain
            .request(rig.call("a"), NetworkServiceRequest::default())
            .await
            .unwrap_err();
        assert_eq!(error, Error::Invalid("connection: must be set".into()));
        assert!(rig.tail.requests().is_empty());
    }
}
