//! What one registry's machine costs with 10,000 own and 250 x 1,000 remote endpoints:
//! `cargo run -p vl3-sim --example registry_figures`. Figures of this build, on this machine.

use std::io::Write as _;
use std::time::{Duration, Instant};

use vl3_core::document::{AdminSecret, Chain, Document, Member, Policy, RoleIds, SignedDocument};
use vl3_core::federation::{StreamId, SyncMessage};
use vl3_core::ids::{DomainName, Generation, NetworkName, NetworkUid, SpiffeId};
use vl3_core::registry::{
    Boot, CallId, Command, Config, Effect, Endpoint, EndpointQuery, Input, Marks, Peer, Query,
    RegistryMachine, WatcherId,
};
use vl3_core::{Machine as _, Mono, Now, Outbox, Wall};

const DOMAINS: usize = 250;
const REMOTE: usize = 1000;
const OWN: usize = 10_000;

fn id(domain: usize, path: &str) -> SpiffeId {
    SpiffeId::new(&format!("spiffe://d{domain}.test/{path}")).expect("an id")
}

fn member(domain: usize) -> Member {
    Member {
        domain: DomainName::new(&format!("d{domain}")).expect("a label"),
        trust_domain: format!("d{domain}.test"),
        bundle: Vec::new(),
        roles: RoleIds::defaults(&format!("d{domain}.test")),
        contacts: vec![format!("registry.d{domain}.test:5002")],
        block4: None,
        block6: format!("fd00:0:0:0:{domain:x}::/80")
            .parse()
            .expect("a prefix"),
        generation: Generation(1),
        not_after: None,
        revoked: false,
        dials_only: false,
    }
}

fn chain() -> Chain {
    let secret = AdminSecret::from_bytes(&[1; 32]);
    let (nonce, admin_keys) = (vec![1; 16], [secret.public()].into());
    let members = (0..=DOMAINS).map(member);
    let document = Document {
        uid: NetworkUid::derive(&nonce, &admin_keys),
        nonce,
        version: 1,
        name: NetworkName::new("red").expect("a label"),
        zone: "red.example".to_owned(),
        pool6: "fd00::/64".parse().expect("a prefix"),
        pool4: None,
        admin_keys,
        members: members
            .map(|member| (member.domain.clone(), member))
            .collect(),
        policy: Policy::default(),
    };
    let bytes = format!("{document:?}").into_bytes();
    Chain::verify(vec![SignedDocument::sign(bytes, document, &[&secret])]).expect("valid")
}

fn remote(uid: NetworkUid, domain: usize, number: usize) -> Endpoint {
    let name = format!("red-d{domain}-{number}");
    let marks = Marks {
        service: "red".to_owned(),
        proto: "1-1".to_owned(),
        role: "router".to_owned(),
        uid,
        domain: DomainName::new(&format!("d{domain}")).expect("a label"),
        name: name.clone(),
        generation: Generation(7),
        dials_only: false,
        udp: Some("203.0.113.200:51820".to_owned()),
    };
    Endpoint {
        name,
        services: vec!["red".to_owned()],
        labels: [("red".to_owned(), marks.labels())].into(),
        url: "tcp://203.0.113.200:5010".to_owned(),
        registered: Some(Wall::from_unix_secs(1_700_000_000)),
        path_ids: vec![
            id(domain, "vl3/router/red").to_string(),
            id(domain, "vl3/registry/r").to_string(),
        ],
    }
}

fn own(number: usize) -> Endpoint {
    Endpoint {
        name: format!("icmp-{number}"),
        services: vec![format!("service-{}", number % 2000)],
        url: "tcp://198.51.100.7:5001".to_owned(),
        path_ids: vec![id(0, "workload/a").to_string()],
        ..Endpoint::default()
    }
}

struct Bench {
    machine: RegistryMachine,
    calls: u64,
}

fn now() -> Now {
    Now {
        mono: Mono::from_secs(100),
        wall: Wall::from_unix_secs(1_800_000_000),
    }
}

impl Bench {
    /// The disk is as fast as memory.
    fn input(&mut self, input: Input) {
        let mut out = Outbox::default();
        self.machine.handle(input, now(), &mut out);
        while let Some(ticket) = out.take().into_iter().find_map(|effect| match effect {
            Effect::Append { ticket, .. } | Effect::Rewrite { ticket, .. } => Some(ticket),
            _ => None,
        }) {
            self.machine
                .handle(Input::Appended { ticket }, now(), &mut out);
        }
    }

    fn call(&mut self, path: &str, command: Command) {
        self.calls += 1;
        let (call, peer) = (CallId(self.calls), Peer::own(id(0, path)));
        self.input(Input::Call {
            call,
            peer,
            command,
        });
    }

    fn find(&mut self, name: &str, service: &str) {
        let after = None;
        let services = [service].into_iter().filter(|service| !service.is_empty());
        let query = EndpointQuery {
            name: name.to_owned(),
            services: services.map(str::to_owned).collect(),
            ..EndpointQuery::default()
        };
        self.call("workload/a", Command::FindEndpoints { query, after });
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn say(what: &str, value: &dyn core::fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{what:<44} {value}");
}

/// The shortest of some rounds: what else the machine does counts less.
fn time(what: &str, rounds: u32, mut once: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        let begun = Instant::now();
        once();
        best = best.min(begun.elapsed());
    }
    say(what, &format!("{best:?}"));
}

fn main() {
    let chain = chain();
    let uid = chain.uid();
    let domain = DomainName::new("d0").expect("a label");
    let mut config = Config::new(domain, id(0, "vl3/registry/r"), [1; 16], 1);
    config.rewrite_after = usize::MAX / 4;
    let boot = Boot {
        documents: vec![chain],
        ..Boot::default()
    };
    let machine = RegistryMachine::boot(config, boot, now()).expect("an empty journal");
    let mut bench = Bench { machine, calls: 0 };
    let mut out = Outbox::default();
    bench.machine.wake(now(), &mut out);
    for effect in out.take() {
        if let Effect::Append { ticket, .. } = effect {
            bench.input(Input::Appended { ticket });
        }
    }
    for number in 0..OWN {
        let lifetime = Some(Duration::from_secs(50));
        let command = Command::RegisterEndpoint {
            endpoint: own(number),
            lifetime,
        };
        bench.call(&format!("workload/w{}", number % 200), command);
    }
    say("own endpoints", &bench.machine.counts().endpoints);
    let measure = |bench: &mut Bench| {
        time("Find by service, 5 results", 20, || {
            bench.find("", "service-7")
        });
        time("Find by name", 20, || bench.find("icmp-77", ""));
        time("Register, a refresh", 20, || {
            let command = Command::RegisterEndpoint {
                endpoint: own(7),
                lifetime: None,
            };
            bench.call("workload/w7", command);
        });
        time("next_wake", 20, || {
            std::hint::black_box(bench.machine.next_wake());
        });
    };
    measure(&mut bench);
    let before = resident_kib();
    let begun = Instant::now();
    for domain in 1..=DOMAINS {
        let stream = StreamId::Accepted(domain as u64);
        let peer = Peer::vouched(id(domain, "vl3/registry/r"), [uid].into());
        bench.input(Input::SyncOpened { stream, peer });
        let open = SyncMessage::Open {
            version: 1,
            domain: DomainName::new(&format!("d{domain}")).expect("a label"),
            epoch: [2; 16],
            uids: vec![uid],
        };
        bench.input(Input::SyncReceived {
            stream,
            message: open,
        });
        for number in 0..REMOTE {
            let message = SyncMessage::Upsert {
                sequence: number as u64 + 1,
                uid,
                endpoint: remote(uid, domain, number).into(),
                lifetime: Duration::from_secs(60),
            };
            bench.input(Input::SyncReceived { stream, message });
        }
        let end = SyncMessage::EndOfSnapshot {
            sequence: REMOTE as u64 + 1,
        };
        bench.input(Input::SyncReceived {
            stream,
            message: end,
        });
    }
    let count = bench.machine.counts().endpoints;
    say("own and remote endpoints", &count);
    let each = begun.elapsed() / u32::try_from(DOMAINS * REMOTE).unwrap_or(1);
    say("made, judged and taken, each", &format!("{each:?}"));
    let bytes = (resident_kib() - before) * 1024 / (DOMAINS * REMOTE) as u64;
    say("bytes of one remote endpoint, resident", &bytes);
    say("resident in all", &format!("{} MiB", resident_kib() / 1024));
    measure(&mut bench);
    ten_routers(&mut bench);
}

/// All at once open a watch of their network and do not read it.
fn ten_routers(bench: &mut Bench) {
    let before = resident_kib();
    let mut unread = Vec::new();
    for watcher in 0..10 {
        let query = EndpointQuery {
            services: vec!["red".to_owned()],
            ..EndpointQuery::default()
        };
        let begun = Instant::now();
        let mut out = Outbox::default();
        let watch = Input::Watch {
            watcher: WatcherId(watcher),
            peer: Peer::own(id(0, "vl3/router/red")),
            query: Query::Endpoints(query),
        };
        bench.machine.handle(watch, now(), &mut out);
        if watcher == 0 {
            say(
                "a watch of all, until its page",
                &format!("{:?}", begun.elapsed()),
            );
        }
        unread.extend(out.take());
    }
    let grown = resident_kib().saturating_sub(before);
    say("resident for ten unread watches of all, KiB", &grown);
    let pages: usize = unread
        .iter()
        .map(|effect| match effect {
            Effect::Deliver { events, .. } => events.len(),
            _ => 0,
        })
        .sum();
    say("endpoints on their pages", &pages);
}
