//! What the journal says of the past: readable events, since when somebody holds something,
//! and who held it before.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use vl3_core::Wall;
use vl3_core::allocator::{Lease, LeaseRecord};
use vl3_core::ids::{NetworkUid, RouterName};
use vl3_core::registry::Record;
use vl3_identity::token::format_rfc3339;
use vl3_runtime::{RoleContext, clock};

use super::keep::blocking;
use super::{Question, text};
use crate::handle::Handle;
use crate::store::{Contents, decode};

/// Events of `journal` when nobody says how many.
const LIMIT_DEFAULT: usize = 100;
/// Events that `who-owns` tells of one owner's past.
const PAST_MAX: usize = 20;

/// One change, and when it was kept; zero where that was not written down.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    at: Wall,
    record: Record,
}

/// Names of the networks, for people.
type Networks = BTreeMap<NetworkUid, String>;

/// `journal {since_seconds, limit}` and `who-owns {what}`.
pub(super) fn register(ctx: &RoleContext, handle: &Handle) {
    let asked = handle.clone();
    ctx.set_command("journal", move |arguments| {
        let handle = asked.clone();
        async move {
            let number = |name: &str| arguments.get(name).and_then(Value::as_u64);
            let since = number("since_seconds").map(Duration::from_secs);
            let limit = number("limit").map_or(LIMIT_DEFAULT, |limit| {
                usize::try_from(limit).unwrap_or(usize::MAX)
            });
            let kept = handle.kept().await?;
            blocking(move || Ok(journal(&kept, since, limit, clock::wall()))).await
        }
    });
    let handle = handle.clone();
    ctx.set_command("who-owns", move |arguments| {
        let handle = handle.clone();
        async move {
            let what = text(&arguments, "what")?;
            let mut answer = handle.ask(Question::WhoOwns(what)).await?;
            let kept = handle.kept().await?;
            blocking(move || {
                add_past(&mut answer, &kept);
                Ok(answer)
            })
            .await
        }
    });
}

fn journal(kept: &Contents, since: Option<Duration>, limit: usize, now: Wall) -> Value {
    let (events, networks) = read(kept);
    let recent = |event: &&Event| since.is_none_or(|since| event.at + since >= now);
    let mut shown: Vec<_> = events
        .iter()
        .filter(recent)
        .filter_map(|event| show(event, &networks))
        .collect();
    shown.drain(..shown.len().saturating_sub(limit));
    json!({ "events": shown })
}

/// In the order of time; what a rewrite replaced included.
fn read(kept: &Contents) -> (Vec<Event>, Networks) {
    let entries = kept.history.iter().chain(&kept.journal);
    let event = |entry: &crate::store::Entry| {
        let record = decode(&entry.bytes).ok()?;
        Some(Event {
            at: entry.at,
            record,
        })
    };
    let mut events: Vec<_> = entries.filter_map(event).collect();
    events.sort_by_key(|event| event.at);
    let networks = events.iter().filter_map(|event| match &event.record {
        Record::Document { chain } => Some((chain.uid(), chain.document().name.to_string())),
        _ => None,
    });
    let networks = networks.collect();
    (events, networks)
}

fn time(at: Wall) -> Option<String> {
    (at != Wall(0)).then(|| format_rfc3339(Wall::from_unix_secs(at.unix_secs())))
}

fn prefixes(lease: &Lease) -> String {
    let prefixes: Vec<_> = lease.prefixes().map(|prefix| prefix.to_string()).collect();
    prefixes.join(" and ")
}

/// None for what is bookkeeping.
fn show(event: &Event, networks: &Networks) -> Option<Value> {
    let (uid, what, said) = match &event.record {
        Record::Document { chain } => {
            let version = chain.document().version;
            (
                chain.uid(),
                "document",
                format!("document version {version}"),
            )
        }
        Record::Lease { uid, record } => {
            let (what, said) = show_lease(record)?;
            (*uid, what, said)
        }
        Record::Name { uid, claim, .. } => {
            let addresses: Vec<_> = claim.addresses.iter().map(IpAddr::to_string).collect();
            let said = format!(
                "name {} is {}'s at router {} ({})",
                claim.name,
                claim.workload,
                claim.router,
                addresses.join(", ")
            );
            (*uid, "name-claimed", said)
        }
        Record::NameReleased { uid, name } => {
            (*uid, "name-released", format!("name {name} is free"))
        }
        _ => return None,
    };
    let network = networks.get(&uid).cloned();
    Some(json!({
        "at": time(event.at),
        "network": network.unwrap_or_else(|| uid.to_string()),
        "event": what,
        "said": said,
    }))
}

fn show_lease(record: &LeaseRecord) -> Option<(&'static str, String)> {
    Some(match record {
        LeaseRecord::Granted { lease, holder, .. } => {
            let said = format!(
                "lease of {} to router {} (generation {}, {holder})",
                prefixes(lease),
                lease.router,
                lease.generation.0
            );
            ("lease-granted", said)
        }
        LeaseRecord::Ended { router } => {
            ("lease-ended", format!("the lease of router {router} ended"))
        }
        LeaseRecord::Excluded { range } => ("excluded", format!("{range} is excluded")),
        LeaseRecord::Included { range } => ("included", format!("{range} is no longer excluded")),
        LeaseRecord::Restored { .. } => {
            let said = "restored from a backup: leases are only taken back";
            ("restored", said.to_owned())
        }
        LeaseRecord::Readopted => {
            let said = "leases are granted again after a restore";
            ("readopted", said.to_owned())
        }
        LeaseRecord::Floor { .. } => return None,
    })
}

/// `since` of what is found, and `history` of what was asked about.
fn add_past(answer: &mut Value, kept: &Contents) {
    let (events, networks) = read(kept);
    let asked = answer["asked"].as_str().unwrap_or_default().to_owned();
    let range = asked
        .parse::<IpAddr>()
        .map(IpNet::from)
        .or_else(|_| asked.parse::<IpNet>())
        .ok();
    let mut names = vec![asked.to_ascii_lowercase()];
    if let Some(found) = answer["found"].as_array_mut() {
        for entry in found {
            let word = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            let (uid, router, name) = (word("uid"), word("router"), word("name"));
            match word("what").as_str() {
                "lease" | "router" => {
                    entry["since"] = json!(lease_since(&events, &uid, &router).and_then(time));
                }
                "workload" => {
                    entry["since"] = json!(name_since(&events, &uid, &name).and_then(time));
                    names.push(name);
                }
                _ => {}
            }
        }
    }
    let mut past = concerning(&events, range, &names);
    past.drain(..past.len().saturating_sub(PAST_MAX));
    let past = past.into_iter().filter_map(|event| show(event, &networks));
    answer["history"] = past.collect();
}

/// Since when the router holds the prefixes that it holds.
fn lease_since(events: &[Event], uid: &str, router: &str) -> Option<Wall> {
    let mut held: Option<(Wall, String)> = None;
    for event in events {
        match &event.record {
            Record::Lease {
                uid: of,
                record: LeaseRecord::Granted { lease, .. },
            } if of.to_string() == uid && lease.router.as_str() == router => {
                let now = prefixes(lease);
                if held.as_ref().is_none_or(|(_, before)| *before != now) {
                    held = Some((event.at, now));
                }
            }
            Record::Lease {
                uid: of,
                record: LeaseRecord::Ended { router: ended },
            } if of.to_string() == uid && ended.as_str() == router => held = None,
            _ => {}
        }
    }
    held.map(|(at, _)| at)
}

/// Since when the identity holds the name that holds it.
fn name_since(events: &[Event], uid: &str, name: &str) -> Option<Wall> {
    let mut held = None;
    for event in events {
        match &event.record {
            Record::Name { uid: of, claim, .. }
                if of.to_string() == uid
                    && claim.name.as_str() == name
                    && held
                        .as_ref()
                        .is_none_or(|(_, before)| *before != claim.workload) =>
            {
                held = Some((event.at, claim.workload.clone()));
            }
            Record::NameReleased {
                uid: of,
                name: free,
            } if of.to_string() == uid && free.as_str() == name => {
                held = None;
            }
            _ => {}
        }
    }
    held.map(|(at, _)| at)
}

/// What happened to a range, or to a router or workload of one of these names.
fn concerning<'a>(events: &'a [Event], range: Option<IpNet>, names: &[String]) -> Vec<&'a Event> {
    let touches = |prefix: &IpNet| {
        range.is_some_and(|range| range.contains(prefix) || prefix.contains(&range))
    };
    let named = |name: &str| names.iter().any(|wanted| wanted == name);
    // Who holds what is asked about while time goes on: an end says no prefix.
    let mut routers: BTreeMap<(NetworkUid, RouterName), bool> = BTreeMap::new();
    let mut workloads: BTreeMap<(NetworkUid, String), bool> = BTreeMap::new();
    let mut concerned = Vec::new();
    for event in events {
        let about = match &event.record {
            Record::Lease { uid, record } => match record {
                LeaseRecord::Granted { lease, .. } => {
                    let now = named(lease.router.as_str())
                        || lease.prefixes().any(|prefix| touches(&prefix));
                    let before = routers.insert((*uid, lease.router.clone()), now);
                    now || before == Some(true)
                }
                LeaseRecord::Ended { router } => {
                    routers.remove(&(*uid, router.clone())) == Some(true)
                }
                LeaseRecord::Excluded { range } | LeaseRecord::Included { range } => touches(range),
                _ => false,
            },
            Record::Name { uid, claim, .. } => {
                let mut addresses = claim.addresses.iter().copied().map(IpNet::from);
                let now = named(claim.name.as_str()) || addresses.any(|address| touches(&address));
                let before = workloads.insert((*uid, claim.name.to_string()), now);
                now || before == Some(true)
            }
            Record::NameReleased { uid, name } => {
                workloads.remove(&(*uid, name.to_string())) == Some(true)
            }
            _ => false,
        };
        if about {
            concerned.push(event);
        }
    }
    concerned
}
