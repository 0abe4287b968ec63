//! `vl3.ipam.v1.Ipam`: leases of our routers.

use tonic::{Request, Response, Status};
use vl3_core::registry::{Command, Peer, Reply};
use vl3_proto::lease::{decode_acquire, decode_release, decode_renew, encode_granted};
use vl3_proto::vl3::ipam::v1::ipam_server::Ipam;
use vl3_proto::vl3::ipam::v1::{
    AcquireRequest, LeaseReply, ReleaseReply, ReleaseRequest, RenewRequest,
};

use super::caller::peer;
use super::errors::{status, unexpected};
use crate::handle::Handle;

pub(super) struct Leases(pub(super) Handle);

impl Leases {
    async fn lease(&self, peer: Peer, command: Command) -> Result<Response<LeaseReply>, Status> {
        match self.0.call(peer, command).await {
            Ok(Reply::Lease(granted)) => Ok(Response::new(encode_granted(&granted))),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(status(&refusal)),
        }
    }
}

#[tonic::async_trait]
impl Ipam for Leases {
    async fn acquire(
        &self,
        request: Request<AcquireRequest>,
    ) -> Result<Response<LeaseReply>, Status> {
        let peer = peer(request.extensions())?;
        let (uid, acquire) = decode_acquire(request.get_ref())?;
        self.lease(peer, Command::Acquire { uid, acquire }).await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<LeaseReply>, Status> {
        let peer = peer(request.extensions())?;
        let lease = decode_renew(request.get_ref())?;
        self.lease(peer, Command::Renew { lease }).await
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        let peer = peer(request.extensions())?;
        let lease = decode_release(request.get_ref())?;
        let released = self.0.call(peer, Command::Release { lease }).await;
        released
            .map(|_| Response::new(ReleaseReply {}))
            .map_err(|refusal| status(&refusal))
    }
}
