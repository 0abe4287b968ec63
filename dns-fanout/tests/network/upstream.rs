//! A server of another domain, as honest as a test wants it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

/// What a server sends for a query; several datagrams if it likes.
pub(crate) type Behaviour = Box<dyn Fn(&Asked) -> Vec<Sent> + Send + Sync>;

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) message: Message,
    pub(crate) octets: Vec<u8>,
    pub(crate) from: SocketAddr,
    pub(crate) tcp: bool,
}

pub(crate) enum Sent {
    Reply(Vec<u8>),
    /// From another port than was asked.
    Elsewhere(Vec<u8>),
    /// As by a long way; over UDP only.
    Later(Duration, Vec<u8>),
}

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Upstream {
    /// 127.0.1.1, 127.0.1.2 and so on, all on one port that is free on each.
    pub(crate) async fn several(behaviours: Vec<Behaviour>) -> Vec<Self> {
        let behaviours: Vec<Arc<Behaviour>> = behaviours.into_iter().map(Arc::new).collect();
        for _ in 0..50 {
            if let Some(upstreams) = Self::try_several(&behaviours).await {
                return upstreams;
            }
        }
        panic!("no port is free on all addresses");
    }

    /// One more beside those of a stage, on a port of its own.
    pub(crate) async fn elsewhere(behaviour: Behaviour) -> Self {
        let mut one = Self::several(vec![behaviour]).await;
        one.remove(0)
    }

    async fn try_several(behaviours: &[Arc<Behaviour>]) -> Option<Vec<Self>> {
        let mut upstreams: Vec<Self> = Vec::new();
        for (at, behaviour) in (1_u8..).zip(behaviours) {
            let address = IpAddr::V4(Ipv4Addr::new(127, 0, 1, at));
            let port = upstreams.first().map_or(0, |first| first.address.port());
            let tcp = TcpListener::bind((address, port)).await.ok()?;
            let bound = tcp.local_addr().ok()?;
            let udp = UdpSocket::bind(bound).await.ok()?;
            let elsewhere = UdpSocket::bind((address, 0)).await.ok()?;
            let asked = Arc::new(Mutex::new(Vec::new()));
            let tasks = vec![
                tokio::spawn(over_udp(
                    udp,
                    elsewhere,
                    Arc::clone(behaviour),
                    Arc::clone(&asked),
                )),
                tokio::spawn(over_tcp(tcp, Arc::clone(behaviour), Arc::clone(&asked))),
            ];
            upstreams.push(Self {
                address: bound,
                asked,
                tasks,
            });
        }
        Some(upstreams)
    }

    pub(crate) fn count(&self) -> usize {
        self.all().len()
    }

    /// Without probes of its health, which ask for the zone.
    pub(crate) fn all(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap().clone();
        let is_question = |asked: &Asked| asked.message.queries[0].query_type() != RecordType::SOA;
        asked.into_iter().filter(is_question).collect()
    }
}

async fn over_udp(
    socket: UdpSocket,
    elsewhere: UdpSocket,
    behaviour: Arc<Behaviour>,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let socket = Arc::new(socket);
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(message) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        let query = Asked {
            message,
            octets: buffer[..length].to_vec(),
            from,
            tcp: false,
        };
        if !is_probe(&query) {
            asked.lock().unwrap().push(query.clone());
        }
        for sent in behaviour(&query) {
            let _gone = match sent {
                Sent::Reply(octets) => socket.send_to(&octets, from).await,
                Sent::Elsewhere(octets) => elsewhere.send_to(&octets, from).await,
                Sent::Later(after, octets) => {
                    tokio::spawn(eventually_sent(Arc::clone(&socket), after, octets, from));
                    Ok(0)
                }
            };
        }
    }
}

/// What a long way does to a datagram.
async fn eventually_sent(socket: Arc<UdpSocket>, after: Duration, octets: Vec<u8>, to: SocketAddr) {
    tokio::time::sleep(after).await;
    let _gone = socket.send_to(&octets, to).await;
}

async fn over_tcp(listener: TcpListener, behaviour: Arc<Behaviour>, asked: Arc<Mutex<Vec<Asked>>>) {
    loop {
        let Ok((mut stream, from)) = listener.accept().await else {
            continue;
        };
        let Ok(length) = stream.read_u16().await else {
            continue;
        };
        let mut octets = vec![0; usize::from(length)];
        if stream.read_exact(&mut octets).await.is_err() {
            continue;
        }
        let Ok(message) = Message::from_vec(&octets) else {
            continue;
        };
        let query = Asked {
            message,
            octets,
            from,
            tcp: true,
        };
        if !is_probe(&query) {
            asked.lock().unwrap().push(query.clone());
        }
        for sent in behaviour(&query) {
            if let Sent::Reply(octets) = sent {
                let length = u16::try_from(octets.len()).unwrap();
                let _gone = stream
                    .write_all(&[&length.to_be_bytes()[..], &octets].concat())
                    .await;
            }
        }
    }
}

/// What health asks of a server that is suspected: no test asks that.
fn is_probe(asked: &Asked) -> bool {
    let query = &asked.message.queries[0];
    matches!(query.query_type(), RecordType::SOA | RecordType::NS)
}

/// A reply to a query, without records.
pub(crate) fn reply(asked: &Asked, code: ResponseCode) -> Message {
    let mut message = Message::response(asked.message.metadata.id, OpCode::Query);
    message.metadata.response_code = code;
    message.metadata.authoritative = true;
    message.add_queries(asked.message.queries.iter().cloned());
    message
}

pub(crate) fn octets(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

pub(crate) fn a_record(owner: &Name, address: &str) -> Record {
    Record::from_rdata(owner.clone(), 60, RData::A(A(address.parse().unwrap())))
}

pub(crate) fn with_addresses(asked: &Asked, addresses: &[&str]) -> Message {
    let mut message = reply(asked, ResponseCode::NoError);
    let owner = asked.message.queries[0].name().clone();
    message.add_answers(addresses.iter().map(|address| a_record(&owner, address)));
    message
}

/// Has `db` with the given addresses (A only); knows nothing else.
pub(crate) fn honest(addresses: &'static [&'static str]) -> Behaviour {
    Box::new(move |asked| {
        let query = &asked.message.queries[0];
        let name = query.name().to_lowercase().to_string();
        let message = match (name.starts_with("db."), query.query_type()) {
            (true, RecordType::A) => with_addresses(asked, addresses),
            (true, _) => reply(asked, ResponseCode::NoError),
            _ => reply(asked, ResponseCode::NXDomain),
        };
        vec![Sent::Reply(octets(&message))]
    })
}

pub(crate) fn knows_nothing() -> Behaviour {
    Box::new(|asked| vec![Sent::Reply(octets(&reply(asked, ResponseCode::NXDomain)))])
}

pub(crate) fn silent() -> Behaviour {
    Box::new(|_| Vec::new())
}

pub(crate) fn alias(owner: &Name, target: &str) -> Record {
    Record::from_rdata(
        owner.clone(),
        60,
        RData::CNAME(CNAME(Name::from_ascii(target).unwrap())),
    )
}
