//! What a role says at its admin socket.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const ANSWER_WAIT_MAX: Duration = Duration::from_secs(3);

/// The code and body of one GET.
pub(crate) async fn get(run_dir: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let exchange = async {
        let mut stream = UnixStream::connect(run_dir.join("admin.sock")).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
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
        .and_then(|code| code.parse().ok());
    Ok((code.context("the answer has no code")?, body.to_owned()))
}
