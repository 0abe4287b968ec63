//! Every name resolves from everywhere through the asker's own router; what is not there is
//! NXDOMAIN.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::{StreamExt, stream};
use vl3_lab::Host;
use vl3_lab::tools::{self, Answer, QueryType, Rcode};

use crate::demo::report::{Name, Report};
use crate::demo::world::World;

/// Questions under way at once.
const PARALLEL: usize = 48;

/// Between two rounds.
const AGAIN: Duration = Duration::from_millis(100);

const ANSWER_WAIT: Duration = Duration::from_secs(4);

/// What an answer must be.
#[derive(Clone, Debug)]
enum Wanted {
    Addresses(Vec<IpAddr>),
    Names(Vec<String>),
    NxDomain,
}

#[derive(Clone, Debug)]
struct Question {
    network: &'static str,
    from: &'static str,
    host: Host,
    server: SocketAddr,
    kind: &'static str,
    name: String,
    query: QueryType,
    wanted: Wanted,
}

/// Names that every workload's resolver must answer: canonical, shared and reverse.
pub(in crate::demo) async fn resolve(world: &World, report: &mut Report) -> anyhow::Result<String> {
    let mut questions = Vec::new();
    for network in &world.networks {
        let (plan, zone) = (network.plan, network.plan.zone);
        let members = world.members(plan.name);
        for from in &members {
            let server = from.resolver(network.pool6)?;
            let ask = |kind, name: String, query, wanted| Question {
                network: plan.name,
                from: from.name(),
                host: from.host.clone(),
                server,
                kind,
                name,
                query,
                wanted,
            };
            for to in &members {
                let Some(held) = to.in_network(plan.name) else {
                    continue;
                };
                let canonical = format!("{}.{}.{zone}", to.name(), to.plan.domain);
                let shared = format!("{}.{zone}", to.name());
                for (kind, name) in [("canonical", &canonical), ("shared", &shared)] {
                    questions.push(ask(
                        kind,
                        name.clone(),
                        QueryType::A,
                        Wanted::Addresses(vec![held.v4.into()]),
                    ));
                    questions.push(ask(
                        kind,
                        name.clone(),
                        QueryType::Aaaa,
                        Wanted::Addresses(vec![held.v6.into()]),
                    ));
                }
                for address in held.both() {
                    let wanted = Wanted::Names(vec![canonical.clone()]);
                    questions.push(ask(
                        "reverse",
                        tools::reverse_name(address),
                        QueryType::Ptr,
                        wanted,
                    ));
                }
            }
        }
    }
    run(questions, report).await
}

/// Whether every name is right again within `limit` of a disturbance; how long that took.
pub(in crate::demo) async fn resolve_again(
    world: &World,
    limit: Duration,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    loop {
        let mut scratch = Report::new();
        match resolve(world, &mut scratch).await {
            Ok(_) => return Ok(started.elapsed()),
            Err(error) if started.elapsed() > limit => return Err(error),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Names that must not be: nowhere, and of the other network.
pub(in crate::demo) async fn absent(world: &World, report: &mut Report) -> anyhow::Result<String> {
    let mut questions = Vec::new();
    for network in &world.networks {
        let (plan, zone) = (network.plan, network.plan.zone);
        let mut names = vec![
            ("nowhere", format!("nobody.{zone}")),
            ("nowhere", format!("nobody.west.{zone}")),
            ("no such domain", format!("east-a.atlantis.{zone}")),
        ];
        for other in world
            .networks
            .iter()
            .filter(|other| other.plan.name != plan.name)
        {
            for workload in world.members(other.plan.name) {
                if workload.in_network(plan.name).is_none() {
                    names.push((
                        "other network",
                        format!("{}.{}.{zone}", workload.name(), workload.plan.domain),
                    ));
                    names.push(("other network", format!("{}.{zone}", workload.name())));
                }
            }
        }
        for from in world.members(plan.name) {
            let server = from.resolver(network.pool6)?;
            questions.extend(names.iter().map(|(kind, name)| Question {
                network: plan.name,
                from: from.name(),
                host: from.host.clone(),
                server,
                kind,
                name: name.clone(),
                query: QueryType::A,
                wanted: Wanted::NxDomain,
            }));
        }
    }
    run(questions, report).await
}

async fn run(questions: Vec<Question>, report: &mut Report) -> anyhow::Result<String> {
    let rows: Vec<Name> = stream::iter(questions)
        .map(ask)
        .buffered(PARALLEL)
        .collect()
        .await;
    let (count, wrong): (usize, Vec<String>) = (
        rows.len(),
        rows.iter()
            .filter(|row| !row.ok)
            .map(|row| format!("{} asks {} -> {}", row.from, row.question, row.answer))
            .collect(),
    );
    report.names.extend(rows);
    if let Some(first) = wrong.first() {
        bail!("{} of {count} answers are wrong, e.g. {first}", wrong.len());
    }
    Ok(format!("{count} questions answered right"))
}

async fn ask(question: Question) -> Name {
    let source = None;
    let answer = tools::ask(
        &question.host,
        source,
        question.server,
        &question.name,
        question.query,
        ANSWER_WAIT,
    )
    .await;
    let (ok, text) = match &answer {
        Ok(answer) => (fits(answer, &question.wanted), describe(answer)),
        Err(error) => (false, format!("{error:#}")),
    };
    Name {
        network: question.network.to_owned(),
        from: question.from.to_owned(),
        question: question.name,
        kind: question.kind.to_owned(),
        answer: text,
        ok,
    }
}

fn fits(answer: &Answer, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Addresses(addresses) => {
            answer.rcode == Rcode::NoError && answer.addresses == *addresses
        }
        Wanted::Names(names) => answer.rcode == Rcode::NoError && answer.names == *names,
        Wanted::NxDomain => answer.rcode == Rcode::NxDomain,
    }
}

pub(in crate::demo) fn describe(answer: &Answer) -> String {
    let mut parts: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
    parts.extend(answer.names.iter().cloned());
    if parts.is_empty() {
        parts.push(match answer.rcode {
            Rcode::NoError => "nothing of this type".to_owned(),
            Rcode::NxDomain => "NXDOMAIN".to_owned(),
            Rcode::ServFail => "SERVFAIL".to_owned(),
            Rcode::Refused => "REFUSED".to_owned(),
            Rcode::Other(code) => format!("rcode {code}"),
        });
    }
    if let Some(code) = answer.extended_error {
        parts.push(format!("(extended error {code})"));
    }
    parts.join(" ")
}
