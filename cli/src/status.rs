//! `vl3 status`: what running roles say at their admin sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::app::Failure;
use crate::output::{Output, table};

const RUN_DIR: &str = "/run/vl3";
/// In the environment of `vl3 demo exec`: where the demo's roles have theirs.
pub(crate) const DEMO_RUN_DIR: &str = "DEMO_RUN_DIR";
const ANSWER_LIMIT: Duration = Duration::from_secs(35);
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// What a common terminal shows without breaking lines.
const WIDTH_MAX: usize = 150;
/// Columns that say something about the inside of a router, with `--wide` alone: the number of a
/// peer's place in the data plane, and what the order of packets takes it for.
const INTERNAL: [&str; 2] = ["port", "class"];
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of a role (`red-east`), of a run directory (`router-red-east`), or its path; all
    /// that run on this machine when absent
    target: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Show the columns about the inside of a router, too
    #[arg(long)]
    wide: bool,
    /// Print again every second
    #[arg(long)]
    watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

pub(crate) async fn run(args: Args, out: &Output) -> Result<(), Failure> {
    loop {
        let sockets = sockets(args.target.as_deref())?;
        let mut shown = Vec::new();
        for socket in &sockets {
            let body = call(socket, "GET", "/status", &Value::Null)
                .await
                .map_err(refused)?;
            shown.push(body);
        }
        if args.watch && args.output == Format::Table {
            out.clear();
        }
        match (args.output, shown.as_slice()) {
            (Format::Json, [one]) if args.target.is_some() => out.line(&one.to_string()),
            (Format::Json, all) => out.line(&Value::from(all.to_vec()).to_string()),
            (Format::Table, all) => all.iter().for_each(|status| show(status, args.wide, out)),
        }
        if !args.watch || out.is_closed() {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Runs a command of a role (`leave`) at its admin socket.
pub(crate) async fn command(
    target: Option<&str>,
    role: &str,
    name: &str,
    arguments: &Value,
) -> Result<Value, Failure> {
    let mut sockets = sockets(target)?;
    if sockets.len() > 1 || target.is_none() {
        sockets.retain(|socket| is_of(socket, role));
    }
    if sockets.len() > 1 {
        // What a killed role left behind is no choice.
        sockets.retain(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok());
    }
    let socket = match sockets.as_slice() {
        [socket] => socket,
        [] => {
            return Err(Failure::with_next(
                anyhow!("no {role} runs below {}", run_root().display()),
                "the same with its run directory, or vl3 status for what runs",
            ));
        }
        several => {
            let names: Vec<_> = several.iter().map(|socket| run_name(socket)).collect();
            return Err(anyhow!("several run here, say which: {}", names.join(", ")).into());
        }
    };
    call(socket, "POST", &format!("/command/{name}"), arguments)
        .await
        .map_err(refused)
}

/// Whether an admin socket stands in the default run directory of that role.
fn is_of(socket: &Path, role: &str) -> bool {
    let name = run_name(socket);
    name.split_once('-').is_some_and(|(of, _)| of == role)
}

/// The run directory's last part.
fn run_name(socket: &Path) -> String {
    let dir = socket.parent().and_then(Path::file_name);
    dir.unwrap_or_default().to_string_lossy().into_owned()
}

/// A socket that is not ours needs root; one that nobody answers on may be another's.
fn refused(error: anyhow::Error) -> Failure {
    let denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    if denied {
        return error
            .context("needs root, or the user that runs the role")
            .into();
    }
    // What the role itself said needs no other role.
    if !error.chain().any(|cause| cause.is::<std::io::Error>()) {
        return error.into();
    }
    Failure::with_next(error, "vl3 status (without a name lists what runs)")
}

/// Where run directories are by default; a kept demo has its own.
fn run_root() -> PathBuf {
    std::env::var_os(DEMO_RUN_DIR).map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from)
}

/// The admin sockets that a target means.
fn sockets(target: Option<&str>) -> Result<Vec<PathBuf>, Failure> {
    if let Some(path) = target.filter(|target| target.contains('/')) {
        let path = PathBuf::from(path);
        return Ok(vec![if path.is_dir() {
            path.join("admin.sock")
        } else {
            path
        }]);
    }
    let mut found = Vec::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(run_root())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let socket = entry.path().join("admin.sock");
        if !socket.exists() {
            continue;
        }
        let matches = target.is_none_or(|target| {
            name == target || name.split_once('-').is_some_and(|(_, rest)| rest == target)
        });
        if matches {
            found.push(socket);
        }
        names.push(name);
    }
    found.sort();
    if !found.is_empty() {
        return Ok(found);
    }
    names.sort();
    Err(match (target, names.is_empty()) {
        (_, true) => Failure::with_next(
            anyhow!("no role runs below {}", run_root().display()),
            "vl3 status PATH-OF-RUN_DIR, or vl3 demo for a whole network on this machine",
        ),
        (target, false) => Failure::with_next(
            anyhow!(
                "no role {} runs here; running: {}",
                target.unwrap_or_default(),
                names.join(", ")
            ),
            "vl3 status",
        ),
    })
}

/// One HTTP/1.0 exchange: the answer ends with the connection.
async fn call(socket: &Path, method: &str, path: &str, arguments: &Value) -> anyhow::Result<Value> {
    let body = match arguments {
        Value::Null => String::new(),
        arguments => arguments.to_string(),
    };
    let length = body.len();
    let exchange = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream
            .write_all(
                format!("{method} {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}")
                    .as_bytes(),
            )
            .await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        Ok::<_, anyhow::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .map_err(|_| anyhow!("{} does not answer", socket.display()))??;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("read the answer: no HTTP")?;
    let code = head.split_whitespace().nth(1).unwrap_or_default();
    let body: Value = serde_json::from_str(body).context("read the answer: no JSON")?;
    if code != "200" {
        bail!(
            "{}",
            body.get("error").and_then(Value::as_str).unwrap_or(code)
        );
    }
    Ok(body)
}

fn show(status: &Value, wide: bool, out: &Output) {
    let Some(status) = status.as_object() else {
        return;
    };
    let text = |key: &str| status.get(key).map(cell).unwrap_or_default();
    let ready = if status.get("ready") == Some(&Value::Bool(true)) {
        "ready".to_owned()
    } else {
        format!("waiting for {}", text("waiting_for"))
    };
    let role = text("role");
    out.heading(&format!("{role} {}: {ready}", text("name")));
    if let Some(identity) = status.get("identity").and_then(Value::as_object) {
        let expires = identity
            .get("expires_in_seconds")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        let id = identity.get("id").map(cell).unwrap_or_default();
        let expires = crate::output::span(expires);
        out.line(&format!("  identity {id}, expires in {expires}"));
    }
    if status.get("ephemeral") == Some(&Value::Bool(true)) {
        out.line("  ephemeral: forgets everything at its end");
    }
    match status.get(&role) {
        Some(Value::Object(details)) => show_details(details, wide, out),
        Some(Value::Null) | None => {}
        Some(other) => out.line(&format!("  {}", cell(other))),
    }
    out.line("");
}

/// Scalars first, then one table per list or map of objects: roles decide what they show.
fn show_details(details: &Map<String, Value>, wide: bool, out: &Output) {
    for (key, value) in details {
        if rows(value).is_none() {
            let text = cell(value);
            let text = if text.is_empty() { "-" } else { &text };
            wrap(&format!("  {} {text}", key.replace('_', " ")), out);
        }
    }
    for (key, value) in details {
        let Some(rows) = rows(value).filter(|rows| !rows.is_empty()) else {
            continue;
        };
        out.line("");
        out.heading(&format!("  {}", key.replace('_', " ")));
        for line in render(&rows, wide) {
            out.line(&format!("  {line}"));
        }
    }
}

/// Breaks a line that no screen shows whole, at its spaces.
pub(crate) fn wrap(line: &str, out: &Output) {
    let mut shown = String::new();
    for word in line.split_inclusive(' ') {
        if shown.chars().count() + word.chars().count() > WIDTH_MAX && !shown.trim().is_empty() {
            out.line(shown.trim_end());
            shown = "      ".to_owned();
        }
        shown.push_str(word);
    }
    out.line(shown.trim_end());
}

/// A table; rows too wide for a screen are written one field per line.
pub(crate) fn render(rows: &[Map<String, Value>], all: bool) -> Vec<String> {
    let mut columns = columns(rows);
    columns.retain(|column| all || !INTERNAL.contains(&column.as_str()));
    let mut wide = table(&columns);
    for row in rows {
        wide.add_row(
            columns
                .iter()
                .map(|column| row.get(column).map(cell).unwrap_or_default()),
        );
    }
    let lines: Vec<String> = wide
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    if lines.iter().all(|line| line.chars().count() <= WIDTH_MAX) {
        return lines;
    }
    let width = columns.iter().map(String::len).max().unwrap_or(0);
    let mut lines = Vec::new();
    for row in rows {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        for column in &columns {
            let text = row.get(column).map(cell).unwrap_or_default();
            lines.push(
                format!(" {:width$}  {text}", column.to_uppercase())
                    .trim_end()
                    .to_owned(),
            );
        }
    }
    lines
}

/// A list of objects, or an object of objects with its key as `name`.
fn rows(value: &Value) -> Option<Vec<Map<String, Value>>> {
    match value {
        Value::Array(elements) => elements
            .iter()
            .map(|element| element.as_object().cloned())
            .collect::<Option<Vec<_>>>(),
        Value::Object(entries) if !entries.is_empty() => entries
            .iter()
            .map(|(name, entry)| {
                let mut row = entry.as_object()?.clone();
                row.entry("name")
                    .or_insert_with(|| Value::from(name.as_str()));
                Some(row)
            })
            .collect(),
        _ => None,
    }
}

/// The union of the keys, `name` first.
fn columns(rows: &[Map<String, Value>]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for key in rows.iter().flat_map(Map::keys) {
        if !columns.contains(key) {
            columns.push(key.clone());
        }
    }
    columns.sort_by_key(|key| key != "name");
    columns
}

pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(elements) => elements.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(entries) => entries
            .iter()
            .map(|(key, value)| format!("{key}={}", cell(value)))
            .collect::<Vec<_>>()
            .join(" "),
        Value::Number(number) if number.is_f64() => number
            .as_f64()
            .map_or_else(|| number.to_string(), |float| format!("{float:.2}")),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(value: &Value) -> Vec<String> {
        render(&rows(value).unwrap(), true)
    }

    #[test]
    fn lists_of_objects_are_tables_with_the_name_first() {
        let peers =
            json!([{ "class": "Own", "name": "a", "rtt": 1.23456 }, { "name": "b", "mtu": 1420 }]);
        let lines = lines(&peers);
        assert!(lines[0].trim_start().starts_with("NAME"), "{lines:?}");
        assert!(
            lines[1].contains("1.23") && !lines[1].contains("1.234"),
            "{lines:?}"
        );
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_is_about_the_inside_is_shown_when_asked_for() {
        let rows = rows(&json!([{ "port": 7, "prefix": "10.0.0.0/8" }])).unwrap();
        assert!(!render(&rows, false)[0].contains("PORT"));
        assert!(render(&rows, true)[0].contains("PORT"));
    }

    #[test]
    fn a_command_without_a_name_means_the_only_role_that_has_it() {
        assert!(is_of(Path::new("/run/vl3/router-red/admin.sock"), "router"));
        assert!(!is_of(
            Path::new("/run/vl3/registry-a/admin.sock"),
            "router"
        ));
    }

    #[test]
    fn maps_of_objects_are_tables_with_the_key_as_name() {
        assert!(lines(&json!({ "red": { "uid": "ab" } }))[1].contains("red"));
        assert!(rows(&json!({ "mtu": 1420 })).is_none());
        assert!(rows(&json!("text")).is_none());
    }

    #[test]
    fn a_row_wider_than_a_screen_is_written_one_field_per_line() {
        let lines = lines(&json!([{ "name": "a", "long": "x".repeat(WIDTH_MAX) }]));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], " NAME  a");
    }
}
