//! Everything of one kind that a registry holds.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vl3_core::ids::NetworkUid;
use vl3_core::registry::{HeldLease, Marks, Origin, RegistryMachine};
use vl3_core::{Mono, Now};

/// The network's name; its uid when it is not served here (any more).
pub(super) fn network_name(machine: &RegistryMachine, uid: NetworkUid) -> String {
    machine.document(uid).map_or_else(
        || uid.to_string(),
        |chain| chain.document().name.to_string(),
    )
}

pub(super) fn seconds_until(deadline: Mono, now: Now) -> u64 {
    deadline.saturating_since(now.mono).as_secs()
}

pub(super) fn seconds_since(then: Mono, now: Now) -> u64 {
    now.mono.saturating_since(then).as_secs()
}

pub(super) fn lease(machine: &RegistryMachine, held: &HeldLease<'_>, now: Now) -> Value {
    let lease = held.lease;
    json!({
        "router": lease.router.as_str(),
        "network": network_name(machine, lease.uid),
        "uid": lease.uid.to_string(),
        "prefixes": lease.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>(),
        "generation": lease.generation.0,
        "instance": lease.instance.to_string(),
        "holder": held.holder.as_str(),
        "expires_in_seconds": seconds_until(held.deadline, now),
    })
}

pub(super) fn leases(machine: &RegistryMachine, now: Now) -> Value {
    let leases = machine.held_leases();
    json!({ "leases": leases.map(|held| lease(machine, &held, now)).collect::<Vec<_>>() })
}

/// What was registered, and the networks, which are services by themselves.
pub(super) fn services(machine: &RegistryMachine) -> Value {
    let registered: BTreeSet<_> = machine
        .services()
        .map(|(service, _)| &service.name)
        .collect();
    let implied = machine
        .documents()
        .map(|chain| chain.document().name.as_str())
        .filter(|name| !registered.iter().any(|known| known.as_str() == *name))
        .map(|name| json!({ "name": name, "payload": "IP", "matches": 0, "owner": null, "implied": true }));
    let own = machine.services().map(|(service, owner)| {
        json!({
            "name": service.name,
            "payload": service.payload,
            "matches": service.matches.len(),
            "owner": owner.as_str(),
            "implied": false,
        })
    });
    json!({ "services": own.chain(implied).collect::<Vec<_>>() })
}

pub(super) fn endpoints(machine: &RegistryMachine, now: Now) -> Value {
    let shown = machine.endpoints_by_origin().map(|(endpoint, origin)| {
        let generation = Marks::of(&endpoint).map(|marks| marks.generation.0);
        let (domain, owner, deadline, stale) = match origin {
            Origin::Own { owner, deadline } => (
                machine.domain(),
                Some(owner.as_str()),
                Some(deadline),
                false,
            ),
            Origin::Remote {
                domain, deadline, ..
            } => (domain, None, deadline, deadline.is_some()),
        };
        json!({
            "name": endpoint.name,
            "domain": domain.as_str(),
            "services": endpoint.services,
            "url": endpoint.url,
            "generation": generation,
            "owner": owner,
            "stale": stale,
            "expires_in_seconds": deadline.map(|deadline| seconds_until(deadline, now)),
        })
    });
    json!({ "endpoints": shown.collect::<Vec<_>>() })
}

pub(super) fn domains(machine: &RegistryMachine, now: Now) -> Value {
    let shown = machine.held_domains().into_iter().map(|held| {
        let status = &held.status;
        let state = match (status.connected, status.synced) {
            (_, true) => "synced",
            (true, false) => "connected",
            (false, false) => "unreachable",
        };
        let networks = machine.documents().map(|chain| chain.document());
        let common = networks
            .filter(|document| {
                document
                    .member(&status.domain, now.wall)
                    .is_some()
            })
            .map(|document| document.name.as_str());
        json!({
            "domain": status.domain.as_str(),
            "state": state,
            "dialled_by_us": status.dialled_by_us,
            "networks": common.collect::<Vec<_>>(),
            "heard_seconds_ago": status.heard.map(|heard| seconds_since(heard, now)),
            "entries": held.entries,
            "bytes": held.bytes,
            "last_error": status.last_error.as_ref().map(|(_, error)| error),
            "last_error_seconds_ago": status.last_error.as_ref().map(|(at, _)| seconds_since(*at, now)),
        })
    });
    json!({ "domains": shown.collect::<Vec<_>>() })
}
