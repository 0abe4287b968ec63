//! One server under load: all it can take, then a steady rate for the latencies.

use std::path::Path;

use anyhow::{Context, ensure};
use vl3_lab::ProcessSpec;

use super::check::{self, Checked};
use super::servers::{Running, program};
use super::{STEADY_QPS, World};

const SATURATED_S: u32 = 5;
const STEADY_S: u32 = 4;
/// Sockets of the load, and questions in flight.
const CLIENTS: u32 = 16;
const OUTSTANDING: u32 = 200;

/// What one server did, in one round or as the median of several.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) answered: f64,
    pub(super) qps: f64,
    pub(super) cpu_us: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) lost: f64,
    /// Answers with another code or other addresses than the upstream's.
    pub(super) wrong: f64,
}

impl Figures {
    /// Each figure by itself; what must not happen is summed.
    pub(super) fn median(rounds: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        Self {
            answered: median(|figures| figures.answered),
            qps: median(|figures| figures.qps),
            cpu_us: median(|figures| figures.cpu_us),
            p50_ms: median(|figures| figures.p50_ms),
            p99_ms: median(|figures| figures.p99_ms),
            lost: rounds.iter().map(|figures| figures.lost).sum(),
            wrong: rounds.iter().map(|figures| figures.wrong).sum(),
        }
    }
}

/// Saturates the server, then asks at a steady rate; every answer's code is looked at by the
/// load, a sample of addresses by [`check`].
pub(super) async fn measure(
    world: &World,
    server: &Running,
    questions: &Path,
) -> anyhow::Result<Figures> {
    let limit = SATURATED_S.to_string();
    let before = server.cpu_seconds()?;
    let arguments = ["-l", &limit, "-n", "1000000"];
    let (saturated, checked) = beside_checks(world, server, questions, &arguments).await?;
    let cpu = server.cpu_seconds()? - before;

    let steady = steady(world, server, questions, STEADY_S).await?;
    let answered = field(&saturated, "Queries completed:")? + checked.asked;
    Ok(Figures {
        answered,
        qps: field(&saturated, "Queries per second:")?,
        cpu_us: cpu * 1e6 / answered.max(1.0),
        lost: field(&saturated, "Queries lost:")? + steady.lost,
        wrong: other_codes(&saturated)? + checked.wrong + steady.wrong,
        ..steady
    })
}

/// Asks at a steady rate for so many seconds.
pub(super) async fn steady(
    world: &World,
    server: &Running,
    questions: &Path,
    seconds: u32,
) -> anyhow::Result<Figures> {
    let (limit, rate) = (seconds.to_string(), STEADY_QPS.to_string());
    let arguments = ["-l", &limit, "-n", "1000000", "-Q", &rate, "-v"];
    let (text, checked) = beside_checks(world, server, questions, &arguments).await?;
    let mut figures = from_each_reply(&text)?;
    figures.wrong += checked.wrong;
    Ok(figures)
}

/// A client with an address of its own, as it asks in its own way.
pub(super) async fn client(
    world: &World,
    server: &Running,
    questions: &Path,
    address: &str,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let all = [&["-a", address][..], arguments].concat();
    dnsperf(world, server, questions, address, &all).await
}

/// Of a verbose load.
pub(super) fn from_each_reply(text: &str) -> anyhow::Result<Figures> {
    let mut times = latencies(text);
    times.sort_by(f64::total_cmp);
    Ok(Figures {
        answered: field(text, "Queries completed:")?,
        p50_ms: percentile(&times, 50) * 1e3,
        p99_ms: percentile(&times, 99) * 1e3,
        lost: field(text, "Queries lost:")?,
        wrong: other_codes(text)?,
        ..Figures::default()
    })
}

/// Every question of the file once.
pub(super) async fn once(
    world: &World,
    server: &Running,
    questions: &Path,
) -> anyhow::Result<Figures> {
    let text = dnsperf(world, server, questions, "once", &["-n", "1"]).await?;
    Ok(Figures {
        answered: field(&text, "Queries completed:")?,
        ..Figures::default()
    })
}

async fn beside_checks(
    world: &World,
    server: &Running,
    questions: &Path,
    arguments: &[&str],
) -> anyhow::Result<(String, Checked)> {
    let checks = check::start(world, server, questions)?;
    let text = dnsperf(world, server, questions, "load", arguments).await?;
    Ok((text, checks.finish().await?))
}

/// `name` tells apart those that run at one time.
async fn dnsperf(
    world: &World,
    server: &Running,
    questions: &Path,
    name: &str,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let (address, port) = (
        server.address.ip().to_string(),
        server.address.port().to_string(),
    );
    let (clients, outstanding) = (CLIENTS.to_string(), OUTSTANDING.to_string());
    let spec = ProcessSpec::new(format!("dnsperf-{name}"), program("dnsperf")?)
        .args([
            "-s",
            &address,
            "-p",
            &port,
            "-c",
            &clients,
            "-q",
            &outstanding,
        ])
        .args(["-W", "-t", "2", "-O", "suppress=timeout", "-d"])
        .args([questions])
        .args(arguments);
    world.output(spec).await
}

/// From the lines `> NOERROR name A 0.000123` of the verbose load, in seconds.
fn latencies(text: &str) -> Vec<f64> {
    text.lines()
        .filter_map(|line| line.strip_prefix("> ")?.rsplit(' ').next()?.parse().ok())
        .collect()
}

/// The first number after a label.
pub(super) fn field(text: &str, label: &str) -> anyhow::Result<f64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(label))
        .with_context(|| format!("dnsperf did not say {label:?}"))?;
    let word = line.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("{label} {word:?}"))
}

/// Of `Response codes:  NOERROR 100 (99.9%), SERVFAIL 1 (0.1%)`: what is not NOERROR. Every
/// question has an answer.
fn other_codes(text: &str) -> anyhow::Result<f64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Response codes:"));
    let Some(line) = line else {
        ensure!(
            field(text, "Queries completed:")? == 0.0,
            "dnsperf did not say its response codes"
        );
        return Ok(0.0);
    };
    let mut others = 0.0;
    for part in line.split(',') {
        let mut words = part.split_whitespace();
        if let (Some(code), Some(count)) = (words.next(), words.next())
            && code != "NOERROR"
        {
            others += count.parse::<f64>().with_context(|| format!("{part:?}"))?;
        }
    }
    Ok(others)
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "> NOERROR w1.d1.mesh.test. A 0.000100\n> SERVFAIL w2.d1.mesh.test. A 0.002\n\
        Statistics:\n\n  Queries sent:         10\n  Queries completed:    8 (80.00%)\n  \
        Queries lost:         2 (20.00%)\n\n  \
        Response codes:       NOERROR 5 (62.50%), SERVFAIL 2 (25.00%), NXDOMAIN 1 (12.50%)\n  \
        Queries per second:   1234.500000\n";

    #[test]
    fn the_load_is_read_by_its_labels() {
        assert_eq!(field(TEXT, "Queries per second:").unwrap(), 1234.5);
        assert_eq!(field(TEXT, "Queries lost:").unwrap(), 2.0);
        assert_eq!(other_codes(TEXT).unwrap(), 3.0);
        assert_eq!(latencies(TEXT), [0.0001, 0.002]);
        assert!(field(TEXT, "Queries dreamt:").is_err());
    }

    #[test]
    fn what_must_not_happen_is_summed_over_the_rounds() {
        let round = |qps, wrong| Figures {
            qps,
            wrong,
            ..Figures::default()
        };
        let median = Figures::median(&[round(3.0, 1.0), round(1.0, 0.0), round(2.0, 1.0)]);
        assert_eq!((median.qps, median.wrong), (2.0, 2.0));
    }
}
