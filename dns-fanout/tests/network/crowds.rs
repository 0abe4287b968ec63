//! Clients that ask too much, that do not speak and that do not read: they are bounded and counted,
//! and others are answered. How fast, the bench `dns flood` measures.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dns_fanout::{Config, Reload};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType as T;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use vl3_runtime::config::{Flags, load_from};

use crate::client::{addresses, connect, exchange_within, query, read_frame, write_frame};
use crate::stage::{eventually, eventually_true};
use crate::standalone::{Alone, configured, free_address};
use crate::upstream::{Behaviour, Sent, Upstream, honest, octets, with_addresses};

const ADDRESS: &str = "192.0.2.1";
const GOOD: &str = "127.0.22.1";
const PATIENCE: Duration = Duration::from_secs(5);

/// Has every name.
fn has_all() -> Behaviour {
    Box::new(|asked| vec![Sent::Reply(octets(&with_addresses(asked, &[ADDRESS])))])
}

async fn alone(first: Behaviour, change: impl FnOnce(&mut Config)) -> (Alone, Vec<Upstream>) {
    let servers = Upstream::several(vec![first]).await;
    let list = vec![configured("all", &servers[0], &[])];
    (Alone::new(list, change).await, servers)
}

fn dropped(alone: &Alone, reason: &str) -> u64 {
    alone.figure(&format!("vl3_dns_dropped_total{{reason=\"{reason}\"}}"))
}

/// Another client is answered over UDP and over a connection of its own.
async fn others_are_answered(alone: &Alone) {
    let asked = query("good.test.", T::A).to_vec().unwrap();
    let reply = exchange_within(alone.address, GOOD, &asked, PATIENCE).await;
    let reply = Message::from_vec(&reply.expect("a reply by UDP")).unwrap();
    assert_eq!(addresses(&reply), [ADDRESS]);
    let mut stream = connect(alone.address, GOOD).await;
    write_frame(&mut stream, &asked).await;
    let reply = read_frame(&mut stream).await.expect("a reply by TCP");
    assert_eq!(addresses(&reply), [ADDRESS]);
}

/// Ten thousand connections of two hundred clients, each with half a length and no more.
#[tokio::test]
async fn r6_4_ten_thousand_half_open_connections_keep_nobody_out() {
    const CLIENTS: u8 = 200;
    const EACH: usize = 50;
    let (alone, _servers) = alone(has_all(), |_| {}).await;
    // The server has raised it as far as it may.
    let (may_open, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        may_open >= 12_000,
        "11,000 sockets are needed and {may_open} allowed: raise the hard limit, `ulimit -Hn`"
    );
    let mut half_open = Vec::new();
    for round in 0..EACH {
        for client in 1..=CLIENTS {
            let from = Ipv4Addr::new(127, 0, 23, client);
            half_open.push(half(alone.address, from).await);
        }
        if round % 10 == 9 {
            assert!(alone.figure("vl3_dns_tcp_connections ") <= 1_000);
            others_are_answered(&alone).await;
        }
    }
    assert_eq!(half_open.len(), 10_000);
    // Each is open, made room for another, or was silent for too long.
    let ended = |alone: &Alone| {
        ["crowded_out", "idle", "connections"]
            .iter()
            .map(|reason| dropped(alone, reason))
            .sum::<u64>()
    };
    eventually("all of them are accounted for", || {
        let open = alone.figure("vl3_dns_tcp_connections ");
        open <= 1_000 && ended(&alone) + open >= 10_000
    })
    .await;
    // All of them have as many: none of them makes room for another, but for who has fewer.
    assert!(dropped(&alone, "connections") > 1_000);
    assert!(dropped(&alone, "crowded_out") > 0);
    others_are_answered(&alone).await;
    drop(half_open);
    eventually("nothing is left of them", || {
        alone.figure("vl3_dns_tcp_connections ") == 0
    })
    .await;
}

async fn half(server: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let mut stream = connect(server, &from.to_string()).await;
    // Err: it had to make room already.
    let _crowded_out = stream.write_all(&[0]).await;
    stream
}

/// One client asks for far more than it reads, another says half a question: both are cut.
#[tokio::test]
async fn r6_4_who_does_not_read_or_does_not_go_on_is_cut_and_others_are_answered() {
    let many: Vec<String> = (1..=60).map(|host| format!("192.0.2.{host}")).collect();
    let large: Behaviour = Box::new(move |asked| {
        let name = asked.message.queries[0].name().to_lowercase().to_string();
        let all: Vec<&str> = many.iter().map(String::as_str).collect();
        let all = if name.starts_with("large") {
            &all[..]
        } else {
            &all[..1]
        };
        vec![Sent::Reply(octets(&with_addresses(asked, all)))]
    });
    let (alone, _servers) = alone(large, |config| {
        config.queries_per_second_max = 0;
        config.in_flight_max = 0;
    })
    .await;
    let mut stump = connect(alone.address, "127.0.24.2").await;
    stump.write_all(&[0, 40, 1, 2, 3]).await.unwrap();

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let from: IpAddr = "127.0.24.1".parse().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    let mut slow = socket.connect(alone.address).await.unwrap();
    // One kilobyte each: far beyond what the kernel and the connection keep.
    let asked = query("large.test.", T::A).to_vec().unwrap();
    let length = u16::try_from(asked.len()).unwrap();
    let frame = [&length.to_be_bytes()[..], &asked].concat();
    for _ in 0..2_000 {
        slow.write_all(&frame).await.unwrap();
    }
    others_are_answered(&alone).await;
    eventually("the slow reader is cut", || {
        dropped(&alone, "slow_reader") == 1
    })
    .await;
    others_are_answered(&alone).await;
    eventually_true("it hears of it", || async { slow.try_write(&[0]).is_err() }).await;
    // Half a question is waited for ten seconds.
    let end = tokio::time::timeout(Duration::from_secs(30), stump.read(&mut [0; 1])).await;
    assert!(matches!(end.expect("an end"), Ok(0) | Err(_)));
    assert_eq!(dropped(&alone, "idle"), 1);
    eventually("nothing is left of them", || {
        alone.figure("vl3_dns_tcp_connections ") == 0
    })
    .await;
}

/// One client floods with names that differ, another asks for the same few.
#[tokio::test]
async fn r5_4_a_flood_of_random_names_pushes_no_hot_name_out() {
    const HOT: usize = 100;
    let (alone, servers) = alone(has_all(), |config| {
        config.cache_octets = 256 << 10;
        config.queries_per_second_max = 0;
        config.in_flight_max = 0;
    })
    .await;
    let hot = async || {
        for number in 0..HOT {
            let found = asked(&alone, GOOD, &format!("hot-{number}.test.")).await;
            assert_eq!(addresses(&found), [ADDRESS]);
        }
    };
    hot().await;
    hot().await;
    let hot_queries = || {
        let is_hot = |asked: &crate::upstream::Asked| {
            let name = asked.message.queries[0].name().to_lowercase();
            name.to_string().starts_with("hot-")
        };
        servers[0]
            .all()
            .iter()
            .filter(|asked| is_hot(asked))
            .count()
    };
    let before = hot_queries();
    let mut rounds = 0;
    for flood in 0..20 {
        for number in 0..200 {
            asked(&alone, "127.0.22.9", &format!("x{flood}-{number}.test.")).await;
        }
        hot().await;
        rounds += 1;
    }
    let missed = hot_queries() - before;
    assert!(missed * 20 < rounds * HOT, "{missed} of {}", rounds * HOT);
    let evictions = alone.figure("coredns_cache_evictions_total{");
    let entries = "coredns_cache_entries{";
    let text = alone.ctx.metrics.encode();
    let all: u64 = text
        .lines()
        .filter(|line| line.starts_with(entries))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert!(
        all < 1_000,
        "{all} entries, {evictions} evictions: 4,100 names were asked"
    );
}

/// As clients repeat: what a flood left in the kernel's queue may push a question out.
async fn asked(alone: &Alone, from: &str, name: &str) -> Message {
    let octets = query(name, T::A).to_vec().unwrap();
    for _ in 0..20 {
        let limit = Duration::from_millis(500);
        let reply = exchange_within(alone.address, from, &octets, limit).await;
        if let Some(reply) = reply {
            return Message::from_vec(&reply).unwrap();
        }
    }
    panic!("no reply to {name}");
}

/// By default a client that asks without end is refused, and no other.
#[tokio::test]
async fn r6_6_a_client_that_floods_is_refused_and_others_are_not() {
    let (alone, _servers) = alone(has_all(), |_| {}).await;
    let flooder = UdpSocket::bind("127.0.22.8:0").await.unwrap();
    flooder.connect(alone.address).await.unwrap();
    let refused = format!(
        "vl3_dns_responses_total{{rcode=\"{}\",decision=\"client_limit\"}}",
        "REFUSED"
    );
    let mut number = 0;
    eventually("the flooder is refused", || {
        for _ in 0..200 {
            number += 1;
            let octets = query(&format!("x{number}.test."), T::A).to_vec().unwrap();
            // Err: its own queue is full.
            let _full = flooder.try_send(&octets);
        }
        alone.figure(&refused) > 100
    })
    .await;
    for round in 0..50 {
        let reply = asked(&alone, GOOD, &format!("good-{round}.test.")).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
}

/// A file as people write it, read as at the start.
#[tokio::test]
async fn r7_4_all_that_is_wrong_with_a_file_is_told_at_once_and_the_one_before_stays() {
    let servers = Upstream::several(vec![honest(&[ADDRESS]), honest(&["192.0.2.2"])]).await;
    let listen = free_address();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dns.toml");
    let good = |server: &Upstream| {
        format!(
            "listen = [\"{listen}\"]\n[[upstream]]\nname = \"all\"\naddresses = [\"{}\"]\n",
            server.address
        )
    };
    std::fs::write(&file, good(&servers[0])).unwrap();
    let flags = Flags {
        config: Some(file.clone()),
        ..Flags::default()
    };
    let told = Arc::new(Mutex::new(Vec::new()));
    let (hears, path) = (Arc::clone(&told), file.clone());
    let reload = Reload {
        file: Some(path),
        read: Arc::new(move || {
            let read = load_from::<Config>(&flags, []).map(|loaded| loaded.config);
            let outcome = read.as_ref().err().map(ToString::to_string);
            hears.lock().unwrap().push(outcome);
            read
        }),
    };
    let config = (reload.read)().unwrap();
    let alone = Alone::start(config, Some(reload)).await;
    told.lock().unwrap().clear();
    assert_eq!(
        addresses(&alone.ask("db.corp.test.", T::A).await),
        [ADDRESS]
    );

    let bad = "listen = [\"nowhere\"]\nrecords_max = 0\nprefer_wait = \"soon\"\n\
        [limits]\nconnections = 0\n\
        [[upstream]]\nname = \"a b\"\naddresses = [\"127.0.0.1\"]\nclass = \"far\"\ncolour = \"red\"\n";
    std::fs::write(&file, bad).unwrap();
    eventually("it is read", || !told.lock().unwrap().is_empty()).await;
    let text = told.lock().unwrap()[0].clone().expect("it is refused");
    for part in [
        "listen",
        "records_max",
        "prefer_wait",
        "limits.connections",
        "name",
        "addresses",
        "class",
        "colour",
    ] {
        assert!(text.contains(part), "{part} is not named: {text}");
    }
    assert_eq!(addresses(&alone.ask("db.two.test.", T::A).await), [ADDRESS]);

    std::fs::write(&file, good(&servers[1])).unwrap();
    eventually_true("the right one is in force", || async {
        addresses(&alone.ask("db.other.test.", T::A).await) == ["192.0.2.2"]
    })
    .await;
}
