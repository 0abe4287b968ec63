//! `vl3 identity`: the built-in CA of one trust domain.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use vl3_identity::Error;
use vl3_identity::authority::Authority;
use vl3_runtime::clock;
use vl3_runtime::config::Value;

use crate::app::Failure;
use crate::output::{Output, span};

const CA: &str = "vl3-ca";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make the CA of a trust domain
    Init {
        /// As in spiffe://TRUST_DOMAIN/..., e.g. east.example
        trust_domain: String,
        /// Directory of the CA
        #[arg(long, value_name = "DIR", default_value = CA)]
        ca: PathBuf,
    },
    /// Issue an identity directory: svid.pem, key.pem, bundle.pem
    Issue {
        role: Role,
        /// Last part of the SPIFFE ID
        name: String,
        /// Lifetime, as 24h
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: Duration,
        #[arg(long, value_name = "DIR", default_value = CA)]
        ca: PathBuf,
        /// Where the files go; running roles take them over (default: ROLE-NAME)
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Print the trust bundle (for `vl3 network add-member`)
    Bundle {
        #[arg(long, value_name = "DIR", default_value = CA)]
        ca: PathBuf,
    },
}

/// What an identity may act as.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Role {
    Registry,
    Router,
    Dns,
    #[value(alias = "client")]
    Workload,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Router => "router",
            Self::Dns => "dns",
            Self::Workload => "workload",
        }
    }

    /// The path of the SPIFFE ID that a network document expects by default.
    fn path(self, name: &str) -> String {
        match self {
            Self::Registry | Self::Router | Self::Dns => format!("vl3/{}/{name}", self.word()),
            Self::Workload => format!("workload/{name}"),
        }
    }
}

pub(crate) fn run(verb: Verb, out: &Output) -> Result<(), Failure> {
    match verb {
        Verb::Init { trust_domain, ca } => {
            let authority = Authority::create(&trust_domain, clock::wall()).map_err(|error| {
                Failure::with_next(error.into(), "vl3 identity init east.example")
            })?;
            authority.store(&ca).map_err(|error| already(error, &ca))?;
            out.line(&format!(
                "made the CA of {trust_domain} in {}",
                ca.display()
            ));
            out.line("keep ca-key.pem to yourself; next: vl3 identity issue router NAME");
        }
        Verb::Issue {
            role,
            name,
            ttl,
            ca,
            out: dir,
        } => {
            let authority = open(&ca)?;
            let now = clock::wall();
            let issued = authority
                .issue(&role.path(&name), ttl, now)
                .map_err(anyhow::Error::from)?;
            let dir = dir.unwrap_or_else(|| PathBuf::from(format!("{}-{name}", role.word())));
            issued.store(&dir).map_err(anyhow::Error::from)?;
            out.line(&format!(
                "issued spiffe://{}/{} in {}, for {}",
                authority.trust_domain(),
                role.path(&name),
                dir.display(),
                span(ttl.as_secs()),
            ));
            out.line(&format!(
                "it ends at {}; issue it again before, running roles take it over",
                vl3_identity::token::format_rfc3339(now + ttl)
            ));
        }
        Verb::Bundle { ca } => out.text(&open(&ca)?.bundle_pem()),
    }
    Ok(())
}

fn open(ca: &Path) -> Result<Authority, Failure> {
    Authority::load(ca).map_err(|error| {
        let error = anyhow::Error::from(error);
        if ca == Path::new(CA) {
            return Failure::with_next(error, "vl3 identity init TRUST_DOMAIN, or --ca DIR");
        }
        error
            .context(format!(
                "--ca {} must be the directory of a CA",
                ca.display()
            ))
            .into()
    })
}

fn already(error: Error, ca: &Path) -> Failure {
    match error {
        Error::Write { reason, .. } if reason.kind() == std::io::ErrorKind::AlreadyExists => {
            Failure::with_next(
                anyhow!("{} holds a CA already", ca.display()),
                format!("vl3 identity issue router NAME --ca {}", ca.display()),
            )
        }
        other => Failure::from(anyhow::Error::from(other)),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    Duration::from_text(text)
        .ok_or_else(|| format!("must be {}", Duration::ALLOWED))
        .and_then(|ttl| {
            (ttl >= Duration::from_secs(1))
                .then_some(ttl)
                .ok_or_else(|| "must be 1s or longer".to_owned())
        })
}
