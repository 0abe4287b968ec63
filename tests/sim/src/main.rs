//! `vl3-sim`: plays seeds and says what broke.

use std::io::Write as _;
use std::process::ExitCode;

use vl3_sim::faults::{Fault, Profile};
use vl3_sim::run::{Played, Summary, play, play_many};

const USAGE: &str = "usage: vl3-sim [--seeds N] [--first S] [--profile calm|lossy|crashes|hostile|mixed] [--failures N] | --seed S [--profile P]";

#[derive(Debug)]
struct Options {
    seeds: u64,
    first: u64,
    one: Option<u64>,
    /// Stop after that many seeds that broke something.
    failures: u64,
    profile: Profile,
    given: String,
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
    if let Some(seed) = options.one {
        return one(&mut out, &play(seed, options.profile, true));
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let summary = play_many(
        options.first,
        options.seeds,
        options.profile,
        options.failures,
        threads,
    );
    many(&mut out, &options, &summary)
}

fn read(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        seeds: 2000,
        first: 0,
        one: None,
        failures: 1,
        profile: Profile::Mixed,
        given: "mixed".to_owned(),
    };
    while let Some(flag) = args.next() {
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
            "--profile" => {
                options.profile =
                    Profile::parse(&value).ok_or_else(|| format!("no profile {value:?}"))?;
                options.given = value;
            }
            _ => return Err(format!("no option {flag:?}")),
        }
    }
    Ok(options)
}

fn one(out: &mut impl std::io::Write, played: &Played) -> ExitCode {
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
    match &played.broken {
        Some(broken) => {
            let _ = writeln!(out, "seed {} {broken}", played.seed);
            ExitCode::FAILURE
        }
        None => {
            let _ = writeln!(out, "seed {} clean", played.seed);
            ExitCode::SUCCESS
        }
    }
}

fn many(out: &mut impl std::io::Write, options: &Options, summary: &Summary) -> ExitCode {
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
    let idle =
        summary.seeds >= 200 && options.profile == Profile::Mixed && summary.failures.is_empty();
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
