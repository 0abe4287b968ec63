//! What a measured process has used, as the kernel counts it (proc(5)).

use anyhow::Context;

/// `USER_HZ` of every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time, with threads that have ended.
pub(super) fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let text = read(process, "stat")?;
    // After the name in parentheses: user and system time are the 12th and 13th fields.
    let rest = text.rsplit_once(')').context("a stat line")?.1;
    let ticks: f64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// Resident now.
pub(super) fn resident_mib(process: u32) -> anyhow::Result<f64> {
    status_mib(process, "VmRSS:")
}

/// The most that was ever resident.
pub(super) fn peak_mib(process: u32) -> anyhow::Result<f64> {
    status_mib(process, "VmHWM:")
}

fn status_mib(process: u32, field: &'static str) -> anyhow::Result<f64> {
    let text = read(process, "status")?;
    let line = text.lines().find(|line| line.starts_with(field));
    let line = line.context(field)?;
    let kib: f64 = line.split_whitespace().nth(1).context(field)?.parse()?;
    Ok(kib / 1024.0)
}

fn read(process: u32, file: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(format!("/proc/{process}/{file}"))
        .with_context(|| format!("process {process} has ended"))
}
