//! Calls to routers and to the registry.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nsm_chain::SvidTokens;
use nsm_chain::client::{Followed, check_answer, follow};
use tokio::sync::{mpsc, watch};
use tonic::Code;
use vl3_core::Ticket;
use vl3_core::document::Role;
use vl3_core::heal::{Failure, Input, MonitorEvent};
use vl3_core::ids::NetworkUid;
use vl3_core::registry::Marks;
use vl3_proto::connection::monitor_connection_client::MonitorConnectionClient;
use vl3_proto::connection::{Connection, MonitorScopeSelector, PathSegment};
use vl3_proto::networkservice::NetworkServiceRequest;
use vl3_proto::networkservice::network_service_client::NetworkServiceClient;
use vl3_proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vl3_proto::registry::{NetworkServiceEndpoint, NetworkServiceEndpointQuery};
use vl3_proto::vl3::network::v1::WatchRequest;
use vl3_proto::vl3::network::v1::network_client::NetworkClient;
use vl3_runtime::grpc::{self, DialError, DialUrl, Dialer};
use vl3_runtime::{Retry, Said, clock};

use crate::answer::{Accepted, Excluded, Question, check};
use crate::attachment::Event;
use crate::config::Mechanism;
use crate::document::Documents;

/// Per try. No deadline travels with the call: a stock server subtracts it from the life of
/// the connection (nsm-wire 9.1).
const REQUEST_LIMIT: Duration = Duration::from_millis(4_800);
const CLOSE_LIMIT: Duration = Duration::from_millis(1_800);
const FIND_LIMIT: Duration = Duration::from_millis(4_800);
/// Endpoints read of one Find.
const FOUND_MAX: usize = 64;

/// What every call of one attachment needs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub(crate) dialer: Dialer,
    pub(crate) documents: Documents,
    pub(crate) tokens: Arc<SvidTokens>,
    pub(crate) registry: Option<DialUrl>,
    pub(crate) mechanism: Mechanism,
    pub(crate) token_lifetime: Duration,
    pub(crate) said: Arc<Mutex<Said>>,
}

/// What became of a Request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Accepted {
        connection: Box<Connection>,
        accepted: Box<Accepted>,
        via: grpc::Connection,
    },
    /// To be closed by `via`.
    Bad {
        connection: Box<Connection>,
        via: grpc::Connection,
    },
    Failed(Failure),
}

impl Control {
    /// Asks the router at `url`, over `via` where it still stands.
    pub(crate) async fn request(
        &self,
        url: &str,
        via: Option<grpc::Connection>,
        request: NetworkServiceRequest,
        excluded: Excluded,
    ) -> Outcome {
        let attempt = self.try_request(url, via, request, &excluded);
        match tokio::time::timeout(REQUEST_LIMIT, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if let Some(unsaid) = self.say(&format!("{url} is silent")) {
                    tracing::info!(url, limit = ?REQUEST_LIMIT, unsaid, "router does not answer");
                }
                Outcome::Failed(Failure::Unreachable)
            }
        }
    }

    async fn try_request(
        &self,
        url: &str,
        via: Option<grpc::Connection>,
        request: NetworkServiceRequest,
        excluded: &Excluded,
    ) -> Outcome {
        let via = match via {
            Some(via) => via,
            None => match self.dial(url, Role::Router).await {
                Ok(via) => via,
                Err(failure) => return Outcome::Failed(failure),
            },
        };
        let mut client = NetworkServiceClient::new(via.nsm());
        let answer = match client.request(request.clone()).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let (code, reason) = (status.code(), status.message());
                if let Some(unsaid) = self.say(&format!("{url}: {code:?}: {reason}")) {
                    tracing::info!(url, ?code, reason, unsaid, "request failed");
                }
                return Outcome::Failed(failure_of(status.code()));
            }
        };
        match self.judge(&request, &answer, &via, excluded) {
            Ok(accepted) => {
                self.said
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .reset();
                Outcome::Accepted {
                    connection: Box::new(answer),
                    accepted: Box::new(accepted),
                    via,
                }
            }
            Err(reason) => {
                if let Some(unsaid) = self.say(&format!("{url}: {reason}")) {
                    tracing::warn!(url, reason, unsaid, "answer is refused and closed");
                }
                Outcome::Bad {
                    connection: Box::new(answer),
                    via,
                }
            }
        }
    }

    fn judge(
        &self,
        request: &NetworkServiceRequest,
        answer: &Connection,
        via: &grpc::Connection,
        excluded: &Excluded,
    ) -> Result<Accepted, String> {
        let now = clock::wall();
        let peer = via.peer();
        check_answer(request, answer, &*self.tokens, &peer.certificate_der, now)
            .map_err(|error| error.to_string())?;
        let document = self.documents.current();
        let connection_id = request
            .connection
            .as_ref()
            .map_or("", |connection| connection.id.as_str());
        let question = Question {
            document: &document,
            connection_id,
            mechanism: self.mechanism,
            excluded,
            token_lifetime: self.token_lifetime,
            now,
        };
        check(answer, &question).map_err(|error| error.to_string())
    }

    /// Whether the router answered.
    pub(crate) async fn close(
        &self,
        url: &str,
        via: Option<grpc::Connection>,
        connection: Connection,
    ) -> bool {
        let attempt = async {
            let via = match via {
                Some(via) => via,
                None => self.dial(url, Role::Router).await?,
            };
            NetworkServiceClient::new(via.nsm())
                .close(connection)
                .await
                .map_err(|status| failure_of(status.code()))
        };
        match tokio::time::timeout(CLOSE_LIMIT, attempt).await {
            Ok(Ok(_) | Err(Failure::Refused | Failure::BadAnswer)) => true,
            Ok(Err(Failure::Unreachable)) | Err(_) => false,
        }
    }

    /// Urls of the live routers of this network, the own domain's first.
    pub(crate) async fn find(&self) -> Result<Vec<String>, Failure> {
        tokio::time::timeout(FIND_LIMIT, self.try_find())
            .await
            .unwrap_or(Err(Failure::Unreachable))
    }

    async fn try_find(&self) -> Result<Vec<String>, Failure> {
        let url = self
            .registry
            .as_ref()
            .ok_or(Failure::Unreachable)?
            .to_string();
        let registry = self.dial(&url, Role::Registry).await?;
        let document = self.documents.current();
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(NetworkServiceEndpoint {
                network_service_names: vec![document.name.to_string()],
                ..NetworkServiceEndpoint::default()
            }),
            watch: false,
        };
        let failed = |status: tonic::Status| {
            let (code, reason) = (status.code(), status.message());
            if let Some(unsaid) = self.say(&format!("find: {code:?}: {reason}")) {
                tracing::info!(url, ?code, reason, unsaid, "find failed");
            }
            failure_of(status.code())
        };
        let mut client = NetworkServiceEndpointRegistryClient::new(registry.nsm());
        let mut stream = client.find(query).await.map_err(failed)?.into_inner();
        let mut found = Vec::new();
        while let Some(response) = stream.message().await.map_err(failed)? {
            found.extend(
                response
                    .network_service_endpoint
                    .filter(|_| !response.deleted),
            );
            if found.len() >= FOUND_MAX {
                break;
            }
        }
        Ok(usable(found, document.name.as_str(), document.uid))
    }

    /// Whether a failure is to be logged: at first, then seldom.
    fn say(&self, line: &str) -> Option<u64> {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .say(line)
    }

    async fn dial(&self, url: &str, role: Role) -> Result<grpc::Connection, Failure> {
        let parsed: DialUrl = url.parse().map_err(|error| {
            tracing::warn!(%error, "address is not used");
            Failure::Refused
        })?;
        self.dialer
            .dial(&parsed, self.documents.expect(role))
            .await
            .map_err(|error| {
                let text = chain_of(&error);
                if let Some(unsaid) = self.say(&text) {
                    tracing::info!(error = text, unsaid, "router or registry is not reached");
                }
                match error {
                    DialError::Refused { .. } => Failure::Refused,
                    DialError::Unreachable { .. } | DialError::TimedOut { .. } => {
                        Failure::Unreachable
                    }
                }
            })
    }
}

/// Which connection is followed.
#[derive(Clone, Debug)]
pub(crate) struct Followee {
    /// Name and id of the own path segment.
    pub(crate) name: String,
    pub(crate) id: String,
    /// The router's id of the connection as it answered last: the end of one that it had before
    /// says nothing about ours.
    pub(crate) server_id: watch::Receiver<String>,
}

/// Follows the monitor stream; ends after [`MonitorEvent::Ended`] was reported.
pub(crate) async fn monitor(
    via: grpc::Connection,
    followee: Followee,
    ticket: Ticket,
    events: mpsc::Sender<Event>,
) {
    let Followee {
        name,
        id,
        server_id,
    } = followee;
    let report = async |event| {
        tracing::debug!(id, ?event, "monitor");
        // The attachment may have ended meanwhile.
        let _ended = events
            .send(Event::Machine(Input::Monitor { ticket, event }))
            .await;
    };
    let selector = MonitorScopeSelector {
        path_segments: vec![PathSegment {
            name,
            id: id.clone(),
            ..PathSegment::default()
        }],
        network_services: Vec::new(),
    };
    let mut opened = false;
    match MonitorConnectionClient::new(via.nsm())
        .monitor_connections(selector)
        .await
    {
        Err(status) => tracing::debug!(reason = status.message(), "monitor was not opened"),
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(mut event)) => {
                        event.connections.retain(|id, _| *id == *server_id.borrow());
                        let first = !std::mem::replace(&mut opened, true);
                        let Some(event) = follow(&event, 0, &id) else {
                            continue;
                        };
                        match event {
                            Followed::Up(_) if first => report(MonitorEvent::Opened).await,
                            Followed::Up(_) => {}
                            Followed::RefreshRequested => {
                                report(MonitorEvent::RefreshRequested).await
                            }
                            Followed::Lost => report(MonitorEvent::Down).await,
                            Followed::Unknown => report(MonitorEvent::Gone).await,
                        }
                    }
                    Ok(None) => break,
                    Err(status) => {
                        tracing::debug!(reason = status.message(), "monitor ended");
                        break;
                    }
                }
            }
        }
    }
    report(MonitorEvent::Ended).await;
}

/// Keeps the document as new as the router's; ends with its task.
pub(crate) async fn follow_document(via: grpc::Connection, documents: Documents) {
    let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        let uid = documents.current().uid;
        let request = WatchRequest {
            uid: uid.0.to_vec(),
        };
        match NetworkClient::new(via.plain()).watch(request).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                while let Ok(Some(chain)) = stream.message().await {
                    retry.reset();
                    documents.offer(&chain);
                }
            }
            // A stock router has no such service.
            Err(status) if status.code() == Code::Unimplemented => return,
            Err(status) => tracing::debug!(reason = status.message(), "document is not followed"),
        }
        retry.pause().await;
    }
}

/// Dialable routers of this network that have not expired, local ones first. An endpoint without
/// our marks may belong to any network of that name: only who configures its url vouches for it.
fn usable(found: Vec<NetworkServiceEndpoint>, service: &str, uid: NetworkUid) -> Vec<String> {
    let now = clock::wall();
    let mut list: Vec<(bool, String, String)> = found
        .into_iter()
        .filter(|endpoint| {
            let expired = endpoint
                .expiration_time
                .as_ref()
                .and_then(|time| vl3_proto::wall("expiration_time", time).ok())
                .is_some_and(|end| end <= now);
            let marks = endpoint
                .network_service_labels
                .get(service)
                .and_then(|labels| Marks::parse(service, &labels.labels));
            let ours = marks.is_some_and(|marks| {
                marks.uid == uid && !(marks.dials_only && is_remote(&endpoint.name))
            });
            !expired && ours && endpoint.url.parse::<DialUrl>().is_ok()
        })
        .map(|endpoint| (is_remote(&endpoint.name), endpoint.name, endpoint.url))
        .collect();
    list.sort();
    let mut urls = Vec::new();
    for (_, _, url) in list {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

/// Another domain's endpoint is `<name>@<domain>`.
fn is_remote(endpoint: &str) -> bool {
    endpoint.contains('@')
}

/// Whether the router has spoken, or nobody has.
const fn failure_of(code: Code) -> Failure {
    match code {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            Failure::Unreachable
        }
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Failure::Refused,
    }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::{DomainName, Generation};
    use vl3_core::registry::Endpoint;
    use vl3_core::time::Wall;
    use vl3_proto::objects::encode_endpoint;

    use super::*;

    const RED: NetworkUid = NetworkUid([0xaa; 16]);

    fn marks(uid: NetworkUid) -> Marks {
        Marks {
            service: "red".to_owned(),
            proto: "1-1".to_owned(),
            role: "router".to_owned(),
            uid,
            domain: DomainName::new("east").unwrap(),
            name: "red-east".to_owned(),
            generation: Generation(1),
            dials_only: false,
            udp: None,
        }
    }

    fn endpoint(name: &str, url: &str, marks: Option<Marks>) -> NetworkServiceEndpoint {
        let labels = marks.map(|marks| ("red".to_owned(), marks.labels()));
        encode_endpoint(&Endpoint {
            name: name.to_owned(),
            services: vec!["red".to_owned()],
            labels: labels.into_iter().collect(),
            url: url.to_owned(),
            ..Endpoint::default()
        })
    }

    #[test]
    fn local_routers_come_first_and_others_networks_never() {
        let red = || Some(marks(RED));
        let mut expired = endpoint("red-old", "tcp://192.0.2.9:5010", red());
        expired.expiration_time = Some(vl3_proto::timestamp(Wall::from_unix_secs(1)));
        let other = marks(NetworkUid([0xbb; 16]));
        let dials_only = Marks {
            dials_only: true,
            ..marks(RED)
        };
        let found = vec![
            endpoint("red-west@west", "tcp://192.0.2.2:5010", red()),
            endpoint("red-east", "tcp://192.0.2.1:5010", red()),
            endpoint("red-other", "tcp://192.0.2.3:5010", Some(other)),
            endpoint("red-unmarked", "tcp://192.0.2.4:5010", None),
            endpoint("red-bad", "nonsense", red()),
            endpoint("red-kiosk@kiosk", "tcp://192.0.2.5:5010", Some(dials_only)),
            expired,
        ];
        assert_eq!(
            usable(found, "red", RED),
            ["tcp://192.0.2.1:5010", "tcp://192.0.2.2:5010"]
        );
    }
}
