//! An operator ends a lease: first what that would mean, then the deed.

use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use vl3_core::ids::{NetworkUid, RouterName};
use vl3_core::registry::{Command, HeldLease, Peer, RegistryMachine, Reply};
use vl3_runtime::RoleContext;

use super::lists::network_name;
use super::{Question, text};
use crate::handle::Handle;

/// Before whoever asked gives up, so that they hear why.
const OUTCOME_LIMIT: Duration = Duration::from_secs(10);

/// `release {what, yes}`: `done` says whether the lease was ended.
pub(super) fn register(ctx: &RoleContext, handle: &Handle) {
    // The identity that the machine was started with: it knows its operator by it.
    let (handle, peer) = (handle.clone(), Peer::own(ctx.identity.current().id.clone()));
    ctx.set_command("release", move |arguments| {
        let (handle, peer) = (handle.clone(), peer.clone());
        async move {
            let mut plan = handle
                .ask(Question::Release(text(&arguments, "what")?))
                .await?;
            let yes = arguments.get("yes").and_then(Value::as_bool) == Some(true);
            if yes {
                end(&handle, peer, &plan).await?;
            }
            plan["done"] = json!(yes);
            Ok(plan)
        }
    });
}

async fn end(handle: &Handle, peer: Peer, plan: &Value) -> Result<(), String> {
    let uid = text(plan, "uid")?.parse::<NetworkUid>();
    let router = text(plan, "router")?.parse::<RouterName>();
    let command = Command::EndLease {
        uid: uid.map_err(|error| error.to_string())?,
        router: router.map_err(|error| error.to_string())?,
    };
    let outcome = tokio::time::timeout(OUTCOME_LIMIT, handle.call(peer, command)).await;
    let outcome = outcome.map_err(|_| {
        "the store does not answer: the lease may still be ended once it does".to_owned()
    })?;
    match outcome {
        Ok(Reply::Done) => Ok(()),
        Ok(other) => Err(format!("an answer of another kind: {other:?}")),
        Err(refusal) => Err(refusal.to_string()),
    }
}

/// The one lease that is meant, and what goes with it.
pub(super) fn plan(machine: &RegistryMachine, what: &str) -> Result<Value, String> {
    let leases: Vec<_> = machine.held_leases().collect();
    let held = match what.parse::<IpNet>() {
        Ok(prefix) => with_prefix(&leases, prefix.trunc())?,
        Err(_) => of_router(machine, &leases, what)?,
    };
    let lease = held.lease;
    let names = machine
        .held_names()
        .filter(|name| name.uid == lease.uid && name.claim.router == lease.router);
    Ok(json!({
        "router": lease.router.as_str(),
        "network": network_name(machine, lease.uid),
        "uid": lease.uid.to_string(),
        "prefixes": lease.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>(),
        "generation": lease.generation.0,
        "holder": held.holder.as_str(),
        "names": names.map(|name| name.claim.name.to_string()).collect::<Vec<_>>(),
    }))
}

fn with_prefix<'a>(leases: &[HeldLease<'a>], prefix: IpNet) -> Result<HeldLease<'a>, String> {
    let exact = |held: &&HeldLease<'_>| held.lease.prefixes().any(|leased| leased == prefix);
    let mut exactly = leases.iter().filter(exact);
    match (exactly.next(), exactly.next()) {
        (Some(held), None) => Ok(*held),
        (Some(_), Some(_)) => Err(format!(
            "{prefix} is leased in several networks: name the router"
        )),
        (None, _) => {
            let near = leases.iter().flat_map(|held| {
                let near = held
                    .lease
                    .prefixes()
                    .filter(|leased| leased.contains(&prefix) || prefix.contains(leased));
                near.map(|leased| format!("{leased} of {}", held.lease.router))
                    .collect::<Vec<_>>()
            });
            let near: Vec<_> = near.take(8).collect();
            Err(if near.is_empty() {
                format!("nobody leases {prefix}")
            } else {
                format!(
                    "nobody leases {prefix} itself; leased are {}",
                    near.join(", ")
                )
            })
        }
    }
}

fn of_router<'a>(
    machine: &RegistryMachine,
    leases: &[HeldLease<'a>],
    what: &str,
) -> Result<HeldLease<'a>, String> {
    let of_name: Vec<_> = leases
        .iter()
        .filter(|held| held.lease.router.as_str() == what)
        .collect();
    match of_name.as_slice() {
        [held] => Ok(**held),
        [] => {
            let routers: Vec<_> = leases
                .iter()
                .take(8)
                .map(|held| held.lease.router.as_str())
                .collect();
            let known = if routers.is_empty() {
                "none".to_owned()
            } else {
                routers.join(", ")
            };
            Err(format!(
                "no router {what} holds a lease here; holders: {known}"
            ))
        }
        several => {
            let networks = several
                .iter()
                .map(|held| network_name(machine, held.lease.uid));
            let networks: Vec<_> = networks.collect();
            Err(format!(
                "{what} holds leases in several networks ({}): name the prefix",
                networks.join(", ")
            ))
        }
    }
}
