//! A router is believed for its own domain's blocks alone. The product has no hostile switch, so
//! the demo speaks the routes stream itself, with certificates of west's own CA.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use ipnet::IpNet;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use vl3_core::ids::NetworkUid;
use vl3_identity::{Source, Trust};
use vl3_lab::{Namespace, admin, tools};
use vl3_proto::vl3::router::v1 as wire;
use vl3_proto::vl3::router::v1::routes_client::RoutesClient;
use vl3_proto::vl3::router::v1::routes_message::Body;
use vl3_runtime::clock;
use vl3_runtime::grpc::{DialUrl, Dialer, Expect};

use crate::demo::documents::{Block, Network};
use crate::demo::world::World;

const LIFETIME: Duration = Duration::from_secs(600);
const WAIT_MAX: Duration = Duration::from_secs(3);

/// A router that stays silent this long after a refused message has not closed the stream.
const REFUSAL_MAX: Duration = Duration::from_secs(2);

pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    let network = world.network("red")?;
    let east = world.domain("east")?;
    let router = east.routers.get("red").context("east has a red router")?;
    let stranger = Liar::new(world, network, "red-west-9", 1)?.speak().await?;
    ensure!(
        stranger.refused,
        "east accepts a routes stream of a router to which it has no link"
    );

    let before = disbelieved(router.run_dir()).await?;
    let generation = link_generation(router.run_dir()).await?;
    let twin = Liar::new(world, network, "red-west", generation)?
        .speak()
        .await?;
    ensure!(
        !twin.refused,
        "east refuses a routes stream with the identity and generation of west's router"
    );
    let started = Instant::now();
    let counted = loop {
        let counted = disbelieved(router.run_dir()).await? - before;
        if counted >= FOREIGN as u64 {
            break counted;
        }
        if started.elapsed() > WAIT_MAX {
            bail!(
                "{FOREIGN} foreign prefixes were announced, {counted} are counted as not believed"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    check_believed(router.run_dir(), network.block_of("west")?).await?;
    let (from, to) = (world.workload("east-a")?, world.workload("north-a")?);
    for address in to.in_network("red").context("it is in red")?.both() {
        let answered = tools::echo(&from.host, None, address, WAIT_MAX).await?;
        ensure!(
            answered.is_answered(),
            "east-a does not reach {address} of north-a any more"
        );
    }
    Ok(format!(
        "an unknown sibling of west was refused; of west's own identity {counted} prefixes of north were counted \
         and not believed; north is reached as before"
    ))
}

/// Prefixes of another domain in one lie: its blocks, and one address of each family.
const FOREIGN: usize = 4;

/// A reason that never occurred is not shown.
async fn disbelieved(run_dir: &Path) -> anyhow::Result<u64> {
    let status = admin::status(run_dir).await?;
    let counts = status
        .pointer("/router/disbelieved")
        .context("the status of the router does not tell router.disbelieved")?;
    Ok(counts.get("foreign").and_then(Value::as_u64).unwrap_or(0))
}

/// What east believes of red-west must lie in west's blocks.
async fn check_believed(run_dir: &Path, own: Block) -> anyhow::Result<()> {
    let status = admin::status(run_dir).await?;
    let received = status
        .pointer("/router/received")
        .and_then(Value::as_array)
        .context("the status of the router does not tell router.received")?;
    let of_west = received.iter().filter(|entry| named_west(entry));
    let prefixes = of_west.filter_map(|entry| entry.get("prefixes")?.as_array());
    for prefix in prefixes.flatten().filter_map(Value::as_str) {
        let inside = match prefix.parse::<IpNet>()? {
            IpNet::V4(prefix) => own.v4.contains(&prefix),
            IpNet::V6(prefix) => own.v6.contains(&prefix),
        };
        ensure!(inside, "east believes that {prefix} is behind red-west");
    }
    Ok(())
}

fn named_west(entry: &Value) -> bool {
    let name = entry.get("router").and_then(Value::as_str);
    name.is_some_and(|name| name.starts_with("red-west"))
}

async fn link_generation(run_dir: &Path) -> anyhow::Result<u64> {
    let status = admin::status(run_dir).await?;
    let links = status
        .pointer("/router/links")
        .and_then(Value::as_array)
        .context("the status of the router does not tell router.links")?;
    let west = links.iter().find(|link| named_west(link));
    west.and_then(|link| link.get("generation")?.as_u64())
        .context("east has no link to red-west")
}

/// Somebody of west who says that north's addresses are behind it.
struct Liar {
    namespace: Namespace,
    source: Source,
    chain: vl3_core::document::Chain,
    url: DialUrl,
    name: &'static str,
    generation: u64,
    own: Block,
    foreign: Block,
}

struct Told {
    /// The stream was closed before or after the lie.
    refused: bool,
}

impl Liar {
    fn new(
        world: &World,
        network: &Network,
        name: &'static str,
        generation: u64,
    ) -> anyhow::Result<Self> {
        let (east, west) = (world.domain("east")?, world.domain("west")?);
        let url = format!(
            "tcp://{}:{}",
            east.site.public_ipv4(),
            network.plan.tcp_port
        );
        Ok(Self {
            namespace: west.site.gateway().namespace().clone(),
            source: Source::fixed(west.authority.identity(
                &format!("vl3/router/{name}"),
                LIFETIME,
                clock::wall(),
            )?),
            chain: network.chain()?,
            url: url.parse().context("a url made here")?,
            name,
            generation,
            own: network.block_of("west")?,
            foreign: network.block_of("north")?,
        })
    }

    /// Speaks from inside west's gateway, on a thread of its own that lives there.
    async fn speak(self) -> anyhow::Result<Told> {
        tokio::task::spawn_blocking(move || {
            let namespace = self.namespace.clone();
            namespace.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(self.converse())
            })
        })
        .await?
    }

    async fn converse(self) -> anyhow::Result<Told> {
        let document = self.chain.document();
        let source = self.source.clone();
        let trust = Trust::new(&source);
        if let Err(errors) = trust.set_document(document, clock::wall()) {
            bail!("{errors:?}");
        }
        let uid: NetworkUid = document.uid;
        let expect = Expect::trust_domain("east.test").trusted_in(uid);
        let connection = Dialer::new(source, trust).dial(&self.url, expect).await?;
        let (messages, receiver) = mpsc::channel(16);
        messages.send(self.open(uid)).await?;
        let answer = RoutesClient::new(connection.plain())
            .routes(ReceiverStream::new(receiver))
            .await;
        let Ok(answer) = answer else {
            return Ok(Told { refused: true });
        };
        let mut heard = answer.into_inner();
        for message in self.lie() {
            if messages.send(message).await.is_err() {
                return Ok(Told { refused: true });
            }
        }
        Ok(Told {
            refused: ends(&mut heard).await,
        })
    }

    fn open(&self, uid: NetworkUid) -> wire::RoutesMessage {
        body(Body::Open(wire::RoutesOpen {
            version: 1,
            uid: uid.0.to_vec(),
            domain: "west".to_owned(),
            router: self.name.to_owned(),
            instance: vec![0x76; 16],
            generation: self.generation,
        }))
    }

    /// The truth about west, so that nothing breaks where it is believed, then the lie.
    fn lie(&self) -> Vec<wire::RoutesMessage> {
        let prefixes = [
            (self.own.v4.to_string(), 1),
            (self.own.v6.to_string(), 1),
            (self.foreign.v4.to_string(), 0),
            (self.foreign.v6.to_string(), 0),
            (format!("{}/32", self.foreign.v4.network()), 0),
            (format!("{}/128", self.foreign.v6.network()), 0),
        ];
        let mut messages: Vec<wire::RoutesMessage> = (1..)
            .zip(prefixes)
            .map(|(sequence, (prefix, preference))| {
                let change = wire::RouteChange {
                    sequence,
                    withdraw: false,
                    prefix,
                    preference,
                    mtu: 0,
                };
                body(Body::Change(change))
            })
            .collect();
        let sequence = messages.len() as u64 + 1;
        messages.push(body(Body::End(wire::RoutesEnd { sequence })));
        messages
    }
}

fn body(body: Body) -> wire::RoutesMessage {
    wire::RoutesMessage { body: Some(body) }
}

/// Whether the other side ends the stream soon.
async fn ends(heard: &mut Streaming<wire::RoutesMessage>) -> bool {
    let ended = async { while let Some(Ok(_)) = heard.next().await {} };
    tokio::time::timeout(REFUSAL_MAX, ended).await.is_ok()
}
