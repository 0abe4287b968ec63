//! What a bench found: rows of figures, and marks that must be reached.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::shell::say;

/// Rows and marks of one bench, in the order in which they were added.
#[derive(Debug)]
pub(crate) struct Report {
    name: String,
    rows: Vec<Row>,
    marks: Vec<Mark>,
}

#[derive(Debug)]
struct Row {
    name: String,
    figures: Vec<(String, f64, String)>,
}

#[derive(Debug)]
struct Mark {
    name: String,
    value: f64,
    unit: String,
    bound: String,
    ok: bool,
}

impl Report {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rows: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// One row: figures as (name, value, unit).
    pub(crate) fn row(&mut self, name: &str, figures: &[(&str, f64, &str)]) {
        let figures = figures
            .iter()
            .map(|(name, value, unit)| ((*name).to_owned(), *value, (*unit).to_owned()));
        self.rows.push(Row {
            name: name.to_owned(),
            figures: figures.collect(),
        });
    }

    /// A value that must be at least this.
    pub(crate) fn at_least(&mut self, name: &str, value: f64, unit: &str, bound: f64) {
        self.mark(name, value, unit, format!(">= {bound}"), value >= bound);
    }

    /// A value that must be at most this.
    pub(crate) fn at_most(&mut self, name: &str, value: f64, unit: &str, bound: f64) {
        self.mark(name, value, unit, format!("<= {bound}"), value <= bound);
    }

    fn mark(&mut self, name: &str, value: f64, unit: &str, bound: String, ok: bool) {
        self.marks.push(Mark {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            bound,
            ok,
        });
    }

    /// Writes the JSON document, prints the table, and fails when a mark was missed.
    pub(crate) fn finish(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.document()).context("write the report")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
        for line in self.table() {
            say(&line);
        }
        say(&format!("written to {}", path.display()));
        let missed: Vec<&str> = self
            .marks
            .iter()
            .filter(|mark| !mark.ok)
            .map(|mark| mark.name.as_str())
            .collect();
        if !missed.is_empty() {
            bail!("marks missed: {}", missed.join(", "));
        }
        Ok(())
    }

    fn document(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let mut figures = Map::new();
                for (name, value, unit) in &row.figures {
                    figures.insert(name.clone(), json!({ "value": value, "unit": unit }));
                }
                json!({ "name": row.name, "figures": figures })
            })
            .collect();
        let marks: Vec<Value> = self
            .marks
            .iter()
            .map(|mark| {
                json!({
                    "name": mark.name,
                    "value": mark.value,
                    "unit": mark.unit,
                    "bound": mark.bound,
                    "ok": mark.ok,
                })
            })
            .collect();
        let ok = self.marks.iter().all(|mark| mark.ok);
        json!({ "bench": self.name, "ok": ok, "rows": rows, "marks": marks, "machine": machine() })
    }

    /// Rows with the same figures share a header.
    fn table(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut header: Vec<String> = Vec::new();
        let width = self
            .rows
            .iter()
            .map(|row| row.name.chars().count())
            .max()
            .unwrap_or(0)
            .max(20);
        for row in &self.rows {
            let names: Vec<String> = row
                .figures
                .iter()
                .map(|(name, _, unit)| format!("{name} [{unit}]"))
                .collect();
            if names != header {
                let columns: String = names.iter().map(|name| format!("  {name:>18}")).collect();
                lines.push(format!("{:width$}{columns}", ""));
                header = names;
            }
            let mut columns = String::new();
            for ((_, value, _), name) in row.figures.iter().zip(&header) {
                let field = name.chars().count().max(18);
                columns.push_str(&format!("  {:>field$}", figure(*value)));
            }
            lines.push(format!("{:width$}{columns}", row.name));
        }
        for mark in &self.marks {
            let verdict = if mark.ok { "reached" } else { "MISSED " };
            lines.push(format!(
                "{verdict} {}: {} {} (wanted {})",
                mark.name,
                figure(mark.value),
                mark.unit,
                mark.bound
            ));
        }
        lines
    }
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// What the figures depend on.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name")?
            .split_once(':')
            .map(|(_, name)| name.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    json!({ "kernel": read("/proc/sys/kernel/osrelease").trim(), "cpu": model, "cores": cores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_mark_fails_the_bench_and_stands_in_the_document() {
        let mut report = Report::new("x");
        report.row(
            "one stream",
            &[("throughput", 2.5, "Gbit/s"), ("cpu", 4.0, "s/GB")],
        );
        report.at_least("throughput against the other", 1.5, "x", 2.0);
        report.at_most("p50", 3.0, "ms", 10.0);
        let directory = std::env::temp_dir().join(format!("vl3-report-{}", std::process::id()));
        let error = report.finish(&directory).unwrap_err();
        let text = std::fs::read_to_string(&directory).unwrap();
        std::fs::remove_file(&directory).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        assert!(
            error.to_string().contains("throughput against the other"),
            "{error}"
        );
        assert_eq!(document["ok"], false);
        assert_eq!(document["rows"][0]["figures"]["throughput"]["value"], 2.5);
        assert_eq!(document["marks"][1]["ok"], true);
    }
}
