use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::Context;
use vl3_net::Namespace;
use vl3_net::process::Child;

use crate::host::Lab;

/// What to start. The environment is empty but for what is given here.
#[derive(Debug)]
pub struct ProcessSpec {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// Input, output and error instead of nothing and the log.
    stdio: Option<[Stdio; 3]>,
}

impl ProcessSpec {
    /// `name` is for people and for the log's file name.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            stdio: None,
        }
    }

    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// For a person at a terminal: these instead of a log, and the caller's environment beside what
    /// is given here.
    #[must_use]
    pub fn stdio(mut self, input: Stdio, output: Stdio, error: Stdio) -> Self {
        self.stdio = Some([input, output, error]);
        self
    }
}

/// A process of a host. Dropping it kills it (SIGKILL) and waits.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    pub(crate) fn start(
        spec: ProcessSpec,
        lab: &Lab,
        host: &str,
        namespace: &Namespace,
    ) -> anyhow::Result<Self> {
        let log = lab.scratch().join(format!("{host}-{}.log", spec.name));
        let mut command = Command::new(&spec.program);
        command.args(&spec.arguments);
        match spec.stdio {
            Some([input, output, error]) => {
                command.stdin(input).stdout(output).stderr(error);
            }
            None => {
                // A restart appends: the story of one name is one file.
                let file = File::options().create(true).append(true).open(&log);
                let file = file.with_context(|| format!("open the log {}", log.display()))?;
                command.env_clear();
                command
                    .stdin(Stdio::null())
                    .stdout(file.try_clone()?)
                    .stderr(file);
            }
        }
        command.envs(spec.environment.iter().map(|(key, value)| (key, value)));
        let child = lab
            .spawner
            .spawn(command, Some(namespace))
            .with_context(|| format!("start {} in {host}", spec.name))?;
        Ok(Self {
            name: spec.name,
            log,
            child,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// SIGKILL.
    pub fn kill(&self) -> anyhow::Result<()> {
        Ok(self.child.kill()?)
    }

    /// SIGTERM.
    pub fn terminate(&self) -> anyhow::Result<()> {
        Ok(self.child.terminate()?)
    }

    pub fn signal(&self, signal: i32) -> anyhow::Result<()> {
        Ok(self.child.signal(signal)?)
    }

    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end. Cancel-safe.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// The last lines of its log, oldest first.
    pub fn log_tail(&self, lines: usize) -> Vec<String> {
        tail(&self.log, lines)
    }

    /// Proportional set size in KiB; unset once it has ended.
    pub fn memory_kib(&self) -> Option<u64> {
        memory_kib(self.id())
    }
}

/// Proportional set size in KiB of any process.
pub(crate) fn memory_kib(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn tail(path: &Path, lines: usize) -> Vec<String> {
    let Ok(file) = File::open(path) else {
        return Vec::new();
    };
    let mut kept = VecDeque::new();
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        if kept.len() == lines {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    kept.into()
}
