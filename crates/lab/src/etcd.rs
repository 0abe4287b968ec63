//! Real etcd servers on loopback addresses of their own, to test against and to look at.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::libc;
use vl3_net::process::{Child, Spawner};

/// Where a member of a cluster answers its clients.
pub const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const METRICS_PORT: u16 = 2381;

/// A member answers within a second or two; a busy machine takes longer.
const READY_MAX: Duration = Duration::from_secs(60);

/// Files of a certificate that every member uses, towards clients and towards each other.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    pub ca: PathBuf,
    /// For servers and clients, with the addresses of all members.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What the command line of one member needs.
#[derive(Clone, Debug)]
pub struct EtcdMember {
    pub name: String,
    pub address: IpAddr,
    pub data: PathBuf,
}

/// The arguments of the member `at` of a cluster of these members.
pub fn arguments(members: &[EtcdMember], at: usize, tls: Option<&EtcdTls>) -> Vec<String> {
    let member = &members[at];
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = |address: IpAddr, port| format!("{scheme}://{}", SocketAddr::new(address, port));
    let cluster: Vec<_> = members
        .iter()
        .map(|member| format!("{}={}", member.name, url(member.address, PEER_PORT)))
        .collect();
    let (client, peer) = (
        url(member.address, CLIENT_PORT),
        url(member.address, PEER_PORT),
    );
    let metrics = format!("http://{}", SocketAddr::new(member.address, METRICS_PORT));
    let data = member.data.display().to_string();
    let mut arguments: Vec<String> = [
        ("--name", member.name.as_str()),
        ("--data-dir", data.as_str()),
        ("--listen-client-urls", client.as_str()),
        ("--advertise-client-urls", client.as_str()),
        ("--listen-peer-urls", peer.as_str()),
        ("--initial-advertise-peer-urls", peer.as_str()),
        ("--initial-cluster", cluster.join(",").as_str()),
        ("--initial-cluster-state", "new"),
        ("--listen-metrics-urls", metrics.as_str()),
        ("--logger", "zap"),
        ("--log-level", "warn"),
    ]
    .iter()
    .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
    .collect();
    if let Some(tls) = tls {
        let file = |path: &Path| path.display().to_string();
        arguments.extend([
            "--client-cert-auth".to_owned(),
            "--peer-client-cert-auth".to_owned(),
        ]);
        for (name, path) in [
            ("--cert-file", &tls.cert),
            ("--key-file", &tls.key),
            ("--trusted-ca-file", &tls.ca),
            ("--peer-cert-file", &tls.cert),
            ("--peer-key-file", &tls.key),
            ("--peer-trusted-ca-file", &tls.ca),
        ] {
            arguments.extend([name.to_owned(), file(path)]);
        }
    }
    arguments
}

/// A cluster of one or more members. They end with the handle and with this process.
#[derive(Debug)]
pub struct EtcdCluster {
    program: PathBuf,
    members: Vec<EtcdMember>,
    tls: Option<EtcdTls>,
    extra: Vec<String>,
    spawner: Spawner,
    running: Vec<Option<Child>>,
}

impl EtcdCluster {
    /// Chooses addresses; data and logs go below `dir`.
    pub fn new(dir: &Path, members: usize) -> anyhow::Result<Self> {
        let addresses = free_addresses(members)?;
        let member = |(number, address): (usize, Ipv4Addr)| EtcdMember {
            name: format!("e{number}"),
            address: address.into(),
            data: dir.join(format!("etcd-{number}")),
        };
        Ok(Self {
            program: program()?,
            members: (1..).zip(addresses).map(member).collect(),
            tls: None,
            extra: Vec::new(),
            spawner: Spawner::start()?,
            running: (0..members).map(|_| None).collect(),
        })
    }

    /// What the certificate of [`Self::with_tls`] must name.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.members.iter().map(|member| member.address).collect()
    }

    #[must_use]
    pub fn with_tls(mut self, tls: EtcdTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// More arguments for every member, `--quota-backend-bytes` say.
    #[must_use]
    pub fn with_arguments(mut self, extra: &[&str]) -> Self {
        self.extra = extra.iter().map(|&argument| argument.to_owned()).collect();
        self
    }

    /// Another etcd than the one on the PATH.
    #[must_use]
    pub fn with_program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Starts every member and waits until all are healthy.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for at in 0..self.members.len() {
            self.start_member(at)?;
        }
        self.eventually_healthy().await
    }

    /// Starts a member that does not run.
    pub fn start_member(&mut self, at: usize) -> anyhow::Result<()> {
        let member = &self.members[at];
        let log = member.data.with_extension("log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log);
        let log = log.context("open the log of etcd")?;
        let mut command = Command::new(&self.program);
        command
            .args(arguments(&self.members, at, self.tls.as_ref()))
            .args(&self.extra)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.running[at] = Some(self.spawner.spawn(command, None)?);
        Ok(())
    }

    /// Until every member that runs says that the cluster works.
    pub async fn eventually_healthy(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut running = (0..self.members.len()).filter(|at| self.running[*at].is_some());
            if running.all(|at| self.is_healthy(at)) {
                return Ok(());
            }
            if begun.elapsed() > READY_MAX {
                bail!(
                    "etcd is not healthy after {READY_MAX:?}: {:?}",
                    self.members
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn is_healthy(&self, at: usize) -> bool {
        self.get(at, "/health")
            .is_some_and(|answer| answer.contains("\"health\":\"true\""))
    }

    /// The member that leads, as it says itself.
    pub fn leader(&self) -> Option<usize> {
        let leads = |at: &usize| {
            let metrics = self.get(*at, "/metrics").unwrap_or_default();
            metrics.contains("\netcd_server_is_leader 1\n")
        };
        (0..self.members.len())
            .filter(|at| self.running[*at].is_some())
            .find(leads)
    }

    fn get(&self, at: usize, path: &str) -> Option<String> {
        let limit = Duration::from_secs(2);
        let address = SocketAddr::new(self.members[at].address, METRICS_PORT);
        let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
        stream.set_read_timeout(Some(limit)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// URLs for clients.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let address = |member: &EtcdMember| SocketAddr::new(member.address, CLIENT_PORT);
        self.members
            .iter()
            .map(|member| format!("{scheme}://{}", address(member)))
            .collect()
    }

    /// SIGKILL, as by a power failure; [`Self::start_member`] brings it back with its data.
    pub async fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.running[at].take() {
            child.kill()?;
            child.wait().await?;
        }
        Ok(())
    }

    /// SIGSTOP: alive and silent.
    pub fn pause(&self, at: usize) -> anyhow::Result<()> {
        self.signal(at, libc::SIGSTOP)
    }

    pub fn resume(&self, at: usize) -> anyhow::Result<()> {
        self.signal(at, libc::SIGCONT)
    }

    fn signal(&self, at: usize, signal: i32) -> anyhow::Result<()> {
        let child = self.running[at].as_ref();
        child.context("the member does not run")?.signal(signal)?;
        Ok(())
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for child in self.running.iter().flatten() {
            // Err: it is gone.
            let _gone = child.kill();
        }
    }
}

/// The program on the PATH; how to get it where there is none.
pub fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file());
    found.context(
        "the program etcd is missing: apt-get install -y --no-install-recommends etcd-server",
    )
}

/// Addresses in a row on which nobody listens.
fn free_addresses(count: usize) -> anyhow::Result<Vec<Ipv4Addr>> {
    for _ in 0..100 {
        let (second, third) = (rand::random_range(64..126), rand::random_range(0..=255));
        let addresses: Vec<_> = (1..=count)
            .map(|last| Ipv4Addr::new(127, second, third, u8::try_from(last).unwrap_or(254)))
            .collect();
        let free = |address: &Ipv4Addr| TcpListener::bind((*address, CLIENT_PORT)).is_ok();
        if addresses.iter().all(free) {
            return Ok(addresses);
        }
    }
    bail!("no free loopback addresses for etcd")
}
