//! systemd-resolved, told by `resolvectl` (resolvectl(1)) which names a network's servers know.
//!
//! The settings are of the interface and vanish with it, also after `kill -9`.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use tokio::process::Command;
use vl3_core::names::Name;

use super::Network;

const PROGRAM: &str = "resolvectl";
/// D-Bus itself gives up after 25 s; names shall not hold a network up.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Reverse zones of one network; prefixes that would need more are left to the host's resolvers.
const REVERSE_ZONES_MAX: usize = 16;

/// Why systemd-resolved does not know the names.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolvedError {
    #[error(
        "resolvectl is not on the PATH, so systemd-resolved cannot be told; use resolv_conf (--resolv-conf) instead"
    )]
    Absent,
    #[error("run resolvectl")]
    Run { source: std::io::Error },
    #[error("{command} does not end within 5 s")]
    Silent { command: String },
    #[error("{command}: {said}")]
    Failed { command: String, said: String },
}

/// Drives it for the interfaces of one client.
#[derive(Debug)]
pub(crate) struct Resolved {
    program: PathBuf,
    /// Interfaces with settings of ours.
    told: BTreeSet<String>,
}

impl Resolved {
    pub(crate) fn new() -> Self {
        Self::with_program(PROGRAM.into())
    }

    pub(crate) const fn with_program(program: PathBuf) -> Self {
        Self {
            program,
            told: BTreeSet::new(),
        }
    }

    /// Tells all of these, also what was told before: an interface may have gone and come back.
    pub(crate) async fn set(&mut self, networks: &[Network]) -> Result<(), ResolvedError> {
        let wanted = networks
            .iter()
            .filter(|network| !network.servers.is_empty());
        let interfaces: BTreeSet<String> = wanted
            .clone()
            .map(|network| network.interface.clone())
            .collect();
        for gone in self.told.difference(&interfaces) {
            if let Err(error) = self.run(&["revert".to_owned(), gone.clone()]).await {
                // An interface that went took its settings along.
                tracing::debug!(interface = gone, %error, "nothing to put back");
            }
        }
        self.told = interfaces;
        for network in wanted {
            for command in commands(network) {
                self.run(&command).await?;
            }
        }
        Ok(())
    }

    async fn run(&self, arguments: &[String]) -> Result<(), ResolvedError> {
        let command = || format!("resolvectl {}", arguments.join(" "));
        let output = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(ANSWER_MAX, output).await {
            Err(_) => return Err(ResolvedError::Silent { command: command() }),
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                return Err(ResolvedError::Absent);
            }
            Ok(Err(source)) => return Err(ResolvedError::Run { source }),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(ResolvedError::Failed {
            command: command(),
            said: match said.lines().next() {
                Some(line) => line.to_owned(),
                None => output.status.to_string(),
            },
        })
    }
}

/// What to run for one network: names below its suffixes and reverse names of its addresses go to
/// its servers, and nothing else does (`default-route no`). Its answers carry no signatures and
/// come through the tunnel, so a host that wants DNSSEC or DNS over TLS of others does not here.
fn commands(network: &Network) -> Vec<Vec<String>> {
    let of = |verb: &str, arguments: Vec<String>| {
        let mut command = vec![verb.to_owned(), network.interface.clone()];
        command.extend(arguments);
        command
    };
    let no = || vec!["no".to_owned()];
    let servers = network.servers.iter().map(ToString::to_string).collect();
    // A suffix is searched and routed, `~` is routed alone.
    let mut domains = network.suffixes.clone();
    domains.extend(
        reverse_zones(&network.prefixes)
            .into_iter()
            .map(|zone| format!("~{zone}")),
    );
    vec![
        of("dns", servers),
        of("domain", domains),
        of("default-route", no()),
        of("dnssec", no()),
        of("dnsovertls", no()),
    ]
}

/// The reverse zones that these prefixes fill.
fn reverse_zones(prefixes: &[IpNet]) -> Vec<String> {
    let mut zones = Vec::new();
    for prefix in IpNet::aggregate(&prefixes.to_vec()) {
        // A label stands for 8 bits of IPv4 and 4 of IPv6.
        let (bits, labels) = match prefix {
            IpNet::V4(_) => (8, 4),
            IpNet::V6(_) => (4, 32),
        };
        let filled = prefix.prefix_len().div_ceil(bits).max(1);
        let Ok(parts) = prefix.subnets(filled * bits) else {
            continue;
        };
        let parts: Vec<IpNet> = parts.take(REVERSE_ZONES_MAX + 1).collect();
        if zones.len() + parts.len() > REVERSE_ZONES_MAX {
            continue;
        }
        zones.extend(parts.into_iter().map(|part| {
            let name = Name::reverse_of(part.addr()).to_string();
            let below = labels - usize::from(filled);
            name.split('.')
                .skip(below)
                .filter(|label| !label.is_empty())
                .collect::<Vec<_>>()
                .join(".")
        }));
    }
    zones
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn red() -> Network {
        Network {
            interface: "vl3-red".to_owned(),
            servers: vec!["10.60.4.1".parse().unwrap(), "fd01::1".parse().unwrap()],
            suffixes: vec!["red.test".to_owned()],
            prefixes: vec![
                "10.60.0.0/16".parse().unwrap(),
                "fd01::/64".parse().unwrap(),
            ],
        }
    }

    /// A program that writes down how it is called; made by another process, since one that is
    /// open for writing anywhere cannot be run.
    fn double(dir: &Path, body: &str) -> PathBuf {
        let program = dir.join("resolvectl");
        let made = std::process::Command::new("/bin/sh")
            .args([
                "-c",
                "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"",
            ])
            .arg(&program)
            .arg(body)
            .status()
            .unwrap();
        assert!(made.success());
        program
    }

    #[tokio::test]
    async fn names_of_the_network_and_no_others_go_to_its_servers() {
        let dir = tempfile::tempdir().unwrap();
        let calls = dir.path().join("calls");
        let program = double(dir.path(), &format!("echo \"$@\" >> {}", calls.display()));
        let mut resolved = Resolved::with_program(program);
        resolved.set(&[red()]).await.unwrap();
        let told = "dns vl3-red 10.60.4.1 fd01::1\n\
                    domain vl3-red red.test ~60.10.in-addr.arpa \
                    ~0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa\n\
                    default-route vl3-red no\n\
                    dnssec vl3-red no\n\
                    dnsovertls vl3-red no\n";
        assert_eq!(std::fs::read_to_string(&calls).unwrap(), told);
        resolved.set(&[]).await.unwrap();
        assert_eq!(
            std::fs::read_to_string(&calls).unwrap(),
            format!("{told}revert vl3-red\n")
        );
    }

    #[tokio::test]
    async fn a_host_without_it_is_told_what_to_use_instead() {
        let dir = tempfile::tempdir().unwrap();
        let mut resolved = Resolved::with_program(dir.path().join("resolvectl"));
        let error = resolved.set(&[red()]).await.unwrap_err().to_string();
        assert!(error.contains("--resolv-conf"), "{error}");
    }

    #[tokio::test]
    async fn what_it_refuses_is_told_with_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let program = double(
            dir.path(),
            "[ $1 != domain ] || { echo 'Failed to set domain configuration: no bus' >&2; exit 1; }",
        );
        let mut resolved = Resolved::with_program(program);
        let error = resolved.set(&[red()]).await.unwrap_err().to_string();
        assert!(
            error.starts_with("resolvectl domain vl3-red red.test ")
                && error.ends_with(": Failed to set domain configuration: no bus"),
            "{error}"
        );
    }

    #[test]
    fn a_prefix_between_labels_is_told_in_parts_and_a_wide_one_not_at_all() {
        let zones = |text: &str| reverse_zones(&[text.parse().unwrap()]);
        assert_eq!(zones("10.60.4.0/24"), ["4.60.10.in-addr.arpa"]);
        assert_eq!(
            zones("10.60.4.0/23"),
            ["4.60.10.in-addr.arpa", "5.60.10.in-addr.arpa"]
        );
        assert!(zones("10.0.0.0/9").is_empty());
        assert_eq!(zones("fd00::/8"), ["d.f.ip6.arpa"]);
    }
}
