//! This router's prefixes from stock IPAMs (`ipam.IPAM/ManagePrefixes`, nsm-wire 9): the stream is
//! the lease. One task holds the streams; a lost one is opened again with the prefix that it had.

use core::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;
use vl3_core::allocator::{Lease, StockHolder, stock_lease};
use vl3_core::document::Role;
use vl3_core::ids::DomainName;
use vl3_core::router::{LeaseAnswer, LeaseFailure};
use vl3_proto::ipam::ipam_client::IpamClient;
use vl3_proto::ipam::{PrefixRequest, PrefixResponse, Type};
use vl3_runtime::grpc::{Connection, DialUrl, Dialer};
use vl3_runtime::{Documents, Tasks, clock};

use super::CALL_WITHIN;

/// A broken stream gives the prefix to whoever asks next: looked at this often.
const LOOK_AFTER: Duration = Duration::from_secs(4);
/// Lease calls that wait; the machine has one at a time.
const WAITING: usize = 4;
/// Messages of one stream that are not sent yet.
const UNSENT: usize = 4;

#[derive(Clone, Debug)]
pub(crate) struct Prefixes {
    wanted: mpsc::Sender<Wanted>,
}

#[derive(Debug)]
enum Wanted {
    Lease {
        held: Option<Lease>,
        reply: oneshot::Sender<Result<LeaseAnswer, LeaseFailure>>,
    },
    Release,
}

impl Prefixes {
    /// From these servers, as long as the tasks run.
    pub(crate) fn start(
        servers: &[DialUrl],
        holder: StockHolder,
        domain: DomainName,
        exclusions: Vec<IpNet>,
        documents: Documents,
        dialer: Dialer,
        tasks: &Tasks,
    ) -> Self {
        let (wanted, orders) = mpsc::channel(WAITING);
        let keeper = Keeper {
            servers: servers.iter().cloned().map(Server::new).collect(),
            holder,
            domain,
            exclusions,
            documents,
            // Stock servers end connections that ping them.
            dialer: dialer.without_keepalive(),
        };
        tasks.spawn("prefixes", keeper.run(orders));
        Self { wanted }
    }

    pub(super) async fn lease(&self, held: Option<Lease>) -> Result<LeaseAnswer, LeaseFailure> {
        let (reply, answer) = oneshot::channel();
        let wanted = Wanted::Lease { held, reply };
        let stopped = || LeaseFailure::Unreachable("the router stops".to_owned());
        self.wanted.send(wanted).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    pub(super) async fn release(&self) {
        // Err: the streams have ended with the task.
        let _ended = self.wanted.send(Wanted::Release).await;
    }
}

struct Keeper {
    servers: Vec<Server>,
    holder: StockHolder,
    domain: DomainName,
    exclusions: Vec<IpNet>,
    documents: Documents,
    dialer: Dialer,
}

impl Keeper {
    async fn run(mut self, mut orders: mpsc::Receiver<Wanted>) -> anyhow::Result<()> {
        while let Some(order) = orders.recv().await {
            match order {
                Wanted::Lease { held, reply } => {
                    let result = self.lease(held.as_ref()).await;
                    // Err: nobody waits for it any more.
                    let _late = reply.send(result);
                }
                Wanted::Release => {
                    for server in &mut self.servers {
                        server.release().await;
                    }
                }
            }
        }
        Ok(())
    }

    async fn lease(&mut self, held: Option<&Lease>) -> Result<LeaseAnswer, LeaseFailure> {
        let mut prefixes = Vec::new();
        for server in &mut self.servers {
            let expect = self.documents.expect_of(&self.domain, Role::Registry);
            let asked = async {
                if !server.is_open() {
                    let connection = self.dialer.dial(&server.url, expect).await?;
                    server.open(&connection, held, &self.exclusions).await?;
                }
                server.prefix.context("no prefix")
            };
            let prefix = tokio::time::timeout(CALL_WITHIN, asked)
                .await
                .map_err(anyhow::Error::from)
                .flatten()
                .map_err(|error| LeaseFailure::Unreachable(format!("{}: {error:#}", server.url)))?;
            prefixes.push(prefix);
        }
        let document = self.documents.current();
        let member = document
            .member(&self.domain, clock::wall())
            .ok_or_else(|| {
                LeaseFailure::Refused(format!("{} is no member of the network", self.domain))
            })?;
        let lease = stock_lease(&self.holder, member, held, &prefixes, clock::wall());
        match lease {
            Ok(lease) => Ok(LeaseAnswer {
                lease,
                renew_after: LOOK_AFTER,
            }),
            Err(refusal) => {
                let from: Vec<_> = self.servers.iter().map(|s| s.url.to_string()).collect();
                for server in &mut self.servers {
                    server.release().await;
                }
                Err(LeaseFailure::Refused(format!(
                    "{}: {refusal}",
                    from.join(", ")
                )))
            }
        }
    }
}

/// One prefix server.
struct Server {
    url: DialUrl,
    stream: Option<Stream>,
    /// What it gave last, also on a stream that has ended.
    prefix: Option<IpNet>,
}

struct Stream {
    requests: mpsc::Sender<PrefixRequest>,
    answers: Streaming<PrefixResponse>,
    /// Lives as long as the stream.
    _connection: Connection,
}

impl Server {
    const fn new(url: DialUrl) -> Self {
        Self {
            url,
            stream: None,
            prefix: None,
        }
    }

    fn is_open(&mut self) -> bool {
        // Nothing is said unasked: whatever comes is the end.
        let over = |stream: &mut Stream| stream.answers.message().now_or_never().is_some();
        if self.stream.as_mut().is_none_or(over) {
            self.stream = None;
        }
        self.stream.is_some()
    }

    /// Asks for what it gave before, or what the lease of an earlier life says.
    async fn open(
        &mut self,
        connection: &Connection,
        held: Option<&Lease>,
        exclusions: &[IpNet],
    ) -> anyhow::Result<()> {
        let (requests, sent) = mpsc::channel(UNSENT);
        let before = self
            .prefix
            .or_else(|| held.and_then(|held| held.prefixes().next()));
        requests.send(allocate(before, exclusions)).await?;
        let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
        let answers = IpamClient::new(connection.plain())
            .manage_prefixes(sent)
            .await?
            .into_inner();
        let mut stream = Stream {
            requests,
            answers,
            _connection: connection.clone(),
        };
        let mut prefix = stream.answer().await?;
        // It is for the other family: there it may still have what the earlier life had.
        let is_other = before.is_some_and(|before| is_v4(&before) != is_v4(&prefix));
        let twin = held.filter(|_| is_other).and_then(|held| {
            let mut twins = held.prefixes();
            twins.find(|twin| is_v4(twin) == is_v4(&prefix) && *twin != prefix)
        });
        if let Some(twin) = twin {
            stream
                .requests
                .send(allocate(Some(twin), exclusions))
                .await?;
            let found = stream.answer().await?;
            stream.requests.send(delete(prefix)).await?;
            prefix = found;
        }
        self.prefix = Some(prefix);
        self.stream = Some(stream);
        Ok(())
    }

    /// Gives the prefix back.
    async fn release(&mut self) {
        if let (Some(stream), Some(prefix)) = (self.stream.take(), self.prefix.take()) {
            // Err: the stream has ended, and the prefix is free.
            let _ended = stream.requests.send(delete(prefix)).await;
        }
    }
}

impl Stream {
    async fn answer(&mut self) -> anyhow::Result<IpNet> {
        let answer = self.answers.message().await?;
        let prefix = answer.context("the stream ended")?.prefix;
        let parsed = prefix.parse();
        parsed.with_context(|| format!("prefix = {prefix:?}: allowed is ADDRESS/LENGTH"))
    }
}

const fn is_v4(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}

fn allocate(prefix: Option<IpNet>, exclusions: &[IpNet]) -> PrefixRequest {
    PrefixRequest {
        r#type: Type::Allocate.into(),
        prefix: prefix.map(|prefix| prefix.to_string()).unwrap_or_default(),
        exclude_prefixes: exclusions.iter().map(ToString::to_string).collect(),
    }
}

fn delete(prefix: IpNet) -> PrefixRequest {
    PrefixRequest {
        r#type: Type::Delete.into(),
        prefix: prefix.to_string(),
        exclude_prefixes: Vec::new(),
    }
}
