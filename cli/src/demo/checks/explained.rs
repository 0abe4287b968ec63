//! One name of each kind, explained by the DNS server that answers it: whom it asked, by which
//! rule, who said what, what was answered (`vl3 dns explain`).

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use vl3_lab::tools;

use crate::demo::plan::{NAMESPACE, SERVICE};
use crate::demo::report::{Explained, Report};
use crate::demo::world::World;
use crate::status;

/// Whose DNS server explains.
const DOMAIN: &str = "east";
const NETWORK: &str = "red";

/// A question, and what must have happened to it.
struct Kind {
    kind: &'static str,
    name: String,
    rtype: &'static str,
    /// Domains that must have been asked, and nobody else, and the rule that chose them.
    asked: Vec<&'static str>,
    chosen_by: Option<&'static str>,
    rcode: &'static str,
    decided_by: &'static str,
    /// In any order.
    records: Vec<String>,
}

impl Kind {
    /// Nobody is asked, and nothing is found.
    fn new(
        kind: &'static str,
        name: String,
        rcode: &'static str,
        decided_by: &'static str,
    ) -> Self {
        Self {
            kind,
            name,
            rtype: "AAAA",
            asked: Vec::new(),
            chosen_by: None,
            rcode,
            decided_by,
            records: Vec::new(),
        }
    }

    /// Found here.
    fn own(kind: &'static str, name: String) -> Self {
        Self::new(kind, name, "NOERROR", "R1.5")
    }

    /// Found by asking these.
    fn of(
        kind: &'static str,
        name: String,
        asked: &[&'static str],
        chosen_by: &'static str,
    ) -> Self {
        Self {
            asked: asked.to_vec(),
            chosen_by: Some(chosen_by),
            ..Self::new(kind, name, "NOERROR", "R2.2")
        }
    }

    fn with(mut self, rtype: &'static str, records: impl IntoIterator<Item = String>) -> Self {
        self.rtype = rtype;
        self.records = records.into_iter().collect();
        self.records.sort();
        self
    }
}

pub(in crate::demo) async fn run(world: &World, report: &mut Report) -> anyhow::Result<String> {
    let server = world
        .domain(DOMAIN)?
        .dns
        .get(NETWORK)
        .with_context(|| format!("{DOMAIN} has no DNS server of {NETWORK}"))?;
    let mut wrong = Vec::new();
    for kind in kinds(world)? {
        let row = explain(server.run_dir(), &kind).await?;
        if !row.ok {
            wrong.push(format!(
                "{} {}: asked {:?} by {}, answered {} by {}",
                row.kind, row.question, row.asked, row.chosen_by, row.answer, row.decided_by
            ));
        }
        report.explained.push(row);
    }
    if let Some(first) = wrong.first() {
        bail!("{} explanations are wrong, e.g. {first}", wrong.len());
    }
    let all = report.explained.len();
    Ok(format!(
        "{all} kinds of names: who was asked, by which rule, and what was answered"
    ))
}

fn kinds(world: &World) -> anyhow::Result<Vec<Kind>> {
    let plan = world.network(NETWORK)?.plan;
    let zone = plan.zone;
    let held = |name: &str| {
        let held = world.workload(name)?.in_network(NETWORK);
        held.with_context(|| format!("{name} has no address in {NETWORK}"))
    };
    let (east, west, north) = (held("east-a")?, held("west-a")?, held("north-a")?);
    let all = plan.domains.iter().map(|(domain, _)| *domain);
    let others: Vec<&'static str> = all.filter(|domain| *domain != DOMAIN).collect();
    let service = format!("{SERVICE}.{NAMESPACE}.svc.clusterset.local");
    let endpoints = [east, west, north].map(|held| held.v6.to_string());
    let (port_name, number) = ("_http._tcp", 8080);
    let targets = ["east", "west", "north"]
        .map(|domain| format!("0 100 {number} {domain}-a.{domain}.{service}."));
    let canonical = format!("west-a.west.{zone}");
    let reverse = tools::reverse_name(west.v4.into());
    let six = |address: std::net::Ipv6Addr| [address.to_string()];
    Ok(vec![
        Kind::own("own", format!("east-a.{DOMAIN}.{zone}")).with("AAAA", six(east.v6)),
        Kind::of("canonical", canonical.clone(), &["west"], "R1.8").with("AAAA", six(west.v6)),
        Kind::of("shared", format!("north-a.{zone}"), &others, "R1.8").with("AAAA", six(north.v6)),
        Kind::of("reverse", reverse, &["west"], "R1.3").with("PTR", [format!("{canonical}.")]),
        Kind::of("service", service.clone(), &others, "R1.7").with("AAAA", endpoints),
        Kind::of(
            "named port",
            format!("{port_name}.{service}"),
            &others,
            "R1.7",
        )
        .with("SRV", targets),
        Kind::new(
            "no such domain",
            format!("east-a.atlantis.{zone}"),
            "NXDOMAIN",
            "R1.8",
        ),
        Kind::new("outside", "www.example".to_owned(), "REFUSED", "R1.6"),
    ])
}

async fn explain(run_dir: &Path, kind: &Kind) -> anyhow::Result<Explained> {
    let question = json!({ "name": kind.name, "type": kind.rtype });
    let target = run_dir.to_string_lossy();
    let told = status::command(Some(&target), "dns", "explain", &question)
        .await
        .map_err(|failure| failure.error)
        .with_context(|| format!("explain {}", kind.name))?;
    let steps = told["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let of = |step: &str, key: &str| -> Vec<&Value> {
        let steps = steps.iter().filter(|found| found["step"] == step);
        steps.map(|found| &found[key]).collect()
    };
    let asked = of("asked", "upstream").into_iter();
    let mut asked: Vec<String> = asked.map(domain_of).collect();
    asked.sort();
    // A question may have been repeated on another socket.
    asked.dedup();
    let said = steps.iter().filter(|step| step["step"] == "said");
    let said: Vec<String> = said
        .map(|step| {
            format!(
                "{} {} at {} ms",
                domain_of(&step["upstream"]),
                text(&step["vote"]),
                millis(&step["at_ms"])
            )
        })
        .collect();
    let answer = &told["answer"];
    let records = answer["records"].as_array().map_or(&[][..], Vec::as_slice);
    let mut records: Vec<String> = records.iter().map(|record| text(&record["data"])).collect();
    records.sort();
    let chosen_by = of("planned", "rule").first().map(|rule| text(rule));
    let (rcode, decided_by) = (text(&answer["rcode"]), text(&answer["rule"]));
    let mut wanted = kind.asked.clone();
    wanted.sort_unstable();
    let ok = asked == wanted
        && chosen_by.as_deref() == kind.chosen_by
        && decided_by == kind.decided_by
        && rcode == kind.rcode
        && records == kind.records;
    Ok(Explained {
        kind: kind.kind.to_owned(),
        question: format!("{} {}", kind.name, kind.rtype),
        asked,
        chosen_by: chosen_by.unwrap_or_else(|| "-".to_owned()),
        said,
        answer: if records.is_empty() {
            rcode
        } else {
            records.join(" ")
        },
        decided_by,
        ok,
    })
}

/// The domain in the name of one of the network's servers, `<domain>/<router>`.
fn domain_of(upstream: &Value) -> String {
    let name = text(upstream);
    name.split_once('/')
        .map_or_else(|| name.clone(), |(domain, _)| domain.to_owned())
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn millis(value: &Value) -> String {
    format!("{:.1}", value.as_f64().unwrap_or_default())
}
