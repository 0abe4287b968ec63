//! Named, supervised tasks: a failed one is reported once, all end with their owner.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A group of tasks. Dropping it aborts them.
#[derive(Debug)]
pub struct Tasks {
    name: &'static str,
    set: Mutex<JoinSet<()>>,
    failed: watch::Sender<Option<Arc<anyhow::Error>>>,
}

impl Tasks {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            set: Mutex::new(JoinSet::new()),
            failed: watch::Sender::new(None),
        }
    }

    /// Starts a task that the group cannot do without: its error or panic is logged and makes
    /// [`Self::failed`] return. `Ok` is a normal end.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F) -> AbortHandle
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (group, name, failed) = (self.name, name.into(), self.failed.clone());
        self.start(async move {
            let outcome = std::panic::AssertUnwindSafe(future).catch_unwind().await;
            let error = match outcome {
                Ok(Ok(())) => return tracing::debug!(group, task = name, "task ended"),
                Ok(Err(error)) => error.context(format!("task {name}")),
                Err(panic) => anyhow::anyhow!("task {name} panicked: {}", panic_text(&*panic)),
            };
            tracing::error!(
                group,
                task = name,
                error = format!("{error:#}"),
                "task failed"
            );
            failed.send_if_modified(|first| {
                let is_first = first.is_none();
                if is_first {
                    *first = Some(Arc::new(error));
                }
                is_first
            });
        })
    }

    /// Starts a task whose end harms nobody else (one connection, one stream). A panic is
    /// logged.
    pub fn spawn_detached<F>(&self, name: &'static str, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let group = self.name;
        self.start(async move {
            if let Err(panic) = std::panic::AssertUnwindSafe(future).catch_unwind().await {
                tracing::error!(
                    group,
                    task = name,
                    panic = panic_text(&*panic),
                    "task panicked"
                );
            }
        })
    }

    /// Returns with the first failure; never when nothing fails.
    pub async fn failed(&self) -> anyhow::Error {
        let mut failed = self.failed.subscribe();
        let error = failed
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|error| error.clone());
        match error {
            Some(error) => anyhow::anyhow!("{error:#}"),
            // The sender lives in `self`.
            None => std::future::pending().await,
        }
    }

    /// Waits until all tasks ended by themselves, at most `limit`; then aborts the rest.
    pub async fn drain(&self, limit: Duration) {
        let mut set = std::mem::take(&mut *self.lock());
        let all = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::debug!(
                group = self.name,
                "tasks were still running at the end of the drain"
            );
        }
        set.shutdown().await;
    }

    fn start(&self, future: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut set = self.lock();
        // Reaps what ended, so that a long-lived group does not grow.
        while set.try_join_next().is_some() {}
        set.spawn(future)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.set
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_failure_is_reported_with_its_task() {
        let tasks = Tasks::new("test");
        tasks.spawn("fine", async { Ok(()) });
        tasks.spawn("broken", async { anyhow::bail!("no luck") });
        let error = tasks.failed().await;
        assert_eq!(error.to_string(), "task broken: no luck");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let tasks = Tasks::new("test");
        tasks.spawn("wild", async { panic!("boom") });
        assert!(tasks.failed().await.to_string().contains("boom"));
    }

    #[tokio::test]
    async fn dropping_the_group_aborts_its_tasks() {
        let tasks = Tasks::new("test");
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn_detached("holds", async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        });
        drop(tasks);
        assert!(receiver.await.is_err());
    }
}
