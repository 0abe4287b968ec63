//! What `/status` of a router shows.

use serde_json::{Value, json};
use vl3_core::Mono;
use vl3_core::forward::{PortClass, PortId, Route};
use vl3_core::router::RouterMachine;
use vl3_core::routes::Disbelief;
use vl3_dataplane::PortStatus;
use vl3_runtime::clock;

use crate::plane::{Plane, ago};

/// What the machine holds, beside the data plane's peers and drops.
pub(crate) fn of(machine: &mut RouterMachine, plane: &Plane) -> Value {
    let now = clock::now();
    let handle = plane.handle();
    let drops: serde_json::Map<String, Value> = handle
        .drops()
        .into_iter()
        .map(|(reason, count)| (reason.label().to_owned(), count.into()))
        .collect();
    let status = machine.status(now);
    let class = |class: PortClass, of: PortId| match class {
        PortClass::Remote(_) => {
            let link = status.links.iter().find(|link| link.port == Some(of));
            link.map_or("Remote".to_owned(), |link| {
                format!("Remote {}", link.router.domain)
            })
        }
        PortClass::Member | PortClass::Sibling | PortClass::Own => format!("{class:?}"),
    };
    let ports: Vec<Value> = handle
        .status()
        .iter()
        .map(|status| port(status, &class(status.class, status.port), now.mono))
        .collect();
    // All reasons, so that a reader can tell none from unknown.
    let disbelieved: serde_json::Map<String, Value> = Disbelief::ALL
        .iter()
        .map(|why| {
            let count = status.disbelieved.get(why).copied().unwrap_or(0);
            (why.label().to_owned(), count.into())
        })
        .collect();
    let via = |port: PortId| {
        let link = status.links.iter().find(|link| link.port == Some(port));
        let workload = status
            .workloads
            .iter()
            .find(|workload| workload.port == Some(port));
        let name = workload
            .and_then(|workload| workload.name.as_ref())
            .map(ToString::to_string);
        link.map(|link| link.router.name.to_string()).or(name)
    };
    let preference = |route: &Route| {
        let link = status
            .links
            .iter()
            .find(|link| link.port == Some(route.port))?;
        let (_, _, routes) = status
            .received
            .iter()
            .find(|(router, ..)| *router == link.router)?;
        Some(
            routes
                .iter()
                .find(|received| received.prefix == route.prefix)?
                .preference,
        )
    };
    json!({
        "role": "router",
        "router": status.router.name.as_str(),
        "domain": status.router.domain.as_str(),
        "uid": machine.config().uid.to_string(),
        "document_version": status.document_version,
        "fenced": status.fenced,
        "store_error": status.store_error,
        "lease_error": status.lease_error,
        "own_addresses": status.own_addresses.iter().map(|own| own.addr().to_string()).collect::<Vec<_>>(),
        "own_error": status.own_error,
        "lease": status.lease.as_ref().map(|lease| json!({
            "generation": lease.generation.0,
            "prefixes": lease.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>(),
            "addresses": lease.addresses().map(|address| address.to_string()).collect::<Vec<_>>(),
        })),
        "links": status.links.iter().map(|link| json!({
            "router": link.router.name.as_str(),
            "domain": link.router.domain.as_str(),
            "identity": link.peer.as_ref().map(|id| id.as_str()),
            "generation": link.generation,
            "endpoint": link.endpoint.map(|endpoint| endpoint.remote.to_string()),
            "mtu": link.mtu,
            "state": if link.port.is_none() { "absent" } else if link.data_up { "up" } else { "down" },
            "dialled": link.dialled,
            "accepted": link.accepted,
            "port": link.port.map(|port| port.0),
            "last_error": link.last_error,
        })).collect::<Vec<_>>(),
        "workloads": status.workloads.iter().map(|workload| json!({
            "connection": workload.connection.as_str(),
            "identity": workload.owner.as_str(),
            "name": workload.name.as_ref().map(|name| name.as_str()),
            "named": workload.named,
            "name_held_by": workload.name_held_by,
            "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "mechanism": workload.mechanism,
            "port": workload.port.map(|port| port.0),
            "live": workload.live,
            "stale": workload.stale,
        })).collect::<Vec<_>>(),
        "routes": status.table.iter().map(|route| json!({
            "prefix": route.prefix.to_string(),
            "via": via(route.port),
            "preference": preference(route),
            "port": route.port.0,
            "class": class(route.class, route.port),
            "mtu": route.mtu,
        })).collect::<Vec<_>>(),
        "received": status.received.iter().map(|(router, live, routes)| json!({
            "router": router.name.as_str(),
            "domain": router.domain.as_str(),
            "live": live,
            "prefixes": routes.iter().map(|route| route.prefix.to_string()).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "disbelieved": disbelieved,
        "names": status.view.names.iter().map(|(name, addresses)| json!({
            "name": name.as_str(),
            "addresses": addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "peers": ports,
        "drops": drops,
    })
}

fn port(port: &PortStatus, class: &str, now: Mono) -> Value {
    let ago_ms =
        |then| ago(then, now).map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    let drops: serde_json::Map<String, Value> = port
        .drops
        .iter()
        .map(|(reason, count)| (reason.label().to_owned(), (*count).into()))
        .collect();
    json!({
        "port": port.port.0,
        "class": class,
        "public_key": port.public_key.map(|key| key.to_string()),
        "endpoint": port.endpoint.map(|endpoint| endpoint.remote.to_string()),
        "established": port.established,
        "last_receive_ms": ago_ms(port.last_receive),
        "last_send_ms": ago_ms(port.last_send),
        "received_packets": port.received_packets,
        "received_bytes": port.received_bytes,
        "sent_packets": port.sent_packets,
        "sent_bytes": port.sent_bytes,
        "drops": drops,
    })
}
