//! Who owns an address, a prefix or a name.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};
use vl3_core::Now;
use vl3_core::document::Document;
use vl3_core::ids::{DomainName, NetworkUid};
use vl3_core::registry::{HeldLease, HeldName, Marks, Origin, RegistryMachine};

use super::lists::{network_name, seconds_until};

/// Longer ones are no names.
const WHAT_CHARS_MAX: usize = 512;

/// `found` is ordered: what says most comes first, and decides `said`.
pub(super) fn who_owns(machine: &RegistryMachine, what: &str, now: Now) -> Result<Value, String> {
    let asked = what.trim().trim_end_matches('.');
    if asked.is_empty() || asked.chars().count() > WHAT_CHARS_MAX {
        return Err(format!(
            "what: {:?} is not allowed, an address, a prefix or a name is",
            asked.chars().take(64).collect::<String>()
        ));
    }
    let (kind, found, said) = if let Ok(address) = asked.parse::<IpAddr>() {
        let found = of_range(machine, IpNet::from(address), now);
        let said = say_range(machine, asked, &found);
        ("address", found, said)
    } else if let Ok(prefix) = asked.parse::<IpNet>() {
        let found = of_range(machine, prefix.trunc(), now);
        let said = say_range(machine, asked, &found);
        ("prefix", found, said)
    } else if asked.contains('/') && !asked.starts_with("spiffe://") {
        return Err(format!(
            "what: {asked:?} is not allowed, a prefix is ADDRESS/LENGTH"
        ));
    } else if is_no_address(asked) {
        return Err(format!(
            "what: {asked:?} is not allowed, neither an address nor a name"
        ));
    } else {
        let found = of_name(machine, &asked.to_ascii_lowercase(), now);
        let said = say_name(asked, &found);
        ("name", found, said)
    };
    Ok(json!({ "asked": asked, "kind": kind, "said": said, "found": found }))
}

/// A mistyped address is no name: names have a letter, and no colon.
fn is_no_address(asked: &str) -> bool {
    asked.contains(':') && !asked.starts_with("spiffe://")
        || asked.chars().all(|c| c.is_ascii_digit() || c == '.')
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Workloads, routers, leases, exclusions, blocks and pools that overlap the range.
fn of_range(machine: &RegistryMachine, range: IpNet, now: Now) -> Vec<Value> {
    let mut found = Vec::new();
    for name in machine.held_names() {
        let mut addresses = name.claim.addresses.iter();
        if addresses.any(|address| range.contains(address)) {
            found.push(workload(machine, &name, now));
        }
    }
    let leases = || {
        machine
            .held_leases()
            .flat_map(|held| {
                held.lease
                    .prefixes()
                    .map(move |prefix| (held, prefix))
                    .collect::<Vec<_>>()
            })
            .filter(|(_, prefix)| overlap(prefix, &range))
    };
    for (held, prefix) in leases() {
        if range.contains(&prefix.network()) {
            let own = IpNet::from(prefix.network());
            found.push(lease(machine, "router", &held, own, now));
        }
    }
    for (held, prefix) in leases() {
        found.push(lease(machine, "lease", &held, prefix, now));
    }
    for chain in machine.documents() {
        let document = chain.document();
        let here = |what: &str, range: IpNet| {
            json!({
                "what": what,
                "network": document.name.as_str(),
                "uid": document.uid.to_string(),
                "range": range.to_string(),
            })
        };
        let excluded = document.policy.exclusions.iter().copied();
        let excluded = excluded.chain(machine.exclusions(document.uid));
        found.extend(
            excluded
                .filter(|excluded| overlap(excluded, &range))
                .map(|excluded| here("exclusion", excluded)),
        );
        for member in document.members.values() {
            for block in member.blocks().filter(|block| overlap(block, &range)) {
                let mut entry = here("block", block);
                entry["domain"] = json!(member.domain.as_str());
                entry["own"] = json!(member.domain == *machine.domain());
                entry["live"] = json!(member.is_live(now.wall));
                found.push(entry);
            }
        }
        found.extend(
            pools(document)
                .filter(|pool| overlap(pool, &range))
                .map(|pool| here("pool", pool)),
        );
    }
    // Over all networks: what covers all that was asked for, then what says most.
    found.sort_by_key(|entry| (!covers(entry, range), rank(entry)));
    found
}

/// A workload has addresses, everything else a range.
fn covers(entry: &Value, asked: IpNet) -> bool {
    let range = entry.get("range").and_then(Value::as_str);
    match range.and_then(|range| range.parse::<IpNet>().ok()) {
        Some(range) => range.contains(&asked),
        None => asked.prefix_len() == asked.max_prefix_len(),
    }
}

fn rank(entry: &Value) -> u8 {
    let is = |field: &str| entry.get(field) == Some(&Value::Bool(true));
    match word(entry, "what") {
        "workload" => 0,
        "router" => 1,
        "lease" => 2,
        "exclusion" => 3,
        "block" if is("own") => 4,
        "block" if is("live") => 5,
        "block" => 6,
        _ => 7,
    }
}

fn pools(document: &Document) -> impl Iterator<Item = IpNet> + '_ {
    let pool4 = document.pool4.map(IpNet::V4).into_iter();
    pool4.chain([IpNet::V6(document.pool6)])
}

fn workload(machine: &RegistryMachine, held: &HeldName<'_>, now: Now) -> Value {
    json!({
        "what": "workload",
        "network": network_name(machine, held.uid),
        "uid": held.uid.to_string(),
        "name": held.claim.name.as_str(),
        "domain": machine.domain().as_str(),
        "identity": held.claim.workload.as_str(),
        "addresses": held.claim.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "router": held.claim.router.as_str(),
        "router_identity": held.by.as_str(),
        "expires_in_seconds": seconds_until(held.deadline, now),
    })
}

fn lease(
    machine: &RegistryMachine,
    what: &str,
    held: &HeldLease<'_>,
    range: IpNet,
    now: Now,
) -> Value {
    json!({
        "what": what,
        "network": network_name(machine, held.lease.uid),
        "uid": held.lease.uid.to_string(),
        "range": range.to_string(),
        "domain": machine.domain().as_str(),
        "router": held.lease.router.as_str(),
        "identity": held.holder.as_str(),
        "prefixes": held.lease.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>(),
        "generation": held.lease.generation.0,
        "instance": held.lease.instance.to_string(),
        "expires_in_seconds": seconds_until(held.deadline, now),
    })
}

/// A name of a workload (alone or below a zone), router, endpoint, service, member, network.
fn of_name(machine: &RegistryMachine, name: &str, now: Now) -> Vec<Value> {
    let mut found = Vec::new();
    let local = match name.split_once('@') {
        Some((local, at)) if at == machine.domain().as_str() => local,
        _ => name,
    };
    for held in machine.held_names() {
        if label_in(machine, held.uid, local).is_some_and(|(label, domain)| {
            label == held.claim.name.as_str()
                && domain.is_none_or(|domain| domain == machine.domain().as_str())
        }) {
            found.push(workload(machine, &held, now));
        }
    }
    for held in machine.held_leases() {
        if held.lease.router.as_str() == name {
            for prefix in held.lease.prefixes() {
                found.push(lease(machine, "lease", &held, prefix, now));
            }
        }
    }
    found.extend(of_endpoints(machine, name, now));
    for (service, owner) in machine.services() {
        if service.name == name {
            found.push(json!({
                "what": "service",
                "name": service.name,
                "domain": machine.domain().as_str(),
                "identity": owner.as_str(),
            }));
        }
    }
    for chain in machine.documents() {
        let document = chain.document();
        let (network, uid) = (document.name.as_str(), document.uid.to_string());
        if network == name {
            found.push(json!({ "what": "network", "network": network, "uid": uid, "name": name }));
        }
        // A canonical name is that domain's to answer.
        let asked = label_in(machine, document.uid, name).and_then(|(_, domain)| domain);
        let asked = asked.filter(|domain| *domain != machine.domain().as_str());
        let member = DomainName::new(asked.unwrap_or(name)).ok();
        if let Some(member) = member.and_then(|domain| document.members.get(&domain)) {
            found.push(json!({
                "what": "member",
                "network": network,
                "uid": uid,
                "domain": member.domain.as_str(),
                "own": member.domain == *machine.domain(),
                "live": member.is_live(now.wall),
                "blocks": member.blocks().map(|block| block.to_string()).collect::<Vec<_>>(),
            }));
        }
    }
    found
}

fn of_endpoints(machine: &RegistryMachine, name: &str, now: Now) -> Vec<Value> {
    let (wanted, at) = match name.split_once('@') {
        Some((wanted, at)) => (wanted, Some(at)),
        None => (name, None),
    };
    let entries = machine
        .endpoints_by_origin()
        .filter_map(|(endpoint, origin)| {
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
            let meant = endpoint.name == wanted && at.is_none_or(|at| at == domain.as_str());
            let marks = Marks::of(&endpoint);
            meant.then(|| {
                json!({
                    "what": "endpoint",
                    "network": marks.as_ref().map(|marks| network_name(machine, marks.uid)),
                    "name": endpoint.name,
                    "domain": domain.as_str(),
                    "identity": owner,
                    "services": endpoint.services,
                    "url": endpoint.url,
                    "generation": marks.map(|marks| marks.generation.0),
                    "stale": stale,
                    "since": endpoint.registered.map(vl3_identity::token::format_rfc3339),
                    "expires_in_seconds": deadline.map(|deadline| seconds_until(deadline, now)),
                })
            })
        });
    entries.collect()
}

/// The label that a name means in a network, and the domain that it names: `web`,
/// `web.<zone>` or `web.<domain>.<zone>`.
fn label_in<'a>(
    machine: &RegistryMachine,
    uid: NetworkUid,
    name: &'a str,
) -> Option<(&'a str, Option<&'a str>)> {
    if !name.contains('.') {
        return Some((name, None));
    }
    let zone = &machine.document(uid)?.document().zone;
    let below = name.strip_suffix(zone.as_str())?.strip_suffix('.')?;
    match below.split_once('.') {
        None => Some((below, None)),
        Some((label, domain)) if !domain.contains('.') => Some((label, Some(domain))),
        Some(_) => None,
    }
}

fn word<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or("?")
}

/// One sentence about the most telling entry.
fn say_range(machine: &RegistryMachine, asked: &str, found: &[Value]) -> String {
    let Some(first) = found.first() else {
        let pools: Vec<_> = machine
            .documents()
            .flat_map(|chain| pools(chain.document()).collect::<Vec<_>>())
            .map(|pool| pool.to_string())
            .collect();
        return format!(
            "{asked} belongs to nobody: it lies outside of the pools of this registry's networks ({})",
            pools.join(", ")
        );
    };
    let network = word(first, "network");
    match word(first, "what") {
        "workload" => format!(
            "{asked}: workload {} of network {network} ({}) at router {}",
            word(first, "name"),
            word(first, "identity"),
            word(first, "router")
        ),
        "router" => format!(
            "{asked}: router {} of network {network} itself ({})",
            word(first, "router"),
            word(first, "identity")
        ),
        "lease" => format!(
            "{asked}: leased to router {} of network {network} with {}; no workload claims a name there",
            word(first, "router"),
            word(first, "range")
        ),
        "exclusion" => format!(
            "{asked} belongs to nobody: {} is excluded from network {network}",
            word(first, "range")
        ),
        "block" if first.get("own") == Some(&Value::Bool(true)) => format!(
            "{asked} belongs to nobody: not leased, in this domain's block {} of network {network}",
            word(first, "range")
        ),
        "block" if first.get("live") != Some(&Value::Bool(true)) => format!(
            "{asked} belongs to nobody: in block {} of domain {}, which network {network} has removed",
            word(first, "range"),
            word(first, "domain")
        ),
        "block" => format!(
            "{asked} lies in block {} of domain {} in network {network}: its registry knows who owns it",
            word(first, "range"),
            word(first, "domain")
        ),
        "pool" if found.iter().any(|entry| rank(entry) < rank(first)) => format!(
            "{asked} lies in pool {} of network {network} and belongs to nobody as a whole; in it:",
            word(first, "range")
        ),
        _ => format!(
            "{asked} belongs to nobody: in pool {} of network {network}, in no member's block",
            word(first, "range")
        ),
    }
}

fn say_name(asked: &str, found: &[Value]) -> String {
    let Some(first) = found.first() else {
        return format!("{asked} belongs to nobody that this registry knows");
    };
    let network = word(first, "network");
    match word(first, "what") {
        "workload" => format!(
            "{asked}: workload of network {network}, held by {} at router {}",
            word(first, "identity"),
            word(first, "router")
        ),
        "lease" => format!(
            "{asked}: router of network {network}, held by {}",
            word(first, "identity")
        ),
        "endpoint" => format!(
            "{asked}: endpoint of domain {} at {}",
            word(first, "domain"),
            word(first, "url")
        ),
        "service" => format!(
            "{asked}: service, registered by {}",
            word(first, "identity")
        ),
        "network" => format!("{asked}: network {}", word(first, "uid")),
        _ if first.get("own") == Some(&Value::Bool(true)) => {
            format!("{asked}: this domain, a member of network {network}")
        }
        _ => format!(
            "{asked}: domain {} of network {network}: its registry knows who owns a name there",
            word(first, "domain")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_covers_the_question_goes_first_over_all_networks() {
        let asked: IpNet = "10.80.8.1/32".parse().unwrap();
        let mut found = [
            json!({ "what": "pool", "network": "blue", "range": "10.80.0.0/16" }),
            json!({ "what": "block", "network": "red", "range": "10.80.8.0/22", "live": true }),
            json!({ "what": "block", "network": "red", "range": "10.80.0.0/17", "live": false }),
            json!({ "what": "pool", "network": "red", "range": "10.80.0.0/16" }),
        ];
        found.sort_by_key(|entry| (!covers(entry, asked), rank(entry)));
        assert_eq!(found[0]["live"], true, "{found:?}");
        let asked: IpNet = "10.80.0.0/16".parse().unwrap();
        found.sort_by_key(|entry| (!covers(entry, asked), rank(entry)));
        assert_eq!(found[0]["what"], "pool", "{found:?}");
    }

    #[test]
    fn a_mistyped_address_is_no_name() {
        for bad in ["10.80.0.999", "fd00::zz", "1234"] {
            assert!(is_no_address(bad), "{bad}");
        }
        for good in [
            "web",
            "4web",
            "spiffe://east.test/workload/web",
            "red-east@east",
        ] {
            assert!(!is_no_address(good), "{good}");
        }
    }
}
