//! Who may do this: the seven stock rules natively (nsm-wire 5.3), and ours on top: authority
//! is the SPIFFE ID of the direct TLS peer, and a connection belongs to the ID that opened it.

use std::sync::Arc;

use vl3_core::ids::SpiffeId;
use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;
use crate::tokens::{Claims, Peer, Tokens};

pub struct Authorize {
    tokens: Arc<dyn Tokens>,
}

/// The slot: who opened the connection.
struct Opener(SpiffeId);

impl std::fmt::Debug for Authorize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorize")
    }
}

impl Authorize {
    pub fn new(tokens: Arc<dyn Tokens>) -> Self {
        Self { tokens }
    }

    fn check(&self, call: &Call, connection: &Connection) -> Result<(), Error> {
        // A close that the component decided itself.
        let Some(peer) = &call.peer else {
            return Ok(());
        };
        if let Some(Opener(opener)) = call.slots.get()
            && *opener != peer.id
        {
            return Err(Error::Denied(format!(
                "connection {:?} belongs to another identity than {}",
                connection.id, peer.id
            )));
        }
        self.check_path(call, peer, connection)
    }

    /// `tokens_valid`, `tokens_expired`, `tokens_chained`, `prev_token_signed`, over segments
    /// 0 to index.
    fn check_path(&self, call: &Call, peer: &Peer, connection: &Connection) -> Result<(), Error> {
        let path = connection.path.clone().unwrap_or_default();
        let index = path.index as usize;
        if index == 0 {
            return Err(Error::Denied(
                "path: must hold the caller's segment".to_owned(),
            ));
        }
        let mut before: Option<Claims> = None;
        for (at, segment) in path.path_segments.iter().take(index + 1).enumerate() {
            let field = format!("path.path_segments[{at}].token");
            let claims = self
                .tokens
                .claims(&segment.token)
                .ok_or_else(|| Error::Denied(format!("{field}: is no token")))?;
            if claims.expires <= call.now.wall {
                return Err(Error::Denied(format!("{field}: has expired")));
            }
            if let Some(before) = &before
                && !before.audience.contains(&claims.subject)
            {
                return Err(Error::Denied(format!(
                    "{field}: subject {:?} is not in the audience of the token before it",
                    claims.subject
                )));
            }
            if at + 1 == index {
                if claims.subject != peer.id.as_str() {
                    return Err(Error::Denied(format!(
                        "{field}: subject {:?} is not the caller {}",
                        claims.subject, peer.id
                    )));
                }
                if !self.tokens.signed_by(&segment.token, &peer.certificate) {
                    return Err(Error::Denied(format!(
                        "{field}: is not signed by the caller"
                    )));
                }
            }
            before = Some(claims);
        }
        Ok(())
    }
}

impl Element<Connections> for Authorize {
    fn name(&self) -> &'static str {
        "authorize"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath", "begin", "token"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            let connection = request.connection.clone().unwrap_or_default();
            self.check(call, &connection)?;
            if let (None, Some(peer)) = (call.slots.get::<Opener>(), &call.peer) {
                let opener = Opener(peer.id.clone());
                call.slots.set(opener);
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
        Box::pin(async move {
            self.check(call, &closing)?;
            next.close(call, closing).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elements::begin::{Begin, BeginLimits};
    use crate::elements::harness::{NOW, PlainTokens, Rig, first_request, plain_token, spiffe};
    use crate::elements::token::Token;
    use crate::elements::updatepath::UpdatePath;

    fn rig() -> Rig {
        let tokens = Arc::new(PlainTokens(spiffe("router")));
        Rig::new(|b| {
            b.push(UpdatePath::new("router", Arc::new(|| "fresh".into())))
                .push(Begin::new(BeginLimits::default()))
                .push(Token::new(Arc::clone(&tokens) as _))
                .push(Authorize::new(tokens))
        })
    }

    fn with_token(rig: &Rig, caller: &str, token: String) -> Call {
        let mut call = rig.call(caller);
        call.peer.as_mut().unwrap().token = Some(token);
        call
    }

    #[tokio::test]
    async fn a_stranger_can_neither_refresh_nor_close_nor_take_over() {
        let rig = rig();
        let answer = rig
            .chain
            .request(rig.call("a"), first_request("nsc-0"))
            .await
            .unwrap();
        let again = NetworkServiceRequest {
            connection: Some(answer.clone()),
            ..Default::default()
        };
        let error = rig
            .chain
            .request(rig.call("b"), again.clone())
            .await
            .unwrap_err();
        assert!(matches!(&error, Error::Denied(text) if text.contains("another identity")));
        let error = rig
            .chain
            .close(rig.call("b"), answer.clone())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Denied(_)));
        assert!(rig.tail.closes().is_empty());
        rig.chain.request(rig.call("a"), again).await.unwrap();
        rig.chain.close(rig.call("a"), answer).await.unwrap();
        assert_eq!(rig.tail.closes().len(), 1);
    }

    #[tokio::test]
    async fn every_rule_refuses_and_names_the_segment() {
        let (a, router, other) = (spiffe("a"), spiffe("router"), spiffe("other"));
        let (soon, past) = (NOW.wall.unix_secs() + 60, NOW.wall.unix_secs() - 1);
        let unsigned =
            plain_token(&a, &[&router], soon).replace("|spiffe://east.test/workload/a", "|x");
        for (token, wanted) in [
            ("garbage".to_owned(), "is no token"),
            (plain_token(&a, &[&router], past), "has expired"),
            (plain_token(&a, &[&other], soon), "not in the audience"),
            (plain_token(&other, &[&router], soon), "is not the caller"),
            (unsigned, "is not signed by the caller"),
        ] {
            let rig = rig();
            let call = with_token(&rig, "a", token);
            let error = rig
                .chain
                .request(call, first_request("nsc-0"))
                .await
                .unwrap_err();
            let Error::Denied(text) = error else {
                panic!("{error}")
            };
            assert!(
                text.contains(wanted) && text.contains("path_segments["),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_call_without_the_callers_segment_is_denied() {
        let rig = rig();
        let request = NetworkServiceRequest {
            connection: Some(Connection::default()),
            ..Default::default()
        };
        let error = rig.chain.request(rig.call("a"), request).await.unwrap_err();
        assert!(matches!(error, Error::Denied(text) if text.contains("caller's segment")));
    }

    #[tokio::test]
    async fn the_components_own_close_needs_no_peer() {
        let rig = rig();
        rig.chain
            .request(rig.call("a"), first_request("nsc-0"))
            .await
            .unwrap();
        let own = Connection {
            id: "fresh".into(),
            ..Connection::default()
        };
        rig.chain.close(Call::new(NOW, None), own).await.unwrap();
        let closed = &rig.tail.closes()[0];
        assert_eq!(
            (closed.id.as_str(), closed.network_service.as_str()),
            ("fresh", "red")
        );
    }
}
