//! What a client shows of itself.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Map, Value, json};
use vl3_core::forward::DropReason;
use vl3_core::heal::State;
use vl3_core::time::Mono;
use vl3_runtime::{Metrics, clock};

/// One attachment as its task published it last.
#[derive(Clone, Debug)]
pub struct Status {
    pub network: String,
    pub uid: String,
    pub mechanism: &'static str,
    pub interface: String,
    pub state: State,
    pub router: Option<String>,
    pub generation: Option<u64>,
    pub url: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// The router's own overlay addresses.
    pub router_addresses: Vec<IpAddr>,
    pub routes: Vec<IpNet>,
    pub mtu: Option<u16>,
    pub dns_servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub document_version: u64,
    /// Of the last answered probe.
    pub rtt: Option<Duration>,
    /// Last authentic packet or probe reply.
    pub last_receipt: Option<Mono>,
    /// From the start of the first dial to the first echo reply of the router.
    pub attached_after: Option<Duration>,
    /// WIREGUARD: packets that the own data plane dropped.
    pub drops: Vec<(DropReason, u64)>,
    /// Why the last install failed.
    pub last_error: Option<String>,
}

impl Status {
    pub fn to_json(&self) -> Value {
        let now = clock::mono();
        let drops: Map<String, Value> = self
            .drops
            .iter()
            .map(|(reason, count)| (reason.label().to_owned(), json!(count)))
            .collect();
        let (state, control, data) = match self.state {
            State::Idle => ("idle", false, false),
            State::Joining => ("joining", false, false),
            State::Up => ("up", true, true),
            State::Healing { control, data } => ("healing", control, data),
            State::Stopping => ("stopping", false, false),
            State::Stopped => ("stopped", false, false),
        };
        json!({
            "network": self.network,
            "uid": self.uid,
            "mechanism": self.mechanism,
            "interface": self.interface,
            "state": state,
            "attached": data,
            "control_up": control,
            "data_up": data,
            "router": self.router,
            "generation": self.generation,
            "url": self.url,
            "addresses": texts(&self.addresses),
            "router_addresses": texts(&self.router_addresses),
            "routes": texts(&self.routes),
            "mtu": self.mtu,
            "dns_servers": texts(&self.dns_servers),
            "search": self.search,
            "document_version": self.document_version,
            "rtt_ms": self.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            "last_receipt_seconds_ago": self.last_receipt.map(|at| now.saturating_since(at).as_secs_f64()),
            "connect_ms": self.attached_after.map(|after| after.as_secs_f64() * 1e3),
            "drops": drops,
            "last_error": self.last_error,
        })
    }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// Counters per network. Labels come from the configuration alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    up: Family<[(&'static str, String); 1], Gauge>,
    requests: Family<[(&'static str, String); 2], Counter>,
    heals: Family<[(&'static str, String); 1], Counter>,
}

impl Counters {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let counters = Self::default();
        metrics.register(|registry| {
            registry.register(
                "client_attachment_up",
                "1 while control and data are up",
                counters.up.clone(),
            );
            registry.register(
                "client_requests",
                "Requests by their outcome",
                counters.requests.clone(),
            );
            registry.register(
                "client_heals",
                "Times that an attachment left the state up",
                counters.heals.clone(),
            );
        });
        counters
    }

    pub(crate) fn state(&self, network: &str, was: State, is: State) {
        let label = [("network", network.to_owned())];
        self.up
            .get_or_create(&label)
            .set(i64::from(is == State::Up));
        if was == State::Up && matches!(is, State::Healing { .. } | State::Joining) {
            self.heals.get_or_create(&label).inc();
        }
    }

    pub(crate) fn request(&self, network: &str, outcome: &'static str) {
        self.requests
            .get_or_create(&[
                ("network", network.to_owned()),
                ("outcome", outcome.to_owned()),
            ])
            .inc();
    }
}
