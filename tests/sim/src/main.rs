//! `vl3-sim`: plays seeds and says what broke.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use vl3_sim::faults::{Fault, Profile};
use vl3_sim::federation;
use vl3_sim::run::{Played, Summary, play, play_many};

const USAGE: &str = "usage: vl3-sim [--seeds N] [--first S] [--profile calm|lossy|crashes|hostile|mixed|federation] [--failures N] | --seed S [--profile P] | --profile scale [--minutes N] [--domains N] [--endpoints N] [--first S]
  with --profile federation also --state FILE (progress, every 500 seeds) and --resume (go on from there)
  built with the feature plants also --plant NAME (a deliberate bug, to be found)";

/// Which world is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Whole(Profile),
    Federation,
    Scale,
}

#[derive(Debug)]
struct Options {
    seeds: u64,
    first: u64,
    one: Option<u64>,
    /// Stop after that many seeds that broke something.
    failures: u64,
    which: Which,
    given: String,
    state: Option<PathBuf>,
    resume: bool,
    /// Virtual time of `--profile scale`.
    minutes: u64,
    /// And its size.
    domains: Option<usize>,
    endpoints: Option<usize>,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    let options = match read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            let _ = writeln!(out, "{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match (options.which, options.one) {
        (Which::Whole(profile), Some(seed)) => one(&mut out, &play(seed, profile, true)),
        (Which::Whole(profile), None) => {
            let summary = play_many(
                options.first,
                options.seeds,
                profile,
                options.failures,
                threads,
            );
            many(&mut out, &options, profile, &summary)
        }
        (Which::Federation, Some(seed)) => one_federation(&mut out, seed),
        (Which::Federation, None) => many_federations(&mut out, &options, threads),
        (Which::Scale, _) => scale(&mut out, &options),
    }
}

fn read(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        seeds: 2000,
        first: 0,
        one: None,
        failures: 1,
        which: Which::Whole(Profile::Mixed),
        given: "mixed".to_owned(),
        state: None,
        resume: false,
        minutes: 60,
        domains: None,
        endpoints: None,
    };
    while let Some(flag) = args.next() {
        if flag == "--resume" {
            options.resume = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{flag}: {value:?} is no number"))
        };
        match flag.as_str() {
            "--seeds" => options.seeds = number()?,
            "--failures" => options.failures = number()?,
            "--first" => options.first = number()?,
            "--seed" => options.one = Some(number()?),
            "--plant" => plant(&value)?,
            "--minutes" => options.minutes = number()?,
            "--domains" => options.domains = Some(size(&flag, number()?, 2)?),
            "--endpoints" => options.endpoints = Some(size(&flag, number()?, 1)?),
            "--state" => options.state = Some(value.into()),
            "--profile" => {
                options.which = match value.as_str() {
                    "federation" => Which::Federation,
                    "scale" => Which::Scale,
                    name => Which::Whole(
                        Profile::parse(name).ok_or_else(|| format!("no profile {value:?}"))?,
                    ),
                };
                options.given = value;
            }
            _ => return Err(format!("no option {flag:?}")),
        }
    }
    if options.resume && options.state.is_none() {
        return Err("--resume needs --state FILE and --profile federation".to_owned());
    }
    Ok(options)
}

#[cfg(feature = "plants")]
fn plant(name: &str) -> Result<(), String> {
    use vl3_core::plants::Plant;
    let names = || Plant::ALL.map(Plant::name).join(", ");
    let plant = Plant::parse(name).ok_or_else(|| format!("no plant {name:?}: {}", names()))?;
    let already = |chosen: Plant| format!("--plant: {} is chosen already", chosen.name());
    plant.choose().map_err(already)
}

#[cfg(not(feature = "plants"))]
fn plant(name: &str) -> Result<(), String> {
    Err(format!(
        "--plant {name}: this program is built without the feature plants"
    ))
}

fn size(flag: &str, number: u64, least: usize) -> Result<usize, String> {
    let size = usize::try_from(number).ok().filter(|size| *size >= least);
    size.ok_or_else(|| format!("{flag}: {number} is not allowed, {least} and more are"))
}

fn one(out: &mut impl Write, played: &Played) -> ExitCode {
    for line in &played.lines {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(
        out,
        "profile {}, {} events, trace {:016x}",
        played.profile.name(),
        played.events,
        played.hash
    );
    let _ = write!(out, "{}", played.tally);
    verdict(out, played.seed, played.broken.as_ref())
}

fn one_federation(out: &mut impl Write, seed: u64) -> ExitCode {
    let played = federation::run::play(seed, true);
    for line in &played.lines {
        let _ = writeln!(out, "{line}");
    }
    let _ = write!(out, "{} events\n{}", played.events, played.tally);
    verdict(out, played.seed, played.broken.as_ref())
}

fn verdict(out: &mut impl Write, seed: u64, broken: Option<&vl3_sim::broken::Broken>) -> ExitCode {
    match broken {
        Some(broken) => {
            let _ = writeln!(out, "seed {seed} {broken}");
            ExitCode::FAILURE
        }
        None => {
            let _ = writeln!(out, "seed {seed} clean");
            ExitCode::SUCCESS
        }
    }
}

fn many(out: &mut impl Write, options: &Options, profile: Profile, summary: &Summary) -> ExitCode {
    for (seed, (profile, broken)) in &summary.failures {
        let _ = writeln!(out, "seed {seed} {broken}");
        let _ = writeln!(
            out,
            "profile {}; to see it happen: cargo xtask sim --seed {seed} --profile {}",
            profile.name(),
            options.given
        );
    }
    let _ = writeln!(
        out,
        "{} seeds, {} events, {} packets delivered, {} names answered",
        summary.seeds, summary.events, summary.delivered, summary.names
    );
    let _ = writeln!(out, "faults injected:");
    let _ = write!(out, "{}", summary.tally);
    // A run that injects nothing, or moves nothing, proves nothing.
    let idle = summary.seeds >= 200 && profile == Profile::Mixed && summary.failures.is_empty();
    let missing: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| summary.tally.of(*fault) == 0)
        .collect();
    if idle && (!missing.is_empty() || summary.delivered == 0 || summary.names == 0) {
        let _ = writeln!(out, "never injected: {missing:?}");
        return ExitCode::FAILURE;
    }
    if !summary.failures.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn scale(out: &mut impl Write, options: &Options) -> ExitCode {
    let whole = federation::scale::Size::default();
    let domains = options.domains.unwrap_or(whole.domains);
    let size = federation::scale::Size {
        domains,
        endpoints: options.endpoints.unwrap_or(whole.endpoints),
        observers: whole.observers.min(domains),
        minutes: options.minutes,
        seed: options.one.unwrap_or(options.first),
        ..whole
    };
    let mut progress = std::io::stderr().lock();
    let played = federation::scale::World::new(size).play(|line| {
        let _ = writeln!(progress, "{line}");
    });
    match played {
        Ok(report) => {
            let _ = writeln!(out, "{size:?}\n{report}scale clean");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            let _ = writeln!(out, "{size:?}\nscale {broken}");
            ExitCode::FAILURE
        }
    }
}

fn many_federations(out: &mut impl Write, options: &Options, threads: usize) -> ExitCode {
    let plan = federation::run::Plan {
        first: options.first,
        seeds: options.seeds,
        failures_max: options.failures,
        threads,
        state: options.state.as_deref(),
        resume: options.resume,
    };
    let mut progress = std::io::stderr().lock();
    let played = federation::run::play_many(&plan, |line| {
        let _ = writeln!(progress, "{line}");
    });
    let summary = match played {
        Ok(summary) => summary,
        Err(error) => {
            let _ = writeln!(out, "{error:#}");
            return ExitCode::FAILURE;
        }
    };
    for (seed, broken) in &summary.failures {
        let _ = writeln!(out, "seed {seed} {broken}");
        let _ = writeln!(
            out,
            "to see it happen: cargo xtask sim --seed {seed} --profile federation"
        );
    }
    let (seeds, events) = (summary.seeds(), summary.events);
    let _ = writeln!(out, "{seeds} seeds, {events} events; faults injected:");
    let _ = write!(out, "{}", summary.tally);
    let missing = summary.missing();
    if !missing.is_empty() {
        let _ = writeln!(out, "never injected: {missing:?}");
    }
    if summary.failures.is_empty() && missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
