//! One registry process, ours by engine or the stock one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use vl3_lab::etcd::{self, EtcdMember};
use vl3_lab::{Process, ProcessSpec, admin};

use super::super::usage;
use super::{POLL, World};

const READY_LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 5002;
const ETCD_ADDRESS: &str = "127.2.0.1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Memory,
    Redb,
    /// One member with its disk synced, as `etcd` starts by itself.
    Etcd,
    /// The in-memory registry chain of the stock SDK, with the policies of the stock command.
    Stock,
    /// The same without policies: nobody's token is looked at, which is faster.
    StockOpen,
}

impl Engine {
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Redb, Self::Etcd, Self::Stock];

    pub(super) const fn is_stock(self) -> bool {
        matches!(self, Self::Stock | Self::StockOpen)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
            Self::Etcd => "etcd",
            Self::Stock => "stock",
            Self::StockOpen => "stock unchecked",
        }
    }
}

/// What the load program prepared.
pub(super) struct Files {
    pub(super) dir: PathBuf,
    uid: String,
    document: String,
    addresses: Vec<String>,
}

pub(super) fn domain(number: usize) -> String {
    format!("d{number:03}")
}

impl Files {
    pub(super) fn new(dir: PathBuf, known: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        let addresses = known["domains"].as_array().context("domains")?.iter();
        Ok(Self {
            dir,
            uid: text(&known["uid"])?,
            document: text(&known["document"])?,
            addresses: addresses
                .map(|domain| text(&domain["address"]))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Killed when dropped.
pub(super) struct Server {
    pub(super) engine: Engine,
    pub(super) url: String,
    pub(super) dir: PathBuf,
    run_dir: PathBuf,
    process: Process,
    /// What keeps its state, where that is another process.
    store: Option<Process>,
}

impl Server {
    /// Starts it and waits until it serves. `slot` keeps apart servers of different files that
    /// run at once; within one set of files it is the domain's number.
    pub(super) async fn start(
        world: &World,
        files: &Files,
        engine: Engine,
        slot: usize,
    ) -> anyhow::Result<Self> {
        let mut server = Self::spawn(world, files, engine, slot)?;
        server.ready().await?;
        Ok(server)
    }

    pub(super) fn spawn(
        world: &World,
        files: &Files,
        engine: Engine,
        slot: usize,
    ) -> anyhow::Result<Self> {
        let number = if slot < files.addresses.len() {
            slot
        } else {
            0
        };
        let (port, address) = if number == slot {
            (PORT, &files.addresses[slot])
        } else {
            (PORT + 1, &files.addresses[0])
        };
        let url = format!("tcp://{address}:{port}");
        let at = files.dir.join(domain(number));
        let run_dir = at.join("run");
        let name = format!("{}-{slot}", engine.name().replace(' ', "-"));
        let mut store = None;
        let spec = if engine.is_stock() {
            let policies = format!("-policies={}", engine == Engine::Stock);
            ProcessSpec::new(name, &world.stock)
                .args(["registry", &policies, "-listen", &url, "-identity"])
                .args([at.join("registry")])
        } else {
            if engine == Engine::Etcd {
                store = Some(start_etcd(world, &at)?);
            }
            let config = at.join("registry.toml");
            std::fs::write(&config, config_text(files, engine, number, &url, &at))?;
            ProcessSpec::new(name, &world.vl3)
                .args(["registry", "--config"])
                .args([config])
        };
        Ok(Self {
            engine,
            url,
            dir: files.dir.clone(),
            run_dir,
            process: world.host.spawn(spec)?,
            store,
        })
    }

    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!(
                    "{} ended with {status}: {}",
                    self.url,
                    self.process.log_tail(5).join("\n")
                );
            }
            let ready = match self.engine {
                Engine::Stock | Engine::StockOpen => self
                    .process
                    .log_tail(1)
                    .iter()
                    .any(|line| line.contains("serving")),
                Engine::Memory | Engine::Redb | Engine::Etcd => {
                    admin::is_ready(&self.run_dir).await
                }
            };
            if ready {
                return Ok(());
            }
            if start.elapsed() > READY_LIMIT {
                bail!("{} is not ready within {READY_LIMIT:?}", self.url);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Endpoints that it holds, by its metrics: own ones and those of other domains.
    pub(super) async fn endpoints(&self) -> anyhow::Result<u64> {
        let text = admin::get(&self.run_dir, "/metrics").await?.1;
        let line = text
            .lines()
            .find(|line| line.starts_with("vl3_registry_endpoints "))
            .context("the metric vl3_registry_endpoints")?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse::<f64>()? as u64)
    }

    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        usage::cpu_seconds(self.process.id())
    }

    /// The most that was ever resident.
    pub(super) fn memory_mib(&self) -> anyhow::Result<f64> {
        usage::peak_mib(self.process.id())
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.process.terminate()?;
        self.process.wait().await?;
        if let Some(mut store) = self.store.take() {
            store.terminate()?;
            store.wait().await?;
        }
        Ok(())
    }
}

fn config_text(files: &Files, engine: Engine, number: usize, url: &str, at: &Path) -> String {
    let state = match engine {
        Engine::Redb => at.join("state").display().to_string(),
        Engine::Memory | Engine::Etcd | Engine::Stock | Engine::StockOpen => String::new(),
    };
    let store = match engine {
        Engine::Memory => "store.engine = \"memory\"\n".to_owned(),
        Engine::Etcd => format!(
            "store.engine = \"etcd\"\nstore.etcd.endpoints = [\"http://{ETCD_ADDRESS}:{}\"]\n",
            etcd::CLIENT_PORT
        ),
        Engine::Redb | Engine::Stock | Engine::StockOpen => String::new(),
    };
    format!(
        "name = \"{name}\"\ndomain = \"{name}\"\nlisten = [\"{url}\"]\n\
         run_dir = \"{run}\"\nstate_dir = \"{state}\"\nidentity.dir = \"{identity}\"\n\
         endpoint_lifetime = \"600s\"\nprefix_len4 = 30\nlog.level = \"warn\"\n{store}\
         [[network]]\ndocument = \"{document}\"\nuid = \"{uid}\"\n",
        name = domain(number),
        run = at.join("run").display(),
        identity = at.join("registry").display(),
        document = files.document,
        uid = files.uid,
    )
}

fn start_etcd(world: &World, at: &Path) -> anyhow::Result<Process> {
    let member = EtcdMember {
        name: "e1".to_owned(),
        address: ETCD_ADDRESS.parse()?,
        data: at.join("etcd"),
    };
    let arguments = etcd::arguments(&[member], 0, None);
    let spec = ProcessSpec::new("etcd", etcd::program()?).args(arguments);
    world.host.spawn(spec)
}
