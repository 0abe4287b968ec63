//! What `vl3 status` shows.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vl3_core::names::{Network, UpstreamId, View};

use super::Engine;

impl Engine {
    pub(super) fn status(&self) -> Value {
        let counters = self.resolver.counters();
        let decisions: Map<String, Value> = counters
            .decisions
            .iter()
            .map(|(decision, count)| (decision.label().to_owned(), json!(count)))
            .collect();
        let missing: Map<String, Value> = counters
            .failures
            .iter()
            .map(|(failure, count)| (failure.label().to_owned(), json!(count)))
            .collect();
        json!({
            "view": self.resolver.view().map(|view| self.view(view)),
            "in_flight": self.resolver.in_flight(),
            "waiting": self.resolver.waiting(),
            "upstream_sockets": self.upstreams.sockets(),
            "packets": self.packets.len(),
            "answers": decisions,
            "votes_missing": missing,
            "coalesced": counters.coalesced,
            "shed": counters.shed,
            "strangers": counters.strangers,
        })
    }

    fn view(&self, view: &View) -> Value {
        let conditions: BTreeMap<UpstreamId, &str> = self
            .resolver
            .upstreams()
            .map(|status| (status.upstream.id.clone(), status.condition.label()))
            .collect();
        let upstreams: Vec<Value> = view
            .upstreams()
            .map(|upstream| {
                let rtt = self.resolver.rtt(&upstream.id);
                json!({
                    "condition": conditions.get(&upstream.id),
                    "name": upstream.id.as_str(),
                    "domain": upstream.domain().map(|domain| domain.as_str()),
                    "addresses": upstream.servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "class": upstream.class.label(),
                    "rtt_ms": rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                })
            })
            .collect();
        let mut shown = json!({ "upstreams": upstreams });
        if let (Some(network), Some(shown)) = (view.network(), shown.as_object_mut()) {
            shown.extend(self.network(network));
        }
        shown
    }

    fn network(&self, network: &Network) -> Map<String, Value> {
        let servers: Vec<Value> = network
            .state()
            .servers
            .iter()
            .map(|server| {
                json!({
                    "domain": server.domain.as_str(),
                    "router": server.router.as_str(),
                    "addresses": server.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "sibling": server.sibling,
                })
            })
            .collect();
        let names: Map<String, Value> = network
            .state()
            .names
            .iter()
            .map(|(name, local)| {
                let addresses: Vec<String> =
                    local.addresses.iter().map(ToString::to_string).collect();
                (name.to_string(), json!(addresses))
            })
            .collect();
        let shown = json!({
            "network": network.document().uid.to_string(),
            "zone": network.zone().to_string(),
            "domain": network.domain().as_str(),
            "document_version": network.document().version,
            "names": names,
            "servers": servers,
        });
        shown.as_object().cloned().unwrap_or_default()
    }
}
