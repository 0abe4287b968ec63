//! Leases and names between `vl3.ipam.v1`, `vl3.registry.v1.Names` and the core.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use vl3_core::allocator::{Acquire, Granted, Lease};
use vl3_core::ids::{Generation, NetworkUid, RouterName, SpiffeId, WorkloadName};
use vl3_core::registry::Claim;

use crate::convert::address::{prefix, prefixes, single_address};
use crate::convert::{FieldError, instance_id, network_uid};
use crate::vl3::ipam::v1 as ipam;
use crate::vl3::registry::v1 as names;

/// Version of `vl3.ipam.v1` and `vl3.registry.v1.Names` messages.
pub const VERSION: u32 = 1;

fn check_version(version: u32) -> Result<(), FieldError> {
    if version == VERSION {
        Ok(())
    } else {
        Err(FieldError::new("version", version.to_string(), "1"))
    }
}

fn router_name(field: &str, value: &str) -> Result<RouterName, FieldError> {
    RouterName::new(value).map_err(|error| FieldError::new(field, value, error.allowed))
}

fn workload_name(value: &str) -> Result<WorkloadName, FieldError> {
    WorkloadName::new(value).map_err(|error| FieldError::new("name", value, error.allowed))
}

fn spiffe_id(field: &str, value: &str) -> Result<SpiffeId, FieldError> {
    SpiffeId::new(value).map_err(|error| FieldError::new(field, value, error.allowed))
}

pub fn encode_lease(lease: &Lease) -> ipam::Lease {
    ipam::Lease {
        uid: lease.uid.0.to_vec(),
        router: lease.router.to_string(),
        instance: lease.instance.0.to_vec(),
        generation: lease.generation.0,
        prefix4: lease
            .prefix4
            .map(|prefix| prefix.to_string())
            .unwrap_or_default(),
        prefix6: lease.prefix6.to_string(),
    }
}

pub fn decode_lease(lease: &ipam::Lease) -> Result<Lease, FieldError> {
    let prefix4 = match lease.prefix4.as_str() {
        "" => None,
        text => match prefix("lease.prefix4", text)? {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => return Err(FieldError::new("lease.prefix4", text, "an IPv4 prefix")),
        },
    };
    let prefix6 = match prefix("lease.prefix6", &lease.prefix6)? {
        IpNet::V6(net) => net,
        IpNet::V4(_) => {
            return Err(FieldError::new(
                "lease.prefix6",
                &lease.prefix6,
                "an IPv6 prefix",
            ));
        }
    };
    Ok(Lease {
        uid: network_uid("lease.uid", &lease.uid)?,
        router: router_name("lease.router", &lease.router)?,
        instance: instance_id("lease.instance", &lease.instance)?,
        generation: Generation(lease.generation),
        prefix4,
        prefix6,
    })
}

pub fn encode_acquire(uid: NetworkUid, acquire: &Acquire) -> ipam::AcquireRequest {
    ipam::AcquireRequest {
        version: VERSION,
        uid: uid.0.to_vec(),
        router: acquire.router.to_string(),
        instance: acquire.instance.0.to_vec(),
        held: acquire.held.as_ref().map(encode_lease),
        prefix_len4: acquire.prefix_len4.unwrap_or(0).into(),
        exclusions: acquire.exclusions.iter().map(IpNet::to_string).collect(),
    }
}

pub fn decode_acquire(request: &ipam::AcquireRequest) -> Result<(NetworkUid, Acquire), FieldError> {
    check_version(request.version)?;
    let acquire = Acquire {
        router: router_name("router", &request.router)?,
        instance: instance_id("instance", &request.instance)?,
        held: request.held.as_ref().map(decode_lease).transpose()?,
        prefix_len4: match request.prefix_len4 {
            0 => None,
            len => Some(
                u8::try_from(len)
                    .ok()
                    .filter(|len| *len <= 32)
                    .ok_or_else(|| FieldError::new("prefix_len4", len.to_string(), "0 to 32"))?,
            ),
        },
        exclusions: prefixes("exclusions", &request.exclusions)?,
    };
    Ok((network_uid("uid", &request.uid)?, acquire))
}

pub fn encode_renew(lease: &Lease) -> ipam::RenewRequest {
    ipam::RenewRequest {
        version: VERSION,
        lease: Some(encode_lease(lease)),
    }
}

pub fn decode_renew(request: &ipam::RenewRequest) -> Result<Lease, FieldError> {
    check_version(request.version)?;
    present(request.lease.as_ref())
}

pub fn encode_release(lease: &Lease) -> ipam::ReleaseRequest {
    ipam::ReleaseRequest {
        version: VERSION,
        lease: Some(encode_lease(lease)),
    }
}

pub fn decode_release(request: &ipam::ReleaseRequest) -> Result<Lease, FieldError> {
    check_version(request.version)?;
    present(request.lease.as_ref())
}

fn present(lease: Option<&ipam::Lease>) -> Result<Lease, FieldError> {
    decode_lease(lease.ok_or_else(|| FieldError::new("lease", "", "a lease"))?)
}

pub fn encode_granted(granted: &Granted) -> ipam::LeaseReply {
    ipam::LeaseReply {
        lease: Some(encode_lease(&granted.lease)),
        renew_after_seconds: u32::try_from(granted.renew_after.as_secs())
            .unwrap_or(u32::MAX)
            .max(1),
    }
}

pub fn decode_granted(reply: &ipam::LeaseReply) -> Result<Granted, FieldError> {
    Ok(Granted {
        lease: present(reply.lease.as_ref())?,
        renew_after: Duration::from_secs(u64::from(reply.renew_after_seconds.max(1))),
    })
}

pub fn encode_claim(uid: NetworkUid, claim: &Claim) -> names::ClaimRequest {
    names::ClaimRequest {
        version: VERSION,
        uid: uid.0.to_vec(),
        name: claim.name.to_string(),
        workload: claim.workload.to_string(),
        addresses: claim.addresses.iter().map(IpAddr::to_string).collect(),
        router: claim.router.to_string(),
    }
}

pub fn decode_claim(request: &names::ClaimRequest) -> Result<(NetworkUid, Claim), FieldError> {
    check_version(request.version)?;
    let addresses = request.addresses.iter().take(64).enumerate();
    let claim = Claim {
        name: workload_name(&request.name)?,
        workload: spiffe_id("workload", &request.workload)?,
        addresses: addresses
            .map(|(at, address)| single_address(&format!("addresses[{at}]"), address))
            .collect::<Result<_, _>>()?,
        router: router_name("router", &request.router)?,
    };
    Ok((network_uid("uid", &request.uid)?, claim))
}

pub fn encode_release_name(
    uid: NetworkUid,
    name: &WorkloadName,
    workload: &SpiffeId,
) -> names::ReleaseRequest {
    names::ReleaseRequest {
        version: VERSION,
        uid: uid.0.to_vec(),
        name: name.to_string(),
        workload: workload.to_string(),
    }
}

pub fn decode_release_name(
    request: &names::ReleaseRequest,
) -> Result<(NetworkUid, WorkloadName, SpiffeId), FieldError> {
    check_version(request.version)?;
    Ok((
        network_uid("uid", &request.uid)?,
        workload_name(&request.name)?,
        spiffe_id("workload", &request.workload)?,
    ))
}
