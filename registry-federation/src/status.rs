//! What `vl3 status` shows of a registry.

use serde_json::{Value, json};
use vl3_core::Now;
use vl3_core::registry::{Marks, RegistryMachine};

use crate::replica::{Role, Standing};

pub(crate) fn status(machine: &RegistryMachine, standing: &Standing, now: Now) -> Value {
    let network_name = |uid| {
        machine
            .document(uid)
            .map_or_else(String::new, |chain| chain.document().name.to_string())
    };
    let networks: Vec<_> = machine
        .documents()
        .map(|chain| {
            let document = chain.document();
            json!({
                "network": document.name.as_str(),
                "uid": document.uid.to_string(),
                "version": document.version,
            })
        })
        .collect();
    let members: Vec<_> = machine
        .documents()
        .flat_map(|chain| {
            let document = chain.document();
            document.members.values().map(|member| {
                json!({
                    "network": document.name.as_str(),
                    "domain": member.domain.as_str(),
                    "trust_domain": member.trust_domain,
                    "live": member.is_live(now.wall),
                    "contacts": member.contacts,
                    "blocks": member.blocks().map(|block| block.to_string()).collect::<Vec<_>>(),
                })
            })
        })
        .collect();
    let domains: Vec<_> = machine
        .remotes()
        .into_iter()
        .map(|remote| {
            json!({
                "domain": remote.domain.as_str(),
                "connected": remote.connected,
                "synced": remote.synced,
                "dialled_by_us": remote.dialled_by_us,
            })
        })
        .collect();
    let leases: Vec<_> = machine
        .leases()
        .map(|lease| {
            json!({
                "network": network_name(lease.uid),
                "router": lease.router.as_str(),
                "prefixes": lease.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>(),
                "generation": lease.generation.0,
                "instance": lease.instance.to_string(),
            })
        })
        .collect();
    let endpoints: Vec<_> = machine
        .endpoints()
        .map(|(domain, endpoint)| {
            let marks = Marks::of(&endpoint);
            json!({
                "name": domain.map_or_else(|| endpoint.name.clone(), |domain| format!("{}@{domain}", endpoint.name)),
                "services": endpoint.services,
                "url": endpoint.url,
                "generation": marks.map(|marks| marks.generation.0),
            })
        })
        .collect();
    let names: Vec<_> = machine
        .names()
        .map(|(uid, claim)| {
            json!({
                "network": network_name(uid),
                "name": claim.name.as_str(),
                "workload": claim.workload.as_str(),
                "addresses": claim.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "router": claim.router.as_str(),
            })
        })
        .collect();
    json!({
        "role": "registry",
        "replica": replica(standing),
        "networks": networks,
        "members": members,
        "domains": domains,
        "leases": leases,
        "endpoints": endpoints,
        "names": names,
        "watches": machine.counts().watchers,
        "halted": machine.halted(),
    })
}

fn replica(standing: &Standing) -> Value {
    let role = standing.role.word();
    match &standing.role {
        Role::Sole | Role::Starting => json!({ "role": role }),
        Role::Following { active } => json!({
            "role": role,
            "revision": standing.revision,
            "active": active.as_ref().map(|active| json!({
                "name": active.name,
                "address": active.address,
            })),
        }),
        Role::Active { term, confirmed } => json!({
            "role": role,
            "term": term,
            "store_answers": confirmed,
        }),
    }
}
