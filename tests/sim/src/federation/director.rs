//! What goes wrong when, and the calm at the end.

use core::time::Duration;

use vl3_core::registry::{Command, Input, Peer};

use super::cast::{domain_name, registry_id};
use super::faults::Fault;
use super::node::RENEW_AFTER;
use super::world::{Asked, Event, Step, Undo, World};

impl World {
    pub(super) fn direct(&mut self) -> Step {
        if self.is_calm {
            return Ok(());
        }
        for node in 0..self.nodes.len() {
            self.check_node(node)?;
        }
        if self.now >= self.calm_at {
            return self.calm();
        }
        let next = self.millis(500, 3000);
        self.later(next, Event::Director);
        let node = self.pick(self.nodes.len());
        let other = (node + 1 + self.pick(self.nodes.len() - 1)) % self.nodes.len();
        let lasts = self.millis(3000, 25_000);
        self.compare_watches(node)?;
        match self.rng.below(36) {
            0 | 1 => self.cut_off(node, other, lasts, Fault::Partition),
            2 => self.cut_off(node, other, lasts, Fault::OneWay),
            3 => {
                let pipes: Vec<_> = self.pipes.keys().copied().collect();
                if !pipes.is_empty() {
                    let pipe = pipes[self.pick(pipes.len())];
                    self.count(Fault::StreamLost);
                    self.break_pipe(pipe);
                }
            }
            4 => {
                if !self.nodes[node].streams.is_empty() {
                    self.count(Fault::SlowDomain);
                }
                self.nodes[node].slow = true;
                self.later(lasts, Event::Undo(Undo::Slow(node)));
            }
            5 => {
                if !self.nodes[node].streams.is_empty() {
                    self.count(Fault::Flapping);
                }
                self.later(Duration::from_millis(100), Event::Undo(Undo::Flap(node, 8)));
            }
            // In the middle of an append, when there is one next.
            6 | 7 => self.nodes[node].doomed = true,
            8 | 9 => {
                self.crash(node, Fault::Crash)?;
                let after = self.millis(200, 12_000);
                self.later(after, Event::Start(node));
            }
            10 | 23 => return self.restore(node),
            11 => {
                if self.nodes[node].machine.is_some() {
                    self.count(Fault::ClockStep);
                }
                let step = 3600 - i64::try_from(self.rng.below(7200)).unwrap_or(0);
                self.nodes[node].clock_offset += step;
            }
            12..=14 => self.start_to_lie(node, lasts),
            15 => self.change_members(node)?,
            16 => {
                let network = self.pick(self.networks.len());
                self.networks[network].rotate_key();
                if self.serves(node, network) {
                    self.count(Fault::KeyRotated);
                }
                self.publish(network, node)?;
            }
            17 => self.publish_two(node, other)?,
            18 => self.cut_watch(node)?,
            19 => self.restart_router(node),
            20 if self.rng.one_in(2) => self.watch_as_stranger(node, other)?,
            20 => self.ask_as_stranger(node, other)?,
            24..=34 => self.probe(node)?,
            _ => self.change_mind(),
        }
        if self.nodes[other].idle {
            self.nodes[other].disk.back_up();
        }
        Ok(())
    }

    /// A stream stands between the two.
    fn meet(&self, a: usize, b: usize) -> bool {
        let mut pipes = self.pipes.values();
        pipes.any(|pipe| {
            let ends = pipe.ends.map(|end| end.0);
            ends == [a, b] || ends == [b, a]
        })
    }

    fn serves(&self, node: usize, network: usize) -> bool {
        let uid = self.networks[network].uid;
        self.machine(node)
            .is_some_and(|machine| machine.document(uid).is_some())
    }

    fn cut_off(&mut self, a: usize, b: usize, lasts: Duration, fault: Fault) {
        if self.meet(a, b) {
            self.count(fault);
        }
        self.note(a, format_args!("{fault:?} with d{b}"));
        self.cut.insert((a, b));
        self.later(lasts, Event::Undo(Undo::Cut(a, b)));
        if fault == Fault::Partition {
            self.cut.insert((b, a));
            self.later(lasts, Event::Undo(Undo::Cut(b, a)));
        }
    }

    /// The disk of an earlier moment; only where everybody can still present what it holds.
    fn restore(&mut self, node: usize) -> Step {
        let recently = self.now.saturating_since(self.nodes[node].started) < RENEW_AFTER * 3;
        let of = &self.nodes[node];
        if of.restored || of.somebody_lost || recently || of.machine.is_none() {
            return Ok(());
        }
        let mut disk = self.nodes[node].disk.clone();
        if !disk.restore() {
            return Ok(());
        }
        self.crash(node, Fault::Restore)?;
        let cannot = self
            .clients
            .iter()
            .filter(|client| client.domain == node && client.held.is_none());
        let cannot = cannot.filter_map(|client| Some((client.network?, client.name.clone())));
        let cannot: Vec<_> = cannot.collect();
        self.truth.restored(node, &cannot);
        self.nodes[node].disk = disk;
        self.nodes[node].restored = true;
        let after = self.millis(200, 3000);
        self.later(after, Event::Start(node));
        Ok(())
    }

    fn start_to_lie(&mut self, node: usize, lasts: Duration) {
        let lies = [
            Fault::LieDomain,
            Fault::LieAddress,
            Fault::LieNetwork,
            Fault::LieTooMany,
            Fault::LieHuge,
            Fault::LieSequence,
        ];
        if self.nodes[node].lie.is_none() {
            let lie = lies[self.pick(lies.len())];
            self.note(node, format_args!("{lie:?}"));
            self.nodes[node].lie = Some(lie);
            self.liars.insert(node);
            self.break_pipes_of(node);
            self.later(lasts, Event::Undo(Undo::Lie(node)));
        }
    }

    fn change_members(&mut self, node: usize) -> Step {
        let network = self.pick(self.networks.len());
        if !self.networks[network].has(node) {
            let known = self.networks[network]
                .document()
                .members
                .contains_key(&domain_name(node));
            if known {
                return Ok(());
            }
            self.count(Fault::MemberAdded);
            self.networks[network].add(node);
            let chain = self.networks[network].chain.clone();
            self.nodes[node].documents.push(chain);
            self.crash(node, Fault::Crash)?;
            self.start(node)?;
            return self.publish(network, (node + 1) % self.nodes.len());
        }
        let members = self.networks[network].document().members.values();
        if members.filter(|member| !member.revoked).count() > 2 && self.rng.one_in(2) {
            self.count(Fault::MemberRevoked);
            self.networks[network].revoke(node);
            return self.publish(network, (node + 1) % self.nodes.len());
        }
        Ok(())
    }

    fn publish_two(&mut self, node: usize, other: usize) -> Step {
        let network = self.pick(self.networks.len());
        let version = self.networks[network].document().version % 250;
        let far = |last: u8| {
            let range = format!("10.255.{version}.{last}/32");
            range.parse().expect("a prefix")
        };
        let two = self.networks[network].publish_two(|document, content| {
            document.policy.exclusions.push(far(content));
        });
        if self.serves(node, network) && self.serves(other, network) {
            self.count(Fault::DocumentConflict);
        }
        self.two_contents = true;
        self.hand(two, other)?;
        self.publish(network, node)
    }

    fn publish(&mut self, network: usize, node: usize) -> Step {
        let chain = self.networks[network].chain.clone();
        self.hand(chain, node)
    }

    fn hand(&mut self, chain: vl3_core::document::Chain, node: usize) -> Step {
        let peer = Peer::own(registry_id(node));
        self.ask(node, peer, Command::Publish { chain }, Asked::Operator)
    }

    /// An operator brings the newest version wherever the network is served.
    pub(super) fn publish_everywhere(&mut self, network: usize) -> Step {
        let uid = self.networks[network].uid;
        let mut handed: Vec<usize> = Vec::new();
        for node in 0..self.nodes.len() {
            if !self.networks[network].has(node) {
                continue;
            }
            // From a member that both knew before, the version comes by itself.
            let knows = |other: &usize| {
                self.common(node, *other).contains(&uid) && self.common(*other, node).contains(&uid)
            };
            if !handed.iter().any(knows) {
                handed.push(node);
            }
        }
        for node in handed {
            self.publish(network, node)?;
        }
        Ok(())
    }

    fn cut_watch(&mut self, node: usize) -> Step {
        let of = self.watches.iter().find(|(_, watch)| watch.node == node);
        let Some(watcher) = of.map(|(watcher, _)| *watcher) else {
            return Ok(());
        };
        self.count(Fault::WatchCut);
        self.input(node, Input::Unwatch { watcher })?;
        self.watch_ended(watcher);
        Ok(())
    }

    /// With an empty state directory, where the registry knows of what was granted.
    fn restart_router(&mut self, node: usize) {
        let of = self.clients.iter().position(|client| {
            client.domain == node && client.network.is_some() && client.lease.is_some()
        });
        if let Some(client) = of {
            self.count(Fault::RouterRestart);
            let client = &mut self.clients[client];
            if self.nodes[node].restored {
                self.truth
                    .forgot(client.network.unwrap_or_default(), &client.name);
            }
            client.instance = client.instance.wrapping_add(1);
            (client.lease, client.held) = (None, None);
        }
    }

    /// Somebody moves, leaves, or comes back.
    fn change_mind(&mut self) {
        let client = self.pick(self.clients.len());
        if self.rng.one_in(2) {
            self.clients[client].version += 1;
        } else {
            self.clients[client].wants ^= true;
        }
    }

    pub(super) fn undo(&mut self, undo: &Undo) -> Step {
        match undo {
            Undo::Cut(from, at) => return self.heal(*from, *at),
            Undo::Slow(node) => self.nodes[*node].slow = false,
            Undo::Flap(node, left) => {
                self.break_pipes_of(*node);
                if *left > 0 && !self.is_calm {
                    let after = self.millis(500, 1500);
                    self.later(after, Event::Undo(Undo::Flap(*node, left - 1)));
                }
            }
            Undo::Exclude(node) => return self.include(*node),
            Undo::Lie(node) => {
                if self.nodes[*node].lie.take().is_some() {
                    self.break_pipes_of(*node);
                }
            }
        }
        Ok(())
    }

    /// The last fault is over.
    fn calm(&mut self) -> Step {
        self.is_calm = true;
        for (from, at) in self.cut.clone() {
            self.heal(from, at)?;
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].slow = false;
            self.nodes[node].doomed = false;
            self.nodes[node].disk_fails = false;
            self.undo(&Undo::Lie(node))?;
            self.start(node)?;
            self.include(node)?;
        }
        for client in 0..self.clients.len() {
            if self.clients[client].silent_until > self.now {
                self.later(Duration::from_millis(200), Event::Tick(client));
            }
        }
        for network in 0..self.networks.len() {
            self.networks[network].publish(|_| {});
            self.publish_everywhere(network)?;
            self.later(Duration::from_secs(2), Event::Publish(network));
        }
        Ok(())
    }
}
