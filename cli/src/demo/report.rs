//! What the demo found out, as tables for people and as one JSON document.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::output::{Output, table};

/// The `--json` document.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) elapsed_seconds: f64,
    pub(super) checks: Vec<Check>,
    pub(super) reachability: Vec<Reachability>,
    pub(super) names: Vec<Name>,
    pub(super) explained: Vec<Explained>,
    pub(super) throughput: Vec<Throughput>,
    pub(super) faults: Vec<Fault>,
    #[serde(skip)]
    started: Instant,
}

#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) detail: String,
}

/// One ordered pair of workloads.
#[derive(Debug, Serialize)]
pub(super) struct Reachability {
    pub(super) network: String,
    pub(super) from: String,
    pub(super) to: String,
    /// Round trips; unset = no answer.
    pub(super) ipv4_ms: Option<f64>,
    pub(super) ipv6_ms: Option<f64>,
}

/// One name asked from one workload.
#[derive(Debug, Serialize)]
pub(super) struct Name {
    pub(super) network: String,
    pub(super) from: String,
    pub(super) question: String,
    pub(super) kind: String,
    pub(super) answer: String,
    pub(super) ok: bool,
}

/// One name as `vl3 dns explain` tells its way.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    pub(super) kind: String,
    pub(super) question: String,
    /// Domains.
    pub(super) asked: Vec<String>,
    /// The rule that chose them; `-` where nobody was asked.
    pub(super) chosen_by: String,
    /// Who said what, and when.
    pub(super) said: Vec<String>,
    pub(super) answer: String,
    /// The rule that decided.
    pub(super) decided_by: String,
    pub(super) ok: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) path: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) megabits_per_second: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Fault {
    pub(super) fault: String,
    pub(super) observed: String,
    /// Longest time without an answer, where that is what the fault is about.
    pub(super) gap_ms: Option<f64>,
    pub(super) ok: bool,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            ok: true,
            elapsed_seconds: 0.0,
            checks: Vec::new(),
            reachability: Vec::new(),
            names: Vec::new(),
            explained: Vec::new(),
            throughput: Vec::new(),
            faults: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Records a check: what was seen, or why it failed.
    pub(super) fn record(&mut self, name: &str, result: anyhow::Result<String>) -> &Check {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        self.ok &= ok;
        self.checks.push(Check {
            name: name.to_owned(),
            ok,
            detail,
        });
        let last = self.checks.len() - 1;
        &self.checks[last]
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Fixes the time that the document tells.
    pub(super) fn finish(&mut self) {
        self.elapsed_seconds = (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    }

    pub(super) fn print_json(&self, out: &Output) {
        match serde_json::to_string_pretty(self) {
            Ok(text) => out.line(&text),
            Err(error) => tracing::error!(%error, "the report cannot be written as JSON"),
        }
    }

    pub(super) fn print_reachability(&self, out: &Output, network: &str) {
        let rows: Vec<&Reachability> = self
            .reachability
            .iter()
            .filter(|row| row.network == network)
            .collect();
        let mut ends: Vec<&str> = Vec::new();
        for row in &rows {
            for end in [row.from.as_str(), row.to.as_str()] {
                if !ends.contains(&end) {
                    ends.push(end);
                }
            }
        }
        if ends.is_empty() {
            return;
        }
        out.heading(&format!(
            "\nReachability in {network}: round trip in ms, IPv4/IPv6"
        ));
        let mut header = vec!["from \\ to".to_owned()];
        header.extend(ends.iter().map(|end| (*end).to_owned()));
        let mut grid = table(&header);
        for from in &ends {
            let mut line = vec![(*from).to_owned()];
            for to in &ends {
                line.push(
                    match rows.iter().find(|row| row.from == *from && row.to == *to) {
                        Some(row) => format!("{}/{}", millis(row.ipv4_ms), millis(row.ipv6_ms)),
                        None => "-".to_owned(),
                    },
                );
            }
            grid.add_row(line);
        }
        out.line(&grid.to_string());
    }

    pub(super) fn print_names(&self, out: &Output) {
        if self.names.is_empty() {
            return;
        }
        out.heading("\nNames, asked from every workload through its own resolver");
        let mut grid = table(
            &["network", "kind", "questions", "right", "example", "answer"].map(str::to_owned),
        );
        let mut groups: Vec<(&str, &str)> = Vec::new();
        for row in &self.names {
            if !groups.contains(&(row.network.as_str(), row.kind.as_str())) {
                groups.push((&row.network, &row.kind));
            }
        }
        for (network, kind) in groups {
            let of: Vec<&Name> = self
                .names
                .iter()
                .filter(|row| row.network == network && row.kind == kind)
                .collect();
            let right = of.iter().filter(|row| row.ok).count();
            // A wrong answer is the better example.
            let example = of.iter().find(|row| !row.ok).or(of.first());
            grid.add_row(vec![
                network.to_owned(),
                kind.to_owned(),
                of.len().to_string(),
                right.to_string(),
                example
                    .map(|row| shorten(&row.question))
                    .unwrap_or_default(),
                example.map(|row| shorten(&row.answer)).unwrap_or_default(),
            ]);
        }
        out.line(&grid.to_string());
    }

    pub(super) fn print_explained(&self, out: &Output) {
        if self.explained.is_empty() {
            return;
        }
        out.heading("\nOne name of each kind, explained by the DNS server of east");
        let header = ["kind", "question", "asked", "said", "answer", "rule", ""];
        let mut grid = table(&header.map(str::to_owned));
        for row in &self.explained {
            let asked = if row.asked.is_empty() {
                "nobody".to_owned()
            } else {
                format!("{} by {}", row.asked.join(", "), row.chosen_by)
            };
            grid.add_row(vec![
                row.kind.clone(),
                shorten(&row.question),
                asked,
                row.said.join(", "),
                shorten(&row.answer),
                row.decided_by.clone(),
                verdict(row.ok).to_owned(),
            ]);
        }
        out.line(&grid.to_string());
    }

    pub(super) fn print_throughput(&self, out: &Output) {
        if self.throughput.is_empty() {
            return;
        }
        out.heading("\nThroughput of one TCP stream");
        let mut grid = table(&["path", "from", "to", "Mbit/s"].map(str::to_owned));
        for row in &self.throughput {
            grid.add_row(vec![
                row.path.clone(),
                row.from.clone(),
                row.to.clone(),
                format!("{:.0}", row.megabits_per_second),
            ]);
        }
        out.line(&grid.to_string());
    }

    pub(super) fn print_faults(&self, out: &Output) {
        if self.faults.is_empty() {
            return;
        }
        out.heading("\nFaults");
        let mut grid = table(&["fault", "observed", "gap ms", ""].map(str::to_owned));
        for row in &self.faults {
            grid.add_row(vec![
                row.fault.clone(),
                row.observed.clone(),
                row.gap_ms
                    .map_or_else(|| "none".to_owned(), |gap| millis(Some(gap))),
                verdict(row.ok).to_owned(),
            ]);
        }
        out.line(&grid.to_string());
    }

    pub(super) fn print_checks(&self, out: &Output) {
        out.heading("\nChecks");
        let mut grid = table(&["", "check", "detail"].map(str::to_owned));
        for check in &self.checks {
            grid.add_row(vec![
                verdict(check.ok).to_owned(),
                check.name.clone(),
                check.detail.clone(),
            ]);
        }
        out.line(&grid.to_string());
        let failed = self.checks.iter().filter(|check| !check.ok).count();
        let total = self.checks.len();
        let seconds = self.elapsed_seconds;
        let line = if failed == 0 {
            format!("\nIt works: {total} of {total} checks passed in {seconds} s.")
        } else {
            format!("\nIt does not work: {failed} of {total} checks failed in {seconds} s.")
        };
        out.heading(&line);
    }
}

fn verdict(ok: bool) -> &'static str {
    if ok { "ok" } else { "FAILED" }
}

fn millis(value: Option<f64>) -> String {
    value.map_or_else(
        || "no".to_owned(),
        |value| {
            if value < 10.0 {
                format!("{value:.1}")
            } else {
                format!("{value:.0}")
            }
        },
    )
}

/// Addresses and reverse names of IPv6 are longer than a line is wide.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 40 {
        return text.to_owned();
    }
    let head: String = text.chars().take(37).collect();
    format!("{head}...")
}

pub(super) fn as_millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}
