//! Figures as a scrape shows them: under our names, and under those of CoreDNS and its fanout
//! plugin, which dashboards know (R7.1).

use std::fmt::Error;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use vl3_core::names::Decision;

use super::figures::{Buckets, CacheFigures, Count, Figures, RCODES, TYPES, ToFigures};

const PROTOS: [&str; 2] = ["udp", "tcp"];
/// As CoreDNS has them.
const FAMILIES: [&str; 2] = ["1", "2"];

/// Where these figures come from, as CoreDNS labels it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// `dns://:53`.
    pub(crate) server: String,
    pub(crate) zone: String,
    pub(crate) view: String,
}

#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) figures: Figures,
    origin: Origin,
    pub(super) to: Mutex<Vec<Arc<ToFigures>>>,
    /// Fan-outs in flight.
    pub(super) in_flight: AtomicI64,
}

/// The figures of every view of this process.
#[derive(Clone, Debug, Default)]
pub(super) struct Views(Arc<Mutex<Vec<Arc<Shown>>>>);

type Labels = Vec<(&'static str, String)>;
type Values<T> = Vec<(Labels, T)>;
/// Name, help and value of a figure.
type Total = (&'static str, &'static str, fn(&CacheFigures) -> u64);

impl Views {
    pub(super) fn add(&self, shown: Arc<Shown>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(shown);
    }

    fn all(&self) -> Vec<Arc<Shown>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.clone()
    }
}

impl Shown {
    fn to(&self) -> Vec<Arc<ToFigures>> {
        self.to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn new(origin: Origin) -> Self {
        Self {
            origin,
            ..Self::default()
        }
    }

    /// Of our own names: a view that has a name shows it.
    fn view(&self) -> Labels {
        let view = self.origin.view.clone();
        let named = (!view.is_empty()).then_some(("view", view));
        named.into_iter().collect()
    }

    /// As CoreDNS labels its figures.
    fn base(&self) -> Labels {
        let origin = self.origin.clone();
        vec![
            ("server", origin.server),
            ("zone", origin.zone),
            ("view", origin.view),
        ]
    }
}

/// Under our names, in the registry `vl3`.
#[derive(Debug)]
pub(super) struct Ours(pub(super) Views);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (mut requests, mut responses) = (Vec::new(), Vec::new());
        let all = self.0.all();
        for shown in &all {
            let (figures, view) = (&shown.figures, shown.view());
            for (proto, families) in PROTOS.iter().zip(&figures.requests) {
                for (at, rtype) in TYPES.iter().enumerate() {
                    let count = families.iter().map(|types| types[at].get()).sum();
                    let labels = and(&view, &[("proto", *proto), ("type", *rtype)]);
                    requests.push((labels, count));
                }
            }
            for (rcode, decisions) in RCODES.iter().zip(&figures.responses) {
                for (decision, count) in Decision::ALL.iter().zip(decisions) {
                    let own = [("rcode", rcode.label()), ("decision", decision.label())];
                    responses.push((and(&view, &own), count.get()));
                }
            }
        }
        counters(
            &mut encoder,
            "dns_requests",
            "Questions by transport and type",
            requests,
        )?;
        counters(
            &mut encoder,
            "dns_responses",
            "Replies by code and by the rule that decided",
            responses,
        )?;
        histogram(
            &mut encoder,
            "dns_request_duration_seconds",
            "From question to reply",
            all.iter()
                .map(|shown| (shown.view(), &shown.figures.duration)),
        )?;
        self.upstreams(&mut encoder)
    }
}

impl Ours {
    fn upstreams(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut queries = Vec::new();
        for (labels, to) in self.0.upstreams(Shown::view) {
            for (proto, count) in PROTOS.iter().zip(&to.queries) {
                queries.push((and(&labels, &[("proto", *proto)]), count.get()));
            }
        }
        counters(encoder, "dns_queries", "Queries to other servers", queries)?;
        let of = |count: fn(&ToFigures) -> &Count| -> Values<u64> {
            let all = self.0.upstreams(Shown::view).into_iter();
            all.map(|(labels, to)| (labels, count(&to).get())).collect()
        };
        let help = "Whether an upstream is asked like any other";
        gauges(encoder, "dns_upstream_up", help, of(|to| &to.up))?;
        let help = "Smoothed round trip of an upstream, microseconds";
        let rtts = of(|to| &to.rtt);
        gauges(encoder, "dns_upstream_rtt_microseconds", help, rtts)?;
        let help = "Queries without a reply in time";
        let timed_out = of(|to| &to.timed_out);
        counters(encoder, "dns_upstream_timed_out", help, timed_out)?;
        let help = "How often an upstream was taken down";
        let went_down = of(|to| &to.went_down);
        counters(encoder, "dns_upstream_went_down", help, went_down)
    }
}

impl Views {
    /// The upstreams of every view, labelled.
    fn upstreams(&self, base: fn(&Shown) -> Labels) -> Vec<(Labels, Arc<ToFigures>)> {
        let mut all = Vec::new();
        for shown in self.all() {
            let base = base(&shown);
            let to = shown.to().into_iter();
            all.extend(to.map(|to| (and(&base, &[("to", to.to.as_str())]), to)));
        }
        all
    }
}

/// Under the names of CoreDNS and its plugins.
#[derive(Debug)]
pub(super) struct Known(pub(super) Views);

impl Collector for Known {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.dns(&mut encoder)?;
        self.fanout(&mut encoder)?;
        self.cache(&mut encoder)
    }
}

impl Known {
    fn dns(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let (mut requests, mut responses) = (Vec::new(), Vec::new());
        let all = self.0.all();
        for shown in &all {
            let (figures, base) = (&shown.figures, shown.base());
            for (proto, families) in PROTOS.iter().zip(&figures.requests) {
                for (family, types) in FAMILIES.iter().zip(families) {
                    for (rtype, count) in TYPES.iter().zip(types) {
                        let own = [("proto", *proto), ("family", *family), ("type", *rtype)];
                        requests.push((and(&base, &own), count.get()));
                    }
                }
            }
            for (rcode, decisions) in RCODES.iter().zip(&figures.responses) {
                let count = decisions.iter().map(Count::get).sum();
                responses.push((and(&base, &[("rcode", rcode.label())]), count));
            }
        }
        counters(
            encoder,
            "coredns_dns_requests",
            "Counter of DNS requests made per zone, protocol and family",
            requests,
        )?;
        counters(
            encoder,
            "coredns_dns_responses",
            "Counter of response status codes",
            responses,
        )?;
        let of = |buckets: fn(&Figures) -> &Buckets| {
            all.iter()
                .map(move |shown| (shown.base(), buckets(&shown.figures)))
        };
        histogram(
            encoder,
            "coredns_dns_request_duration_seconds",
            "Histogram of the time each request took",
            of(|figures| &figures.duration),
        )?;
        histogram(
            encoder,
            "coredns_dns_request_size_bytes",
            "Size of the request in octets",
            of(|figures| &figures.request_size),
        )?;
        histogram(
            encoder,
            "coredns_dns_response_size_bytes",
            "Size of the returned response in octets",
            of(|figures| &figures.response_size),
        )
    }

    fn fanout(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.0.upstreams(Shown::view);
        histogram(
            encoder,
            "coredns_fanout_request_duration_seconds",
            "Histogram of the time each upstream took",
            all.iter()
                .map(|(labels, to)| (labels.clone(), &to.duration)),
        )?;
        let count = |to: &ToFigures| to.queries.iter().map(Count::get).sum();
        counters(
            encoder,
            "coredns_fanout_request_count",
            "Queries made per upstream",
            all.iter()
                .map(|(labels, to)| (labels.clone(), count(to)))
                .collect(),
        )?;
        let mut rcodes = Vec::new();
        for (labels, to) in &all {
            for (rcode, count) in RCODES.iter().zip(&to.rcodes) {
                rcodes.push((and(labels, &[("rcode", rcode.label())]), count.get()));
            }
        }
        counters(
            encoder,
            "coredns_fanout_response_rcode_count",
            "Codes of replies per upstream",
            rcodes,
        )
    }

    fn cache(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.0.all();
        let pair = |counts: fn(&CacheFigures) -> &[Count; 2]| -> Values<u64> {
            let of = |shown: &Arc<Shown>| {
                let (base, counts) = (shown.base(), counts(&shown.figures.cache));
                let kinds = ["success", "denial"].iter().zip(counts);
                kinds
                    .map(|(kind, count)| (and(&base, &[("type", *kind)]), count.get()))
                    .collect::<Vec<_>>()
            };
            all.iter().flat_map(of).collect()
        };
        gauges(
            encoder,
            "coredns_cache_entries",
            "Stored answers",
            pair(|cache| &cache.entries),
        )?;
        counters(
            encoder,
            "coredns_cache_hits",
            "Questions answered from stored answers",
            pair(|cache| &cache.hits),
        )?;
        let looks = |cache: &CacheFigures| {
            cache.hits.iter().map(Count::get).sum::<u64>() + cache.misses.get()
        };
        let totals: [Total; 4] = [
            ("coredns_cache_requests", "Looks for a stored answer", looks),
            (
                "coredns_cache_served_stale",
                "Expired answers served",
                |cache| cache.stale.get(),
            ),
            (
                "coredns_cache_evictions",
                "Stored answers that made room",
                |cache| cache.evictions.get(),
            ),
            (
                "coredns_cache_prefetch",
                "Answers fetched anew before they expired",
                |cache| cache.prefetches.get(),
            ),
        ];
        for (name, help, value) in totals {
            let values = all
                .iter()
                .map(|shown| (shown.base(), value(&shown.figures.cache)));
            counters(encoder, name, help, values.collect())?;
        }
        Ok(())
    }
}

/// More labels.
fn and(base: &Labels, own: &[(&'static str, &str)]) -> Labels {
    let own = own
        .iter()
        .map(|(label, value)| (*label, (*value).to_owned()));
    base.iter().cloned().chain(own).collect()
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Values<u64>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    // What never happened is not shown: types by codes by rules would be hundreds of lines.
    for (labels, value) in values.into_iter().filter(|(_, value)| *value > 0) {
        family
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Values<u64>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn histogram<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (Labels, &'a Buckets)>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, buckets) in values {
        let read = buckets.read();
        let count = read.iter().map(|(_, count)| count).sum();
        family
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(buckets.sum(), count, &read, None)?;
    }
    Ok(())
}
