use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, accept};
use crate::error::Error;

impl Netlink {
    /// Gives the interface an address with its prefix length (host bits kept), usable at once
    /// (no duplicate address detection).
    pub async fn add_address(&self, interface: &str, address: IpNet) -> Result<(), Error> {
        let operation = || format!("add {address} to {interface}");
        let index = self.index_of(&operation(), interface).await?;
        let message = message_of(index, address);
        accept(
            self.request(
                operation,
                RouteNetlinkMessage::NewAddress(message),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await,
            &[libc::EEXIST],
        )
    }

    /// Takes an address away; one that is not there is fine.
    pub async fn delete_address(&self, interface: &str, address: IpNet) -> Result<(), Error> {
        let operation = || format!("delete {address} from {interface}");
        let index = self.index_of(&operation(), interface).await?;
        let message = message_of(index, address);
        accept(
            self.request(operation, RouteNetlinkMessage::DelAddress(message), 0)
                .await,
            &[libc::EADDRNOTAVAIL],
        )
    }

    /// Every address of the interface with its prefix length, link-local ones included.
    pub async fn addresses(&self, interface: &str) -> Result<Vec<(IpAddr, u8)>, Error> {
        let index = self
            .index_of(&format!("list the addresses of {interface}"), interface)
            .await?;
        let all = self.all_addresses().await?;
        Ok(all
            .into_iter()
            .filter(|(of, _, _)| *of == index)
            .map(|(_, address, len)| (address, len))
            .collect())
    }

    pub(super) async fn all_addresses(&self) -> Result<Vec<(u32, IpAddr, u8)>, Error> {
        let dump = self
            .request(
                || "list the addresses".to_owned(),
                RouteNetlinkMessage::GetAddress(AddressMessage::default()),
                NLM_F_DUMP,
            )
            .await?;
        Ok(dump
            .iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else {
                    return None;
                };
                let find = |local: bool| {
                    message
                        .attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            AddressAttribute::Local(address) if local => Some(*address),
                            AddressAttribute::Address(address) if !local => Some(*address),
                            _ => None,
                        })
                };
                // IFA_LOCAL is the own address where both are there (point-to-point).
                let address = find(true).or_else(|| find(false))?;
                Some((message.header.index, address, message.header.prefix_len))
            })
            .collect())
    }
}

fn message_of(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message
        .attributes
        .push(AddressAttribute::Local(address.addr()));
    message
        .attributes
        .push(AddressAttribute::Address(address.addr()));
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            AddressFamily::Inet6
        }
    };
    message
}
