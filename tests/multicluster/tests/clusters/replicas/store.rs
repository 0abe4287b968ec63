//! Three etcd servers with mutual TLS on a gateway.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use vl3_identity::authority::Authority;
use vl3_lab::etcd::{EtcdMember, EtcdTls, arguments, program};
use vl3_lab::{Host, Process, ProcessSpec};
use vl3_multicluster::Country;

const METRICS_PORT: u16 = 2381;
const DAY: Duration = Duration::from_secs(86_400);

pub(super) struct Etcd {
    host: Host,
    members: Vec<EtcdMember>,
    tls: EtcdTls,
    running: Vec<Option<Process>>,
}

impl Etcd {
    pub(super) fn start(country: &Country, host: &Host) -> anyhow::Result<Self> {
        vl3_identity::install_crypto_provider();
        let dir = country.base().join("etcd");
        std::fs::create_dir(&dir)?;
        let members: Vec<_> = (1..=3)
            .map(|number| EtcdMember {
                name: format!("e{number}"),
                address: IpAddr::V4(Ipv4Addr::new(127, 0, 7, number)),
                data: dir.join(format!("data-{number}")),
            })
            .collect();
        let mut addresses: Vec<_> = members.iter().map(|member| member.address).collect();
        // From here members reach each other, which each of them looks at.
        addresses.push(Ipv4Addr::LOCALHOST.into());
        let wall = vl3_runtime::clock::wall();
        let authority = Authority::create("etcd.test", wall)?;
        authority
            .issue_at("etcd", &addresses, DAY, wall)?
            .store(&dir)?;
        let tls = EtcdTls {
            ca: dir.join("bundle.pem"),
            cert: dir.join("svid.pem"),
            key: dir.join("key.pem"),
        };
        let mut etcd = Self {
            host: host.clone(),
            members,
            tls,
            running: vec![None, None, None],
        };
        for at in 0..3 {
            etcd.start_member(at)?;
        }
        Ok(etcd)
    }

    pub(super) fn start_member(&mut self, at: usize) -> anyhow::Result<()> {
        let name = self.members[at].name.clone();
        let arguments = arguments(&self.members, at, Some(&self.tls));
        let spec = ProcessSpec::new(name, program()?).args(arguments);
        self.running[at] = Some(self.host.spawn(spec)?);
        Ok(())
    }

    /// What registries are told.
    pub(super) fn tables(&self) -> String {
        let endpoints: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("https://{}:2379", member.address))
            .collect();
        format!(
            "[store]\nengine = \"etcd\"\n[store.etcd]\nendpoints = {endpoints:?}\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            self.tls.ca, self.tls.cert, self.tls.key
        )
    }

    /// The member that leads, as it says itself.
    pub(super) fn leader(&self) -> Option<usize> {
        let running = (0..3).filter(|at| self.running[*at].is_some());
        let mut running = running.map(|at| (at, self.members[at].address));
        running
            .find(|(_, address)| {
                let metrics = self.host.run(|| metrics(*address));
                metrics.is_ok_and(|text| text.contains("\netcd_server_is_leader 1\n"))
            })
            .map(|(at, _)| at)
    }

    /// How often the members that run have seen another leader, by the one that saw it most.
    pub(super) fn leader_changes(&self) -> Option<u64> {
        let running = (0..3).filter(|at| self.running[*at].is_some());
        let seen = running.filter_map(|at| {
            let text = self.host.run(|| metrics(self.members[at].address)).ok()?;
            let mut lines = text.lines();
            let count = lines
                .find_map(|line| line.strip_prefix("etcd_server_leader_changes_seen_total "))?;
            count.trim().parse().ok()
        });
        seen.max()
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        let mut process = self.running[at].take().context("it does not run")?;
        process.kill()?;
        process.wait().await?;
        Ok(())
    }

    pub(super) fn signal_all(&self, signal: Signal) -> anyhow::Result<()> {
        for process in self.running.iter().flatten() {
            process.signal(signal as i32)?;
        }
        Ok(())
    }
}

fn metrics(address: IpAddr) -> std::io::Result<String> {
    let limit = Duration::from_secs(2);
    let address = SocketAddr::new(address, METRICS_PORT);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
