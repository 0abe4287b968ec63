//! `ipam.IPAM/ManagePrefixes`: prefixes of stock routers, on a port per network and family,
//! because the messages name neither.
//!
//! A stream uses one lease at a time. The lease outlives the stream; it ends by DELETE when
//! no stream uses it, by an operator, or by silence, like that of any router.
//!
//! Where several replicas share a store, the active one alone gives prefixes: which stream uses
//! which lease is known to one process. A router that asks another one is told and asks again.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use vl3_core::allocator::Lease;
use vl3_core::ids::NetworkUid;
use vl3_core::registry::{Command, Half, Peer, Reply, StockAcquire, StockStreams};
use vl3_proto::ipam::ipam_server::Ipam;
use vl3_proto::ipam::{PrefixRequest, PrefixResponse, Type};
use vl3_runtime::{CancellationToken, clock};

use super::caller::peer;
use super::errors::{status, unexpected};
use crate::config::Family;
use crate::handle::Handle;
use crate::replica::Replicas;

/// Answers that a router has not read.
const ANSWERS: usize = 8;
/// Streams that ask for the same lease at the same time: each loses to another at most so often.
const TRIES: usize = 32;
const EXCLUSIONS_MAX: usize = 64;

/// Which stream uses which lease of a network.
#[derive(Clone, Debug, Default)]
pub(crate) struct InUse {
    streams: Arc<Mutex<StockStreams<CancellationToken>>>,
    next: Arc<AtomicU64>,
}

impl InUse {
    fn lock(&self) -> std::sync::MutexGuard<'_, StockStreams<CancellationToken>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when another stream was first.
    fn take(&self, half: &Half, user: &Using, presented: bool, is_new: bool) -> bool {
        let (stream, end) = (user.stream, user.taken.clone());
        let taken = self
            .lock()
            .take(half, stream, end, presented, is_new, clock::mono());
        if let Ok(Some(former)) = &taken {
            former.cancel();
        }
        taken.is_ok()
    }

    /// Whether nobody uses the lease any more.
    fn give_back(&self, half: &Half, stream: u64) -> bool {
        self.lock().give_back(half, stream)
    }
}

/// One port.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes {
    pub(crate) handle: Handle,
    pub(crate) uid: NetworkUid,
    pub(crate) family: Family,
    pub(crate) in_use: InUse,
    pub(crate) replicas: Replicas,
}

/// One stream's part.
#[derive(Debug)]
struct Using {
    stream: u64,
    taken: CancellationToken,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    prefix: IpNet,
    /// As asked for.
    exclusions: Vec<IpNet>,
    renew_after: Duration,
    answer: PrefixResponse,
}

#[tonic::async_trait]
impl Ipam for Prefixes {
    type ManagePrefixesStream = Pin<Box<dyn Stream<Item = Result<PrefixResponse, Status>> + Send>>;

    async fn manage_prefixes(
        &self,
        request: Request<Streaming<PrefixRequest>>,
    ) -> Result<Response<Self::ManagePrefixesStream>, Status> {
        let peer = peer(request.extensions())?;
        let (answers, outgoing) = mpsc::channel(ANSWERS);
        let (port, incoming) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut using = Using {
                stream: port.in_use.next.fetch_add(1, Ordering::Relaxed),
                taken: CancellationToken::new(),
                held: None,
            };
            let ended = port.serve(&peer, incoming, &answers, &mut using).await;
            if let Some(held) = &using.held {
                port.in_use.give_back(&port.half(&held.lease), using.stream);
                tracing::debug!(peer = %peer.id, prefix = %held.prefix, "prefix stream ended");
            }
            if let Err(status) = ended {
                // Err: the router is gone, too.
                let _gone = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

impl Prefixes {
    fn half(&self, lease: &Lease) -> Half {
        Half {
            router: lease.router.clone(),
            is_v6: self.family == Family::Ipv6,
        }
    }

    /// One question to the machine, where this replica decides.
    async fn call(&self, peer: &Peer, command: Command) -> Result<Reply, Status> {
        self.replicas.decide_here().await?;
        let answer = self.handle.call(peer.clone(), command).await;
        answer.map_err(|refusal| status(&refusal))
    }

    /// Until the stream ends; an error is its status.
    async fn serve(
        &self,
        peer: &Peer,
        mut incoming: Streaming<PrefixRequest>,
        answers: &mpsc::Sender<Result<PrefixResponse, Status>>,
        using: &mut Using,
    ) -> Result<(), Status> {
        loop {
            let renew_after = using.held.as_ref().map(|held| held.renew_after);
            let renewal = async {
                match renew_after {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                () = using.taken.cancelled() => {
                    return Err(Status::aborted("another stream presents this prefix"));
                }
                message = incoming.message() => match message {
                    Ok(Some(message)) => self.asked(peer, &message, using).await?,
                    // The transport's end says nothing about the router.
                    Ok(None) | Err(_) => return Ok(()),
                },
                () = renewal => self.renew(peer, using).await?,
            };
            if let Some(answer) = answer
                && answers.send(Ok(answer)).await.is_err()
            {
                return Ok(());
            }
        }
    }

    async fn asked(
        &self,
        peer: &Peer,
        message: &PrefixRequest,
        using: &mut Using,
    ) -> Result<Option<PrefixResponse>, Status> {
        match Type::try_from(message.r#type) {
            Ok(Type::Allocate) => {
                let presented = match message.prefix.as_str() {
                    "" => None,
                    text => Some(self.prefix(text)?),
                };
                let exclusions = exclusions(&message.exclude_prefixes)?;
                let held = self.allocate(peer, presented, exclusions, using).await?;
                Ok(Some(held))
            }
            Ok(Type::Delete) => {
                let asked = self.prefix(&message.prefix)?;
                if let Some(held) = using.held.take_if(|held| held.prefix == asked) {
                    self.end(peer, held, using.stream).await?;
                }
                Ok(None)
            }
            Ok(Type::Undefined) | Err(_) => Err(Status::invalid_argument(format!(
                "type: {} is not allowed, ALLOCATE (1) and DELETE (2) are",
                message.r#type
            ))),
        }
    }

    /// A prefix of this port's family, as it is written: one with host bits is none that was
    /// ever given.
    fn prefix(&self, text: &str) -> Result<IpNet, Status> {
        let prefix: Option<IpNet> = text.parse().ok();
        let fits = prefix.filter(|prefix| self.family.has(prefix));
        fits.ok_or_else(|| {
            Status::invalid_argument(format!(
                "prefix: {:?} is not allowed, an {} prefix is",
                text.chars().take(64).collect::<String>(),
                self.family
            ))
        })
    }

    async fn allocate(
        &self,
        peer: &Peer,
        presented: Option<IpNet>,
        exclusions: Vec<IpNet>,
        using: &mut Using,
    ) -> Result<PrefixResponse, Status> {
        for _ in 0..TRIES {
            let streams = {
                let is_v6 = self.family == Family::Ipv6;
                self.in_use
                    .lock()
                    .others(is_v6, using.stream, clock::mono())
            };
            let stock = StockAcquire {
                presented,
                exclusions: exclusions.clone(),
                streams,
            };
            let command = Command::AcquireStock {
                uid: self.uid,
                stock,
            };
            let (granted, excluded, is_new) = match self.call(peer, command).await? {
                Reply::Stock {
                    granted,
                    exclusions,
                    is_new,
                } => (granted, exclusions, is_new),
                other => return Err(unexpected(&other)),
            };
            let own = granted
                .lease
                .prefixes()
                .find(|prefix| self.family.has(prefix));
            let Some(prefix) = own else {
                return Err(Status::failed_precondition(format!(
                    "the network gives this domain no {} block",
                    self.family
                )));
            };
            let half = self.half(&granted.lease);
            let presented = presented == Some(prefix);
            if !self.in_use.take(&half, using, presented, is_new) {
                continue;
            }
            let of_family = excluded.iter().filter(|range| self.family.has(range));
            let answer = PrefixResponse {
                prefix: prefix.to_string(),
                exclude_prefixes: of_family.map(ToString::to_string).collect(),
            };
            let before = using.held.replace(Held {
                lease: granted.lease,
                prefix,
                exclusions,
                renew_after: granted.renew_after,
                answer: answer.clone(),
            });
            if let Some(before) = before.filter(|before| before.lease.router != half.router) {
                self.in_use
                    .give_back(&self.half(&before.lease), using.stream);
            }
            tracing::info!(peer = %peer.id, %prefix, router = %half.router, "prefix of a stock router");
            return Ok(answer);
        }
        Err(Status::unavailable(
            "try again later: other streams of this identity ask for prefixes at the same time",
        ))
    }

    /// A sign of life; a prefix that cannot be kept is replaced, and the router is told.
    async fn renew(
        &self,
        peer: &Peer,
        using: &mut Using,
    ) -> Result<Option<PrefixResponse>, Status> {
        let Some(held) = &using.held else {
            return Ok(None);
        };
        let command = Command::Renew {
            lease: held.lease.clone(),
        };
        if self.call(peer, command).await.is_ok() {
            return Ok(None);
        }
        let (presented, exclusions) = (held.prefix, held.exclusions.clone());
        let before = held.answer.clone();
        let answer = self
            .allocate(peer, Some(presented), exclusions, using)
            .await?;
        Ok((answer != before).then_some(answer))
    }

    /// The lease of both families ends with the last stream that uses one of them.
    async fn end(&self, peer: &Peer, held: Held, stream: u64) -> Result<(), Status> {
        if !self.in_use.give_back(&self.half(&held.lease), stream) {
            return Ok(());
        }
        let command = Command::Release { lease: held.lease };
        self.call(peer, command).await.map(|_| ())
    }
}

fn exclusions(texts: &[String]) -> Result<Vec<IpNet>, Status> {
    let wrong = |text: &str| {
        Status::invalid_argument(format!(
            "exclude_prefixes: {text} is not allowed, at most {EXCLUSIONS_MAX} prefixes are"
        ))
    };
    if texts.len() > EXCLUSIONS_MAX {
        return Err(wrong(&format!("a list of {}", texts.len())));
    }
    let parse = |text: &String| {
        let shown: String = text.chars().take(64).collect();
        text.parse().map_err(|_| wrong(&format!("{shown:?}")))
    };
    texts.iter().map(parse).collect()
}
