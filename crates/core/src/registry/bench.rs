//! A registry on a bench: its machine, a disk, and what came out.

use std::collections::BTreeMap;

use super::*;
use crate::allocator::Acquire;
use crate::document::Chain;
use crate::document::fixture::{chain, domain, id};
use crate::ids::{Generation, InstanceId, RouterName};
use crate::machine::{Machine, Outbox, Ticket};
use crate::time::{Mono, Now, Wall};

/// A registry with a disk that answers when it is told to.
pub(super) struct Bench {
    pub(super) machine: RegistryMachine,
    pub(super) disk: Vec<Record>,
    /// Handed over, not written yet, with the journal that shall stand after it.
    pub(super) writing: Option<(Ticket, Vec<Record>, Option<Vec<Record>>)>,
    pub(super) effects: Vec<Effect>,
    pub(super) chain: Chain,
    pub(super) now: Now,
    pub(super) calls: u64,
}

pub(super) fn config() -> Config {
    Config::new(domain("east"), id("east", "vl3/registry/east"), [1; 16], 1)
}

pub(super) fn at(secs: u64) -> Now {
    Now {
        mono: Mono::from_secs(secs),
        wall: Wall::from_unix_secs(1_800_000_000 + secs),
    }
}

pub(super) fn router() -> Peer {
    Peer::own(id("east", "vl3/router/red-east"))
}

pub(super) fn workload(name: &str) -> Peer {
    Peer::own(id("east", &format!("workload/{name}")))
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::boot(config(), chain(&["east", "west"]), Vec::new())
    }

    pub(super) fn boot(config: Config, chain: Chain, disk: Vec<Record>) -> Self {
        Self::boot_in(config, vec![chain], disk)
    }

    /// In several networks, the best one first.
    pub(super) fn boot_in(config: Config, chains: Vec<Chain>, disk: Vec<Record>) -> Self {
        let now = at(1);
        let chain = chains[0].clone();
        let boot = Boot {
            documents: chains,
            records: disk.clone(),
            ..Boot::default()
        };
        let machine = RegistryMachine::boot(config, boot, now).unwrap();
        let mut bench = Self {
            machine,
            disk,
            writing: None,
            effects: Vec::new(),
            chain,
            now,
            calls: 0,
        };
        bench.wake();
        bench.write();
        bench.effects.clear();
        bench
    }

    pub(super) fn take(&mut self, mut out: Outbox<Effect>) {
        for effect in out.take() {
            match effect {
                Effect::Append { ticket, records } => {
                    assert!(
                        self.writing.replace((ticket, records, None)).is_none(),
                        "one append at a time"
                    );
                }
                Effect::Rewrite {
                    ticket,
                    records,
                    journal,
                } => {
                    assert!(
                        self.writing
                            .replace((ticket, records, Some(journal)))
                            .is_none(),
                        "one append at a time"
                    );
                }
                other => self.effects.push(other),
            }
        }
    }

    pub(super) fn handle(&mut self, input: Input) {
        let mut out = Outbox::default();
        self.machine.handle(input, self.now, &mut out);
        self.take(out);
    }

    pub(super) fn wake(&mut self) {
        let mut out = Outbox::default();
        self.machine.wake(self.now, &mut out);
        self.take(out);
    }

    /// Lets the disk finish everything.
    pub(super) fn write(&mut self) {
        while let Some((ticket, records, journal)) = self.writing.take() {
            match journal {
                Some(journal) => self.disk = rewritten(&self.disk, &records, journal),
                None => self.disk.extend(records),
            }
            self.handle(Input::Appended { ticket });
        }
    }

    pub(super) fn send(&mut self, peer: &Peer, command: Command) -> CallId {
        self.calls += 1;
        let call = CallId(self.calls);
        self.handle(Input::Call {
            call,
            peer: peer.clone(),
            command,
        });
        call
    }

    pub(super) fn reply(&mut self, call: CallId) -> Option<Result<Reply, Refusal>> {
        let of_call =
            |effect: &Effect| matches!(effect, Effect::Reply { call: of, .. } if *of == call);
        let at = self.effects.iter().position(of_call)?;
        match self.effects.remove(at) {
            Effect::Reply { result, .. } => Some(result),
            _ => None,
        }
    }

    pub(super) fn call(&mut self, peer: &Peer, command: Command) -> Result<Reply, Refusal> {
        let call = self.send(peer, command);
        self.write();
        self.reply(call).expect("a reply after the append")
    }

    pub(super) fn delivered(&mut self, watcher: u64) -> Vec<(String, bool)> {
        let mut seen = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::Deliver {
                watcher: of,
                events,
                ..
            } if *of == WatcherId(watcher) => {
                seen.extend(events.iter().map(|event| match event {
                    WatchEvent::Endpoint { found, deleted } => {
                        (found.shown.endpoint().name.clone(), *deleted)
                    }
                    WatchEvent::Service { service, deleted } => (service.name.clone(), *deleted),
                    WatchEvent::Document(chain) => (chain.document().version.to_string(), false),
                }));
                false
            }
            _ => true,
        });
        seen
    }

    pub(super) fn restart(&mut self) {
        let disk = self.disk.clone();
        *self = Self {
            calls: self.calls,
            now: self.now,
            ..Self::boot(config(), self.chain.clone(), disk)
        };
    }

    pub(super) fn acquire(&self, instance: u8) -> Command {
        let acquire = Acquire {
            router: RouterName::new("red-east").unwrap(),
            instance: InstanceId([instance; 16]),
            held: None,
            prefix_len4: None,
            exclusions: Vec::new(),
        };
        Command::Acquire {
            uid: self.chain.uid(),
            acquire,
        }
    }

    pub(super) fn endpoint(&self, domain_name: &str, generation: u64) -> Endpoint {
        let name = format!("red-{domain_name}");
        let marks = Marks {
            service: "red".to_owned(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid: self.chain.uid(),
            domain: domain(domain_name),
            name: name.clone(),
            generation: Generation(generation),
            dials_only: false,
            udp: None,
        };
        Endpoint {
            name,
            services: vec!["red".to_owned()],
            labels: BTreeMap::from([("red".to_owned(), marks.labels())]),
            url: "tcp://192.0.2.1:5010".to_owned(),
            ..Endpoint::default()
        }
    }

    pub(super) fn register(&self, generation: u64) -> Command {
        Command::RegisterEndpoint {
            endpoint: self.endpoint("east", generation),
            lifetime: None,
        }
    }

    pub(super) fn claim(&self, name: &str, by: &str) -> Command {
        let claim = Claim {
            name: name.parse().unwrap(),
            workload: id("east", &format!("workload/{by}")),
            addresses: vec!["10.80.4.9".parse().unwrap()],
            router: RouterName::new("red-east").unwrap(),
        };
        Command::ClaimName {
            uid: self.chain.uid(),
            claim,
        }
    }
}
