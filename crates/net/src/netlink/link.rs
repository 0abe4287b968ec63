use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Netlink, accept};
use crate::error::Error;
use crate::namespace::Namespace;
use crate::tun::interface_name;

/// One interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up with a carrier, and the kernel has taken note: routes over it are in use.
    pub running: bool,
    /// With prefix length; filled by [`Netlink::links`] alone.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl Netlink {
    /// Every interface of the namespace with its addresses, by index.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let dump = self
            .request(
                || "list the interfaces".to_owned(),
                RouteNetlinkMessage::GetLink(LinkMessage::default()),
                NLM_F_DUMP,
            )
            .await?;
        let mut links: Vec<Link> = dump.iter().filter_map(link_of).collect();
        for (index, address, len) in self.all_addresses().await? {
            if let Some(link) = links.iter_mut().find(|link| link.index == index) {
                link.addresses.push((address, len));
            }
        }
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The interface without its addresses; `None` when it is not there.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        interface_name(name)?;
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match self
            .request(
                || format!("find {name}"),
                RouteNetlinkMessage::GetLink(message),
                0,
            )
            .await
        {
            Ok(answer) => Ok(answer.iter().find_map(link_of)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn link_exists(&self, name: &str) -> Result<bool, Error> {
        Ok(self.link(name).await?.is_some())
    }

    pub async fn link_up(&self, name: &str) -> Result<(), Error> {
        self.change_link("bring up", name, |message| set_up(message, true))
            .await
    }

    pub async fn link_down(&self, name: &str) -> Result<(), Error> {
        self.change_link("bring down", name, |message| set_up(message, false))
            .await
    }

    pub async fn set_mtu(&self, name: &str, mtu: u16) -> Result<(), Error> {
        self.change_link("set the MTU of", name, |message| {
            message.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        })
        .await
    }

    /// Packets that may wait for the reader of a TUN or the driver.
    pub async fn set_queue_length(&self, name: &str, packets: u32) -> Result<(), Error> {
        self.change_link("set the queue length of", name, |message| {
            message.attributes.push(LinkAttribute::TxQueueLen(packets));
        })
        .await
    }

    pub async fn rename_link(&self, name: &str, to: &str) -> Result<(), Error> {
        interface_name(to)?;
        self.change_link("rename", name, |message| {
            message
                .attributes
                .push(LinkAttribute::IfName(to.to_owned()))
        })
        .await
    }

    /// Moves the interface; its addresses and routes stay behind, and it is down there.
    pub async fn move_link(&self, name: &str, to: &Namespace) -> Result<(), Error> {
        self.change_link("move", name, |message| {
            message
                .attributes
                .push(LinkAttribute::NetNsFd(to.as_fd().as_raw_fd()));
        })
        .await
    }

    /// Deletes the interface; one that is not there is fine.
    pub async fn delete_link(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        accept(
            self.request(
                || format!("delete {name}"),
                RouteNetlinkMessage::DelLink(message),
                0,
            )
            .await,
            &[libc::ENODEV],
        )
    }

    /// Makes a veth pair: `name` in this namespace, `peer_name` in `peer` (unset: here too), both
    /// down, each with `mtu`.
    pub async fn add_veth(
        &self,
        name: &str,
        peer_name: &str,
        peer: Option<&Namespace>,
        mtu: u16,
    ) -> Result<(), Error> {
        interface_name(name)?;
        interface_name(peer_name)?;
        let mut other = LinkMessage::default();
        other.header.index = peer_index();
        other
            .attributes
            .push(LinkAttribute::IfName(peer_name.to_owned()));
        other.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        if let Some(peer) = peer {
            other
                .attributes
                .push(LinkAttribute::NetNsFd(peer.as_fd().as_raw_fd()));
        }
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        accept(
            self.request(
                || format!("make the veth pair {name} - {peer_name}"),
                RouteNetlinkMessage::NewLink(message),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await,
            &[libc::EEXIST],
        )
    }

    pub(super) async fn index_of(&self, operation: &str, name: &str) -> Result<u32, Error> {
        match self.link(name).await? {
            Some(link) => Ok(link.index),
            None => Err(Error::NoSuchLink {
                operation: operation.to_owned(),
                link: name.to_owned(),
            }),
        }
    }

    async fn change_link(
        &self,
        operation: &str,
        name: &str,
        change: impl FnOnce(&mut LinkMessage),
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.index_of(&format!("{operation} {name}"), name).await?;
        change(&mut message);
        self.request(
            || format!("{operation} {name}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
        .await
        .map(drop)
    }
}

/// An index for the far end that differs from the near one's, which the kernel chooses small: it
/// notes the carrier of a link whose two ends have one index up to a second later (linkwatch takes
/// such a link for a physical one).
fn peer_index() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = NEXT.fetch_add(1, Ordering::Relaxed) % INDICES_PER_PROCESS;
    (1 + std::process::id() % 1_000_000) * INDICES_PER_PROCESS + own
}

const INDICES_PER_PROCESS: u32 = 2000;

fn set_up(message: &mut LinkMessage, up: bool) {
    message.header.flags.set(LinkFlags::Up, up);
    message.header.change_mask = LinkFlags::Up;
}

fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::Running),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    Some(link)
}
