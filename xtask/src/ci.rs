//! `cargo xtask test`: what a change must pass, in the order in which mistakes are cheap to find.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;

use crate::shell::{self, cargo, say, shown};

/// What a change must survive; some 0.15 s of CPU each. `cargo xtask sim --seeds N` plays more.
const SIM_SEEDS: &str = "1000";
const FEDERATION_SEEDS: &str = "300";

/// What one step found: how many checks it stands for, or why it failed.
struct Outcome {
    passed: usize,
    failed: usize,
    note: String,
    again: String,
}

type Step = (&'static str, fn() -> anyhow::Result<Outcome>);

const STEPS: &[Step] = &[
    ("format", format_step),
    ("tidy", || quiet(crate::tidy::run, "cargo xtask tidy")),
    ("licences", || {
        quiet(crate::licences::run, "cargo xtask licences")
    }),
    ("clippy", clippy_step),
    ("documentation", documentation_step),
    ("build", build_step),
    ("tests", tests_step),
    ("simulation", simulation_step),
    ("planted bugs", || {
        quiet(crate::plants::run, "cargo xtask plants")
    }),
    ("multi-cluster", || multicluster_step(&[])),
    ("demo", demo_step),
];

/// Runs every step, or with arguments only the steps named.
pub(crate) fn run(only: &[String]) -> anyhow::Result<()> {
    if let Some(unknown) = only
        .iter()
        .find(|name| STEPS.iter().all(|(step, _)| step != name))
    {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        bail!("no step {unknown:?}; steps: {}", names.join(", "));
    }
    let begin = Instant::now();
    let (mut passed, mut failed) = (0, 0);
    let mut lines = Vec::new();
    for (name, step) in STEPS {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        say(&format!("==> {name}"));
        let started = Instant::now();
        let outcome = step().unwrap_or_else(|error| Outcome {
            passed: 0,
            failed: 1,
            note: format!("{error:#}"),
            again: format!("cargo xtask test '{name}'"),
        });
        passed += outcome.passed;
        failed += outcome.failed;
        let verdict = if outcome.failed == 0 {
            "ok    "
        } else {
            "FAILED"
        };
        let line = format!(
            "{verdict} {name:<14} {:>8}  {}",
            seconds(started.elapsed()),
            outcome.note
        );
        say(&line);
        lines.push(line);
        if outcome.failed > 0 {
            say(&format!("to repeat it: {}", outcome.again));
            break;
        }
    }
    say("");
    for line in &lines {
        say(line);
    }
    say(&format!("in {}", seconds(begin.elapsed())));
    say(&format!("{passed} passed, {failed} failed"));
    if failed > 0 {
        bail!("{failed} failed");
    }
    Ok(())
}

/// `cargo xtask multicluster [NAME]`.
pub(crate) fn multicluster(names: &[String]) -> anyhow::Result<()> {
    build_step()?;
    let outcome = multicluster_step(names)?;
    if outcome.failed > 0 {
        bail!("{} failed; to repeat it: {}", outcome.failed, outcome.again);
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn quiet(task: fn() -> anyhow::Result<()>, again: &str) -> anyhow::Result<Outcome> {
    let again = again.to_owned();
    Ok(match task() {
        Ok(()) => Outcome {
            passed: 1,
            failed: 0,
            note: String::new(),
            again,
        },
        Err(error) => Outcome {
            passed: 0,
            failed: 1,
            note: format!("{error:#}"),
            again,
        },
    })
}

/// One program whose success is one check.
fn one(command: &mut Command) -> anyhow::Result<Outcome> {
    let again = shown(command);
    Ok(match shell::run(command) {
        Ok(()) => Outcome {
            passed: 1,
            failed: 0,
            note: String::new(),
            again,
        },
        Err(error) => Outcome {
            passed: 0,
            failed: 1,
            note: format!("{error:#}"),
            again,
        },
    })
}

fn format_step() -> anyhow::Result<Outcome> {
    one(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy_step() -> anyhow::Result<Outcome> {
    one(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

fn documentation_step() -> anyhow::Result<Outcome> {
    one(cargo()
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--locked",
        ])
        .env(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        ))
}

/// The programs and all tests, in the one debug profile. Always the whole workspace with all
/// targets: other selections unify features differently and would build half of it again.
fn build_step() -> anyhow::Result<Outcome> {
    one(cargo().args(["build", "--workspace", "--all-targets", "--locked"]))
}

fn tests_step() -> anyhow::Result<Outcome> {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--exclude",
        "vl3-multicluster",
        "--locked",
        "--no-fail-fast",
    ]);
    libtest(&mut command)
}

fn multicluster_step(names: &[String]) -> anyhow::Result<Outcome> {
    let mut command = cargo();
    // One at a time: each test is several networks of processes, and the machine has two cores.
    command.args([
        "test",
        "--workspace",
        "--test",
        "clusters",
        "--locked",
        "--no-fail-fast",
        "--",
    ]);
    command.args(["--test-threads", "1"]).args(names);
    libtest(&mut command)
}

/// Runs a test command and adds up what its harnesses report.
fn libtest(command: &mut Command) -> anyhow::Result<Outcome> {
    let again = shown(command);
    let (ok, text) = shell::run_and_keep(command)?;
    let (passed, mut failed, ignored) = counts(&text);
    if !ok && failed == 0 {
        failed = 1;
    }
    if ignored > 0 {
        bail!("{ignored} ignored tests: none may be");
    }
    if ok && passed == 0 {
        bail!("no test ran");
    }
    let broken: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    let note = if broken.is_empty() {
        format!("{passed} tests")
    } else {
        broken.join(", ")
    };
    Ok(Outcome {
        passed,
        failed,
        note,
        again,
    })
}

/// Sums of `test result: ok. 5 passed; 0 failed; 0 ignored; ...` lines.
fn counts(text: &str) -> (usize, usize, usize) {
    let mut sums = [0; 3];
    for line in text
        .lines()
        .filter(|line| line.starts_with("test result: "))
    {
        for part in line.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<usize>() else {
                continue;
            };
            match what {
                "passed" => sums[0] += number,
                "failed" => sums[1] += number,
                "ignored" => sums[2] += number,
                _ => {}
            }
        }
    }
    (sums[0], sums[1], sums[2])
}

/// The whole world, and registries alone.
fn simulation_step() -> anyhow::Result<Outcome> {
    let runs = [("mixed", SIM_SEEDS), ("federation", FEDERATION_SEEDS)];
    let mut outcome = Outcome {
        passed: 0,
        failed: 0,
        note: format!("{SIM_SEEDS} seeds, {FEDERATION_SEEDS} of registries alone"),
        again: format!("cargo xtask sim --seeds {SIM_SEEDS}"),
    };
    for (profile, seeds) in runs {
        let arguments = ["--seeds", seeds, "--profile", profile].map(str::to_owned);
        match crate::sim::run(&arguments) {
            Ok(()) => outcome.passed += 1,
            Err(error) => {
                outcome.failed += 1;
                outcome.note = format!("{error:#}");
                outcome.again = format!("cargo xtask sim {}", arguments.join(" "));
            }
        }
    }
    Ok(outcome)
}

/// The demo as a user runs it, with each store.
fn demo_step() -> anyhow::Result<Outcome> {
    let mut all = demo(&[])?;
    if all.failed == 0 {
        let etcd = demo(&["--store", "etcd"])?;
        all = Outcome {
            passed: all.passed + etcd.passed,
            note: format!("{}; etcd: {}", all.note, etcd.note),
            ..etcd
        };
    }
    Ok(all)
}

/// Judged by its own document.
fn demo(arguments: &[&str]) -> anyhow::Result<Outcome> {
    let binary = shell::target_dir().join("debug/vl3");
    let mut command = Command::new(&binary);
    command
        .args(["demo", "--json"])
        .args(arguments)
        .stderr(std::process::Stdio::inherit());
    let words = [&["demo", "--json"], arguments].concat().join(" ");
    let again = format!("cargo run -p vl3 -- {words}");
    let (ok, text, _) = shell::output(&mut command)?;
    let document: Value = match serde_json::from_str(text.trim()) {
        Ok(document) => document,
        Err(error) => {
            let head: String = text.chars().take(400).collect();
            let note = format!("no JSON document ({error}): {head}");
            return Ok(Outcome {
                passed: 0,
                failed: 1,
                note,
                again,
            });
        }
    };
    let checks = document["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let bad: Vec<String> = checks
        .iter()
        .filter(|check| check["ok"] != Value::Bool(true))
        .map(|check| {
            format!(
                "{}: {}",
                check["name"].as_str().unwrap_or("?"),
                check["detail"]
            )
        })
        .collect();
    let passed = checks.len() - bad.len();
    let good = ok && document["ok"] == Value::Bool(true) && !checks.is_empty();
    let failed = if good { bad.len() } else { bad.len().max(1) };
    let note = if bad.is_empty() && good {
        format!(
            "{passed} checks, {} s by its own clock",
            document["elapsed_seconds"]
        )
    } else {
        format!(
            "exit code {}, {}",
            if ok { "0" } else { "not 0" },
            bad.join("; ")
        )
    };
    Ok(Outcome {
        passed,
        failed,
        note,
        again,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_harnesses_are_added_up() {
        let text = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s\n\
                    noise\ntest result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!(counts(text), (7, 3, 1));
    }

    #[test]
    fn unknown_step_is_refused_by_name() {
        let error = run(&["nonsense".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("multi-cluster"), "{error}");
    }
}
