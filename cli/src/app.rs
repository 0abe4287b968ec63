//! The command line, and start-up in the order it happens.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use vl3_net::privileges::{Capability, keep_only};
use vl3_runtime::config::{Configure, Flags, Invalid, Loaded, check, load};
use vl3_runtime::{RoleContext, run_role};

use crate::dns::DnsArgs;
use crate::output::{Output, report};
use crate::registry::{self, RegistryArgs};
use crate::{demo, dns, identity, network, status, wg};

/// The control plane of one process; packets have threads of their own.
const WORKER_THREADS_MAX: usize = 4;
const STACK_BYTES: usize = 2 << 20;

/// What stays of root's capabilities for as long as a role runs. The registry keeps none, nor does
/// a DNS server beside a router, which passes it its sockets.
const ROUTER_KEEPS: &[Capability] = &[
    Capability::NetAdmin,
    Capability::SysAdmin,
    Capability::NetBindService,
    Capability::DacOverride,
];
const CLIENT_KEEPS: &[Capability] = &[
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::DacOverride,
];

#[derive(Debug, Parser)]
#[command(
    name = "vl3",
    version,
    about = "Private, encrypted, flat IP networks across clusters and sites"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a domain's registry (who offers what, leases, names, the network document), or ask one
    Registry(RegistryArgs),
    /// Run the router of one network in one domain, or tell a running one to leave
    Router(RouterArgs),
    /// Run the DNS server, beside a router or alone, or ask a running one
    Dns(DnsArgs),
    /// Attach this workload or site to its networks
    Client(ClientArgs),
    /// Identities without SPIRE: make a CA, issue certificates
    #[command(subcommand)]
    Identity(identity::Verb),
    /// Network documents: who belongs to a network, signed
    #[command(subcommand)]
    Network(network::Verb),
    /// Show what running roles are doing
    Status(status::Args),
    /// See three clusters and an edge site become one network on this machine
    Demo(demo::Args),
    /// Run one WireGuard data plane alone: one TUN, static peers, no control plane
    Wg(wg::Args),
    /// Print the version
    Version,
}

/// Flags of every role. Anything else is set by file, environment or --set.
#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check_config: bool,
    /// Name of this instance (NSM_NAME)
    #[arg(long)]
    name: Option<String>,
    /// Directory of the sockets
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Directory of what survives a restart; "" for none
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Level or filter of the logs (NSM_LOG_LEVEL)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set any key, as --set network.uid=0123...
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Keys that a role's own flags set: key, flag, value.
    #[arg(skip)]
    named: Vec<(&'static str, &'static str, String)>,
}

#[derive(Debug, Args)]
struct ClientArgs {
    #[command(flatten)]
    role: RoleArgs,
    /// Add the networks' resolvers and suffixes to this file, and take them out at the end
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "/etc/resolv.conf")]
    resolv_conf: Option<String>,
    /// Tell systemd-resolved the networks' resolvers and suffixes
    #[arg(long, conflicts_with = "resolv_conf")]
    resolved: bool,
}

impl ClientArgs {
    /// Of the two ways one is chosen, whatever the file says.
    fn into_role(self) -> RoleArgs {
        let mut role = self.role;
        let chosen = match (self.resolv_conf, self.resolved) {
            (Some(file), _) => Some(("--resolv-conf", file, "false")),
            (None, true) => Some(("--resolved", "none".to_owned(), "true")),
            (None, false) => None,
        };
        if let Some((flag, file, resolved)) = chosen {
            role.named.push(("resolv_conf", flag, file));
            role.named.push(("resolved", flag, resolved.to_owned()));
        }
        role
    }
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct RouterArgs {
    #[command(flatten)]
    role: RoleArgs,
    #[command(subcommand)]
    action: Option<RouterAction>,
}

#[derive(Debug, Subcommand)]
enum RouterAction {
    /// Give back lease, addresses, names and peers of a running router, and stop it
    Leave {
        /// Its name or run directory
        target: Option<String>,
    },
}

/// Why a verb ended badly.
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    /// The next command to try.
    pub(crate) next: Option<String>,
    pub(crate) code: u8,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            error,
            next: None,
            code: 1,
        }
    }
}

impl Failure {
    pub(crate) fn with_next(error: anyhow::Error, next: impl Into<String>) -> Self {
        Self {
            error,
            next: Some(next.into()),
            code: 1,
        }
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Output::stdout();
    let result = match cli.verb {
        Verb::Registry(RegistryArgs {
            action: Some(action),
            ..
        }) => block_on(registry::run(action, &out)),
        Verb::Registry(RegistryArgs {
            role: args,
            action: None,
        }) => role(&args, &out, |_| &[], registry_federation::run),
        Verb::Router(RouterArgs {
            action: Some(RouterAction::Leave { target }),
            ..
        }) => block_on(leave(target, &out)),
        Verb::Router(RouterArgs {
            role: args,
            action: None,
        }) => role(&args, &out, |_| ROUTER_KEEPS, vl3_router::run),
        Verb::Dns(DnsArgs {
            action: Some(action),
            ..
        }) => block_on(dns::run(action, &out)),
        Verb::Dns(DnsArgs {
            role: args,
            action: None,
        }) => {
            let reload = dns::reload(args.flags());
            let run = |config, ctx| dns_fanout::run(config, ctx, Some(reload));
            role(&args, &out, dns::keeps, run)
        }
        Verb::Client(args) => role(&args.into_role(), &out, |_| CLIENT_KEEPS, vl3_client::run),
        Verb::Identity(verb) => identity::run(verb, &out),
        Verb::Network(verb) => block_on(network::run(verb, &out)),
        Verb::Status(args) => block_on(status::run(args, &out)),
        // Before any other thread: it takes mounts of its own.
        Verb::Demo(args) => return demo::run(args),
        Verb::Wg(args) => block_on(wg::run(args, &out)),
        Verb::Version => {
            out.line(&format!("vl3 {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure.error, failure.next.as_deref());
            ExitCode::from(failure.code)
        }
    }
}

/// Loads, checks and runs one role.
fn role<C, F, R>(
    args: &RoleArgs,
    out: &Output,
    keeps: fn(&C) -> &'static [Capability],
    run: F,
) -> Result<(), Failure>
where
    C: Configure,
    F: FnOnce(C, RoleContext) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let read = if args.check_config { check } else { load };
    let loaded: Loaded<C> = read(&args.flags()).map_err(|invalid| invalid_config(invalid, args))?;
    if args.check_config {
        out.line(&format!(
            "the configuration of {} {} is fine",
            C::ROLE,
            loaded.common.name
        ));
        return Ok(());
    }
    // Before any thread is started: each has capabilities of its own.
    keep_only(keeps(&loaded.config)).context("give up what this role has no use for")?;
    block_on(async { run_role(loaded, run).await.map_err(Failure::from) })
}

async fn leave(target: Option<String>, out: &Output) -> Result<(), Failure> {
    status::command(target.as_deref(), "router", "leave", &Value::Null).await?;
    out.line("the router has left its network");
    Ok(())
}

fn invalid_config(invalid: Invalid, args: &RoleArgs) -> Failure {
    // The list says all; only who gave no file may not know what one looks like.
    let next = args.config.is_none().then(|| {
        "--config FILE (examples are in deploy/examples, every mistake is named)".to_owned()
    });
    Failure {
        error: invalid.into(),
        next,
        code: 2,
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKER_THREADS_MAX))
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(future);
    // A blocking read that never returns must not hold the process.
    runtime.shutdown_background();
    result
}

impl RoleArgs {
    fn flags(&self) -> Flags {
        let named = [
            ("name", "--name", &self.name),
            ("run_dir", "--run-dir", &self.run_dir),
            ("state_dir", "--state-dir", &self.state_dir),
            ("log.level", "--log-level", &self.log_level),
        ];
        let mut set: Vec<(String, String, String)> = self
            .set
            .iter()
            .map(|(key, value)| (key.clone(), value.clone(), format!("--set {key}")))
            .collect();
        for (key, flag, value) in &self.named {
            set.push(((*key).to_owned(), value.clone(), (*flag).to_owned()));
        }
        for (key, flag, value) in named {
            if let Some(value) = value {
                set.push((key.to_owned(), value.clone(), flag.to_owned()));
            }
        }
        Flags {
            config: self.config.clone(),
            set,
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_by(words: &[&str]) -> Vec<(String, String)> {
        let words = ["vl3", "client"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().verb {
            Verb::Client(args) => {
                let set = args.into_role().flags().set;
                set.into_iter()
                    .map(|(key, value, _)| (key, value))
                    .collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_flag_says_what_a_client_does_about_names() {
        let pairs = |file: &str, resolved: &str| {
            [("resolv_conf", file), ("resolved", resolved)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
        };
        assert!(set_by(&[]).is_empty());
        let default = pairs("/etc/resolv.conf", "false");
        assert_eq!(set_by(&["--resolv-conf"]), default);
        assert_eq!(set_by(&["--resolv-conf", "--config", "a"]), default);
        assert_eq!(set_by(&["--resolv-conf", "/a"]), pairs("/a", "false"));
        assert_eq!(set_by(&["--resolved"]), pairs("none", "true"));
        assert!(Cli::try_parse_from(["vl3", "client", "--resolved", "--resolv-conf"]).is_err());
    }
}
