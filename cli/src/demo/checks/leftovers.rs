//! Nothing stays: no process, namespace, interface, mount or file.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

/// What of the machine the demo could leave a trace in.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::demo) struct Traces {
    interfaces: BTreeSet<String>,
    mounts: usize,
    named_namespaces: BTreeSet<String>,
    children: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
}

/// A killed process needs a moment to be gone, an interrupted connect up to five seconds.
const GONE_MAX: Duration = Duration::from_secs(7);

impl Traces {
    pub(in crate::demo) fn now() -> Self {
        Self {
            interfaces: entries(Path::new("/sys/class/net")),
            mounts: std::fs::read_to_string("/proc/self/mounts")
                .map_or(0, |mounts| mounts.lines().count()),
            named_namespaces: entries(Path::new("/run/netns")),
            children: children(),
            namespaces: namespaces(),
        }
    }

    /// The sandbox's own mount ends with the process, not with the world in it.
    pub(in crate::demo) fn with_sandbox(self) -> Self {
        let now = Self::now();
        Self {
            mounts: now.mounts,
            ..self
        }
    }

    /// Compares with the state before the demo built anything.
    pub(in crate::demo) async fn compare(&self) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            let left = self.differences(&Self::now());
            if left.is_empty() {
                return Ok("no process, namespace, interface, mount or file is left".to_owned());
            }
            if started.elapsed() > GONE_MAX {
                bail!("left behind: {}", left.join("; "));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn differences(&self, after: &Self) -> Vec<String> {
        let mut left = Vec::new();
        let mut sets = |what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>| {
            let more: Vec<&str> = after.difference(before).map(String::as_str).collect();
            if !more.is_empty() {
                left.push(format!("{what} {}", more.join(" ")));
            }
        };
        sets("interfaces", &self.interfaces, &after.interfaces);
        sets(
            "named namespaces",
            &self.named_namespaces,
            &after.named_namespaces,
        );
        sets(
            "namespaces of this process",
            &self.namespaces,
            &after.namespaces,
        );
        if after.mounts > self.mounts {
            left.push(format!("{} mounts", after.mounts - self.mounts));
        }
        let children: Vec<String> = after
            .children
            .difference(&self.children)
            .map(ToString::to_string)
            .collect();
        if !children.is_empty() {
            left.push(format!("processes {}", children.join(" ")));
        }
        left
    }
}

fn entries(directory: &Path) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Direct children of every thread of this process.
fn children() -> BTreeSet<u32> {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Network namespaces that open descriptors of this process keep alive.
fn namespaces() -> BTreeSet<String> {
    std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| link.starts_with("net:[") || link.starts_with("mnt:["))
        .collect()
}
