//! What an operator may order on the admin socket: `POST /command/NAME` with a JSON object.

use ipnet::IpNet;
use serde_json::{Value, json};
use vl3_core::ids::{NetworkUid, RouterName};
use vl3_core::registry::{Command, Peer, Reply};
use vl3_runtime::RoleContext;

use crate::handle::Handle;

/// `end-lease {uid, router}`, `exclude {uid, range}`, `include {uid, range}`.
pub(crate) fn register(ctx: &RoleContext, handle: &Handle) {
    add(ctx, handle, "end-lease", |arguments| {
        let router = field::<RouterName>(arguments, "router")?;
        Ok(Command::EndLease {
            uid: field(arguments, "uid")?,
            router,
        })
    });
    add(ctx, handle, "exclude", |arguments| exclude(arguments, true));
    add(ctx, handle, "include", |arguments| {
        exclude(arguments, false)
    });
}

fn exclude(arguments: &Value, excluded: bool) -> Result<Command, String> {
    let uid = field::<NetworkUid>(arguments, "uid")?;
    let range = field::<IpNet>(arguments, "range")?;
    Ok(Command::Exclude {
        uid,
        range,
        excluded,
    })
}

fn add(
    ctx: &RoleContext,
    handle: &Handle,
    name: &'static str,
    read: fn(&Value) -> Result<Command, String>,
) {
    // The identity that the machine was started with: it knows its operator by it.
    let (handle, peer) = (handle.clone(), Peer::own(ctx.identity.current().id.clone()));
    ctx.set_command(name, move |arguments| {
        let (handle, peer) = (handle.clone(), peer.clone());
        async move {
            let command = read(&arguments)?;
            match handle.call(peer, command).await {
                Ok(Reply::Done) => Ok(json!({ "done": true })),
                Ok(other) => Err(format!("an answer of another kind: {other:?}")),
                Err(refusal) => Err(refusal.to_string()),
            }
        }
    });
}

fn field<T: std::str::FromStr>(arguments: &Value, name: &str) -> Result<T, String> {
    let text = arguments.get(name).and_then(Value::as_str);
    let text = text.ok_or_else(|| format!("{name}: missing, a text is expected"))?;
    text.parse()
        .map_err(|_| format!("{name}: {text:?} is not allowed"))
}
