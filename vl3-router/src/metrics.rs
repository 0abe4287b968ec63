//! What `/metrics` shows of a router: drops by reason, routes that were not believed, links,
//! workloads, names, traffic. Read when scraped; nothing is counted on the packet path for it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use vl3_core::router::{Counts, Refusal};
use vl3_core::routes::Disbelief;
use vl3_dataplane::DataPlane;
use vl3_runtime::RoleContext;

/// The machine's side of the metrics, kept up by its owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Counts>>);

impl Shared {
    pub(crate) fn set(&self, counts: Counts) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    fn get(&self) -> Counts {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Reads both sides at each scrape.
struct Scrape {
    shared: Shared,
    plane: Arc<DataPlane>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

pub(crate) fn register(ctx: &RoleContext, shared: Shared, plane: Arc<DataPlane>) {
    ctx.metrics.register(|registry| {
        registry.register_collector(Box::new(Scrape { shared, plane }));
    });
}

/// What `fd.sock` refuses.
pub(crate) fn fd_refused(ctx: &RoleContext) -> Counter {
    let refused = Counter::default();
    ctx.metrics.register(|registry| {
        registry.register(
            "router_fd_refused",
            "Messages on fd.sock that were refused, connections over its limit or not accepted",
            refused.clone(),
        );
    });
    refused
}

/// Events of the data plane that found the machine's queue full.
pub(crate) fn events_lost(ctx: &RoleContext) -> Counter {
    let lost = Counter::default();
    ctx.metrics.register(|registry| {
        registry.register(
            "router_events_lost",
            "Events of the data plane that found the router's queue full",
            lost.clone(),
        );
    });
    lost
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.shared.get();
        let drops = self.plane.drops();
        let drops = drops.iter().map(|(reason, count)| (reason.label(), *count));
        counters(
            &mut encoder,
            "router_drops",
            "Packets not forwarded, by reason",
            "reason",
            drops,
        )?;
        let disbelieved = Disbelief::ALL.iter().map(|why| {
            (
                why.label(),
                counts.disbelieved.get(why).copied().unwrap_or(0),
            )
        });
        counters(
            &mut encoder,
            "router_routes_disbelieved",
            "Announced routes that the document does not allow, by reason",
            "reason",
            disbelieved,
        )?;
        let refused =
            Refusal::LABELS.map(|why| (why, counts.refused.get(why).copied().unwrap_or(0)));
        counters(
            &mut encoder,
            "router_requests_refused",
            "Requests of workloads that were refused, by reason",
            "reason",
            refused,
        )?;
        let links = [
            ("up", counts.links_up),
            ("down", counts.links - counts.links_up),
        ];
        gauges(
            &mut encoder,
            "router_links",
            "Links to other routers, by state",
            Some("state"),
            &links,
        )?;
        let one = |value| [("", value)];
        gauges(
            &mut encoder,
            "router_workloads",
            "Served workloads",
            None,
            &one(counts.workloads),
        )?;
        gauges(
            &mut encoder,
            "router_names",
            "Workload names answered for",
            None,
            &one(counts.names),
        )?;
        gauges(
            &mut encoder,
            "router_routes",
            "Lines of the table",
            None,
            &one(counts.routes),
        )?;
        let fenced = usize::from(counts.fenced);
        gauges(
            &mut encoder,
            "router_fenced",
            "1: another instance has this router's name",
            None,
            &one(fenced),
        )?;
        gauges(
            &mut encoder,
            "router_own_addresses_set",
            "0: the addresses of the lease are not on the own port (status: own_error)",
            None,
            &one(usize::from(counts.own_set)),
        )?;
        let (mut received, mut sent) = (0, 0);
        for port in self.plane.status() {
            received += port.received_bytes;
            sent += port.sent_bytes;
        }
        let bytes = [("received", received), ("sent", sent)];
        counters(
            &mut encoder,
            "router_bytes",
            "Inner bytes of the ports that are there",
            "direction",
            bytes,
        )
    }
}

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (value, count) in values {
        let labels = [(label, value)];
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: Option<&str>,
    values: &[(&str, usize)],
) -> fmt::Result {
    let kind = ConstGauge::new(0_i64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (value, count) in values {
        let gauge = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
        match label {
            Some(label) => gauge.encode(family.encode_family(&[(label, *value)])?)?,
            None => {
                gauge.encode(family)?;
                return Ok(());
            }
        }
    }
    Ok(())
}
