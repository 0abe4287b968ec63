use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use vl3_net::process::Spawner;
use vl3_net::{Namespace, Netlink, Route, sysctl};

use crate::process::{Process, ProcessSpec};

/// What all hosts share: the thread that starts processes, and where their logs go. When the last
/// clone (hosts hold one each) is gone, every process that still runs is killed.
#[derive(Clone, Debug)]
pub struct Lab {
    pub(crate) spawner: Spawner,
    scratch: Arc<PathBuf>,
}

impl Lab {
    /// Logs go below `scratch`, which the caller makes, owns and removes.
    pub fn new(scratch: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            spawner: Spawner::start()?,
            scratch: Arc::new(scratch.to_owned()),
        })
    }

    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A host without any link but its loopback. Must be called inside a tokio runtime.
    pub fn add_host(&self, name: &str) -> anyhow::Result<Host> {
        let context = || format!("make host {name}");
        let namespace = Namespace::with_resolv_conf("").with_context(context)?;
        namespace.run(settings).with_context(context)?;
        let netlink = Netlink::open_in(&namespace).with_context(context)?;
        let parts = Parts {
            name: name.to_owned(),
            namespace,
            netlink,
            lab: self.clone(),
        };
        Ok(Host {
            parts: Arc::new(parts),
        })
    }

    /// Joins two hosts by a veth pair with offloads on: `names` and `addresses` are those of
    /// `left`, then `right`.
    pub async fn join(
        &self,
        left: &Host,
        right: &Host,
        names: (&str, &str),
        addresses: (&[IpNet], &[IpNet]),
        mtu: u16,
    ) -> anyhow::Result<()> {
        left.netlink()
            .add_veth(names.0, names.1, Some(right.namespace()), mtu)
            .await?;
        let ends = [(left, names.0, addresses.0), (right, names.1, addresses.1)];
        for (host, name, addresses) in ends {
            host.configure(name, addresses).await?;
        }
        for (host, name, _) in ends {
            host.wait_until_running(name).await?;
        }
        Ok(())
    }
}

/// One machine or pod.
#[derive(Clone, Debug)]
pub struct Host {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    name: String,
    namespace: Namespace,
    netlink: Netlink,
    lab: Lab,
}

impl Host {
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    pub fn namespace(&self) -> &Namespace {
        &self.parts.namespace
    }

    pub fn netlink(&self) -> &Netlink {
        &self.parts.netlink
    }

    /// Runs `work` on a thread inside the host and waits for it: for opening sockets.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.parts.namespace.run(work)
    }

    /// Starts a process inside. Must be called inside a tokio runtime.
    pub fn spawn(&self, spec: ProcessSpec) -> anyhow::Result<Process> {
        Process::start(
            spec,
            &self.parts.lab,
            &self.parts.name,
            &self.parts.namespace,
        )
    }

    /// Forwards packets of both families between its links.
    pub fn forward(&self) -> anyhow::Result<()> {
        Ok(self.run(sysctl::enable_forwarding)?)
    }

    /// Both default routes through a link.
    pub async fn default_routes(
        &self,
        interface: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> anyhow::Result<()> {
        for (any, gateway) in [
            (IpNet::from(ipnet::Ipv4Net::default()), IpAddr::V4(v4)),
            (IpNet::from(ipnet::Ipv6Net::default()), IpAddr::V6(v6)),
        ] {
            let route = Route::to(any).dev(interface).via(gateway).on_link();
            self.netlink().replace_route(&route).await?;
        }
        Ok(())
    }

    /// Drops packets to `prefix` without an answer, until [`Host::unblackhole`].
    pub async fn blackhole(&self, prefix: IpNet) -> anyhow::Result<()> {
        Ok(self
            .netlink()
            .replace_route(&Route::to(prefix).blackhole().metric(BLACKHOLE_METRIC))
            .await?)
    }

    pub async fn unblackhole(&self, prefix: IpNet) -> anyhow::Result<()> {
        Ok(self
            .netlink()
            .delete_route(&Route::to(prefix).blackhole().metric(BLACKHOLE_METRIC))
            .await?)
    }

    /// A link carries packets a moment after both ends are up.
    async fn wait_until_running(&self, interface: &str) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + CARRIER_WAIT_MAX;
        while !self
            .netlink()
            .link(interface)
            .await?
            .is_some_and(|link| link.running)
        {
            if tokio::time::Instant::now() > deadline {
                anyhow::bail!(
                    "{interface} of {} got no carrier in {CARRIER_WAIT_MAX:?}",
                    self.name()
                );
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Sets addresses and brings the link up.
    pub(crate) async fn configure(
        &self,
        interface: &str,
        addresses: &[IpNet],
    ) -> anyhow::Result<()> {
        let owned = interface.to_owned();
        self.run(move || sysctl::disable_dad(Some(&owned)))?;
        for address in addresses {
            self.netlink().add_address(interface, *address).await?;
        }
        self.netlink().link_up(interface).await?;
        Ok(())
    }
}

const CARRIER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Below every route that the lab and the roles set for the same prefix.
const BLACKHOLE_METRIC: u32 = 1;

/// The same on every machine: a namespace inherits some settings from the one that made it.
fn settings() -> Result<(), vl3_net::Error> {
    for place in ["all", "default"] {
        sysctl::write(&format!("net/ipv4/conf/{place}/rp_filter"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{place}/accept_redirects"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{place}/send_redirects"), "0")?;
    }
    sysctl::disable_dad(None)
}
