//! A router as its DNS server knows it: `nsm.sock` with what it says of the network, `fd.sock`
//! with sockets at its own address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use prost::Message as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};
use vl3_identity::Source;
use vl3_net::fdpass;
use vl3_proto::vl3::router::v1::resolver_server::{Resolver, ResolverServer};
use vl3_proto::vl3::router::v1::{
    FdReply, FdRequest, ResolverState, ResolverWatchRequest, fd_request::Body,
};
use vl3_runtime::CancellationToken;
use vl3_runtime::grpc::{Listen, ServeOptions, Server};

/// Ends when it is dropped.
pub(crate) struct Router {
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: Vec<JoinHandle<()>>,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Router {
    /// `own`: where listeners and sockets are bound; `ticket`: what who asks for them must show.
    pub(crate) async fn start(
        run_dir: &Path,
        identity: Source,
        states: watch::Receiver<ResolverState>,
        own: SocketAddr,
        ticket: Vec<u8>,
    ) -> Self {
        std::fs::create_dir_all(run_dir).unwrap();
        let stop = CancellationToken::new();
        let trust = vl3_identity::Trust::new(&identity);
        let options = ServeOptions::new(identity, trust, stop.clone());
        let listen = [Listen::Unix(run_dir.join("nsm.sock"))];
        let server = Server::bind(&listen, options).await.unwrap();
        let service = ResolverServer::new(States(states, stop.clone()));
        let grpc = tokio::spawn(async move {
            server
                .serve(tonic::service::Routes::new(service))
                .await
                .unwrap()
        });
        let sockets = fdpass::Listener::bind(&run_dir.join("fd.sock")).unwrap();
        let fds = tokio::spawn(pass_sockets(sockets, own, ticket, stop.clone()));
        Self {
            stop,
            tasks: vec![grpc, fds],
        }
    }
}

struct States(watch::Receiver<ResolverState>, CancellationToken);

type StateStream = std::pin::Pin<Box<dyn Stream<Item = Result<ResolverState, Status>> + Send>>;

#[tonic::async_trait]
impl Resolver for States {
    type WatchStream = StateStream;

    async fn watch(
        &self,
        request: Request<ResolverWatchRequest>,
    ) -> Result<Response<StateStream>, Status> {
        assert_eq!(request.into_inner().version, 1);
        let states = WatchStream::new(self.0.clone()).map(Ok);
        let stop = self.1.clone().cancelled_owned();
        let stream = futures_like_take_until(states, stop);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Ends the stream when the router stops.
fn futures_like_take_until(
    states: impl Stream<Item = Result<ResolverState, Status>> + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = Result<ResolverState, Status>> + Send {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let forward = async {
            tokio::pin!(states);
            while let Some(state) = states.next().await {
                if sender.send(state).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = forward => {}, () = stop => {} }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

async fn pass_sockets(
    listener: fdpass::Listener,
    own: SocketAddr,
    ticket: Vec<u8>,
    stop: CancellationToken,
) {
    let mut served = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            connection = listener.accept() => {
                let connection = connection.unwrap();
                let ticket = ticket.clone();
                served.spawn(async move {
                    while answer(&connection, own, &ticket).await.is_some() {}
                });
            }
        }
    }
}

async fn answer(connection: &fdpass::Connection, own: SocketAddr, ticket: &[u8]) -> Option<()> {
    let (message, _) = connection.recv().await.ok()??;
    let any = SocketAddr::new(own.ip(), 0);
    let body = FdRequest::decode(message.as_slice()).unwrap().body.unwrap();
    let shown = match &body {
        Body::Listen(listen) => &listen.ticket,
        Body::Dial(dial) => &dial.ticket,
        Body::Attach(_) | Body::Reattach(_) => panic!("the server is no workload"),
    };
    let descriptors: Vec<OwnedFd> = match body {
        _ if shown != ticket => Vec::new(),
        Body::Listen(_) => listeners(own).unwrap().1,
        Body::Dial(dial) if dial.tcp => vec![socket(Type::STREAM, any).unwrap().into()],
        Body::Dial(_) => vec![socket(Type::DGRAM, any).unwrap().into()],
        Body::Attach(_) | Body::Reattach(_) => Vec::new(),
    };
    let reply = FdReply {
        ok: !descriptors.is_empty(),
        ..FdReply::default()
    }
    .encode_to_vec();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    connection.send(&reply, &borrowed).await.ok()
}

/// UDP and TCP on one port, as several processes may hold them.
pub(crate) fn listeners(own: SocketAddr) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let tcp = socket(Type::STREAM, own)?;
    let own = tcp.local_addr()?.as_socket().unwrap();
    let udp = socket(Type::DGRAM, own)?;
    Ok((own, vec![udp.into(), tcp.into()]))
}

fn socket(kind: Type, own: SocketAddr) -> io::Result<Socket> {
    let protocol = if kind == Type::DGRAM {
        Protocol::UDP
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    Ok(socket)
}
