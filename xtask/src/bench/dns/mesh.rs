//! Fifty domains that name ten thousand workloads: how fast names come and go everywhere, and how
//! many queries between routers a question costs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::bench::report::Report;
use crate::shell::{self, cargo, say};

const DOMAINS: usize = 50;
const WORKLOADS: usize = 200;
/// Marks: a name is everywhere, and gone everywhere, within so many milliseconds.
const CHANGE_MS: f64 = 1_000.0;

pub(super) fn run(report: &mut Report) -> anyhow::Result<()> {
    let program = build()?;
    say(&format!(
        "mesh of {DOMAINS} domains with {WORKLOADS} workloads each"
    ));
    let (domains, workloads) = (DOMAINS.to_string(), WORKLOADS.to_string());
    let (ok, printed, errors) = shell::output(Command::new(program).args([domains, workloads]))?;
    ensure!(ok, "the mesh failed: {errors}");
    let figures: Value = serde_json::from_str(printed.trim()).context("read the mesh's figures")?;
    report.row(
        "mesh, all servers in one process",
        &[
            ("domains", number(&figures, "/domains")?, ""),
            ("names", number(&figures, "/names")?, ""),
            ("memory", number(&figures, "/memory_mib")?, "MiB"),
        ],
    );
    let kinds = figures.get("queries").and_then(Value::as_array);
    for kind in kinds.context("the mesh's figures have no queries")? {
        queries(kind, report)?;
    }
    for kind in ["canonical", "shared"] {
        changes(&figures, kind, report)?;
    }
    Ok(())
}

fn build() -> anyhow::Result<PathBuf> {
    let package = ["--package", "dns-fanout", "--example", "dns_mesh"];
    shell::run(
        cargo()
            .args(["build", "--release", "--locked"])
            .args(package),
    )
    .context("build the mesh")?;
    Ok(shell::target_dir().join("release/examples/dns_mesh"))
}

/// Queries between routers per question of a client: exactly so many.
fn queries(figures: &Value, report: &mut Report) -> anyhow::Result<()> {
    let kind = figures.get("kind").and_then(Value::as_str);
    let kind = kind.context("a kind of question without a name")?;
    let (asked, sent) = (number(figures, "/questions")?, number(figures, "/queries")?);
    let name = format!("mesh, {kind} names");
    report.row(&name, &[("questions", asked, ""), ("queries", sent, "")]);
    let (what, expected) = match kind {
        "canonical" => ("one", 1.0),
        "shared" => ("one per other domain", (DOMAINS - 1) as f64),
        _ => ("none", 0.0),
    };
    let per_question = sent / asked.max(1.0);
    let name = format!("queries per question, {kind} ({what})");
    report.at_most(&name, per_question, "", expected);
    report.at_least(&name, per_question, "", expected);
    let name = format!("wrong answers, {kind}");
    report.at_most(&name, number(figures, "/wrong")?, "", 0.0);
    Ok(())
}

fn changes(figures: &Value, kind: &str, report: &mut Report) -> anyhow::Result<()> {
    let of = |what: &str, part: &str| number(figures, &format!("/{kind}/{what}/{part}"));
    for (what, shown) in [("appeared", "there"), ("vanished", "gone")] {
        report.row(
            &format!("mesh, {kind} names: {shown} everywhere after"),
            &[
                ("looks", of(what, "count")?, ""),
                ("p50", of(what, "p50")?, "ms"),
                ("p99", of(what, "p99")?, "ms"),
                ("p100", of(what, "p100")?, "ms"),
            ],
        );
        let name = format!("{kind} names {shown} everywhere, p100");
        report.at_most(&name, of(what, "p100")?, "ms", CHANGE_MS);
    }
    let denied = number(figures, &format!("/{kind}/denied"))?;
    report.at_most(&format!("live {kind} names denied"), denied, "", 0.0);
    let wrong = number(figures, &format!("/{kind}/wrong"))?;
    report.at_most(
        &format!("wrong answers about changing {kind} names"),
        wrong,
        "",
        0.0,
    );
    Ok(())
}

fn number(figures: &Value, pointer: &str) -> anyhow::Result<f64> {
    let value = figures.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("the mesh's figures have no {pointer}"))
}
