//! `vl3 dns`: the role, and what people ask of a running one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use dns_fanout::{Config, Reload};
use serde_json::{Value, json};
use vl3_net::privileges::Capability;
use vl3_runtime::config::{Flags, load};

use crate::app::{Failure, RoleArgs};
use crate::output::{Output, table};
use crate::status::{self, Format};

/// A server without a router binds its own addresses.
const STANDALONE_KEEPS: &[Capability] = &[Capability::NetBindService];

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DnsArgs {
    #[command(flatten)]
    pub(crate) role: RoleArgs,
    #[command(subcommand)]
    pub(crate) action: Option<Action>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// The servers that a running DNS server asks
    #[command(subcommand)]
    Upstream(UpstreamAction),
    /// Ask one question anew and say who was asked, who said what and when, and which rule decided
    Explain {
        /// The whole name; no search suffix is added
        name: String,
        /// Record type
        #[arg(default_value = "A")]
        rtype: String,
        /// Which view answers
        #[arg(long)]
        view: Option<String>,
        /// Whose question it would be; a member of the network when absent
        #[arg(long, value_name = "ADDRESS")]
        from: Option<String>,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UpstreamAction {
    /// Show them
    List {
        /// Of which view; needed where there are several and none is the default
        #[arg(long)]
        view: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Ask one more, from now until the configuration is read again
    Add(Box<Upstream>),
    /// Ask one no more, from now until the configuration is read again
    Remove {
        /// Its name
        name: String,
        /// Of which view
        #[arg(long)]
        view: Option<String>,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Name or run directory of the DNS server; needed where several run
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// The keys of `[[upstream]]`.
#[derive(Debug, Args)]
pub(crate) struct Upstream {
    /// A name for metrics and explanations
    name: String,
    /// Where it listens, as 192.0.2.1:53; several addresses of one server are tried in turn
    #[arg(required = true)]
    addresses: Vec<String>,
    /// udp or tcp
    #[arg(long)]
    transport: Option<String>,
    /// A domain that it answers for; repeat for more, none for everything
    #[arg(long = "suffix", value_name = "DOMAIN")]
    suffixes: Vec<String>,
    /// local, overlay or outside
    #[arg(long)]
    class: Option<String>,
    /// server, or stock: an NSM router of another make, asked for shared names only
    #[arg(long)]
    kind: Option<String>,
    /// The domain where it stands; of a stock router the one that it speaks for
    #[arg(long)]
    domain: Option<String>,
    /// Share of answers under the policy `weighted`
    #[arg(long)]
    weight: Option<u32>,
    /// Pass its AD bit on
    #[arg(long)]
    trusted: bool,
    /// Keep private addresses in its answers
    #[arg(long)]
    allow_private: bool,
    /// Which view asks it
    #[arg(long)]
    view: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Capabilities of a role, by its configuration.
pub(crate) fn keeps(config: &Config) -> &'static [Capability] {
    let mut views = config.views.iter().map(|view| &view.config);
    if config.router.is_some() && views.all(|view| view.listen.is_empty()) {
        &[]
    } else {
        STANDALONE_KEEPS
    }
}

/// How a running server reads its configuration again: as it was read at the start.
pub(crate) fn reload(flags: Flags) -> Reload {
    let file: Option<PathBuf> = flags.config.clone();
    Reload {
        file,
        read: Arc::new(move || load::<Config>(&flags).map(|loaded| loaded.config)),
    }
}

pub(crate) async fn run(action: Action, out: &Output) -> Result<(), Failure> {
    match action {
        Action::Upstream(UpstreamAction::List { view, target }) => {
            upstreams(&target, "upstream-list", &json!({ "view": view }), out).await
        }
        Action::Upstream(UpstreamAction::Add(upstream)) => {
            let arguments = json!({
                "name": upstream.name,
                "addresses": upstream.addresses,
                "transport": upstream.transport,
                "suffixes": upstream.suffixes,
                "class": upstream.class,
                "kind": upstream.kind,
                "domain": upstream.domain,
                "weight": upstream.weight,
                "trusted": upstream.trusted,
                "allow_private": upstream.allow_private,
                "view": upstream.view,
            });
            upstreams(&upstream.target, "upstream-add", &arguments, out).await
        }
        Action::Upstream(UpstreamAction::Remove { name, view, target }) => {
            let arguments = json!({ "name": name, "view": view });
            upstreams(&target, "upstream-remove", &arguments, out).await
        }
        Action::Explain {
            name,
            rtype,
            view,
            from,
            target,
        } => {
            let arguments = json!({ "name": name, "type": rtype, "view": view, "from": from });
            let server = target.server.as_deref();
            let answer = status::command(server, "dns", "explain", &arguments).await?;
            match target.output {
                Format::Json => out.line(&answer.to_string()),
                Format::Table => explained(&answer, out),
            }
            Ok(())
        }
    }
}

async fn upstreams(
    target: &Target,
    command: &str,
    arguments: &Value,
    out: &Output,
) -> Result<(), Failure> {
    let answer = status::command(target.server.as_deref(), "dns", command, arguments).await?;
    if target.output == Format::Json {
        out.line(&answer.to_string());
        return Ok(());
    }
    let list = answer
        .get("upstreams")
        .and_then(Value::as_array)
        .ok_or_else(|| anyhow!("the server answered without upstreams"))?;
    let header = [
        "name",
        "addresses",
        "transport",
        "suffixes",
        "class",
        "weight",
        "from",
    ];
    let mut shown = table(&header.map(ToOwned::to_owned));
    for upstream in list {
        shown.add_row(header.map(|column| cell(upstream.get(column))));
    }
    out.line(&shown.to_string());
    Ok(())
}

fn explained(answer: &Value, out: &Output) {
    let text = |value: &Value, key: &str| {
        value
            .get(key)
            .filter(|value| !value.is_null())
            .map(|value| cell(Some(value)))
            .unwrap_or_default()
    };
    out.heading(&format!(
        "{} {}",
        text(answer, "name"),
        text(answer, "type")
    ));
    let mut shown = table(&["ms", "step", "who", "what"].map(ToOwned::to_owned));
    let steps = answer.get("steps").and_then(Value::as_array);
    for step in steps.into_iter().flatten() {
        let at = step.get("at_ms").and_then(Value::as_f64).unwrap_or(0.0);
        let who = match step.get("upstreams") {
            Some(upstreams) => cell(Some(upstreams)),
            None => text(step, "upstream"),
        };
        let keys = [
            "rule",
            "policy",
            "server",
            "transport",
            "vote",
            "records",
            "why",
            "state",
            "age_s",
            "rcode",
            "decision",
        ];
        let what: Vec<String> = keys
            .into_iter()
            .filter(|key| step.get(*key).is_some())
            .map(|key| match key {
                "records" => format!("records {}", text(step, key)),
                "age_s" => format!("{} s old", text(step, key)),
                key => text(step, key),
            })
            .collect();
        shown.add_row([format!("{at:.1}"), text(step, "step"), who, what.join(" ")]);
    }
    out.line(&shown.to_string());
    let Some(reply) = answer.get("answer") else {
        return;
    };
    let because = reply.get("because").map(|because| text(because, "text"));
    out.line(&format!(
        "{} by {} ({}){}",
        text(reply, "rcode"),
        text(reply, "rule"),
        text(reply, "decision"),
        because
            .filter(|because| !because.is_empty())
            .map_or_else(String::new, |because| format!(": {because}")),
    ));
    for section in ["records", "authority"] {
        let records = reply.get(section).and_then(Value::as_array);
        for record in records.into_iter().flatten() {
            let parts = ["name", "ttl", "type", "data"].map(|key| text(record, key));
            out.line(&parts.join(" "));
        }
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(list)) if list.is_empty() => "all names".to_owned(),
        Some(Value::Array(list)) => {
            let texts: Vec<String> = list.iter().map(|entry| cell(Some(entry))).collect();
            texts.join(" ")
        }
        Some(other) => other.to_string(),
    }
}
