//! The demo as a person uses it: kept, looked into, broken by hand, ended; and interrupted. Needs
//! root. (The whole story with its checks is run by `cargo xtask test` as `vl3 demo --json`.)

use std::collections::BTreeSet;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const VL3: &str = env!("CARGO_BIN_EXE_vl3");
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A demo that is built and not checked, under a name of its own.
struct Kept {
    name: String,
    demo: Child,
}

impl Kept {
    fn start(purpose: &str) -> Self {
        let name = format!("{purpose}-{}", std::process::id());
        // An empty PATH: the demo calls no program but itself.
        let demo = Command::new(VL3)
            .args(["demo", "--keep", "--no-checks", "--name", &name])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Self { name, demo }
    }

    fn verb(&self, words: &[&str]) -> Output {
        let (verb, rest) = words.split_first().expect("a verb");
        let mut command = Command::new(VL3);
        command
            .args(["demo", verb, "--name", &self.name])
            .args(rest);
        command
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts")
    }

    fn eventually_answers(&mut self) {
        let started = Instant::now();
        while !self.verb(&["status"]).status.success() {
            assert!(
                self.demo.try_wait().expect("a child").is_none(),
                "the demo ended"
            );
            assert!(started.elapsed() < WAIT_MAX, "the demo does not answer");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn eventually_ends(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.demo.try_wait().expect("a child") {
                return status.code();
            }
            assert!(started.elapsed() < WAIT_MAX, "the demo does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Ended already where the test passed.
        let _ = self.demo.kill();
        let _ = self.demo.wait();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Processes below `root`, to any depth.
fn descendants(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let more: BTreeSet<u32> = std::fs::read_dir("/proc")
            .expect("a /proc")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                !found.contains(pid) && parent(*pid).is_some_and(|parent| found.contains(&parent))
            })
            .collect();
        if more.is_empty() {
            found.remove(&root);
            return found;
        }
        found.extend(more);
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn eventually_gone(pids: &BTreeSet<u32>) {
    let started = Instant::now();
    // A process that was killed is a zombie until init has it.
    let alive = |pid: &&u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z ") && stat.contains("(vl3)"))
    };
    while let Some(pid) = pids.iter().find(alive) {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "process {pid} is left"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_kept_demo_can_be_looked_into_broken_by_hand_and_ended() {
    let mut kept = Kept::start("kept");
    kept.eventually_answers();

    let status = text(&kept.verb(&["status"]));
    assert!(
        status.contains("east-a") && status.contains("router red-west"),
        "{status}"
    );

    let resolver = kept.verb(&["exec", "east-a", "--", "/bin/cat", "/etc/resolv.conf"]);
    assert!(
        text(&resolver).contains("nameserver 10.80."),
        "{resolver:?}"
    );
    let code = kept.verb(&["exec", "kiosk", "--", "/bin/sh", "-c", "exit 7"]);
    assert_eq!(code.status.code(), Some(7));

    let killed = kept.verb(&["fault", "kill-router", "west", "red"]);
    assert!(
        text(&killed).contains("router red-west is dead"),
        "{killed:?}"
    );
    assert!(text(&kept.verb(&["status"])).contains("dead"));
    assert!(
        kept.verb(&["fault", "start-router", "west", "red"])
            .status
            .success()
    );
    let wrong = kept.verb(&["fault", "kill-router", "nowhere", "red"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("no domain nowhere; there are east, north, west"),
        "{said}"
    );

    let second = Command::new(VL3)
        .args(["demo", "--keep", "--no-checks", "--name", &kept.name])
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && said.contains("is being kept already"),
        "{said}"
    );

    let processes = descendants(kept.demo.id());
    assert!(processes.len() > 20, "{processes:?}");
    assert!(kept.verb(&["down"]).status.success());
    assert_eq!(kept.eventually_ends(), Some(0));
    eventually_gone(&processes);
}

#[test]
fn an_interrupted_demo_leaves_no_process_whatever_the_signal() {
    for (signal, code) in [
        (nix::sys::signal::Signal::SIGINT, Some(130)),
        (nix::sys::signal::Signal::SIGKILL, None),
    ] {
        let mut kept = Kept::start("interrupted");
        let started = Instant::now();
        while descendants(kept.demo.id()).len() < 5 {
            assert!(started.elapsed() < WAIT_MAX, "no role was started");
            eventually_pause();
        }
        let processes = descendants(kept.demo.id());
        let pid = nix::unistd::Pid::from_raw(kept.demo.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("a signal");
        assert_eq!(kept.eventually_ends(), code);
        eventually_gone(&processes);
    }
}

fn eventually_pause() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn without_a_kept_demo_the_verbs_say_how_to_get_one() {
    let output = Command::new(VL3)
        .args(["demo", "status", "--name", "never-started"])
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("vl3 demo --keep"),
        "{said}"
    );
}
