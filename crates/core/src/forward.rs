//! The packet order: which packet may come from where and go whither. Pure; the data plane
//! calls it once per packet (or super-packet) over a table snapshot.
//!
//! A packet from a member may go anywhere; from a remote router to a sibling or a member;
//! from a sibling to a member. So a packet crosses at most three routers and nothing loops.

use std::net::IpAddr;

use ipnet::IpNet;

/// A place where packets enter and leave: one WireGuard peer or one TUN descriptor.
/// Chosen by the router's machine, never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

/// Index of a domain in the router's own list; equal means the same domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainIndex(pub u16);

/// Who stands behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortClass {
    /// A workload or a leaf site.
    Member,
    /// A router of another domain.
    Remote(DomainIndex),
    /// Another router of the own domain.
    Sibling,
    /// The router's own address (echo, DNS).
    Own,
}

/// One line of the table: packets to `prefix` leave by `port`; packets from `prefix` belong
/// to it. Of equal prefixes the table holds one, the preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub prefix: IpNet,
    pub port: PortId,
    pub class: PortClass,
    /// Largest inner packet on this way, bytes.
    pub mtu: u16,
}

/// What a table lookup yields: the longest prefix over all routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub port: PortId,
    pub class: PortClass,
    pub mtu: u16,
}

/// The longest-prefix table of one network.
pub trait Table {
    fn lookup(&self, address: IpAddr) -> Option<Hop>;
}

/// Why a packet was not forwarded. Also the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Not an IPv4 or IPv6 packet, or shorter than its header says.
    Malformed,
    /// Multicast, link-local, unspecified, loopback or broadcast, as source or destination:
    /// every interface sends some (neighbour discovery, router solicitation). Noise, not attack.
    LinkLocalNoise,
    /// The source does not belong to who sent it.
    ForgedSource,
    /// No route to the destination.
    NoRoute,
    /// The order of packets forbids this way (would be a fourth router, or a loop).
    PacketOrder,
    /// Back to where it came from.
    Hairpin,
    TtlExceeded,
    /// Larger than the route's MTU and may not be fragmented.
    TooBig,
    /// The output's queue is full.
    QueueFull,
    /// The peer has no session yet and its queue is full.
    NoSession,
    /// A WireGuard message that does not decrypt, is replayed or names no session.
    Unauthentic,
    /// The system refused the write.
    WriteFailed,
}

impl DropReason {
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::LinkLocalNoise,
        Self::ForgedSource,
        Self::NoRoute,
        Self::PacketOrder,
        Self::Hairpin,
        Self::TtlExceeded,
        Self::TooBig,
        Self::QueueFull,
        Self::NoSession,
        Self::Unauthentic,
        Self::WriteFailed,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::LinkLocalNoise => "link_local_noise",
            Self::ForgedSource => "forged_source",
            Self::NoRoute => "no_route",
            Self::PacketOrder => "packet_order",
            Self::Hairpin => "hairpin",
            Self::TtlExceeded => "ttl_exceeded",
            Self::TooBig => "too_big",
            Self::QueueFull => "queue_full",
            Self::NoSession => "no_session",
            Self::Unauthentic => "unauthentic",
            Self::WriteFailed => "write_failed",
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Forward(Hop),
    Drop(DropReason),
}

/// Decides one packet by its addresses. TTL and size are the caller's, after this.
pub fn forward(
    table: &impl Table,
    ingress: PortId,
    ingress_class: PortClass,
    source: IpAddr,
    destination: IpAddr,
) -> Verdict {
    if !routable(source) || !routable(destination) {
        return Verdict::Drop(DropReason::LinkLocalNoise);
    }
    if !owns(table, ingress, ingress_class, source) {
        return Verdict::Drop(DropReason::ForgedSource);
    }
    let Some(hop) = table.lookup(destination) else {
        return Verdict::Drop(DropReason::NoRoute);
    };
    let may_go = may_go(ingress_class, hop.class);
    #[cfg(feature = "plants")]
    let may_go = may_go
        || matches!(
            (ingress_class, hop.class),
            (PortClass::Sibling, PortClass::Remote(_))
        ) && crate::plants::Plant::PacketOrder.is_chosen();
    if !may_go {
        return Verdict::Drop(DropReason::PacketOrder);
    }
    if hop.port == ingress {
        return Verdict::Drop(DropReason::Hairpin);
    }
    Verdict::Forward(hop)
}

/// Whether `ingress` may speak for `source`, by the longest prefix over all routes: the port
/// that holds it; any router of the domain that holds it (its members may be a sibling's);
/// a sibling that carries a remote domain's packet on its last hop.
fn owns(table: &impl Table, ingress: PortId, ingress_class: PortClass, source: IpAddr) -> bool {
    let Some(owner) = table.lookup(source) else {
        return false;
    };
    match (ingress_class, owner.class) {
        _ if owner.port == ingress => true,
        (PortClass::Remote(sender), PortClass::Remote(holder)) => sender == holder,
        (PortClass::Sibling, PortClass::Remote(_) | PortClass::Sibling) => true,
        (
            PortClass::Member | PortClass::Own | PortClass::Remote(_) | PortClass::Sibling,
            PortClass::Member | PortClass::Own | PortClass::Remote(_) | PortClass::Sibling,
        ) => false,
    }
}

/// The order of packets.
pub const fn may_go(from: PortClass, to: PortClass) -> bool {
    match from {
        PortClass::Member | PortClass::Own => true,
        PortClass::Remote(_) => {
            matches!(to, PortClass::Sibling | PortClass::Member | PortClass::Own)
        }
        PortClass::Sibling => matches!(to, PortClass::Member | PortClass::Own),
    }
}

/// Addresses that a flat overlay carries: no multicast, link-local, loopback, unspecified,
/// broadcast.
pub fn routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_multicast()
                || v4.is_link_local()
                || v4.is_loopback()
                || v4.is_broadcast()
                || v4.octets()[0] == 0)
        }
        IpAddr::V6(v6) => {
            !(v6.is_multicast()
                || v6.is_loopback()
                || v6.is_unspecified()
                || (v6.segments()[0] & 0xffc0) == 0xfe80)
        }
    }
}
