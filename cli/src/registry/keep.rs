//! `vl3 registry backup|restore|check`: of a running registry, or of the state of a stopped one.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use registry_federation::maintenance::{
    check_kept, load_backup, read_state, report_json, restore, write_backup,
};
use registry_federation::store::StoreConfig;
use serde_json::{Value, json};
use vl3_core::document::Chain;
use vl3_runtime::config::{Flags, load_from};

use super::Shown;
use crate::app::Failure;
use crate::output::Output;
use crate::status::{self, Format};

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Written whole or not at all, readable by its owner only
    file: PathBuf,
    /// Of a stopped registry: its state directory
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    view: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    file: PathBuf,
    /// The registry's configuration: says its state directory and its domain
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "state_dir",
        conflicts_with = "state_dir"
    )]
    config: Option<PathBuf>,
    /// Its state directory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Replace what is there; it is kept beside
    #[arg(long)]
    force: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Of a stopped registry: its state directory
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    view: Shown,
}

pub(super) async fn backup(args: &Backup, out: &Output) -> Result<(), Failure> {
    let answer = if let Some(dir) = &args.state_dir {
        let kept = read_state(dir).map_err(in_use)?;
        let mut shown = report_json(&write_backup(kept, "", &args.file)?);
        shown["file"] = json!(args.file.display().to_string());
        shown
    } else {
        let file = std::path::absolute(&args.file).context("find the file's directory")?;
        let file = file.display().to_string();
        args.view.ask("backup", &json!({ "file": file })).await?
    };
    if args.view.output == Format::Json {
        out.line(&answer.to_string());
    } else {
        out.line(&format!("wrote {}", args.file.display()));
        show(&answer, out);
    }
    verdict(&answer)
}

pub(super) async fn check(args: &Check, out: &Output) -> Result<(), Failure> {
    let file = args.view.target.as_deref().map(Path::new);
    let report = match (&args.state_dir, file) {
        (Some(dir), _) => report_json(&check_kept(&read_state(dir).map_err(in_use)?, "")),
        (None, Some(file)) if file.is_file() => {
            let backup = load_backup(file)?;
            report_json(&check_kept(&backup.kept, &backup.domain))
        }
        (None, _) => args.view.ask("check", &Value::Null).await?,
    };
    if args.view.output == Format::Json {
        out.line(&report.to_string());
    } else {
        show(&report, out);
    }
    verdict(&report)
}

pub(super) fn restored(args: &Restore, out: &Output) -> Result<(), Failure> {
    let (dir, domain, served) = match (&args.config, &args.state_dir) {
        (Some(config), _) => configured(config)?,
        (None, Some(dir)) => (dir.clone(), None, Vec::new()),
        (None, None) => return Err(anyhow!("--config or --state-dir is missing").into()),
    };
    let done = restore(&args.file, &dir, domain.as_deref(), &served, args.force);
    let done = done.map_err(in_use)?;
    let mut shown = report_json(&done.report);
    shown["taken_unix_seconds"] = json!(done.taken.unix_secs());
    shown["replaced"] = json!(
        done.replaced
            .as_ref()
            .map(|path| path.display().to_string())
    );
    if args.output == Format::Json {
        out.line(&shown.to_string());
        return Ok(());
    }
    out.line(&format!("restored {}", dir.display()));
    if let Some(replaced) = &done.replaced {
        out.line(&format!("what was there is {}", replaced.display()));
    }
    show(&shown, out);
    if args.config.is_none() {
        out.line(
            "of networks that it joined after the backup nothing is known: --config names them",
        );
    }
    out.line("for two renewal periods after its start it takes leases back and grants none");
    Ok(())
}

/// State directory, domain and networks of a registry's configuration.
fn configured(config: &Path) -> Result<(PathBuf, Option<String>, Vec<Chain>), Failure> {
    let flags = Flags {
        config: Some(config.to_owned()),
        set: Vec::new(),
    };
    let loaded = load_from::<registry_federation::Config>(&flags, std::env::vars());
    let loaded = loaded.map_err(|invalid| Failure {
        error: invalid.into(),
        next: None,
        code: 2,
    })?;
    if loaded.config.store != StoreConfig::Redb {
        let error = anyhow!(
            "restore fills the embedded store; this registry keeps its state in {}",
            match loaded.config.store {
                StoreConfig::Etcd(_) => "an etcd",
                _ => "memory alone",
            }
        );
        let next = "etcdctl snapshot restore for the etcd, then one start with restored = true";
        return Err(match loaded.config.store {
            StoreConfig::Etcd(_) => Failure::with_next(error, next),
            _ => error.into(),
        });
    }
    let dir = loaded.common.state_dir;
    let dir = dir.ok_or_else(|| anyhow!("state_dir is \"\": this registry keeps nothing"))?;
    let networks = loaded.config.networks.iter();
    let served = networks.map(|network| network.chain.clone()).collect();
    Ok((dir, Some(loaded.config.domain.to_string()), served))
}

/// A state that a running registry holds is asked for at the registry.
fn in_use(error: anyhow::Error) -> Failure {
    let text = format!("{error:#}");
    if text.contains("already open") || text.contains("acquire lock") {
        let next = "stop the registry, or name it instead of --state-dir (backup, check)";
        return Failure::with_next(error.context("a registry runs on this state"), next);
    }
    if text.contains("--force") {
        return Failure::with_next(
            error,
            "the same with --force (what is there is kept beside)",
        );
    }
    error.into()
}

fn show(report: &Value, out: &Output) {
    let count = |key: &str| report.get(key).map(status::cell).unwrap_or_default();
    let kinds = ["networks", "leases", "names", "services", "endpoints"];
    let kinds = kinds.map(|kind| match count(kind).as_str() {
        "1" => format!("1 {}", kind.trim_end_matches('s')),
        several => format!("{several} {kind}"),
    });
    out.line(&format!(
        "{} records: {}, {} endpoints of other domains",
        count("records"),
        kinds.join(", "),
        count("remote_endpoints")
    ));
    if count("readopting") != "0" {
        out.line("restored from a backup: leases are taken back, none is granted yet");
    }
    for (list, word) in [("violations", "VIOLATION"), ("notices", "notice")] {
        for found in report
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |key: &str| found.get(key).map(status::cell).unwrap_or_default();
            out.line(&format!("{word}: {}: {}", text("rule"), text("what")));
        }
    }
    if report.get("clean") == Some(&Value::Bool(true)) {
        out.line("clean: every invariant holds");
    }
}

fn verdict(report: &Value) -> Result<(), Failure> {
    let violations = report.get("violations").and_then(Value::as_array);
    match violations.map_or(0, Vec::len) {
        0 => Ok(()),
        1 => Err(anyhow!("1 invariant is broken").into()),
        several => Err(anyhow!("{several} invariants are broken").into()),
    }
}
