use std::path::PathBuf;

/// Three clusters and an edge site in one private network, on this machine alone.
///
/// Builds a small internet of network namespaces, starts the real roles in it, checks what the
/// network promises, breaks things, and leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub(super) json: bool,
    /// Keep everything running after the checks, for the other `vl3 demo` verbs
    #[arg(long)]
    pub(super) keep: bool,
    /// Only build the network and show it, without checks and faults
    #[arg(long)]
    pub(super) no_checks: bool,
    /// Where each domain's registry keeps its state; `etcd` starts one per domain, from the PATH
    #[arg(long, value_enum, default_value_t = Store::File)]
    pub(super) store: Store,
    /// Name under which the other verbs find a kept demo
    #[arg(long, default_value = DEFAULT_NAME)]
    pub(super) name: String,
    /// Copy the logs of all roles to this directory at the end
    #[arg(long, value_name = "DIR")]
    pub(super) logs: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Store {
    File,
    Etcd,
}

pub(super) const DEFAULT_NAME: &str = "demo";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Run a command inside a host of a kept demo, with that workload's resolv.conf
    Exec {
        /// A workload (east-a, kiosk, ...), a gateway (east, west, ...) or `internet`
        host: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Show the hosts, processes and addresses of a kept demo
    Status {
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Break or mend something in a kept demo
    Fault {
        #[command(subcommand)]
        fault: Fault,
        #[arg(long, default_value = DEFAULT_NAME, global = true)]
        name: String,
    },
    /// End a kept demo
    Down {
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
}

/// What can be broken by hand.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fault {
    /// kill -9 of a router
    KillRouter { domain: String, network: String },
    /// Start a killed router again
    StartRouter { domain: String, network: String },
    /// kill -9 of a domain's registry
    KillRegistry { domain: String },
    /// Start a killed registry again
    StartRegistry { domain: String },
    /// kill -9 of a DNS server
    KillDns { domain: String, network: String },
    /// Start a killed DNS server again
    StartDns { domain: String, network: String },
    /// kill -9 of a workload's client
    KillClient { workload: String },
    /// Start a killed client again
    StartClient { workload: String },
    /// Cut two domains off from each other
    Partition { one: String, other: String },
    /// End a partition
    Heal { one: String, other: String },
    /// Lose a share of the kiosk's packets
    Loss { percent: u8 },
    /// Delay the kiosk's packets, each way
    Delay { milliseconds: u64 },
    /// Make the kiosk's NAT forget its mappings
    RebindNat,
}
