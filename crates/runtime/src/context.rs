//! What a running role is given.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use vl3_identity::{Source, Trust};

use crate::config::Common;
use crate::grpc::{Dialer, ServeOptions};
use crate::{DocumentAlarms, Readiness, Tasks};

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type StatusHook = Arc<dyn Fn() -> Answer<Value> + Send + Sync>;
pub(crate) type CommandHook = Arc<dyn Fn(Value) -> Answer<Result<Value, String>> + Send + Sync>;

/// Everything a role's `run` needs from its process. Cheap to clone.
#[derive(Clone)]
pub struct RoleContext {
    pub common: Arc<Common>,
    /// Own SVID, rotated live.
    pub identity: Source,
    /// Own and foreign bundles; the role adds those of its network documents.
    pub trust: Trust,
    /// Cancelled on SIGTERM and Ctrl-C: begin to drain, then return from `run`.
    pub shutdown: CancellationToken,
    /// Ends with the process; a failure in it ends the role.
    pub tasks: Arc<Tasks>,
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// For every [`crate::Documents`] of this role.
    pub document_alarms: DocumentAlarms,
    pub(crate) hooks: Arc<Hooks>,
}

#[derive(Default)]
pub(crate) struct Hooks {
    /// One for the role: each new one has a task that follows the bundles.
    dialer: OnceLock<Dialer>,
    pub(crate) status: Mutex<Option<StatusHook>>,
    pub(crate) commands: Mutex<BTreeMap<&'static str, CommandHook>>,
}

impl std::fmt::Debug for RoleContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleContext")
            .field("common", &self.common)
            .finish_non_exhaustive()
    }
}

impl RoleContext {
    /// For tests and for several roles in one process: no admin endpoint, no signals.
    pub fn new(common: Common, identity: Source) -> Self {
        let trust = Trust::new(&identity);
        let (metrics, document_alarms) = (Metrics::default(), DocumentAlarms::default());
        document_alarms.register(&metrics);
        Self {
            common: Arc::new(common),
            identity,
            trust,
            shutdown: CancellationToken::new(),
            tasks: Arc::new(Tasks::new("role")),
            readiness: Readiness::default(),
            metrics,
            document_alarms,
            hooks: Arc::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.common.name
    }

    /// A file or socket in the run directory.
    pub fn run_path(&self, file: &str) -> PathBuf {
        self.common.run_dir.join(file)
    }

    /// A file in the state directory; unset when the role is ephemeral.
    pub fn state_path(&self, file: &str) -> Option<PathBuf> {
        self.common.state_dir.as_ref().map(|dir| dir.join(file))
    }

    /// Dials with this role's identity and trust.
    pub fn dialer(&self) -> Dialer {
        let new = || Dialer::new(self.identity.clone(), self.trust.clone());
        self.hooks.dialer.get_or_init(new).clone()
    }

    /// Serves with this role's identity, trust, readiness and shutdown.
    pub fn serve_options(&self) -> ServeOptions {
        ServeOptions::new(
            self.identity.clone(),
            self.trust.clone(),
            self.shutdown.clone(),
        )
        .health(self.readiness.clone())
        .metrics(&self.metrics)
    }

    /// What `/status` of the admin endpoint and `vl3 status` show. Answered within 2 s or
    /// reported as busy.
    pub fn set_status<F, R>(&self, hook: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Value> + Send + 'static,
    {
        let hook: StatusHook = Arc::new(move || Box::pin(hook()));
        *self
            .hooks
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// A command that `POST /command/NAME` on `run_dir/admin.sock` (never on TCP) runs, such as
    /// a router's `leave`. The error text reaches the user.
    pub fn set_command<F, R>(&self, name: &'static str, hook: F)
    where
        F: Fn(Value) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let hook: CommandHook = Arc::new(move |arguments| Box::pin(hook(arguments)));
        self.hooks
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, hook);
    }

    /// Runs a command as `POST /command/NAME` does; unset where the role has none of that name.
    pub async fn command(&self, name: &str, arguments: Value) -> Option<Result<Value, String>> {
        let hook = self.command_hook(name)?;
        Some(hook(arguments).await)
    }

    pub(crate) fn command_hook(&self, name: &str) -> Option<CommandHook> {
        self.hooks
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }
}

/// The process's metrics registries. Labels only from enums and configured names.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Registries>>);

/// Ours, whose names begin with `vl3_`, and names that others gave.
#[derive(Debug)]
struct Registries {
    own: Registry,
    foreign: Registry,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            own: Registry::with_prefix("vl3"),
            foreign: Registry::default(),
        }
    }
}

impl Metrics {
    /// Registers metrics; called at start-up.
    pub fn register<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut self.lock().own)
    }

    /// Registers metrics under names that other programs' users know; no prefix is added.
    pub fn register_foreign<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut self.lock().foreign)
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        use prometheus_client::encoding::text::{encode_eof, encode_registry};
        let mut text = String::new();
        let registries = self.lock();
        // Writing to a String does not fail.
        let _infallible = encode_registry(&mut text, &registries.own)
            .and_then(|()| encode_registry(&mut text, &registries.foreign))
            .and_then(|()| encode_eof(&mut text));
        text
    }

    fn lock(&self) -> MutexGuard<'_, Registries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn foreign_names_stand_beside_ours_in_one_text() {
        let metrics = Metrics::default();
        let counter = Counter::<u64>::default();
        counter.inc();
        metrics.register(|registry| registry.register("own", "Ours", counter.clone()));
        metrics.register_foreign(|registry| registry.register("theirs", "Theirs", counter));
        let text = metrics.encode();
        assert!(text.contains("\nvl3_own_total 1\n"), "{text}");
        assert!(text.contains("\ntheirs_total 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
