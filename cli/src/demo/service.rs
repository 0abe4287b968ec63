//! One role as a process of this very binary.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vl3_lab::{Host, Process, ProcessSpec, admin};

/// The running image, also when its file is gone.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

const POLL: Duration = Duration::from_millis(10);

/// Lines of its log that an error shows.
const LOG_LINES: usize = 6;

#[derive(Debug)]
pub(super) struct Service {
    role: &'static str,
    name: String,
    host: Host,
    config: PathBuf,
    run_dir: PathBuf,
    process: Option<Process>,
}

impl Service {
    /// Writes its configuration below `base`; `keys` is TOML beside the common keys. Tables must
    /// come last in it.
    pub(super) fn new(
        base: &Path,
        role: &'static str,
        name: &str,
        host: &Host,
        keys: &str,
    ) -> anyhow::Result<Self> {
        let run_dir = run_dir(base, role, name);
        let config = base.join("etc").join(format!("{role}-{name}.toml"));
        let text = format!(
            "name = {name:?}\nrun_dir = {run_dir:?}\nstate_dir = {:?}\nidentity.dir = {:?}\n{keys}",
            base.join("state").join(format!("{role}-{name}")),
            identity_dir(base, role, name),
        );
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(Self {
            role,
            name: name.to_owned(),
            host: host.clone(),
            config,
            run_dir,
            process: None,
        })
    }

    pub(super) fn label(&self) -> String {
        format!("{} {}", self.role, self.name)
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    pub(super) fn memory_kib(&self) -> u64 {
        self.process
            .as_ref()
            .and_then(Process::memory_kib)
            .unwrap_or(0)
    }

    /// Starts it, or starts it again with the same files; running already is fine.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process
            && process.try_wait()?.is_none()
        {
            return Ok(());
        }
        let config = self.config.as_os_str();
        let spec = ProcessSpec::new(format!("{}-{}", self.role, self.name), OWN_PROGRAM).args([
            self.role.as_ref(),
            "--config".as_ref(),
            config,
        ]);
        self.process = Some(self.host.spawn(spec)?);
        Ok(())
    }

    /// `kill -9`, and waits for its end.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait().await?;
        }
        Ok(())
    }

    /// An error once it has ended by itself.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        let label = self.label();
        let Some(process) = &mut self.process else {
            bail!("{label} was not started")
        };
        if let Some(status) = process.try_wait()? {
            bail!(
                "{label} ended ({status}): {}",
                process.log_tail(LOG_LINES).join(" | ")
            );
        }
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub(super) async fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while !admin::is_ready(&self.run_dir).await {
            self.check_alive()?;
            if started.elapsed() > limit {
                let why = admin::get(&self.run_dir, "/readyz")
                    .await
                    .map(|(_, body)| body)
                    .unwrap_or_default();
                let log = self
                    .process
                    .as_ref()
                    .map(|process| process.log_tail(LOG_LINES))
                    .unwrap_or_default();
                bail!(
                    "{} is not ready after {limit:?}: {} {}",
                    self.label(),
                    why.trim(),
                    log.join(" | ")
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

pub(super) fn run_dir(base: &Path, role: &str, name: &str) -> PathBuf {
    base.join("run").join(format!("{role}-{name}"))
}

pub(super) fn identity_dir(base: &Path, role: &str, name: &str) -> PathBuf {
    base.join("id").join(format!("{role}-{name}"))
}
