//! `vl3.registry.v1.Names`: workloads' names, claimed by their routers.

use tonic::{Request, Response, Status};
use vl3_core::registry::{Command, Reply};
use vl3_proto::lease::{decode_claim, decode_release_name};
use vl3_proto::vl3::registry::v1::names_server::Names as Service;
use vl3_proto::vl3::registry::v1::{ClaimReply, ClaimRequest, ReleaseReply, ReleaseRequest};

use super::caller::peer;
use super::errors::{status, unexpected};
use crate::handle::Handle;

pub(super) struct Names(pub(super) Handle);

#[tonic::async_trait]
impl Service for Names {
    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let peer = peer(request.extensions())?;
        let (uid, claim) = decode_claim(request.get_ref())?;
        match self.0.call(peer, Command::ClaimName { uid, claim }).await {
            Ok(Reply::Name { held_by }) => Ok(Response::new(ClaimReply {
                granted: held_by.is_none(),
                held_by: held_by.map(|holder| holder.to_string()).unwrap_or_default(),
            })),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(status(&refusal)),
        }
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        let peer = peer(request.extensions())?;
        let (uid, name, workload) = decode_release_name(request.get_ref())?;
        let released = self
            .0
            .call(
                peer,
                Command::ReleaseName {
                    uid,
                    name,
                    workload,
                },
            )
            .await;
        released
            .map(|_| Response::new(ReleaseReply {}))
            .map_err(|refusal| status(&refusal))
    }
}
