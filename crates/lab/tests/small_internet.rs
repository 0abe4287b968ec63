//! The lab against the running kernel; needs root.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vl3_lab::tools::{self, Answered, Continuous, LongConnection};
use vl3_lab::{Datagram, Internet, Lab, ProcessSpec, RelaySpec, SiteSpec, udp_packet};

const WAIT: Duration = Duration::from_secs(2);
const SILENT: Duration = Duration::from_millis(150);

struct World {
    scratch: tempfile::TempDir,
    lab: Lab,
    internet: Internet,
}

async fn world() -> World {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let lab = Lab::new(scratch.path()).expect("a lab (as root)");
    let internet = Internet::build(&lab).await.expect("an internet");
    World {
        scratch,
        lab,
        internet,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_reach_each_other_in_both_families_and_pods_only_their_own() {
    let world = world().await;
    let east = world
        .internet
        .add_site("east", SiteSpec::default())
        .await
        .unwrap();
    let west = world
        .internet
        .add_site("west", SiteSpec { mtu: 1280 })
        .await
        .unwrap();
    let (a, b) = (
        east.add_pod("east-a").await.unwrap(),
        east.add_pod("east-b").await.unwrap(),
    );
    let twin = west.add_pod("west-a").await.unwrap();
    for target in [IpAddr::from(west.public_ipv4()), west.public_ipv6().into()] {
        assert!(
            tools::echo(east.gateway(), None, target, WAIT)
                .await
                .unwrap()
                .is_answered(),
            "{target}"
        );
    }
    for target in [
        IpAddr::from(east.gateway_pod_ipv4()),
        east.gateway_pod_ipv6().into(),
    ] {
        assert!(
            tools::echo(&a, None, target, WAIT)
                .await
                .unwrap()
                .is_answered(),
            "{target}"
        );
    }
    let neighbour: IpAddr = "10.244.0.3".parse().unwrap();
    assert!(
        tools::echo(&a, None, neighbour, WAIT)
            .await
            .unwrap()
            .is_answered()
    );
    // The same address elsewhere is another pod, which is not there.
    assert!(
        !tools::echo(&twin, None, neighbour, SILENT)
            .await
            .unwrap()
            .is_answered()
    );
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_cuts_two_sites_and_no_third_and_heals() {
    let world = world().await;
    let mut sites = Vec::new();
    for name in ["east", "west", "north"] {
        sites.push(
            world
                .internet
                .add_site(name, SiteSpec::default())
                .await
                .unwrap(),
        );
    }
    let [east, west, north] = &sites[..] else {
        panic!("three")
    };
    for _ in 0..2 {
        world.internet.partition(east, north).await.unwrap();
    }
    for target in [
        IpAddr::from(north.public_ipv4()),
        north.public_ipv6().into(),
    ] {
        assert_eq!(
            tools::echo(east.gateway(), None, target, SILENT)
                .await
                .unwrap(),
            Answered::Silence
        );
        assert!(
            tools::echo(west.gateway(), None, target, WAIT)
                .await
                .unwrap()
                .is_answered()
        );
    }
    assert!(
        tools::echo(east.gateway(), None, west.public_ipv4().into(), WAIT)
            .await
            .unwrap()
            .is_answered()
    );
    world.internet.heal(east, north).await.unwrap();
    let back = tools::echo_until(east.gateway(), None, north.public_ipv6().into(), WAIT)
        .await
        .unwrap();
    assert!(back.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_nat_one_can_call_out_and_not_be_called() {
    let world = world().await;
    let east = world
        .internet
        .add_site("east", SiteSpec::default())
        .await
        .unwrap();
    let delay = Duration::from_millis(5);
    let kiosk = world
        .internet
        .behind_relay(
            "kiosk",
            RelaySpec {
                delay,
                ..RelaySpec::nat()
            },
        )
        .await
        .unwrap();
    let Answered::After(round_trip) =
        tools::echo(kiosk.host(), None, east.public_ipv4().into(), WAIT)
            .await
            .unwrap()
    else {
        panic!("no answer through the NAT")
    };
    assert!(round_trip >= 2 * delay, "{round_trip:?}");
    let called = tools::echo(east.gateway(), None, kiosk.public_ipv4().into(), SILENT)
        .await
        .unwrap();
    assert_eq!(called, Answered::Silence);

    let there = east.public_ipv4().into();
    let mut long = LongConnection::open(kiosk.host(), None, east.gateway(), there)
        .await
        .unwrap();
    long.exchange(WAIT).await.unwrap();
    let carried = tools::throughput(
        kiosk.host(),
        None,
        east.gateway(),
        there,
        Duration::from_millis(200),
    )
    .await
    .unwrap();
    assert!(carried.bytes > 100_000, "{carried:?}");
    kiosk.relay().set_loss(1.0);
    assert_eq!(
        tools::echo(kiosk.host(), None, there, SILENT)
            .await
            .unwrap(),
        Answered::Silence
    );
    assert!(kiosk.relay().counters().lost > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_echoes_show_the_gap_of_an_outage() {
    let world = world().await;
    let east = world
        .internet
        .add_site("east", SiteSpec::default())
        .await
        .unwrap();
    let west = world
        .internet
        .add_site("west", SiteSpec::default())
        .await
        .unwrap();
    let steady = Continuous::start(
        east.gateway(),
        None,
        west.public_ipv4().into(),
        Duration::from_millis(5),
    )
    .unwrap();
    let answered = |count: usize| {
        let report = steady.report();
        report.sent() - report.lost() >= count
    };
    eventually(|| answered(10)).await;
    world.internet.partition(&east, &west).await.unwrap();
    let cut = Instant::now();
    eventually(|| steady.report().lost() > 20).await;
    world.internet.heal(&east, &west).await.unwrap();
    let healed = Instant::now();
    let before = steady.report().sent();
    eventually(|| answered(before.saturating_sub(steady.report().lost()) + 10)).await;
    let report = steady.stop(Duration::from_millis(50)).await;
    assert!(
        report.longest_gap() >= healed - cut,
        "{:?}",
        report.longest_gap()
    );
    assert!(
        report
            .first_answer_after(healed)
            .is_some_and(|gap| gap < WAIT)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_over_plain_veth_uses_the_offloads() {
    let world = world().await;
    let east = world
        .internet
        .add_site("east", SiteSpec::default())
        .await
        .unwrap();
    let west = world
        .internet
        .add_site("west", SiteSpec::default())
        .await
        .unwrap();
    let time = Duration::from_millis(300);
    let carried = tools::throughput(
        east.gateway(),
        None,
        west.gateway(),
        west.public_ipv6().into(),
        time,
    )
    .await
    .unwrap();
    assert!(carried.bits_per_second() > 1e9, "{carried:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_packet_arrives_with_its_forged_source() {
    let world = world().await;
    let east = world
        .internet
        .add_site("east", SiteSpec::default())
        .await
        .unwrap();
    let west = world
        .internet
        .add_site("west", SiteSpec::default())
        .await
        .unwrap();
    for (to, forged) in [
        (IpAddr::from(west.public_ipv4()), "203.0.113.9:7"),
        (west.public_ipv6().into(), "[2001:db8:ffff::9]:7"),
    ] {
        let sink = west
            .gateway()
            .run(|| std::net::UdpSocket::bind((to, 0)))
            .unwrap();
        sink.set_read_timeout(Some(WAIT)).unwrap();
        let source: SocketAddr = forged.parse().unwrap();
        let datagram = Datagram {
            source,
            destination: sink.local_addr().unwrap(),
            payload: b"not me",
        };
        tools::inject(east.gateway(), None, &udp_packet(datagram).unwrap()).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(sink.recv_from(&mut buffer).expect(forged), (6, source));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_log_to_their_file_and_end_with_the_lab() {
    let world = world().await;
    let host = world.lab.add_host("solo").unwrap();
    host.namespace()
        .set_resolv_conf("nameserver 192.0.2.53\n")
        .unwrap();
    let say = ProcessSpec::new("say", "/bin/sh")
        .args(["-c", "echo $WORD; cat /etc/resolv.conf; exec sleep 600"]);
    let mut process = host
        .spawn(say.env("WORD", "hello").env("PATH", "/bin:/usr/bin"))
        .unwrap();
    eventually(|| process.log_tail(10).len() == 2).await;
    assert_eq!(process.log_tail(2), ["hello", "nameserver 192.0.2.53"]);
    assert!(process.memory_kib().is_some_and(|kib| kib > 0));
    assert!(tools::memory_kib_of_tree(std::process::id()) >= process.memory_kib().unwrap());
    let World {
        scratch,
        lab,
        internet,
    } = world;
    drop((host, lab, internet));
    assert!(
        !tokio::time::timeout(WAIT, process.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    assert!(scratch.path().join("solo-say.log").exists());
}

/// Waits for a level, at most ten seconds.
async fn eventually(mut reached: impl FnMut() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "not reached in time"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
