//! What the demo builds, as data.

/// A network: one vL3.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkPlan {
    pub(super) name: &'static str,
    pub(super) zone: &'static str,
    /// Each with its IPv4 block: a size, or a prefix where it matters which.
    pub(super) domains: &'static [(&'static str, &'static str)],
    /// Ports of its routers, the same at every site.
    pub(super) tcp_port: u16,
    pub(super) udp_port: u16,
}

/// The IPv4 pool of **both** networks.
pub(super) const POOL_V4: &str = "10.80.0.0/16";

/// What the document excludes: every cluster's pod network.
pub(super) const EXCLUDED: &str = "10.244.0.0/16";

/// What a cluster's domain gets of the IPv4 pool.
pub(super) const BLOCK_V4: &str = "/22";

/// A service that every domain has: workloads by their names, wherever they are attached.
pub(super) const SERVICE: &str = "shop";
pub(super) const NAMESPACE: &str = "demo";
pub(super) const SERVICE_PORT: &str = "http=8080/tcp";
pub(super) const SERVICE_WORKLOADS: [&str; 3] = ["east-a", "west-a", "north-a"];

pub(super) const REGISTRY_PORT: u16 = 5002;

/// West has one block in both networks, so that workloads of red and blue hold equal addresses.
/// East has not: an address that a workload holds in one network hides the equal one of a
/// stranger in the other, and one workload of east is in both.
pub(super) const NETWORKS: [NetworkPlan; 2] = [
    NetworkPlan {
        name: "red",
        zone: "red.vl3",
        domains: &[
            ("east", "10.80.0.0/22"),
            ("west", "10.80.4.0/22"),
            ("north", BLOCK_V4),
        ],
        tcp_port: 5010,
        udp_port: 51820,
    },
    NetworkPlan {
        name: "blue",
        zone: "blue.vl3",
        domains: &[("east", "10.80.16.0/22"), ("west", "10.80.4.0/22")],
        tcp_port: 5011,
        udp_port: 51821,
    },
];

impl NetworkPlan {
    pub(super) fn has(&self, domain: &str) -> bool {
        self.domains.iter().any(|(name, _)| *name == domain)
    }

    /// Late domains take what is free.
    pub(super) fn block_v4(&self, domain: &str) -> &'static str {
        self.domains
            .iter()
            .find(|(name, _)| *name == domain)
            .map_or(BLOCK_V4, |(_, block)| *block)
    }
}

pub(super) const DOMAINS: [&str; 3] = ["east", "west", "north"];

/// The domain that joins the running network.
pub(super) const LATE_DOMAIN: &str = "south";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    Tun,
    Wireguard,
}

impl Mechanism {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Wireguard => "wireguard",
        }
    }
}

/// A workload and the networks it joins, in the order of its configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkloadPlan {
    pub(super) name: &'static str,
    pub(super) domain: &'static str,
    pub(super) networks: &'static [(&'static str, Mechanism)],
    /// A site of its own behind a source-NAT instead of a pod.
    pub(super) behind_nat: bool,
}

const fn pod(
    name: &'static str,
    domain: &'static str,
    networks: &'static [(&'static str, Mechanism)],
) -> WorkloadPlan {
    WorkloadPlan {
        name,
        domain,
        networks,
        behind_nat: false,
    }
}

const RED_TUN: &[(&str, Mechanism)] = &[("red", Mechanism::Tun)];
const RED_WIREGUARD: &[(&str, Mechanism)] = &[("red", Mechanism::Wireguard)];

pub(super) const KIOSK: &str = "kiosk";

pub(super) const WORKLOADS: [WorkloadPlan; 10] = [
    pod("east-a", "east", RED_TUN),
    pod("east-b", "east", RED_WIREGUARD),
    pod("west-a", "west", RED_TUN),
    pod("west-b", "west", RED_WIREGUARD),
    pod("north-a", "north", RED_TUN),
    pod("north-b", "north", RED_WIREGUARD),
    WorkloadPlan {
        name: KIOSK,
        domain: "east",
        networks: RED_WIREGUARD,
        behind_nat: true,
    },
    pod("east-blue", "east", &[("blue", Mechanism::Tun)]),
    pod("west-blue", "west", &[("blue", Mechanism::Wireguard)]),
    pod(
        "east-both",
        "east",
        &[("red", Mechanism::Tun), ("blue", Mechanism::Tun)],
    ),
];

pub(super) const LATE_WORKLOADS: [WorkloadPlan; 1] = [pod("south-a", LATE_DOMAIN, RED_TUN)];

pub(super) fn trust_domain(domain: &str) -> String {
    format!("{domain}.test")
}
