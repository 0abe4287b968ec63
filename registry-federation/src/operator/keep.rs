//! Checks and backups of what a running registry has on disk.

use std::path::PathBuf;

use serde_json::{Value, json};
use vl3_runtime::RoleContext;

use super::{Question, text};
use crate::handle::Handle;
use crate::maintenance::{check_kept, report_json, write_backup};

/// `check`; `backup {file}` with an absolute path, written by the registry itself.
pub(super) fn register(ctx: &RoleContext, handle: &Handle) {
    let asked = handle.clone();
    ctx.set_command("check", move |_| {
        let handle = asked.clone();
        async move {
            let domain = own_domain(&handle).await?;
            let kept = handle.kept().await?;
            blocking(move || Ok(report_json(&check_kept(&kept, &domain)))).await
        }
    });
    let handle = handle.clone();
    ctx.set_command("backup", move |arguments| {
        let handle = handle.clone();
        async move {
            let file = PathBuf::from(text(&arguments, "file")?);
            if !file.is_absolute() {
                return Err(format!(
                    "file: {} is not allowed, an absolute path is",
                    file.display()
                ));
            }
            let domain = own_domain(&handle).await?;
            let kept = handle.kept().await?;
            blocking(move || {
                let report = write_backup(kept, &domain, &file);
                let report = report.map_err(|error| format!("{error:#}"))?;
                let mut shown = report_json(&report);
                shown["file"] = json!(file.display().to_string());
                shown["domain"] = json!(domain);
                Ok(shown)
            })
            .await
        }
    });
}

/// The registry's own.
async fn own_domain(handle: &Handle) -> Result<String, String> {
    let domain = handle.ask(Question::Domain).await?;
    Ok(domain.as_str().unwrap_or_default().to_owned())
}

pub(super) async fn blocking(
    work: impl FnOnce() -> Result<Value, String> + Send + 'static,
) -> Result<Value, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
}
