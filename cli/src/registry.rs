//! `vl3 registry`: runs the role, or asks and orders what an operator wants of a running one.

mod keep;

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::app::{Failure, RoleArgs};
use crate::output::{Output, span};
use crate::status::{self, Format};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RegistryArgs {
    #[command(flatten)]
    pub(crate) role: RoleArgs,
    #[command(subcommand)]
    pub(crate) action: Option<Action>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Who owns an address, a prefix or a name, and since when
    WhoOwns {
        /// An address, a prefix, or the name of a workload, router, endpoint, service or domain
        #[arg(value_name = "ADDRESS|PREFIX|NAME")]
        what: String,
        #[command(flatten)]
        view: View,
    },
    /// Prefixes of this domain's routers
    Leases(View),
    /// Network services
    Services(View),
    /// Endpoints of this domain and of others
    Endpoints(View),
    /// Other domains: whether they are reached, what is held of what they said
    Domains(View),
    /// End a lease. A router that runs goes on with its prefix until its next renewal, and then
    /// asks for another: stop it first, others may get the prefix at once
    Release {
        #[arg(value_name = "PREFIX|ROUTER")]
        what: String,
        /// Do it; without, only what it would end is shown
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        view: Shown,
    },
    /// What happened, one line each, the newest last
    Journal {
        /// Only what is not older, as `2h` or `30m`
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        since: Option<Duration>,
        /// At most so many, the newest
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        #[command(flatten)]
        view: View,
    },
    /// Write everything it keeps into a file, while it runs
    Backup(keep::Backup),
    /// Fill the state of a stopped registry from a backup of any age
    Restore(keep::Restore),
    /// Verify what is kept, by a running or stopped registry or in a backup; exit code 1 if
    /// an invariant is broken
    Check(keep::Check),
}

/// Which registry, and how its answer is printed.
#[derive(Debug, Args)]
pub(crate) struct Shown {
    /// Name or run directory of the registry; the one that runs on this machine when absent
    /// (`check` also takes the file of a backup)
    target: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct View {
    #[command(flatten)]
    shown: Shown,
    /// Print again every second; with `-o json` one line each time that something changed
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(action: Action, out: &Output) -> Result<(), Failure> {
    match action {
        Action::WhoOwns { what, view } => {
            view.print("who-owns", json!({ "what": what }), out, who_owns)
                .await
        }
        Action::Leases(view) => view.print("leases", Value::Null, out, list).await,
        Action::Services(view) => view.print("services", Value::Null, out, list).await,
        Action::Endpoints(view) => view.print("endpoints", Value::Null, out, list).await,
        Action::Domains(view) => view.print("domains", Value::Null, out, list).await,
        Action::Journal { since, limit, view } => {
            let since = since.map(|since| since.as_secs());
            let arguments = json!({ "since_seconds": since, "limit": limit });
            view.print("journal", arguments, out, journal).await
        }
        Action::Backup(args) => keep::backup(&args, out).await,
        Action::Restore(args) => keep::restored(&args, out),
        Action::Check(args) => keep::check(&args, out).await,
        Action::Release { what, yes, view } => release(&what, yes, &view, out).await,
    }
}

impl View {
    async fn print(
        &self,
        name: &str,
        arguments: Value,
        out: &Output,
        show: fn(&Value, &Output),
    ) -> Result<(), Failure> {
        let mut last = None;
        loop {
            let answer = self.shown.ask(name, &arguments).await?;
            match self.shown.output {
                // Ages run on; what stands still is told once.
                Format::Json if last.as_ref() != Some(&timeless(&answer)) => {
                    out.line(&answer.to_string());
                    last = Some(timeless(&answer));
                }
                Format::Json => {}
                Format::Table => {
                    if self.watch {
                        out.clear();
                    }
                    show(&answer, out);
                }
            }
            if !self.watch || out.is_closed() {
                return Ok(());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

impl Shown {
    async fn ask(&self, name: &str, arguments: &Value) -> Result<Value, Failure> {
        status::command(self.target.as_deref(), "registry", name, arguments).await
    }
}

/// An answer without what changes with every second.
fn timeless(answer: &Value) -> Value {
    match answer {
        Value::Array(elements) => elements.iter().map(timeless).collect(),
        Value::Object(fields) => {
            let lasting = fields.iter().filter(|(key, _)| !is_running(key));
            Value::Object(
                lasting
                    .map(|(key, value)| (key.clone(), timeless(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

fn is_running(key: &str) -> bool {
    key.ends_with("_in_seconds") || key.ends_with("_seconds_ago")
}

/// The table of an answer that is one list.
fn list(answer: &Value, out: &Output) {
    let Some((name, rows)) = answer
        .as_object()
        .and_then(|answer| answer.iter().find(|(_, value)| value.is_array()))
    else {
        return out.line(&answer.to_string());
    };
    let rows = readable(rows, &["uid", "instance"]);
    if rows.is_empty() {
        return out.line(&format!("no {name}"));
    }
    for line in status::render(&rows, true) {
        out.line(&line);
    }
}

fn journal(answer: &Value, out: &Output) {
    let events = readable(answer.get("events").unwrap_or(&Value::Null), &[]);
    if events.is_empty() {
        out.line("nothing happened");
    }
    events.iter().for_each(|event| out.line(&happened(event)));
}

fn happened(event: &Map<String, Value>) -> String {
    let text = |key: &str| event.get(key).map(status::cell).unwrap_or_default();
    // Before times were written down.
    let at = event.get("at").filter(|at| !at.is_null());
    let at = at.map_or_else(|| "some time ago".to_owned(), status::cell);
    format!("{at}  {}  {}", text("network"), text("said"))
}

/// `90s`, `30m`, `2h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("{text:?} is no duration: 90s, 30m, 2h, 7d are");
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| allowed())?;
    let unit = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m" | "min") => 60,
        Some("h") => 3_600,
        Some("d") => 86_400,
        _ => return Err(allowed()),
    };
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}

fn who_owns(answer: &Value, out: &Output) {
    let said = answer.get("said").and_then(Value::as_str);
    out.heading(said.unwrap_or_default());
    let found = readable(answer.get("found").unwrap_or(&Value::Null), &["uid"]);
    for entry in found {
        let what = entry.get("what").map(status::cell).unwrap_or_default();
        let fields = entry
            .iter()
            .filter(|(key, value)| *key != "what" && !value.is_null())
            .map(|(key, value)| format!("{} {}", key.replace('_', " "), status::cell(value)));
        status::wrap(
            &format!("  {what}: {}", fields.collect::<Vec<_>>().join(", ")),
            out,
        );
    }
    let past = readable(answer.get("history").unwrap_or(&Value::Null), &[]);
    if !past.is_empty() {
        out.line("");
        past.iter()
            .for_each(|event| out.line(&format!("  {}", happened(event))));
    }
}

/// Rows with time spans as people say them, without what only programs need.
fn readable(rows: &Value, hidden: &[&str]) -> Vec<Map<String, Value>> {
    let row = |row: &Map<String, Value>| {
        let shown = row
            .iter()
            .filter(|(key, _)| !hidden.contains(&key.as_str()));
        shown
            .map(|(key, value)| match value.as_u64() {
                Some(seconds) if is_running(key) => {
                    (key.replace("_seconds", ""), Value::from(span(seconds)))
                }
                _ => (key.replace("_seconds", ""), value.clone()),
            })
            .collect()
    };
    let rows = rows.as_array().into_iter().flatten();
    rows.filter_map(Value::as_object).map(row).collect()
}

async fn release(what: &str, yes: bool, view: &Shown, out: &Output) -> Result<(), Failure> {
    let answer = view
        .ask("release", &json!({ "what": what, "yes": yes }))
        .await?;
    if view.output == Format::Json {
        out.line(&answer.to_string());
    } else {
        let text = |key: &str| answer.get(key).map(status::cell).unwrap_or_default();
        let verb = if yes { "ended" } else { "would end" };
        out.line(&format!(
            "{verb}: the lease of router {} in network {}: {} (generation {}, held by {})",
            text("router"),
            text("network"),
            text("prefixes"),
            text("generation"),
            text("holder"),
        ));
        let names = text("names");
        if !names.is_empty() {
            out.line(&format!("{verb} with it: the names {names}"));
        }
    }
    if yes {
        return Ok(());
    }
    if view.output == Format::Table {
        out.line(
            "a router that runs goes on with it until its next renewal while others may get it: stop it first",
        );
    }
    let target = view.target.as_ref().map(|target| format!(" {target}"));
    Err(Failure::with_next(
        anyhow!("nothing was ended: --yes is missing"),
        format!(
            "vl3 registry release {what}{} --yes",
            target.unwrap_or_default()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_with_the_clock_is_no_change() {
        let answer = |seconds: u64, router: &str| json!({ "leases": [{ "router": router, "expires_in_seconds": seconds, "heard_seconds_ago": seconds }] });
        assert_eq!(timeless(&answer(7, "a")), timeless(&answer(6, "a")));
        assert_ne!(timeless(&answer(7, "a")), timeless(&answer(7, "b")));
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["", "2", "h", "2w", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn people_read_spans_and_no_uids() {
        let rows = json!([{ "uid": "00", "expires_in_seconds": 90, "generation": 90 }]);
        let rows = readable(&rows, &["uid"]);
        assert_eq!(rows[0]["expires_in"], "1 min 30 s");
        assert_eq!(rows[0]["generation"], 90);
        assert_eq!(rows[0].len(), 2);
    }
}
