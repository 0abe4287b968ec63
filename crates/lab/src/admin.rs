//! What a running role says at its admin socket.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const ANSWER_WAIT_MAX: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// The code and body of one GET at `run_dir/admin.sock`; an error after 3 s without an answer.
pub async fn get(run_dir: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let exchange = async {
        let mut stream = UnixStream::connect(run_dir.join("admin.sock")).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_WAIT_MAX, exchange)
        .await
        .with_context(|| format!("no answer of {}", run_dir.display()))?
        .with_context(|| format!("ask {}", run_dir.display()))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the answer is no HTTP")?;
    let code = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("the answer has no code")?;
    Ok((code, body.to_owned()))
}

/// Whether the role says that it is ready; a role that is not there yet is not.
pub async fn is_ready(run_dir: &Path) -> bool {
    matches!(get(run_dir, "/readyz").await, Ok((200, _)))
}

/// What `vl3 status` shows.
pub async fn status(run_dir: &Path) -> anyhow::Result<serde_json::Value> {
    let (_, body) = get(run_dir, "/status").await?;
    serde_json::from_str(&body).context("the status is no JSON")
}
