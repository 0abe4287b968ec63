//! Every other domain's registry in one process: each holds a sync stream to the first domain's
//! and says what it offers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;
use vl3_core::document::Document;
use vl3_core::ids::NetworkUid;
use vl3_proto::vl3::registry::v1::sync_client::SyncClient;
use vl3_proto::vl3::registry::v1::sync_message::Body;
use vl3_proto::vl3::registry::v1::{EndOfSnapshot, KeepAlive, Open, SyncMessage, Upsert};
use vl3_runtime::clock;

use crate::calls::{Caller, router_endpoint};
use crate::prepare::{NETWORK, authority, chain, domain};

const DAY: Duration = Duration::from_secs(86_400);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const LIFETIME_S: u32 = 60;
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Deserialize)]
pub(crate) struct Remotes {
    to: String,
    domains: u16,
    endpoints: u32,
    /// Written when every snapshot was sent; the streams stay until `stop` appears.
    sent: PathBuf,
    stop: PathBuf,
}

impl Remotes {
    pub(crate) async fn run(&self, dir: &Path) -> anyhow::Result<Value> {
        let chain = chain(dir)?;
        let (uid, document) = (chain.uid(), Arc::new(Document::clone(chain.document())));
        let begin = Instant::now();
        let mut streams = Vec::new();
        for number in 1..self.domains {
            let speaker = Speaker {
                name: domain(number),
                uid,
                endpoints: self.endpoints,
            };
            let path = format!("vl3/registry/{}", speaker.name);
            let identity = authority(dir, number)?.identity(&path, DAY, clock::wall())?;
            let caller = Caller::dial_as(identity, Some(&*document), &self.to).await?;
            let (sender, messages) = tokio::sync::mpsc::channel(64);
            let mut client = SyncClient::new(caller.connection.plain())
                .max_decoding_message_size(MESSAGE_BYTES_MAX);
            let speaking = tokio::spawn(async move {
                // Err: the other end closed the stream.
                let _closed = speaker.speak(&sender).await;
                sender
            });
            let mut incoming = client
                .sync(ReceiverStream::new(messages))
                .await?
                .into_inner();
            streams.push(tokio::spawn(async move {
                let _caller = caller;
                while let Ok(Some(_message)) = incoming.message().await {}
            }));
            let sender = speaking.await.context("a speaker failed")?;
            streams.push(tokio::spawn(keep_alive(sender, self.endpoints)));
        }
        std::fs::write(&self.sent, "")?;
        let sent = begin.elapsed();
        while !self.stop.exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ended = streams.iter().filter(|stream| stream.is_finished()).count();
        streams.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(json!({ "sent_s": sent.as_secs_f64(), "streams_ended": ended }))
    }
}

struct Speaker {
    name: String,
    uid: NetworkUid,
    endpoints: u32,
}

impl Speaker {
    async fn speak(&self, sender: &tokio::sync::mpsc::Sender<SyncMessage>) -> anyhow::Result<()> {
        let say = |body| sender.send(SyncMessage { body: Some(body) });
        say(Body::Open(Open {
            version: 1,
            domain: self.name.clone(),
            epoch: vec![7; 16],
            uids: vec![self.uid.0.to_vec()],
        }))
        .await?;
        for number in 0..self.endpoints {
            let name = format!("{NETWORK}-{}-{number}", self.name);
            let url = format!("tcp://192.0.2.{}:5010", number % 250 + 1);
            let endpoint = router_endpoint(self.uid, &self.name, &name, &url)?;
            say(Body::Upsert(Upsert {
                sequence: u64::from(number) + 1,
                uid: self.uid.0.to_vec(),
                endpoint: Some(endpoint),
                lifetime_seconds: LIFETIME_S,
            }))
            .await?;
        }
        say(Body::End(EndOfSnapshot {
            sequence: u64::from(self.endpoints) + 1,
        }))
        .await?;
        Ok(())
    }
}

async fn keep_alive(sender: tokio::sync::mpsc::Sender<SyncMessage>, endpoints: u32) {
    let message = SyncMessage {
        body: Some(Body::KeepAlive(KeepAlive {
            sequence: u64::from(endpoints) + 1,
        })),
    };
    while sender.send(message.clone()).await.is_ok() {
        tokio::time::sleep(KEEP_ALIVE).await;
    }
}
