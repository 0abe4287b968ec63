//! The project's own tasks: `cargo xtask test|tidy|sim|bench|interop`.

mod bench;
mod ci;
mod crash;
mod interop;
mod licences;
mod metadata;
mod plants;
mod shell;
mod sim;
mod tidy;

use std::process::ExitCode;

use shell::say;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test                 everything a change must pass (also called `ci`)
  tidy                 crate directions, file rules, documents
  licences             licences, banned and doubled crates of the dependency tree
  sim [--seeds N] [--first S] [--profile P]
                       the simulation over N seeds (default 2000); `--profile federation`
                       plays registries alone and goes on with --resume
  sim --profile scale [--minutes N]
                       250 domains with 1,000 endpoints each, a virtual hour
  sim --seed S [--profile P]
                       one seed again, with its trace
  plants               chooses each planted bug and checks that the simulation finds it
  multicluster [NAME]  the real binary in network namespaces, under faults (needs root)
  crash [--kills N] [--seed S]
                       kill -9 of a registry under load, N times (default 500)
  bench NAME [ARGS]    dataplane | attach; writes target/bench/NAME.json
  interop NAME         nsm; builds stock peers, needs Go
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = shell::enter_workspace().and_then(|()| match command.as_str() {
        "test" | "ci" => ci::run(&rest),
        "tidy" => tidy::run(),
        "licences" => licences::run(),
        "sim" => sim::run(&rest),
        "plants" => plants::run(),
        "multicluster" => ci::multicluster(&rest),
        "crash" => crash::run(&rest),
        "bench" => bench::run(&rest),
        "interop" => interop::run(&rest),
        "" | "help" | "--help" | "-h" => {
            say(USAGE.trim_end());
            Ok(())
        }
        other => Err(anyhow::anyhow!("no command {other:?}\n\n{USAGE}")),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
