//! The SPIFFE Workload API as the source: a server of our own on a unix socket.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use vl3_core::Wall;
use vl3_identity::authority::Authority;
use vl3_identity::{Source, install_crypto_provider};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, prost::Message)]
struct Request {}

#[derive(Clone, PartialEq, prost::Message)]
struct Svids {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// `SpiffeWorkloadAPI/FetchX509SVID`; every other method gets the same stream, which no one
/// asks for.
#[derive(Clone)]
struct WorkloadApi {
    svids: watch::Receiver<Svids>,
    /// How many were sent.
    sent: watch::Sender<usize>,
}

impl NamedService for WorkloadApi {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<http::Request<tonic::body::Body>> for WorkloadApi {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let fetch = self.clone();
        Box::pin(async move {
            // Without it a real server refuses: a browser must not be made to ask.
            assert_eq!(request.headers()["workload.spiffe.io"], "true");
            let codec = tonic_prost::ProstCodec::<Svids, Request>::default();
            Ok(Grpc::new(codec).server_streaming(fetch, request).await)
        })
    }
}

impl ServerStreamingService<Request> for WorkloadApi {
    type Response = Svids;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<tonic::Response<BoxStream>, tonic::Status>;

    fn call(&mut self, _: tonic::Request<Request>) -> Self::Future {
        let sent = self.sent.clone();
        let svids = WatchStream::new(self.svids.clone()).map(move |svids| {
            sent.send_modify(|count| *count += 1);
            Ok(svids)
        });
        Box::pin(async move { Ok(tonic::Response::new(Box::pin(svids) as BoxStream)) })
    }
}

type BoxStream =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Svids, tonic::Status>> + Send>>;

fn now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Wall::from_unix_secs(since.as_secs())
}

fn svid(authority: &Authority, name: &str) -> Svid {
    let issued = authority
        .issue(&format!("workload/{name}"), Duration::from_secs(600), now())
        .unwrap();
    Svid {
        spiffe_id: format!("spiffe://east.test/workload/{name}"),
        chain: CertificateDer::from_pem_slice(issued.svid.as_bytes())
            .unwrap()
            .to_vec(),
        key: PrivatePkcs8KeyDer::from_pem_slice(issued.key.as_bytes())
            .unwrap()
            .secret_pkcs8_der()
            .to_vec(),
        bundle: CertificateDer::from_pem_slice(issued.bundle.as_bytes())
            .unwrap()
            .to_vec(),
    }
}

#[tokio::test]
async fn an_identity_comes_from_the_workload_api_and_rotates_with_it() {
    install_crypto_provider();
    let authority = Authority::create("east.test", now()).unwrap();
    let one = |svid| Svids { svids: vec![svid] };
    let (sender, receiver) = watch::channel(one(svid(&authority, "a")));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let (sent, mut count) = watch::channel(0);
    let server = tonic::transport::Server::builder().add_service(WorkloadApi {
        svids: receiver,
        sent,
    });
    let serving = tokio::spawn(server.serve_with_incoming(incoming));

    let source = Source::from_workload_api(&format!("unix://{}", socket.display()))
        .await
        .unwrap();
    let first = source.current();
    assert_eq!(first.id.as_str(), "spiffe://east.test/workload/a");
    assert_eq!(first.bundle, authority.bundle().unwrap());

    // Certificate and key of two SVIDs are no identity: the one held stays.
    let mixed = Svid {
        key: svid(&authority, "other").key,
        ..svid(&authority, "mixed")
    };
    sender.send(one(mixed)).unwrap();
    let on_its_way = tokio::time::timeout(PATIENCE, count.wait_for(|count| *count == 2));
    on_its_way.await.expect("it is sent").unwrap();
    // The trust domain's roots rotate as well.
    let next = Authority::create("east.test", now()).unwrap();
    let mut changes = source.subscribe();
    sender.send(one(svid(&next, "b"))).unwrap();
    let rotated = tokio::time::timeout(PATIENCE, changes.changed());
    rotated.await.expect("it rotates").unwrap();
    let second = source.current();
    assert_eq!(second.id.path(), "/workload/b");
    assert_eq!(second.bundle, next.bundle().unwrap());

    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert_eq!(
        source.current().id,
        second.id,
        "an issuer that is gone takes nothing away"
    );
}
