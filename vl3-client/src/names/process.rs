//! Which process wrote something, and whether it is gone.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// One process of one boot: a number that is used again does not look the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
    /// Inode of the namespace in which `pid` counts.
    pids: u64,
    pid: u32,
    /// Clock ticks from boot to its start (proc(5), stat, field 22).
    since: u64,
}

impl Process {
    pub(crate) fn current() -> io::Result<Self> {
        let pid = std::process::id();
        let unreadable = || io::Error::other("/proc/self/stat has no start time");
        Ok(Self {
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .to_owned(),
            pids: std::fs::metadata("/proc/self/ns/pid")?.ino(),
            pid,
            since: since(&std::fs::read_to_string("/proc/self/stat")?).ok_or_else(unreadable)?,
        })
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut value = |key: &str| words.next()?.strip_prefix(key);
        let process = Self {
            boot: value("boot=")?.to_owned(),
            pids: value("pids=")?.parse().ok()?,
            pid: value("pid=")?.parse().ok()?,
            since: value("since=")?.parse().ok()?,
        };
        words.next().is_none().then_some(process)
    }

    /// Whether it certainly runs no more, as far as `self` can see: not into another container.
    pub(crate) fn sees_gone(&self, other: &Self) -> bool {
        if self.boot != other.boot {
            return true;
        }
        if !self.sees(other) {
            return false;
        }
        match std::fs::read_to_string(format!("/proc/{}/stat", other.pid)) {
            Ok(stat) => since(&stat) != Some(other.since),
            // Hidden processes (proc(5), hidepid) take signals all the same.
            Err(_) => i32::try_from(other.pid)
                .is_ok_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)),
        }
    }

    /// Whether the other's number means something here.
    pub(crate) fn sees(&self, other: &Self) -> bool {
        self.boot == other.boot && self.pids == other.pids
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            boot,
            pids,
            pid,
            since,
        } = self;
        write!(f, "boot={boot} pids={pids} pid={pid} since={since}")
    }
}

/// Field 22; the second, in parentheses, may hold anything.
fn since(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_one_that_got_its_number_later() {
        let own = Process::current().unwrap();
        assert!(!own.sees_gone(&own));
        let earlier = Process {
            since: own.since.wrapping_sub(1),
            ..own.clone()
        };
        assert!(own.sees_gone(&earlier));
    }

    #[test]
    fn a_process_that_ended_is_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let own = Process::current().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let other = Process {
            pid: child.id(),
            since: since(&stat).unwrap(),
            ..own.clone()
        };
        assert!(!own.sees_gone(&other));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.sees_gone(&other));
    }

    #[test]
    fn another_boots_process_is_gone_and_another_containers_may_live() {
        let own = Process::current().unwrap();
        let boot = Process {
            boot: "another".to_owned(),
            ..own
        };
        assert!(own.sees_gone(&boot));
        let container = Process {
            pids: own.pids.wrapping_add(1),
            pid: u32::MAX,
            ..own.clone()
        };
        assert!(!own.sees_gone(&container) && !own.sees(&container));
    }

    #[test]
    fn its_text_says_all() {
        let own = Process::current().unwrap();
        assert_eq!(Process::parse(&own.to_string()), Some(own));
        for wrong in [
            "",
            "boot=b",
            "boot=b pids=1 pid=x since=1",
            "boot=b pids=1 pid=1 since=1 x",
        ] {
            assert_eq!(Process::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(since(stat), Some(4711));
    }
}
