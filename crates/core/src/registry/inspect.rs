//! What an operator may see of the machine: everything with its owner, and until when.

use std::sync::Arc;

use ipnet::IpNet;

use super::machine::RegistryMachine;
use super::object::{Endpoint, Service};
use super::record::Claim;
use crate::allocator::Lease;
use crate::federation::RemoteStatus;
use crate::ids::{DomainName, NetworkUid, SpiffeId};
use crate::time::Mono;

/// A lease with who holds it and when it ends without a sign of life.
#[derive(Clone, Copy, Debug)]
pub struct HeldLease<'a> {
    pub lease: &'a Lease,
    pub holder: &'a SpiffeId,
    pub deadline: Mono,
}

/// A workload's name with its router's identity and when it ends without another claim.
#[derive(Clone, Copy, Debug)]
pub struct HeldName<'a> {
    pub uid: NetworkUid,
    pub claim: &'a Claim,
    pub by: &'a SpiffeId,
    pub deadline: Mono,
}

/// Where an endpoint comes from, and how long it stays.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    Own {
        owner: &'a SpiffeId,
        /// When it goes without a refresh.
        deadline: Mono,
    },
    Remote {
        domain: &'a DomainName,
        uid: NetworkUid,
        /// When it goes; None while its domain's stream vouches for it.
        deadline: Option<Mono>,
    },
}

/// A remote domain's stream, and what is held of what it said.
#[derive(Clone, Debug)]
pub struct HeldDomain {
    pub status: RemoteStatus,
    pub entries: usize,
    /// What they cost in memory, as the size limits measure it.
    pub bytes: usize,
    /// Endpoints not taken for want of room, ever.
    pub refused: u64,
}

impl RegistryMachine {
    pub const fn domain(&self) -> &DomainName {
        &self.config.domain
    }

    /// Leases of the served networks.
    pub fn held_leases(&self) -> impl Iterator<Item = HeldLease<'_>> + '_ {
        self.networks.values().flat_map(|network| {
            let allocator = &network.allocator;
            allocator.leases().filter_map(move |lease| {
                let (holder, deadline) = allocator.holder(&lease.router)?;
                Some(HeldLease {
                    lease,
                    holder,
                    deadline,
                })
            })
        })
    }

    pub fn held_names(&self) -> impl Iterator<Item = HeldName<'_>> + '_ {
        self.networks.iter().flat_map(|(uid, network)| {
            network.names.holders().map(move |held| HeldName {
                uid: *uid,
                claim: &held.claim,
                by: &held.by,
                deadline: held.deadline,
            })
        })
    }

    /// Services that somebody registered, with their owners.
    pub fn services(&self) -> impl Iterator<Item = (&Service, &SpiffeId)> + '_ {
        self.objects.services_owned()
    }

    pub fn endpoints_by_origin(&self) -> impl Iterator<Item = (Arc<Endpoint>, Origin<'_>)> + '_ {
        let own = self.objects.owns().map(|own| {
            let origin = Origin::Own {
                owner: &own.owner,
                deadline: own.deadline,
            };
            (own.endpoint.clone(), origin)
        });
        let remote = self.objects.remotes.iter().map(|(domain, remote)| {
            let origin = Origin::Remote {
                domain,
                uid: remote.uid,
                deadline: remote.deadline,
            };
            (Arc::new(remote.packed.endpoint()), origin)
        });
        own.chain(remote)
    }

    /// Ranges that an operator excluded while running.
    pub fn exclusions(&self, uid: NetworkUid) -> impl Iterator<Item = IpNet> + '_ {
        let network = self.networks.get(&uid).into_iter();
        network.flat_map(|network| network.allocator.exclusions())
    }

    pub fn held_domains(&self) -> Vec<HeldDomain> {
        let of = |status: RemoteStatus| {
            let size = self.objects.remotes.size(&status.domain);
            HeldDomain {
                entries: size.endpoints,
                bytes: size.bytes,
                refused: size.refused,
                status,
            }
        };
        self.federation.status().into_iter().map(of).collect()
    }
}
