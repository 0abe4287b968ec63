//! What an operator asks of a running registry: `POST /command/NAME` on the admin socket with
//! a JSON object, answered with one. `vl3 registry NAME` prints the answers.
//!
//! The fields are a contract (docs/registry.md): they are added to, never renamed.

mod history;
mod keep;
mod lists;
mod owners;
mod release;

use serde_json::Value;
use vl3_core::Now;
use vl3_core::registry::RegistryMachine;
use vl3_runtime::RoleContext;

use crate::handle::Handle;

/// Asked of the task that owns the machine; changes nothing.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Leases,
    Services,
    Endpoints,
    Domains,
    /// An address, a prefix or a name.
    WhoOwns(String),
    /// The domain's name.
    Domain,
    /// What ending the lease of this router, or with this prefix, would mean.
    Release(String),
}

/// The error is for people.
pub(crate) fn answer(
    machine: &RegistryMachine,
    question: &Question,
    now: Now,
) -> Result<Value, String> {
    match question {
        Question::Leases => Ok(lists::leases(machine, now)),
        Question::Services => Ok(lists::services(machine)),
        Question::Endpoints => Ok(lists::endpoints(machine, now)),
        Question::Domains => Ok(lists::domains(machine, now)),
        Question::Domain => Ok(Value::from(machine.domain().as_str())),
        Question::WhoOwns(what) => owners::who_owns(machine, what, now),
        Question::Release(what) => release::plan(machine, what),
    }
}

/// `leases`, `services`, `endpoints`, `domains`, `who-owns {what}`, `release {what, yes}`,
/// `check`, `backup {file}`,
/// `journal {since_seconds, limit}`.
pub(crate) fn register(ctx: &RoleContext, handle: &Handle) {
    add(ctx, handle, "leases", |_| Ok(Question::Leases));
    add(ctx, handle, "services", |_| Ok(Question::Services));
    add(ctx, handle, "endpoints", |_| Ok(Question::Endpoints));
    add(ctx, handle, "domains", |_| Ok(Question::Domains));
    history::register(ctx, handle);
    release::register(ctx, handle);
    keep::register(ctx, handle);
}

fn add(
    ctx: &RoleContext,
    handle: &Handle,
    name: &'static str,
    read: fn(&Value) -> Result<Question, String>,
) {
    let handle = handle.clone();
    ctx.set_command(name, move |arguments| {
        let handle = handle.clone();
        async move { handle.ask(read(&arguments)?).await }
    });
}

fn text(arguments: &Value, name: &str) -> Result<String, String> {
    let text = arguments.get(name).and_then(Value::as_str);
    text.map(str::to_owned)
        .ok_or_else(|| format!("{name}: missing, a text is expected"))
}
