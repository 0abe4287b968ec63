//! Retry with the one back-off.

use std::future::Future;
use std::time::Duration;

use vl3_core::{Backoff, Rng};

use crate::Said;

/// The pause between tries of one thing: `vl3_core::Backoff` with a tokio timer and a seed of
/// its own.
#[derive(Debug)]
pub struct Retry {
    backoff: Backoff,
    rng: Rng,
}

impl Retry {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            backoff: Backoff::new(first, max),
            rng: Rng::new(rand::random()),
        }
    }

    /// Sleeps before the next try.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.next(&mut self.rng)).await;
    }

    /// After a success: the next pause is short again.
    pub const fn reset(&mut self) {
        self.backoff.reset();
    }

    /// Repeats until it succeeds; `what` and the error go to the log.
    pub async fn until_ok<T, E, F>(&mut self, what: &str, mut attempt: impl FnMut() -> F) -> T
    where
        E: std::fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let mut said = Said::default();
        loop {
            match attempt().await {
                Ok(value) => {
                    self.reset();
                    return value;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if let Some(unsaid) = said.say(&error) {
                        tracing::warn!(error, unsaid, "{what} failed; trying again");
                    }
                    self.pause().await;
                }
            }
        }
    }
}
