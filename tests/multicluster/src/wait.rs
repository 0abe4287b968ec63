//! Waiting for levels.

use std::future::Future;
use std::time::{Duration, Instant};

const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Waits until `look` finds something, at most `limit`; the error says what was waited for.
pub async fn eventually_some<T, F>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let started = Instant::now();
    let mut last = None;
    loop {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if started.elapsed() > limit {
            let last = last
                .map(|error| format!(" ({error:#})"))
                .unwrap_or_default();
            anyhow::bail!("waited {limit:?} in vain: {what}{last}");
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// Waits until `look` says yes, at most `limit`.
pub async fn eventually<F>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    eventually_some(what, limit, || {
        let found = look();
        async move { Ok(found.await?.then_some(())) }
    })
    .await
}
