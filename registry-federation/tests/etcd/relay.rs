//! A way to an etcd that can be cut, after any number of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Ends with its handle.
pub(crate) struct Relay {
    pub(crate) endpoint: String,
    limits: Arc<Limits>,
    cut: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

/// Bytes that still may pass.
struct Limits {
    questions: AtomicI64,
    answers: AtomicI64,
}

impl Relay {
    /// To `https://ADDRESS:PORT`.
    pub(crate) async fn start(to: &str) -> Self {
        let to = to.trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let limits = Arc::new(Limits {
            questions: AtomicI64::new(i64::MAX),
            answers: AtomicI64::new(i64::MAX),
        });
        let (cut, cuts) = watch::channel(0);
        let shared = Arc::clone(&limits);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.questions.load(Ordering::SeqCst) <= 0
                    || shared.answers.load(Ordering::SeqCst) <= 0
                {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&to).await else {
                    continue;
                };
                tokio::spawn(carry(client, server, Arc::clone(&shared), cuts.clone()));
            }
        });
        Self {
            endpoint: format!("https://127.0.0.1:{port}"),
            limits,
            cut,
            task,
        }
    }

    /// After so many more bytes towards the etcd nothing passes any more.
    pub(crate) fn questions(&self, bytes: i64) {
        self.limits.questions.store(bytes, Ordering::SeqCst);
    }

    /// As [`Self::questions`], for what the etcd says.
    pub(crate) fn answers(&self, bytes: i64) {
        self.limits.answers.store(bytes, Ordering::SeqCst);
    }

    /// Ends every connection and lets no other one be made.
    pub(crate) fn cut(&self) {
        self.questions(0);
        self.cut.send_modify(|times| *times += 1);
    }

    pub(crate) fn repair(&self) {
        self.questions(i64::MAX);
        self.answers(i64::MAX);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    limits: Arc<Limits>,
    mut cuts: watch::Receiver<u64>,
) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    cuts.mark_unchanged();
    tokio::select! {
        _ = cuts.changed() => {}
        () = copy(from_client, to_server, &limits.questions) => {}
        () = copy(from_server, to_client, &limits.answers) => {}
    }
}

/// Returns, and so ends the connection, when nothing more may pass.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, limit: &AtomicI64) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let length = i64::try_from(length).expect("small");
        let left = limit.fetch_sub(length, Ordering::SeqCst);
        let passes = usize::try_from(left.clamp(0, length)).expect("small");
        if to.write_all(&buffer[..passes]).await.is_err() || left <= length {
            return;
        }
    }
}
