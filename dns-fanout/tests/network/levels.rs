//! Waiting for a level, the one way in which these tests wait.

use std::time::Duration;

/// Waits until a condition holds that asks somebody: at most ten seconds and what its looks take.
pub(crate) async fn eventually_true<F: Future<Output = bool>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) {
    for _ in 0..1_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
