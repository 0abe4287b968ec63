use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vl3_net::{Route, Rule, tun};

use crate::host::{Host, Lab};
use crate::relay::{Relay, RelaySpec};

/// Every site's pod network: deliberately the same.
pub const POD_NETWORK_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
pub const POD_NETWORK_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd10, 0x244, 0, 0, 0, 0, 0, 0), 64);

const INTERNET_MTU_MAX: u16 = 9000;

/// Tables with the blackholes of one site's partitions start here.
const PARTITION_TABLE: u32 = 5000;

/// A routing namespace to which sites are attached.
#[derive(Debug)]
pub struct Internet {
    lab: Lab,
    router: Host,
    /// Numbers given to sites and relayed hosts, from 1.
    attached: AtomicU8,
}

/// How a site is attached.
#[derive(Clone, Copy, Debug)]
pub struct SiteSpec {
    /// Of the link to the internet; pods have 1500 or this, whichever is lower.
    pub mtu: u16,
}

impl Default for SiteSpec {
    fn default() -> Self {
        Self { mtu: 1500 }
    }
}

/// A gateway on the internet with pods behind it.
#[derive(Clone, Debug)]
pub struct Site {
    lab: Lab,
    gateway: Host,
    number: u8,
    mtu: u16,
    pods: Arc<AtomicU16>,
}

/// A host whose only link passes a [`Relay`].
#[derive(Debug)]
pub struct RelayedHost {
    host: Host,
    public_ipv4: Ipv4Addr,
    relay: Relay,
}

impl Internet {
    pub async fn build(lab: &Lab) -> anyhow::Result<Self> {
        let router = lab.add_host("internet")?;
        router.forward()?;
        router.netlink().link_up("lo").await?;
        Ok(Self {
            lab: lab.clone(),
            router,
            attached: AtomicU8::new(0),
        })
    }

    /// The routing namespace, for whatever the lab has no word for.
    pub fn router(&self) -> &Host {
        &self.router
    }

    fn next_number(&self) -> anyhow::Result<u8> {
        let number = self.attached.fetch_add(1, Ordering::Relaxed) + 1;
        if number > 200 {
            bail!("at most 200 sites and hosts can be attached to one internet");
        }
        Ok(number)
    }

    /// Attaches a site: a gateway `name` with one veth link to the internet.
    pub async fn add_site(&self, name: &str, spec: SiteSpec) -> anyhow::Result<Site> {
        let number = self.next_number()?;
        let gateway = self.lab.add_host(name)?;
        gateway.forward()?;
        let mtu = spec.mtu.clamp(1280, INTERNET_MTU_MAX);
        let far = format!("s{number}");
        self.lab
            .join(
                &gateway,
                &self.router,
                ("wan0", &far),
                (
                    &[net4(public_v4(number), 30), net6(public_v6(number), 64)],
                    &[net4(edge_v4(number), 30), net6(edge_v6(number), 64)],
                ),
                mtu,
            )
            .await
            .with_context(|| format!("attach {name} to the internet"))?;
        gateway
            .default_routes("wan0", edge_v4(number), edge_v6(number))
            .await?;
        Ok(Site {
            lab: self.lab.clone(),
            gateway,
            number,
            mtu,
            pods: Arc::new(AtomicU16::new(0)),
        })
    }

    /// Attaches a single host through a relay. With a NAT the host has a private address and
    /// shares the relay's public one; without, it owns that and an IPv6 address.
    pub async fn behind_relay(&self, name: &str, spec: RelaySpec) -> anyhow::Result<RelayedHost> {
        let number = self.next_number()?;
        let host = self.lab.add_host(name)?;
        let public = public_v4(number);
        let own = if spec.nat.is_some() {
            PRIVATE_V4
        } else {
            public
        };
        let (inner, _) = host.run(|| tun::create_plain("wan0"))?;
        host.netlink().set_mtu("wan0", spec.mtu).await?;
        host.configure("wan0", &[net4(own, 32)]).await?;
        host.netlink()
            .replace_route(&Route::to(IpNet::from(Ipv4Net::default())).dev("wan0"))
            .await?;

        let far = format!("r{number}");
        let (outer, _) = self.router.run(|| tun::create_plain(&far))?;
        self.router.netlink().set_mtu(&far, spec.mtu).await?;
        self.router.configure(&far, &[]).await?;
        self.router
            .netlink()
            .replace_route(&Route::to(net4(public, 32)).dev(&far))
            .await?;
        if spec.nat.is_none() {
            host.netlink()
                .add_address("wan0", net6(public_v6(number), 128))
                .await?;
            host.netlink()
                .replace_route(&Route::to(IpNet::from(Ipv6Net::default())).dev("wan0"))
                .await?;
            self.router
                .netlink()
                .replace_route(&Route::to(net6(public_v6(number), 64)).dev(&far))
                .await?;
        }
        let relay = Relay::start(inner, outer, public, spec)?;
        Ok(RelayedHost {
            host,
            public_ipv4: public,
            relay,
        })
    }

    /// Cuts two sites off from each other, both ways and families; others are unaffected.
    pub async fn partition(&self, one: &Site, other: &Site) -> anyhow::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let table = PARTITION_TABLE + u32::from(from.number);
            for (source, destination) in from.networks().into_iter().zip(to.networks()) {
                let blackhole = Route::to(destination).blackhole().table(table);
                self.router.netlink().replace_route(&blackhole).await?;
                self.router
                    .netlink()
                    .add_rule(Rule {
                        source,
                        table,
                        priority: table,
                    })
                    .await?;
            }
        }
        Ok(())
    }

    /// Ends a partition; without one this does nothing.
    pub async fn heal(&self, one: &Site, other: &Site) -> anyhow::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let table = PARTITION_TABLE + u32::from(from.number);
            for destination in to.networks() {
                self.router
                    .netlink()
                    .delete_route(&Route::to(destination).blackhole().table(table))
                    .await?;
            }
        }
        Ok(())
    }
}

impl Site {
    pub fn name(&self) -> &str {
        self.gateway.name()
    }

    /// The node on which a site's services run.
    pub fn gateway(&self) -> &Host {
        &self.gateway
    }

    pub fn public_ipv4(&self) -> Ipv4Addr {
        public_v4(self.number)
    }

    pub fn public_ipv6(&self) -> Ipv6Addr {
        public_v6(self.number)
    }

    /// The gateway inside the pod network: 10.244.0.1 at every site.
    pub fn gateway_pod_ipv4(&self) -> Ipv4Addr {
        pod_v4(1)
    }

    pub fn gateway_pod_ipv6(&self) -> Ipv6Addr {
        pod_v6(1)
    }

    /// Adds a pod with the next addresses of the pod network and default routes to its gateway.
    pub async fn add_pod(&self, name: &str) -> anyhow::Result<Host> {
        let count = self.pods.fetch_add(1, Ordering::Relaxed);
        let number = count
            .checked_add(2)
            .filter(|number| *number < 60_000)
            .context("the pod network is full")?;
        let pod = self.lab.add_host(name)?;
        let near = format!("p{number}");
        let gateway = [net4(pod_v4(1), 32), net6(pod_v6(1), 128)];
        let own = [net4(pod_v4(number), 32), net6(pod_v6(number), 128)];
        self.lab
            .join(
                &pod,
                &self.gateway,
                ("eth0", &near),
                (&own, &gateway),
                self.mtu.min(1500),
            )
            .await
            .with_context(|| format!("attach pod {name} to {}", self.name()))?;
        pod.default_routes("eth0", pod_v4(1), pod_v6(1)).await?;
        for address in own {
            self.gateway
                .netlink()
                .replace_route(&Route::to(address).dev(&near))
                .await?;
        }
        Ok(pod)
    }

    fn networks(&self) -> [IpNet; 2] {
        [
            net4(public_v4(self.number), 30).trunc(),
            net6(public_v6(self.number), 64).trunc(),
        ]
    }
}

impl RelayedHost {
    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// As the internet sees it.
    pub fn public_ipv4(&self) -> Ipv4Addr {
        self.public_ipv4
    }
}

/// The host's own address behind a NAT.
const PRIVATE_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);

// 198.18.0.0/15 is for benchmarks of network devices (RFC 2544), 2001:db8::/32 for documents.
fn public_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, number, 2)
}

fn edge_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, number, 1)
}

fn public_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, u16::from(number), 0, 0, 0, 0, 2)
}

fn edge_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, u16::from(number), 0, 0, 0, 0, 1)
}

fn pod_v4(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 244, high, low)
}

fn pod_v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, 0x244, 0, 0, 0, 0, 0, number)
}

fn net4(address: Ipv4Addr, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, len))
}

fn net6(address: Ipv6Addr, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, len))
}
