//! Cuts from the answer what stands after the own segment: this component passes no call on.

use vl3_proto::connection::Connection;
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::call::{Call, Connections};
use crate::chain::{BoxFuture, Element, Next};
use crate::error::Error;
use crate::path;

#[derive(Debug)]
pub struct Trim;

impl Element<Connections> for Trim {
    fn name(&self) -> &'static str {
        "trim"
    }

    fn requires(&self) -> &'static [&'static str] {
        &["updatepath"]
    }

    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        request: NetworkServiceRequest,
        next: Next<'a, Connections>,
    ) -> BoxFuture<'a, Result<Connection, Error>> {
        Box::pin(async move {
            let mut answer = next.request(call, request).await?;
            path::trim(&mut answer);
            Ok(answer)
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

    use vl3_proto::connection::PathSegment;

    use super::*;
    use crate::elements::harness::{Rig, first_request};
    use crate::elements::updatepath::UpdatePath;

    #[tokio::test]
    async fn segments_after_the_own_one_are_cut() {
        let rig = Rig::new(|b| {
            b.push(UpdatePath::new("router", Arc::new(|| "fresh".into())))
                .push(Trim)
        });
        let mut request = first_request("nsc-0");
        let path = request.connection.as_mut().unwrap().path.as_mut().unwrap();
        path.path_segments
            .extend([PathSegment::default(), PathSegment::default()]);
        let answer = rig.chain.request(rig.call("a"), request).await.unwrap();
        assert_eq!(answer.path.unwrap().path_segments.len(), 2);
    }

    #[test]
    fn trim_needs_updatepath_before_it() {
        let built = crate::Chain::<Connections>::builder().push(Trim).build();
        let wanted = crate::BuildError::Order {
            element: "trim",
            needs: "updatepath",
        };
        assert_eq!(built.unwrap_err(), wanted);
    }
}
