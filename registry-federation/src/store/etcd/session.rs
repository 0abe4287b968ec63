//! Requests to one member at a time; another one's turn comes when it fails.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, KeyValue,
    ResponseHeader, TlsOptions,
};
use tokio::time::timeout;
use tonic::Code;

use super::keys::end_of;
use crate::store::{EtcdConfig, StoreError};

/// etcd's servers end connections of clients that ping more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a page of a range, or the end of a long rewrite, may take.
pub(super) const MESSAGE_MAX: usize = 64 * 1024 * 1024;

/// Keys of one answer.
const PAGE: i64 = 500;

/// Before another member is asked.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// By what comes next.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nobody knows whether it happened.
    Unavailable(String),
    /// It did not happen, and the same will not either until an operator did something.
    Refused(StoreError),
    /// The revision that was asked for is gone.
    Compacted,
    /// The answer is longer than [`MESSAGE_MAX`].
    TooLong(String),
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unavailable(reason) => Self::Unavailable(reason),
            Trouble::Refused(error) => error,
            Trouble::Compacted => Self::Unavailable("etcd compacted what was read".to_owned()),
            Trouble::TooLong(reason) => Self::Read(reason),
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    config: Arc<EtcdConfig>,
    /// Whose turn it is.
    at: usize,
    connected: Option<Connected>,
}

struct Connected {
    client: Client,
    /// When the certificate files were written that it uses.
    files: Vec<Option<SystemTime>>,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connected")
    }
}

impl Session {
    /// Starts at any member: replicas spread over them.
    pub(super) fn new(config: Arc<EtcdConfig>) -> Self {
        let at = rand::random_range(0..config.endpoints.len().max(1));
        Self {
            config,
            at,
            connected: None,
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.config.timeout
    }

    pub(super) fn members(&self) -> usize {
        self.config.endpoints.len()
    }

    fn endpoint(&self) -> String {
        let endpoints = &self.config.endpoints;
        let endpoint = endpoints.get(self.at % endpoints.len().max(1));
        endpoint.cloned().unwrap_or_default()
    }

    /// The next request goes to another member, over a connection of its own.
    pub(super) fn next_member(&mut self) {
        self.at = self.at.wrapping_add(1);
        self.connected = None;
    }

    pub(super) async fn call<T, F>(&mut self, work: impl FnOnce(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_within(self.config.timeout, work).await
    }

    /// One request, given up after that time.
    pub(super) async fn call_within<T, F>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(Client) -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let endpoint = self.endpoint();
        let late = || Trouble::Unavailable(format!("{endpoint} does not answer"));
        let done = timeout(limit, async {
            let client = self.client().await?;
            work(client)
                .await
                .map_err(|error| trouble(&endpoint, &error))
        });
        let done = done.await.unwrap_or_else(|_| Err(late()));
        if matches!(done, Err(Trouble::Unavailable(_))) {
            self.next_member();
        }
        done
    }

    /// Everything below a prefix as it stood at that revision (0: now), in pages, and the
    /// revision.
    pub(super) async fn range(
        &mut self,
        prefix: &str,
        revision: i64,
    ) -> Result<(i64, Vec<KeyValue>), Trouble> {
        let (mut revision, mut found) = (revision, Vec::new());
        let (mut start, end) = (prefix.as_bytes().to_vec(), end_of(prefix));
        let mut page = PAGE;
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(page)
                .with_revision(revision);
            let response = self.retried(|client| get(client, start.clone(), options.clone()));
            let mut response = match response.await {
                Err(Trouble::TooLong(_)) if page > 1 => {
                    page /= 8;
                    page = page.max(1);
                    continue;
                }
                response => response?,
            };
            if revision == 0 {
                revision = response.header().map_or(0, ResponseHeader::revision);
            }
            let more = response.more();
            found.append(&mut response.take_kvs());
            match found.last() {
                Some(last) if more => {
                    start = last.key().to_vec();
                    start.push(0);
                }
                _ => return Ok((revision, found)),
            }
        }
    }

    /// For what may be asked twice: every member gets two turns.
    pub(super) async fn retried<T, F>(&mut self, work: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let turns = 2 * self.config.endpoints.len();
        for _ in 1..turns {
            match self.call(&work).await {
                Err(Trouble::Unavailable(_)) => tokio::time::sleep(PAUSE).await,
                done => return done,
            }
        }
        self.call(&work).await
    }

    async fn client(&mut self) -> Result<Client, Trouble> {
        let files = self.file_times();
        if let Some(connected) = self.connected.as_ref().filter(|it| it.files == files) {
            return Ok(connected.client.clone());
        }
        let endpoint = self.endpoint();
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.config.timeout)
            .with_keep_alive(KEEP_ALIVE, self.config.timeout)
            .with_require_leader(true);
        if endpoint.starts_with("https://") {
            options = options.with_tls(self.tls()?);
        }
        let client = Client::connect([endpoint.as_str()], Some(options))
            .await
            .map_err(|error| trouble(&endpoint, &error))?;
        self.connected = Some(Connected {
            client: client.clone(),
            files,
        });
        Ok(client)
    }

    fn files(&self) -> impl Iterator<Item = Option<&std::path::PathBuf>> {
        let config = &self.config;
        [&config.ca, &config.cert, &config.key]
            .into_iter()
            .map(Option::as_ref)
    }

    fn file_times(&self) -> Vec<Option<SystemTime>> {
        self.files()
            .map(|file| std::fs::metadata(file?).ok()?.modified().ok())
            .collect()
    }

    fn tls(&self) -> Result<TlsOptions, Trouble> {
        // Files are replaced one after the other: a pair that does not fit is tried again.
        let read = |file: &std::path::Path| {
            std::fs::read(file)
                .map_err(|error| Trouble::Unavailable(format!("read {}: {error}", file.display())))
        };
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.config.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(cert), Some(key)) = (&self.config.cert, &self.config.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }
}

async fn get(client: Client, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Error> {
    let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_MAX);
    kv.get(key, Some(options)).await
}

/// What etcd's answers mean (its codes: server/etcdserver/api/v3rpc/rpctypes/error.go).
fn trouble(endpoint: &str, error: &Error) -> Trouble {
    let Error::GRpcStatus(status) = error else {
        return Trouble::Unavailable(format!("{endpoint}: {}", chain(error)));
    };
    let said = format!("{endpoint}: {}", status.message());
    match status.code() {
        // The server's own limit of space; it lasts until an operator made room, and then the
        // same request is done.
        Code::ResourceExhausted if status.message().contains("database space exceeded") => {
            Trouble::Unavailable(format!(
                "{said} (etcd's space quota is used up: compact, defragment and disarm the alarm, or raise --quota-backend-bytes)"
            ))
        }
        Code::ResourceExhausted if status.message().contains("too many requests") => {
            Trouble::Unavailable(said)
        }
        // The server's gRPC, or ours: no message of that length, whoever is asked and whenever.
        Code::ResourceExhausted => Trouble::Refused(StoreError::Full {
            place: endpoint.to_owned(),
            reason: status.message().to_owned(),
        }),
        Code::OutOfRange if status.message().contains("compacted") => Trouble::Compacted,
        Code::OutOfRange if is_too_long(error) => Trouble::TooLong(said),
        Code::PermissionDenied => Trouble::Refused(StoreError::ReadOnly {
            place: endpoint.to_owned(),
            reason: status.message().to_owned(),
        }),
        Code::InvalidArgument if status.message().contains("too large") => {
            Trouble::Refused(StoreError::Full {
                place: endpoint.to_owned(),
                reason: format!("{} (raise --max-request-bytes of etcd)", status.message()),
            })
        }
        Code::InvalidArgument | Code::Unimplemented | Code::FailedPrecondition => {
            Trouble::Refused(StoreError::Write(said))
        }
        Code::Unauthenticated => Trouble::Refused(StoreError::ReadOnly {
            place: endpoint.to_owned(),
            reason: status.message().to_owned(),
        }),
        _ => Trouble::Unavailable(format!("{said}{}", source_of(status))),
    }
}

/// Whether an answer was longer than what is read of one.
pub(super) fn is_too_long(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::OutOfRange && status.message().contains("message length too large"))
}

fn source_of(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(String::new, |source| format!(": {}", chain(source)))
}

fn chain(error: &dyn std::error::Error) -> String {
    format!("{error}{}", source_of(error))
}
