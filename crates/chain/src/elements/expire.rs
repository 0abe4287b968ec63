//! Says when the right to a connection ends: the role's machine keeps the timer and decides
//! what follows (expiry is not revocation).

use core::time::Duration;

use vl3_core::Wall;
use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;
use crate::path;

/// Stock closes at the expiry minus the request's remaining deadline; here the deadline of a
/// call says nothing about the life of its connection.
#[derive(Debug)]
pub struct Expire {
    lifetime_max: Duration,
}

impl Expire {
    /// `lifetime_max` caps what a token may claim, and serves a request without any expiry.
    pub fn new(lifetime_max: Duration) -> Self {
        Self { lifetime_max }
    }

    fn end(&self, call: &Call, connection: &Connection) -> Result<Wall, Error> {
        let latest = call.now.wall + self.lifetime_max;
        let (previous, _) = path::segments(connection)?;
        let claimed = previous
            .and_then(|segment| segment.expires.as_ref())
            .map(|time| vl3_proto::wall("path.path_segments.expires", time))
            .transpose()?;
        Ok(claimed.map_or(latest, |claimed| claimed.min(latest)))
    }
}

impl Element<Connections> for Expire {
    fn name(&self) -> &'static str {
        "expire"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath", "token", "authorize"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            if let Some(connection) = &request.connection {
                call.expires = Some(self.end(call, connection)?);
            }
            next.request(call, request).await
        })
    }

    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        closing: Connection,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        next.close(call, closing)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::elements::authorize::Authorize;
    use crate::elements::begin::{Begin, BeginLimits};
    use crate::elements::harness::{NOW, PlainTokens, Rig, first_request, spiffe};
    use crate::elements::token::Token;
    use crate::elements::updatepath::UpdatePath;

    fn rig(lifetime_max: Duration) -> Rig {
        let tokens = Arc::new(PlainTokens(spiffe("router")));
        Rig::new(|b| {
            b.push(UpdatePath::new("router", Arc::new(|| "fresh".into())))
                .push(Begin::new(BeginLimits::default()))
                .push(Token::new(Arc::clone(&tokens) as _))
                .push(Authorize::new(tokens))
                .push(Expire::new(lifetime_max))
        })
    }

    #[tokio::test]
    async fn the_callers_token_decides_up_to_the_limit() {
        for (limit, wanted) in [(3600, 300), (60, 60)] {
            let rig = rig(Duration::from_secs(limit));
            rig.chain
                .request(rig.call("a"), first_request("nsc-0"))
                .await
                .unwrap();
            assert_eq!(
                rig.tail.expiries(),
                [Some(NOW.wall + Duration::from_secs(wanted))]
            );
        }
    }
}
