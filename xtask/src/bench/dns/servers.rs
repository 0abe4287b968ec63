//! Upstreams with known records, and the servers that are compared, each at its best.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vl3_lab::tools::{self, QueryType, Rcode};
use vl3_lab::{Process, ProcessSpec};

use super::super::usage;
use super::World;

const UPSTREAMS: u8 = 3;
const UPSTREAM_PORT: u16 = 5300;
/// Names that are never kept (TTL 0), and how many.
const FAN_ZONE: &str = "fan.test";
const FAN_NAMES: usize = 30_000;
/// The hot set.
const HOT_ZONE: &str = "hot.test";
const HOT_NAMES: usize = 1_000;
/// Any name below it exists at the first upstream.
pub(super) const FILL_ZONE: &str = "fill.test";
/// Ours; the others count entries.
const CACHE_BYTES: u32 = 32 << 20;
const READY_LIMIT: Duration = Duration::from_secs(20);

/// The programs that the bench needs beside ours.
pub(super) fn installed() -> anyhow::Result<()> {
    let missing: Vec<&str> = ["nsd", "dnsdist", "dnsperf"]
        .into_iter()
        .filter(|program| find(program).is_none())
        .collect();
    ensure!(
        missing.is_empty(),
        "{} not found; apt-get install nsd dnsdist dnsperf",
        missing.join(", ")
    );
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    find(name).with_context(|| format!("{name} is missing"))
}

/// The address of `w<number>.<zone>`: the upstream that has it stands in the second octet.
pub(super) fn address_of(name: &str) -> anyhow::Result<IpAddr> {
    let label = name.split('.').next().unwrap_or_default();
    let number = label.strip_prefix('w').unwrap_or_default();
    let number: usize = number
        .parse()
        .with_context(|| format!("the name {name:?}"))?;
    let [.., high, low] = number.to_be_bytes();
    let owner = (number % usize::from(UPSTREAMS)).to_le_bytes()[0];
    Ok(Ipv4Addr::new(10, owner, high, low).into())
}

/// Three `nsd`, each with a third of the names.
pub(super) struct Upstreams {
    processes: Vec<Process>,
}

impl Upstreams {
    pub(super) async fn start(world: &World) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        for number in 0..UPSTREAMS {
            let dir = world.scratch.join(format!("nsd-{number}"));
            std::fs::create_dir_all(&dir)?;
            for (zone, names, ttl) in [(FAN_ZONE, FAN_NAMES, 0), (HOT_ZONE, HOT_NAMES, 3600)] {
                std::fs::write(dir.join(zone), zone_file(zone, number, names, ttl)?)?;
            }
            let mut fill = zone_file(FILL_ZONE, number, 0, 3600)?;
            if number == 0 {
                fill.push_str("* 3600 IN A 10.99.0.1\n");
            }
            std::fs::write(dir.join(FILL_ZONE), fill)?;
            let config = dir.join("nsd.conf");
            std::fs::write(&config, nsd_config(&dir, number))?;
            let spec = ProcessSpec::new(format!("nsd-{number}"), program("nsd")?)
                .args(["-d", "-c"])
                .args([config]);
            let mut process = world.host.spawn(spec)?;
            let address = SocketAddr::new(upstream(number), UPSTREAM_PORT);
            let name = format!("w{number}.{HOT_ZONE}");
            answers(world, &mut process, address, &name).await?;
            processes.push(process);
        }
        Ok(Self { processes })
    }

    /// To one of them with all its processes: SIGSTOP, SIGCONT.
    pub(super) fn signal(&self, number: usize, signal: Signal) -> anyhow::Result<()> {
        let process = self.processes.get(number).context("one of three")?;
        for pid in tools::tree_of(process.id()) {
            let pid = Pid::from_raw(i32::try_from(pid).context("a process number")?);
            kill(pid, signal).with_context(|| format!("{signal} to {}", process.name()))?;
        }
        Ok(())
    }

    /// A file of those questions whose names only these upstreams have, each once.
    pub(super) fn questions_of(
        &self,
        scratch: &Path,
        file: &str,
        owners: &[usize],
    ) -> anyhow::Result<PathBuf> {
        let mut text = String::new();
        for number in names_of(owners) {
            writeln!(text, "{} A", fan_name(number))?;
        }
        let path = scratch.join(file);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A file of questions in no order; those that only the first upstream has, for a server
    /// that asks only that one.
    pub(super) fn questions(
        &self,
        scratch: &Path,
        part: &str,
        kind: Kind,
    ) -> anyhow::Result<PathBuf> {
        let (zone, names) = match part {
            "cached" => (HOT_ZONE, HOT_NAMES),
            _ => (FAN_ZONE, FAN_NAMES),
        };
        let mut numbers: Vec<usize> = (0..names).collect();
        if kind.asks_one() {
            numbers.retain(|number| number % usize::from(UPSTREAMS) == 0);
        }
        // A stride that has no factor in common with any of these counts visits each once.
        let mut text = String::new();
        for step in 0..numbers.len() {
            let number = numbers[step * 7_919 % numbers.len()];
            writeln!(text, "w{number}.{zone} A")?;
        }
        let path = scratch.join(format!(
            "{part}-{}.questions",
            kind.name().replace(' ', "-")
        ));
        std::fs::write(&path, text)?;
        Ok(path)
    }

    pub(super) fn questions_to_fill(
        &self,
        scratch: &Path,
        names: usize,
    ) -> anyhow::Result<PathBuf> {
        let mut text = String::new();
        for number in 0..names {
            writeln!(text, "w{number}.{FILL_ZONE} A")?;
        }
        let path = scratch.join("fill.questions");
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// Names that no cache may keep and that only these upstreams have.
pub(super) fn names_of(owners: &[usize]) -> impl Iterator<Item = usize> + '_ {
    (0..FAN_NAMES).filter(|number| owners.contains(&(number % usize::from(UPSTREAMS))))
}

pub(super) fn fan_name(number: usize) -> String {
    format!("w{number}.{FAN_ZONE}")
}

fn upstream(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 1, number + 1).into()
}

fn zone_file(zone: &str, number: u8, names: usize, ttl: u32) -> anyhow::Result<String> {
    let mut text = format!(
        "$ORIGIN {zone}.\n@ 60 IN SOA ns.{zone}. hostmaster.{zone}. 1 3600 900 86400 0\n\
         @ 60 IN NS ns.{zone}.\nns 60 IN A {}\n",
        upstream(number)
    );
    for owned in (usize::from(number)..names).step_by(usize::from(UPSTREAMS)) {
        let name = format!("w{owned}");
        writeln!(text, "{name} {ttl} IN A {}", address_of(&name)?)?;
    }
    Ok(text)
}

fn nsd_config(dir: &Path, number: u8) -> String {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut text = format!(
        "server:\n  server-count: 1\n  username: \"\"\n  chroot: \"\"\n  database: \"\"\n  \
         zonesdir: \"{}\"\n  pidfile: \"{}\"\n  xfrdfile: \"{}\"\n  zonelistfile: \"{}\"\n  \
         rrl-ratelimit: 0\n  ip-address: {}@{UPSTREAM_PORT}\nremote-control:\n  control-enable: no\n",
        dir.display(),
        file("pid"),
        file("xfrd"),
        file("zonelist"),
        upstream(number),
    );
    for zone in [FAN_ZONE, HOT_ZONE, FILL_ZONE] {
        text.push_str(&format!("zone:\n  name: {zone}\n  zonefile: {zone}\n"));
    }
    text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    /// Each name is at one upstream alone: without its word nobody denies.
    OursApart,
    /// With the limits that every client has by default.
    OursLimited,
    CoreDnsFanout,
    /// With its cache plugin before the fan-out.
    CoreDnsCache,
    /// One upstream, no cache.
    DnsdistOne,
    /// The packet cache.
    DnsdistCache,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "vl3 dns",
            Self::OursApart => "vl3 dns apart",
            Self::OursLimited => "vl3 dns limited",
            Self::CoreDnsFanout => "CoreDNS fanout",
            Self::CoreDnsCache => "CoreDNS cache",
            Self::DnsdistOne => "dnsdist one upstream",
            Self::DnsdistCache => "dnsdist cache",
        }
    }

    const fn asks_one(self) -> bool {
        matches!(self, Self::DnsdistOne | Self::DnsdistCache)
    }

    fn address(self) -> SocketAddr {
        let last = match self {
            Self::Ours => 1,
            Self::CoreDnsFanout => 2,
            Self::CoreDnsCache => 3,
            Self::DnsdistOne => 4,
            Self::DnsdistCache => 5,
            Self::OursApart => 6,
            Self::OursLimited => 7,
        };
        SocketAddr::new(Ipv4Addr::new(127, 0, 2, last).into(), 5310)
    }

    fn spec(self, world: &World) -> anyhow::Result<ProcessSpec> {
        let name = self.name().replace(' ', "-");
        let config = world.scratch.join(format!("{name}.conf"));
        let address = self.address();
        let all: Vec<String> = (0..UPSTREAMS)
            .map(|number| SocketAddr::new(upstream(number), UPSTREAM_PORT).to_string())
            .collect();
        let (program, first, text) = match self {
            Self::Ours | Self::OursApart | Self::OursLimited => (
                world.vl3.clone(),
                &["dns", "--config"][..],
                self.our_config(world, address, &all),
            ),
            Self::CoreDnsFanout | Self::CoreDnsCache => {
                let cache = if self == Self::CoreDnsCache {
                    "  cache 3600\n"
                } else {
                    ""
                };
                let text = format!(
                    ".:{port} {{\n  bind {ip}\n{cache}  fanout . {all}\n}}\n",
                    port = address.port(),
                    ip = address.ip(),
                    all = all.join(" "),
                );
                (world.peers.join("coredns-fanout"), &["-conf"][..], text)
            }
            Self::DnsdistOne | Self::DnsdistCache => {
                let cache = if self == Self::DnsdistCache {
                    "getPool(\"\"):setCache(newPacketCache(100000))\n"
                } else {
                    ""
                };
                let text = format!(
                    "setLocal(\"{address}\")\nsetACL({{\"127.0.0.0/8\"}})\n\
                     newServer({{address=\"{}\", checkName=\"w0.{HOT_ZONE}.\"}})\n{cache}",
                    all[0]
                );
                let first = &["--supervised", "--disable-syslog", "-C"][..];
                (program("dnsdist")?, first, text)
            }
        };
        std::fs::write(&config, text)?;
        Ok(ProcessSpec::new(name, program).args(first).args([config]))
    }
}

impl Kind {
    /// Where ours says how it is.
    fn run_dir(self, world: &World) -> PathBuf {
        world.scratch.join(self.name().replace(' ', "-"))
    }

    fn our_config(self, world: &World, address: SocketAddr, upstreams: &[String]) -> String {
        let mut text = format!(
            "name = \"bench\"\nlisten = [\"{address}\"]\nrun_dir = \"{}\"\nstate_dir = \"\"\nlog.level = \"warn\"\n\
             clients = [\"127.0.0.0/8\"]\ncache.bytes = {CACHE_BYTES}\n",
            self.run_dir(world).display()
        );
        if self != Self::OursLimited {
            text.push_str("limits.queries_per_second = 0\nlimits.in_flight = 0\n");
        }
        let class = match self {
            Self::OursApart => "overlay",
            _ => "outside",
        };
        for (number, upstream) in upstreams.iter().enumerate() {
            text.push_str(&format!(
                "[[upstream]]\nname = \"u{number}\"\naddresses = [\"{upstream}\"]\n\
                 allow_private = true\nclass = \"{class}\"\n"
            ));
        }
        text
    }
}

/// Killed when dropped.
pub(super) struct Running {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    run_dir: PathBuf,
    process: Process,
}

impl Running {
    /// Starts it and waits until it answers.
    pub(super) async fn start(
        world: &World,
        kind: Kind,
        _upstreams: &Upstreams,
    ) -> anyhow::Result<Self> {
        let mut process = world.host.spawn(kind.spec(world)?)?;
        let address = kind.address();
        answers(world, &mut process, address, &format!("w0.{HOT_ZONE}")).await?;
        Ok(Self {
            kind,
            address,
            run_dir: kind.run_dir(world),
            process,
        })
    }

    /// The sum of the figures of ours whose lines begin like this.
    pub(super) async fn figure(&self, line: &str) -> anyhow::Result<f64> {
        let (_, text) = vl3_lab::admin::get(&self.run_dir, "/metrics").await?;
        let figures = text
            .lines()
            .filter(|text| text.starts_with(line))
            .filter_map(|text| text.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(figures.sum())
    }

    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        usage::cpu_seconds(self.process.id())
    }

    /// Resident.
    pub(super) fn memory_mib(&self) -> anyhow::Result<f64> {
        usage::resident_mib(self.process.id())
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.process.terminate()?;
        self.process.wait().await?;
        Ok(())
    }
}

/// Waits until a server gives the right answer.
async fn answers(
    world: &World,
    process: &mut Process,
    address: SocketAddr,
    name: &str,
) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = process.try_wait()? {
            bail!(
                "{} ended with {status}: {}",
                process.name(),
                process.log_tail(5).join("\n")
            );
        }
        let asked = tools::ask(
            &world.host,
            None,
            address,
            name,
            QueryType::A,
            Duration::from_millis(300),
        );
        if let Ok(answer) = asked.await
            && answer.rcode == Rcode::NoError
            && answer.addresses == [address_of(name)?]
        {
            return Ok(());
        }
        ensure!(
            start.elapsed() < READY_LIMIT,
            "{} gives no answer for {name} within {READY_LIMIT:?}: {}",
            process.name(),
            process.log_tail(5).join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_its_name_and_its_upstream() {
        let address = |name| address_of(name).unwrap().to_string();
        assert_eq!(address("w0.hot.test"), "10.0.0.0");
        assert_eq!(address("w29999.fan.test"), "10.2.117.47");
        assert_eq!(address("w257.fan.test"), "10.2.1.1");
        assert!(address_of("x.fan.test").is_err());
    }

    #[test]
    fn every_name_is_at_exactly_one_upstream() {
        let zones: Vec<String> = (0..UPSTREAMS)
            .map(|number| zone_file(FAN_ZONE, number, 10, 0).unwrap())
            .collect();
        for number in 0..10 {
            let line = format!("w{number} 0 IN A ");
            let holders = zones.iter().filter(|zone| zone.contains(&line)).count();
            assert_eq!(holders, 1, "{line}");
        }
    }
}
