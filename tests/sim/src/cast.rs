//! Who takes part in one run: domains, networks with their signed documents, routers,
//! workloads. Drawn from the seed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use vl3_core::Rng;
use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds, SignedDocument};
use vl3_core::ids::{
    DomainName, Generation, NetworkName, NetworkUid, RouterName, SpiffeId, WorkloadName,
};

pub const DOMAINS: [&str; 4] = ["east", "west", "north", "south"];

/// One network and every version of its document, oldest first.
#[derive(Debug)]
pub struct Network {
    pub name: NetworkName,
    pub uid: NetworkUid,
    pub versions: Vec<Chain>,
    secret: AdminSecret,
}

/// A router's place in the world; its process comes and goes.
#[derive(Clone, Debug)]
pub struct RouterRole {
    pub name: RouterName,
    pub domain: usize,
    pub network: usize,
    pub address: SocketAddr,
    pub id: SpiffeId,
    pub dials_only: bool,
}

#[derive(Clone, Debug)]
pub struct WorkloadRole {
    pub name: WorkloadName,
    pub domain: usize,
    pub network: usize,
    /// Index of the router it attaches to.
    pub router: usize,
    pub id: SpiffeId,
    pub tun: bool,
    pub address: SocketAddr,
}

#[derive(Debug)]
pub struct Cast {
    pub networks: Vec<Network>,
    pub routers: Vec<RouterRole>,
    pub workloads: Vec<WorkloadRole>,
    /// Domains that take part, the late one included.
    pub domains: usize,
    /// The last domain joins while the others run.
    pub late: Option<usize>,
}

pub fn domain_name(domain: usize) -> DomainName {
    DomainName::new(DOMAINS[domain]).expect("a label")
}

pub fn trust_domain(domain: usize) -> String {
    format!("{}.test", DOMAINS[domain])
}

fn spiffe(domain: usize, path: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://{}/{path}", trust_domain(domain))).expect("an id")
}

pub fn registry_id(domain: usize) -> SpiffeId {
    spiffe(domain, "vl3/registry/registry")
}

pub fn registry_address(domain: usize) -> SocketAddr {
    underlay(domain, 1, 5002)
}

fn underlay(domain: usize, host: u8, port: u16) -> SocketAddr {
    let octet = u8::try_from(domain + 1).unwrap_or(u8::MAX);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, octet, host)), port)
}

impl Cast {
    pub fn draw(rng: &mut Rng) -> Self {
        let late = rng.one_in(3).then_some(3);
        let domains = if late.is_some() {
            4
        } else {
            2 + usize::from(!rng.one_in(4))
        };
        let present = domains - usize::from(late.is_some());
        let mut networks = vec![Network::draw("red", 0, present, late, rng)];
        if rng.one_in(2) {
            networks.push(Network::draw("blue", 1, present.min(2), None, rng));
        }
        let mut cast = Self {
            networks,
            routers: Vec::new(),
            workloads: Vec::new(),
            domains,
            late,
        };
        for network in 0..cast.networks.len() {
            for domain in 0..domains {
                if network == 1 && domain >= 2 {
                    continue;
                }
                let siblings = if network == 0 && domain == 0 {
                    1 + usize::from(rng.one_in(2)) + usize::from(rng.one_in(4))
                } else {
                    1
                };
                for sibling in 0..siblings {
                    cast.add_router(network, domain, sibling, domain == 1 && rng.one_in(4), rng);
                }
            }
        }
        cast
    }

    fn add_router(
        &mut self,
        network: usize,
        domain: usize,
        sibling: usize,
        dials_only: bool,
        rng: &mut Rng,
    ) {
        let index = self.routers.len();
        let suffix = if sibling == 0 {
            String::new()
        } else {
            format!("-{}", sibling + 1)
        };
        let name = format!(
            "{}-{}{suffix}",
            self.networks[network].name, DOMAINS[domain]
        );
        let host = u8::try_from(10 + index).unwrap_or(u8::MAX);
        self.routers.push(RouterRole {
            id: spiffe(domain, &format!("vl3/router/{name}")),
            name: RouterName::new(&name).expect("a name"),
            domain,
            network,
            address: underlay(domain, host, 5010),
            dials_only,
        });
        for _ in 0..1 + rng.below(2) {
            let count = self.workloads.len();
            let name = format!("w{count}");
            let host = u8::try_from(100 + count).unwrap_or(u8::MAX);
            self.workloads.push(WorkloadRole {
                id: spiffe(domain, &format!("workload/{name}")),
                name: WorkloadName::new(&name).expect("a label"),
                domain,
                network,
                router: index,
                tun: rng.one_in(2),
                address: underlay(domain, host, 51820),
            });
        }
    }
}

impl Network {
    fn draw(name: &str, index: u8, present: usize, late: Option<usize>, rng: &mut Rng) -> Self {
        let secret = AdminSecret::from_bytes(&[index + 1; 32]);
        let nonce: Vec<u8> = (0..16)
            .map(|_| u8::try_from(rng.below(256)).unwrap_or(0))
            .collect();
        let admin_keys = [secret.public()].into();
        let uid = NetworkUid::derive(&nonce, &admin_keys);
        // Both networks use the same IPv4 pool, and IPv6 pools of their own.
        let pool6 = format!("fd00:0:0:{index:x}::/64")
            .parse()
            .expect("a prefix");
        let first = Document {
            uid,
            nonce,
            version: 1,
            name: NetworkName::new(name).expect("a label"),
            zone: format!("{name}.example"),
            pool6,
            pool4: Some("10.96.0.0/16".parse().expect("a prefix")),
            admin_keys,
            members: (0..present)
                .map(|domain| (domain_name(domain), member(index, domain)))
                .collect(),
            policy: Policy {
                exclusions: vec!["10.96.0.128/28".parse().expect("a prefix")],
                ..Policy::default()
            },
        };
        let chain =
            Chain::verify(vec![signed(&secret, first.clone())]).expect("a valid first version");
        let mut network = Self {
            name: first.name,
            uid,
            versions: vec![chain],
            secret,
        };
        if let Some(late) = late {
            network.publish(|document| {
                document
                    .members
                    .insert(domain_name(late), member(index, late));
            });
        }
        network
    }

    /// Signs one more version; whoever wants it known has to hand it to a registry.
    pub fn publish(&mut self, change: impl FnOnce(&mut Document)) -> Chain {
        let newest = self.newest();
        let mut document = Document::clone(newest.document());
        document.version += 1;
        change(&mut document);
        let chain = newest
            .extend(signed(&self.secret, document))
            .expect("a valid next version");
        self.versions.push(chain.clone());
        chain
    }

    pub fn newest(&self) -> &Chain {
        self.versions.last().expect("a network has a first version")
    }

    /// The version whose bytes these are.
    pub fn chain_of(&self, bytes: &[u8]) -> Option<&Chain> {
        self.versions
            .iter()
            .find(|chain| chain.newest().bytes == bytes)
    }
}

fn signed(secret: &AdminSecret, document: Document) -> SignedDocument {
    // The core never decodes; any faithful text does for the encoding.
    let bytes = format!("{document:?}").into_bytes();
    SignedDocument::sign(bytes, document, &[secret])
}

fn member(network: u8, domain: usize) -> Member {
    let octet = u8::try_from(domain).unwrap_or(u8::MAX);
    Member {
        domain: domain_name(domain),
        trust_domain: trust_domain(domain),
        bundle: Vec::new(),
        roles: RoleIds::defaults(&trust_domain(domain)),
        contacts: vec![registry_address(domain).to_string()],
        block4: Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, octet * 4, 0), 24)),
        block6: format!("fd00:0:0:{network:x}:{domain:x}::/80")
            .parse::<Ipv6Net>()
            .expect("a prefix"),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    }
}
