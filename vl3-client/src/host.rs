//! The host's network and names: one task owns them for all attachments.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use vl3_net::Netlink;

use crate::names::{Keeper, Network};
use crate::plan::{Joined, Plan, plan, reachable_by_default};

/// Commands that wait; there are a few per attachment at most.
const QUEUE: usize = 64;

/// What one network wants of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) joined: Joined,
    pub(crate) dns_servers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
}

/// Why the host's network is not as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error(transparent)]
    Net(#[from] vl3_net::Error),
    #[error("the client is stopping")]
    Stopped,
}

struct Command {
    position: usize,
    wanted: Option<Wanted>,
    done: oneshot::Sender<Result<(), HostError>>,
}

/// Addresses by position of the attachment that holds them.
type Held = BTreeMap<usize, Vec<IpAddr>>;

/// What an attachment holds of the host.
#[derive(Clone, Debug)]
pub(crate) struct HostHandle {
    commands: mpsc::Sender<Command>,
    held: Arc<watch::Sender<Held>>,
}

impl HostHandle {
    /// Brings the host to what the attachment at `position` wants; unset: nothing of it stays.
    pub(crate) async fn set(
        &self,
        position: usize,
        wanted: Option<Wanted>,
    ) -> Result<(), HostError> {
        let (done, outcome) = oneshot::channel();
        let command = Command {
            position,
            wanted,
            done,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| HostError::Stopped)?;
        outcome.await.map_err(|_| HostError::Stopped)?
    }

    /// Claims the addresses of an answer, all or none; the error is one that another attachment
    /// holds. Earlier claims of the same attachment are given up.
    pub(crate) fn reserve(&self, position: usize, addresses: &[IpAddr]) -> Result<(), IpAddr> {
        let mut outcome = Ok(());
        self.held.send_if_modified(|held| {
            let others = held
                .iter()
                .filter(|(at, _)| **at != position)
                .flat_map(|(_, held)| held);
            if let Some(taken) = others.into_iter().find(|taken| addresses.contains(taken)) {
                outcome = Err(*taken);
                return false;
            }
            held.insert(position, addresses.to_vec()).as_deref() != Some(addresses)
        });
        outcome
    }

    /// Addresses that the other attachments hold, as prefixes.
    pub(crate) fn held_by_others(&self, position: usize) -> Vec<IpNet> {
        let held = self.held.borrow();
        held.iter()
            .filter(|(at, _)| **at != position)
            .flat_map(|(_, addresses)| addresses.iter().copied().map(IpNet::from))
            .collect()
    }

    /// Waits until every attachment before `position` holds addresses, at most `limit`: what
    /// they hold can then be excluded from the first Request on.
    pub(crate) async fn earlier_hold(&self, position: usize, limit: Duration) {
        let mut held = self.held.subscribe();
        let all = held.wait_for(|held| (0..position).all(|earlier| held.contains_key(&earlier)));
        // Too late or not: the answer is checked all the same.
        let _either = tokio::time::timeout(limit, all).await;
    }
}

/// Starts the owner; it ends when every handle is gone.
pub(crate) fn start(netlink: Netlink, names: Keeper) -> (HostHandle, impl Future<Output = ()>) {
    let (commands, queue) = mpsc::channel(QUEUE);
    let held = Arc::new(watch::Sender::new(Held::new()));
    let host = Host {
        netlink,
        names,
        wanted: BTreeMap::new(),
        applied: Plan::default(),
        held: Arc::clone(&held),
    };
    (HostHandle { commands, held }, host.run(queue))
}

struct Host {
    netlink: Netlink,
    names: Keeper,
    wanted: BTreeMap<usize, Wanted>,
    applied: Plan,
    held: Arc<watch::Sender<Held>>,
}

impl Host {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        // What a killed client left goes before anything is joined.
        self.names.set(Vec::new()).await;
        loop {
            let command = tokio::select! {
                command = queue.recv() => command,
                () = self.names.due() => {
                    self.names.look().await;
                    continue;
                }
            };
            let Some(Command {
                position,
                wanted,
                done,
            }) = command
            else {
                break;
            };
            let outcome = self.set(position, wanted).await;
            // The attachment may have been stopped meanwhile.
            let _gone = done.send(outcome);
        }
        self.names.set(Vec::new()).await;
    }

    async fn set(&mut self, position: usize, wanted: Option<Wanted>) -> Result<(), HostError> {
        match wanted {
            Some(wanted) => {
                self.wanted.insert(position, wanted);
            }
            None => {
                self.wanted.remove(&position);
                self.held
                    .send_if_modified(|held| held.remove(&position).is_some());
            }
        }
        let target = plan(self.wanted.values().map(|wanted| &wanted.joined));
        self.take_away(&target).await?;
        self.bring(&target).await?;
        let wanted = self.wanted.values();
        let names = wanted.map(|wanted| network(wanted, &target)).collect();
        self.names.set(names).await;
        Ok(())
    }

    /// Removes what is no longer wanted. An interface that went took its addresses and routes
    /// along, which is fine.
    async fn take_away(&mut self, target: &Plan) -> Result<(), HostError> {
        for rule in self.applied.rules.difference(&target.rules) {
            self.netlink.delete_rule(rule.to_rule()).await?;
        }
        for route in self.applied.routes.difference(&target.routes) {
            self.netlink.delete_route(&route.to_route()).await?;
        }
        for (interface, address) in self.applied.addresses.difference(&target.addresses) {
            match self.netlink.delete_address(interface, *address).await {
                Ok(()) | Err(vl3_net::Error::NoSuchLink { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sets everything that is wanted, also what was set before: whatever somebody else took
    /// away comes back with the next refresh.
    async fn bring(&mut self, target: &Plan) -> Result<(), HostError> {
        self.applied = target.clone();
        for (interface, mtu) in &target.links {
            self.netlink.set_mtu(interface, *mtu).await?;
            self.netlink
                .set_queue_length(interface, vl3_net::tun::QUEUE_LENGTH)
                .await?;
            self.netlink.link_up(interface).await?;
        }
        for (interface, address) in &target.addresses {
            self.netlink.add_address(interface, *address).await?;
        }
        for route in &target.routes {
            self.netlink.replace_route(&route.to_route()).await?;
        }
        for rule in &target.rules {
            self.netlink.add_rule(rule.to_rule()).await?;
        }
        Ok(())
    }
}

/// Servers at addresses that packets reach without a bound source, IPv4 first: an IPv6 address
/// alone where the IPv4 one collides with an earlier network's.
fn network(wanted: &Wanted, plan: &Plan) -> Network {
    let reachable = |address: &&IpAddr| reachable_by_default(&wanted.joined, **address, plan);
    let mut servers: Vec<IpAddr> = wanted
        .dns_servers
        .iter()
        .filter(reachable)
        .copied()
        .collect();
    servers.sort_by_key(IpAddr::is_ipv6);
    Network {
        interface: wanted.joined.interface.clone(),
        servers,
        suffixes: wanted.search.clone(),
        prefixes: wanted.joined.routes.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(interface: &str, v4: &str, v6: &str, spare_table: u32) -> Wanted {
        Wanted {
            joined: Joined {
                interface: interface.to_owned(),
                mtu: 1400,
                addresses: vec![v4.parse().unwrap(), v6.parse().unwrap()],
                routes: vec![
                    "10.60.0.0/16".parse().unwrap(),
                    format!("{v6}/64").parse::<IpNet>().unwrap().trunc(),
                ],
                table: None,
                spare_table,
            },
            dns_servers: vec![
                "10.60.0.1".parse().unwrap(),
                v6.replace("::5", "::1").parse().unwrap(),
            ],
            search: Vec::new(),
        }
    }

    #[test]
    fn a_colliding_networks_resolver_is_used_at_its_ipv6_address() {
        let red = wanted("vl3-red", "10.60.0.5", "fd01::5", 1);
        let blue = wanted("vl3-blue", "10.60.0.6", "fd02::5", 2);
        let plan = plan([&red.joined, &blue.joined]);
        let first = |wanted| network(wanted, &plan).servers.first().copied();
        assert_eq!(first(&red), Some("10.60.0.1".parse().unwrap()));
        assert_eq!(first(&blue), Some("fd02::1".parse().unwrap()));
    }
}
