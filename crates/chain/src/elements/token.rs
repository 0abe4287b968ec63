//! Writes the caller's token into its segment and a token of our own into ours (nsm-wire 3.3).

use std::sync::Arc;

use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::timestamp;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;
use crate::tokens::{Peer, Tokens};

pub struct Token {
    tokens: Arc<dyn Tokens>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    pub fn new(tokens: Arc<dyn Tokens>) -> Self {
        Self { tokens }
    }

    fn update(&self, peer: &Peer, connection: &mut Connection) -> Result<(), Error> {
        let Some(path) = connection.path.as_mut() else {
            return Ok(());
        };
        let index = path.index as usize;
        if let Some(previous) = index
            .checked_sub(1)
            .and_then(|before| path.path_segments.get_mut(before))
        {
            if let (Some(token), Some(expires)) = (&peer.token, peer.token_expires) {
                // The token is signed, the header beside it is not: the earlier end counts.
                let claimed = self.tokens.claims(token).map(|claims| claims.expires);
                previous.token.clone_from(token);
                previous.expires = Some(timestamp(claimed.map_or(expires, |end| end.min(expires))));
            }
            if previous.expires.is_none() {
                // Stock's code and words: its clients expect them.
                return Err(Error::Unknown(
                    "expiration for the previous path segment cannot be nil".to_owned(),
                ));
            }
        }
        if let Some(own) = path.path_segments.get_mut(index) {
            let (token, expires) = self.tokens.issue(Some(&peer.id))?;
            own.token = token;
            own.expires = Some(timestamp(expires));
        }
        Ok(())
    }
}

impl Element<Connections> for Token {
    fn name(&self) -> &'static str {
        "token"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath", "begin"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            if let (Some(peer), Some(connection)) = (&call.peer, request.connection.as_mut()) {
                self.update(peer, connection)?;
            }
            next.request(call, request).await
        })
    }

    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        mut closing: Connection,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if let Some(peer) = &call.peer {
                self.update(peer, &mut closing)?;
            }
            next.close(call, closing).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elements::begin::{Begin, BeginLimits};
    use crate::elements::harness::{
        NOW, PlainTokens, Rig, expires, first_request, plain_token, spiffe,
    };
    use crate::elements::updatepath::UpdatePath;

    fn rig() -> Rig {
        Rig::new(|b| {
            b.push(UpdatePath::new("router", Arc::new(|| "fresh".into())))
                .push(Begin::new(BeginLimits::default()))
                .push(Token::new(Arc::new(PlainTokens(spiffe("router")))))
        })
    }

    #[tokio::test]
    async fn both_segments_carry_their_token_and_expiry() {
        let rig = rig();
        let answer = rig
            .chain
            .request(rig.call("a"), first_request("nsc-0"))
            .await
            .unwrap();
        let path = answer.path.clone().unwrap();
        assert!(
            path.path_segments[0]
                .token
                .starts_with(spiffe("a").as_str())
        );
        assert!(
            path.path_segments[1].token.contains(spiffe("a").as_str()),
            "audience"
        );
        let own = expires(&answer, 1).unwrap().seconds;
        assert_eq!(own, i64::try_from(NOW.wall.unix_secs() + 600).unwrap());
        assert_eq!(expires(&answer, 0).unwrap().seconds, own - 300);
    }

    #[tokio::test]
    async fn a_header_cannot_outlive_its_token() {
        let rig = rig();
        let mut call = rig.call("a");
        let end = NOW.wall.unix_secs() + 5;
        call.peer.as_mut().unwrap().token =
            Some(plain_token(&spiffe("a"), &[&spiffe("router")], end));
        let answer = rig
            .chain
            .request(call, first_request("nsc-0"))
            .await
            .unwrap();
        assert_eq!(
            expires(&answer, 0).unwrap().seconds,
            i64::try_from(end).unwrap()
        );
    }

    #[tokio::test]
    async fn a_call_without_token_on_a_fresh_path_is_refused_as_stock_does() {
        let rig = rig();
        let mut call = rig.call("a");
        call.peer.as_mut().unwrap().token_expires = None;
        let error = rig
            .chain
            .request(call, first_request("nsc-0"))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unknown(text) if text.contains("cannot be nil")));
    }
}
