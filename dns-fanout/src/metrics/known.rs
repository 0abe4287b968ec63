//! Figures as a scrape shows them: under our names, and under those of CoreDNS and its fanout
//! plugin, which dashboards know (R7.1).

use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use vl3_core::names::Decision;

use super::figures::{Buckets, Figures, RCODES, TYPES, ToFigures};

const NO_LABELS: [(&str, &str); 0] = [];
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
    pub(super) origin: RwLock<Origin>,
    pub(super) to: Mutex<Vec<Arc<ToFigures>>>,
}

impl Shown {
    fn to(&self) -> Vec<Arc<ToFigures>> {
        self.to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn origin(&self) -> Origin {
        self.origin
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Under our names, in the registry `vl3`.
#[derive(Debug)]
pub(super) struct Ours(pub(super) Arc<Shown>);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let figures = &self.0.figures;
        let mut requests = Vec::new();
        for (proto, families) in PROTOS.iter().zip(&figures.requests) {
            for (at, rtype) in TYPES.iter().enumerate() {
                let count = families.iter().map(|types| types[at].get()).sum();
                requests.push(([("proto", *proto), ("type", *rtype)], count));
            }
        }
        counters(
            &mut encoder,
            "dns_requests",
            "Questions by transport and type",
            requests,
        )?;
        let mut responses = Vec::new();
        for (rcode, decisions) in RCODES.iter().zip(&figures.responses) {
            for (decision, count) in Decision::ALL.iter().zip(decisions) {
                let labels = [("rcode", rcode.label()), ("decision", decision.label())];
                responses.push((labels, count.get()));
            }
        }
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
            &NO_LABELS,
            &figures.duration,
        )?;
        let mut queries = Vec::new();
        let to = self.0.to();
        for to in &to {
            for (proto, count) in PROTOS.iter().zip(&to.queries) {
                queries.push(([("to", to.to.as_str()), ("proto", *proto)], count.get()));
            }
        }
        let help = "Queries to other servers";
        counters(&mut encoder, "dns_queries", help, queries)?;
        let of = |to: &Arc<ToFigures>, value: u64| ([("to", to.to.clone())], value);
        let up = to.iter().map(|to| of(to, to.up.get())).collect();
        let help = "Whether an upstream is asked like any other";
        gauges(&mut encoder, "dns_upstream_up", help, up)?;
        let rtts = to.iter().map(|to| of(to, to.rtt.get())).collect();
        let help = "Smoothed round trip of an upstream, microseconds";
        gauges(&mut encoder, "dns_upstream_rtt_microseconds", help, rtts)?;
        let timed_out = to.iter().map(|to| of(to, to.timed_out.get())).collect();
        let help = "Queries without a reply in time";
        counters(&mut encoder, "dns_upstream_timed_out", help, timed_out)?;
        let went_down = to.iter().map(|to| of(to, to.went_down.get())).collect();
        let help = "How often an upstream was taken down";
        counters(&mut encoder, "dns_upstream_went_down", help, went_down)
    }
}

/// Under the names of CoreDNS and its plugins.
#[derive(Debug)]
pub(super) struct Known(pub(super) Arc<Shown>);

impl Collector for Known {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let origin = self.0.origin();
        let base = [
            ("server", origin.server.as_str()),
            ("zone", origin.zone.as_str()),
            ("view", origin.view.as_str()),
        ];
        self.dns(&mut encoder, base)?;
        self.fanout(&mut encoder)?;
        self.cache(&mut encoder, base)
    }
}

impl Known {
    fn dns(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        base: [(&str, &str); 3],
    ) -> Result<(), Error> {
        let figures = &self.0.figures;
        let mut requests = Vec::new();
        for (proto, families) in PROTOS.iter().zip(&figures.requests) {
            for (family, types) in FAMILIES.iter().zip(families) {
                for (rtype, count) in TYPES.iter().zip(types) {
                    let own = [("proto", *proto), ("family", *family), ("type", *rtype)];
                    requests.push(([&base[..], &own].concat(), count.get()));
                }
            }
        }
        counters(
            encoder,
            "coredns_dns_requests",
            "Counter of DNS requests made per zone, protocol and family",
            requests,
        )?;
        let responses = RCODES
            .iter()
            .zip(&figures.responses)
            .map(|(rcode, decisions)| {
                let count = decisions.iter().map(super::figures::Count::get).sum();
                ([&base[..], &[("rcode", rcode.label())]].concat(), count)
            })
            .collect();
        counters(
            encoder,
            "coredns_dns_responses",
            "Counter of response status codes",
            responses,
        )?;
        for (name, help, buckets) in [
            (
                "coredns_dns_request_duration_seconds",
                "Histogram of the time each request took",
                &figures.duration,
            ),
            (
                "coredns_dns_request_size_bytes",
                "Size of the request in octets",
                &figures.request_size,
            ),
            (
                "coredns_dns_response_size_bytes",
                "Size of the returned response in octets",
                &figures.response_size,
            ),
        ] {
            histogram(encoder, name, help, &base, buckets)?;
        }
        Ok(())
    }

    fn fanout(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.0.to();
        let mut durations = encoder.encode_descriptor(
            "coredns_fanout_request_duration_seconds",
            "Histogram of the time each upstream took",
            None,
            MetricType::Histogram,
        )?;
        for to in &all {
            let labels = [("to", to.to.as_str())];
            let read = to.duration.read();
            let count = read.iter().map(|(_, count)| count).sum();
            durations
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(to.duration.sum(), count, &read, None)?;
        }
        let count = |to: &Arc<ToFigures>| to.queries.iter().map(super::figures::Count::get).sum();
        counters(
            encoder,
            "coredns_fanout_request_count",
            "Queries made per upstream",
            all.iter()
                .map(|to| ([("to", to.to.as_str())], count(to)))
                .collect(),
        )?;
        let mut rcodes = Vec::new();
        for to in &all {
            for (rcode, count) in RCODES.iter().zip(&to.rcodes) {
                rcodes.push((
                    [("to", to.to.as_str()), ("rcode", rcode.label())],
                    count.get(),
                ));
            }
        }
        counters(
            encoder,
            "coredns_fanout_response_rcode_count",
            "Codes of replies per upstream",
            rcodes,
        )
    }

    fn cache(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        base: [(&str, &str); 3],
    ) -> Result<(), Error> {
        let cache = &self.0.figures.cache;
        let pair = |counts: &[super::figures::Count; 2]| {
            ["success", "denial"]
                .iter()
                .zip(counts)
                .map(|(kind, count)| ([&base[..], &[("type", *kind)]].concat(), count.get()))
                .collect::<Vec<_>>()
        };
        let hits: u64 = cache.hits.iter().map(super::figures::Count::get).sum();
        gauges(
            encoder,
            "coredns_cache_entries",
            "Stored answers",
            pair(&cache.entries),
        )?;
        counters(
            encoder,
            "coredns_cache_hits",
            "Questions answered from stored answers",
            pair(&cache.hits),
        )?;
        for (name, help, value) in [
            (
                "coredns_cache_requests",
                "Looks for a stored answer",
                hits + cache.misses.get(),
            ),
            (
                "coredns_cache_served_stale",
                "Expired answers served",
                cache.stale.get(),
            ),
            (
                "coredns_cache_evictions",
                "Stored answers that made room",
                cache.evictions.get(),
            ),
            (
                "coredns_cache_prefetch",
                "Answers fetched anew before they expired",
                cache.prefetches.get(),
            ),
        ] {
            counters(encoder, name, help, vec![(base, value)])?;
        }
        Ok(())
    }
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(L, u64)>,
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

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(L, u64)>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn histogram<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &L,
    buckets: &Buckets,
) -> Result<(), Error> {
    let read = buckets.read();
    let count = read.iter().map(|(_, count)| count).sum();
    encoder
        .encode_descriptor(name, help, None, MetricType::Histogram)?
        .encode_family(labels)?
        .encode_histogram::<NoLabelSet>(buckets.sum(), count, &read, None)
}
