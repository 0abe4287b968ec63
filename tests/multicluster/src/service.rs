//! One role as a process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use vl3_lab::{Host, Process, ProcessSpec, admin};

use crate::binary;
use crate::wait::eventually_some;

/// How long a role may take to become ready in a debug build on a busy machine.
const READY_MAX: Duration = Duration::from_secs(30);
const LOG_LINES: usize = 12;

/// A role with its configuration; its process comes and goes.
#[derive(Debug)]
pub struct Service {
    role: &'static str,
    name: String,
    host: Host,
    config: PathBuf,
    run_dir: PathBuf,
    /// Variables of its environment, which is empty else.
    pub environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Service {
    /// `keys` is TOML beside the common keys, tables last.
    pub(crate) fn new(
        base: &Path,
        role: &'static str,
        name: &str,
        host: &Host,
        keys: &str,
    ) -> anyhow::Result<Self> {
        let run_dir = run_dir(base, role, name);
        let config = base.join(format!("{role}-{name}.toml"));
        let state = base.join("state").join(format!("{role}-{name}"));
        let text = format!(
            "name = {name:?}\nrun_dir = {run_dir:?}\nstate_dir = {state:?}\nidentity.dir = {:?}\n{keys}",
            identity_dir(base, role, name),
        );
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(Self {
            role,
            name: name.to_owned(),
            host: host.clone(),
            config,
            run_dir,
            environment: Vec::new(),
            process: None,
        })
    }

    pub fn label(&self) -> String {
        format!("{} {}", self.role, self.name)
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Starts it, or starts it again with the same files.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let mut spec = ProcessSpec::new(format!("{}-{}", self.role, self.name), binary::path()?)
            .args([
                self.role.as_ref(),
                "--config".as_ref(),
                self.config.as_os_str(),
            ]);
        for (key, value) in &self.environment {
            spec = spec.env(key, value);
        }
        self.process = Some(self.host.spawn(spec)?);
        Ok(())
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait().await?;
        }
        Ok(())
    }

    /// SIGTERM, and its end.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.terminate()?;
        let status = tokio::time::timeout(limit, process.wait())
            .await
            .with_context(|| {
                format!("{} does not end within {limit:?} of SIGTERM", self.label())
            })??;
        if !status.success() {
            bail!(
                "{} ends with {status}: {}",
                self.label(),
                process.log_tail(LOG_LINES).join("\n")
            );
        }
        Ok(())
    }

    /// An error once it has ended by itself.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        let label = self.label();
        let Some(process) = &mut self.process else {
            bail!("{label} does not run")
        };
        match process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{label} ended ({status}): {}",
                process.log_tail(LOG_LINES).join("\n")
            ),
        }
    }

    pub fn memory_kib(&self) -> u64 {
        self.process
            .as_ref()
            .and_then(Process::memory_kib)
            .unwrap_or(0)
    }

    /// A line of `/proc/PID/status`, of each of its threads.
    pub fn kernel_says(&self, key: &str) -> anyhow::Result<Vec<String>> {
        let process = self.process.as_ref().context("it does not run")?;
        let mut all = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", process.id()))? {
            // A thread may end at any time.
            let Ok(status) = std::fs::read_to_string(task?.path().join("status")) else {
                continue;
            };
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            all.push(line.with_context(|| format!("no {key}"))?.trim().to_owned());
        }
        Ok(all)
    }

    pub fn log_tail(&self) -> String {
        self.process
            .as_ref()
            .map(|process| process.log_tail(LOG_LINES).join("\n"))
            .unwrap_or_default()
    }

    /// What its readiness probe says now.
    pub async fn is_ready(&self) -> bool {
        matches!(admin::get(&self.run_dir, "/readyz").await, Ok((200, _)))
    }

    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.check_alive()?;
        let run_dir = self.run_dir.clone();
        let what = format!("{} is ready", self.label());
        let waited = eventually_some(&what, READY_MAX, || {
            let run_dir = run_dir.clone();
            async move {
                Ok(matches!(admin::get(&run_dir, "/readyz").await, Ok((200, _))).then_some(()))
            }
        })
        .await;
        if let Err(error) = waited {
            self.check_alive()?;
            let why = admin::get(&self.run_dir, "/readyz")
                .await
                .map(|(_, body)| body)
                .unwrap_or_default();
            bail!("{error:#}: {} {}", why.trim(), self.log_tail());
        }
        Ok(())
    }

    /// What the role shows of itself.
    pub async fn status(&self) -> anyhow::Result<serde_json::Value> {
        let status = admin::status(&self.run_dir).await?;
        let shown = status[self.role].clone();
        anyhow::ensure!(
            shown.is_object(),
            "{} shows no status of its own: {status}",
            self.label()
        );
        Ok(shown)
    }

    /// The sum of all samples of the metrics whose name starts so and whose labels hold `label`.
    pub async fn metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let metrics = self.metrics().await?;
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label));
        Ok(lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(admin::get(&self.run_dir, "/metrics").await?.1)
    }
}

pub(crate) fn run_dir(base: &Path, role: &str, name: &str) -> PathBuf {
    base.join("run").join(format!("{role}-{name}"))
}

pub(crate) fn identity_dir(base: &Path, role: &str, name: &str) -> PathBuf {
    base.join("id").join(format!("{role}-{name}"))
}
