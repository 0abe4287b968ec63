//! Dialling: TCP or unix, mutual TLS, an expected peer, NSM metadata per call.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use vl3_core::ids::{NetworkUid, SpiffeId};
use vl3_identity::{Identity, PeerIdentity, Scope, Source, Trust, Verified, tls, token};

use super::DialUrl;
use super::accept::{Live, Secured, Socket};
use super::metadata::{TOKEN, TOKEN_EXPIRES, set_registry_path};

/// TCP and TLS together.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// NSM_MAX_TOKEN_LIFETIME of the stock components.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_LIST_MAX: u32 = 64 * 1024;

/// Whom a dialler accepts. Checked in every TLS handshake, reconnects included.
#[derive(Clone)]
pub struct Expect {
    check: Arc<dyn Fn(&Verified) -> bool + Send + Sync>,
    what: Arc<str>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answers: try again later.
    #[error("connect to {url}")]
    Unreachable {
        url: String,
        #[source]
        source: std::io::Error,
    },
    /// TLS failed or the peer is not whom we expect: helps only after a change.
    #[error("authenticate {url}: {reason}")]
    Refused { url: String, reason: String },
    #[error("connect to {url}: no answer within {limit:?}")]
    TimedOut { url: String, limit: Duration },
}

/// Makes connections with one identity and trust. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer {
    trust: Trust,
    live: Arc<Live>,
    connect_limit: Duration,
    token_lifetime: Duration,
    keepalive: bool,
}

/// One established gRPC connection. A broken one is dialled again by the next call, with the
/// same expectation. Cheap to clone; its clones share the transport.
#[derive(Clone, Debug)]
pub struct Connection {
    url: DialUrl,
    channel: Channel,
    ends: Arc<ArcSwap<Ends>>,
    token_lifetime: Duration,
}

/// Who stands at the two ends of the transport of the moment.
#[derive(Debug)]
struct Ends {
    peer: Arc<PeerIdentity>,
    /// What the handshake showed: the peer checks tokens by that certificate.
    own: Arc<Identity>,
}

/// A channel whose calls carry the caller's token, made per call with the peer as audience.
pub type NsmChannel = InterceptedService<Channel, NsmTokens>;

/// Adds `nsm-client-token` and `nsm-client-token-expires`.
#[derive(Clone, Debug)]
pub struct NsmTokens {
    ends: Arc<ArcSwap<Ends>>,
    lifetime: Duration,
    path: Option<fn(&str) -> String>,
}

impl Expect {
    /// `what` completes "expected ...".
    pub fn new(
        what: impl Into<String>,
        check: impl Fn(&Verified) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            check: Arc::new(check),
            what: what.into().into(),
        }
    }

    /// Whoever our bundles vouch for.
    pub fn anybody() -> Self {
        Self::new("anybody we trust", |_| true)
    }

    pub fn exactly(id: SpiffeId) -> Self {
        Self::new(id.to_string(), move |peer| peer.id == id)
    }

    pub fn trust_domain(trust_domain: impl Into<String>) -> Self {
        let trust_domain = trust_domain.into();
        Self::new(format!("trust domain {trust_domain}"), move |peer| {
            peer.id.trust_domain() == trust_domain
        })
    }

    /// An ID that matches one of the patterns (a final `*` stands for the rest) in a trust
    /// domain, as the document states them per role.
    pub fn patterns(trust_domain: impl Into<String>, patterns: Vec<String>) -> Self {
        let trust_domain = trust_domain.into();
        Self::new(patterns.join(" or "), move |peer| {
            peer.id.trust_domain() == trust_domain
                && patterns.iter().any(|pattern| peer.id.matches(pattern))
        })
    }

    /// Whether that peer would be accepted now.
    pub fn admits(&self, peer: &Verified) -> bool {
        (self.check)(peer)
    }

    /// Further asks that the peer counts within a network.
    #[must_use]
    pub fn trusted_in(self, network: NetworkUid) -> Self {
        let what = format!("{} of network {network}", self.what);
        Self::new(what, move |peer| {
            (self.check)(peer)
                && peer.scopes.iter().any(|scope| match scope {
                    Scope::Own => true,
                    Scope::Network(uid) => *uid == network,
                })
        })
    }
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expect({})", self.what)
    }
}

impl Dialer {
    /// Needs a tokio runtime: a task follows the bundles, and ends the connections of peers
    /// that are no longer trusted.
    pub fn new(source: Source, trust: Trust) -> Self {
        let live = Arc::new(Live::new(source));
        tokio::spawn(Live::follow(Arc::downgrade(&live), trust.clone()));
        Self {
            trust,
            live,
            connect_limit: CONNECT_LIMIT,
            token_lifetime: TOKEN_LIFETIME,
            keepalive: true,
        }
    }

    /// For TCP, TLS and their answers together; 5 s unless set.
    #[must_use]
    pub const fn connect_limit(mut self, limit: Duration) -> Self {
        self.connect_limit = limit;
        self
    }

    /// Of the tokens that [`Connection::nsm`] attaches; 10 min unless set.
    #[must_use]
    pub const fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.token_lifetime = lifetime;
        self
    }

    /// Without HTTP/2 pings, which stock Go servers punish when they come more often than every
    /// five minutes.
    #[must_use]
    pub const fn without_keepalive(mut self) -> Self {
        self.keepalive = false;
        self
    }

    /// Connects, authenticates and returns a connection that is up.
    pub async fn dial(&self, url: &DialUrl, expect: Expect) -> Result<Connection, DialError> {
        let refused = |reason: String| DialError::Refused {
            url: url.to_string(),
            reason,
        };
        let link = Arc::new(Link {
            url: url.clone(),
            expect,
            trust: self.trust.clone(),
            live: Arc::clone(&self.live),
            limit: self.connect_limit,
        });
        let (first, own) = link.connect().await?;
        let ends = Arc::new(ArcSwap::from_pointee(Ends::of(&first, &own)));
        let ready = Arc::new(Mutex::new(Some((first, own))));
        let current = Arc::clone(&ends);
        let connector = tower::service_fn(move |_: http::Uri| {
            let (link, ready, ends) = (Arc::clone(&link), Arc::clone(&ready), Arc::clone(&current));
            async move {
                let prepared = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
                let (connection, own) = match prepared {
                    Some(prepared) => prepared,
                    None => link.connect().await?,
                };
                ends.store(Arc::new(Ends::of(&connection, &own)));
                Ok::<_, DialError>(TokioIo::new(connection))
            }
        });
        let mut endpoint = Endpoint::from_static("http://vl3")
            .http2_max_header_list_size(HEADER_LIST_MAX)
            .connect_timeout(self.connect_limit);
        if self.keepalive {
            endpoint = endpoint
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
        }
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| refused(error_chain(&error)))?;
        Ok(Connection {
            url: url.clone(),
            channel,
            ends,
            token_lifetime: self.token_lifetime,
        })
    }
}

impl Ends {
    fn of(connection: &Secured, own: &Arc<Identity>) -> Self {
        Self {
            peer: Arc::new(connection.peer().clone()),
            own: Arc::clone(own),
        }
    }
}

impl Connection {
    pub const fn url(&self) -> &DialUrl {
        &self.url
    }

    /// Who answered last.
    pub fn peer(&self) -> Arc<PeerIdentity> {
        Arc::clone(&self.ends.load().peer)
    }

    /// For own services: TLS identity only.
    pub fn plain(&self) -> Channel {
        self.channel.clone()
    }

    /// For NSM calls: every call carries a fresh token.
    pub fn nsm(&self) -> NsmChannel {
        self.with_tokens(None)
    }

    /// For calls to a registry as their first caller: `path` makes the registry path that
    /// begins with the call's token. Stock registries register and unregister with it alone.
    pub fn registry(&self, path: fn(&str) -> String) -> NsmChannel {
        self.with_tokens(Some(path))
    }

    fn with_tokens(&self, path: Option<fn(&str) -> String>) -> NsmChannel {
        let tokens = NsmTokens {
            ends: Arc::clone(&self.ends),
            lifetime: self.token_lifetime,
            path,
        };
        InterceptedService::new(self.channel.clone(), tokens)
    }
}

impl Interceptor for NsmTokens {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        let internal =
            |error: &dyn fmt::Display| tonic::Status::internal(format!("make a token: {error}"));
        let ends = self.ends.load();
        let peer = &ends.peer;
        let (token, expires) = token::issue(
            &ends.own,
            Some(&peer.id),
            self.lifetime,
            crate::clock::wall(),
        )
        .map_err(|error| internal(&error))?;
        // Beside the token its expiry is also capped by the peer's certificate (NSM).
        let expires = token::format_rfc3339(expires.min(peer.not_after));
        let metadata = request.metadata_mut();
        if let Some(path) = self.path {
            set_registry_path(metadata, &path(&token));
        }
        metadata.insert(
            TOKEN,
            MetadataValue::try_from(token).map_err(|error| internal(&error))?,
        );
        metadata.insert(
            TOKEN_EXPIRES,
            MetadataValue::try_from(expires).map_err(|error| internal(&error))?,
        );
        Ok(request)
    }
}

/// What is needed to connect again.
struct Link {
    url: DialUrl,
    expect: Expect,
    trust: Trust,
    live: Arc<Live>,
    limit: Duration,
}

impl Link {
    async fn connect(&self) -> Result<(Secured, Arc<Identity>), DialError> {
        let limit = self.limit;
        tokio::time::timeout(limit, self.attempt())
            .await
            .unwrap_or_else(|_| {
                Err(DialError::TimedOut {
                    url: self.url.to_string(),
                    limit,
                })
            })
    }

    /// The configuration for one handshake with one own identity.
    fn connector(&self, own: &Arc<Identity>) -> Result<TlsConnector, vl3_identity::Error> {
        let expect = self.expect.clone();
        let authorise: tls::Authorise = Arc::new(move |peer| {
            if (expect.check)(peer) {
                Ok(())
            } else {
                Err(format!("expected {}, found {}", expect.what, peer.id))
            }
        });
        let shown = Source::fixed(Arc::clone(own));
        let config = tls::client_config(&shown, &self.trust, authorise)?;
        Ok(TlsConnector::from(Arc::new(config)))
    }

    async fn attempt(&self) -> Result<(Secured, Arc<Identity>), DialError> {
        let unreachable = |source| DialError::Unreachable {
            url: self.url.to_string(),
            source,
        };
        let refused = |reason| DialError::Refused {
            url: self.url.to_string(),
            reason,
        };
        let socket = match &self.url {
            DialUrl::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                notice_silence(&stream).map_err(|errno| unreachable(errno.into()))?;
                Socket::Tcp(stream)
            }
            DialUrl::Unix(path) => {
                Socket::Unix(UnixStream::connect(path).await.map_err(unreachable)?)
            }
        };
        // Never sent nor checked; rustls asks for one.
        let name = ServerName::try_from("vl3").map_err(|error| refused(error.to_string()))?;
        let own = self.live.own();
        let stream = self
            .connector(&own)
            .map_err(|error| refused(error.to_string()))?
            .connect(name, socket)
            .await
            .map_err(|error| refused(error.to_string()))?;
        let secured =
            Secured::new(stream.into(), &own, &self.trust, &self.live, None).map_err(refused)?;
        Ok((secured, own))
    }
}

/// A peer that vanished without a word is noticed within half a minute, also on connections
/// without HTTP/2 pings (stock servers do not mind TCP's).
fn notice_silence(stream: &TcpStream) -> nix::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::TcpKeepIdle, &10)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(stream, sockopt::KeepAlive, &true)
}

/// tonic says "transport error" and keeps the reason in its sources.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
