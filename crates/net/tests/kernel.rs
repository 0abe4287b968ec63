//! Against the running kernel, in anonymous namespaces; needs root.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use vl3_net::privileges::{Capability, keep_only};
use vl3_net::{Namespace, Netlink, Route, Rule, TABLE_MAIN, process::Spawner, sysctl, tun};

fn net(text: &str) -> IpNet {
    text.parse().expect("a constant")
}

#[tokio::test]
async fn two_namespaces_talk_over_a_veth_pair_made_without_any_program() {
    let (left, right) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let (l, r) = (
        Netlink::open_in(&left).unwrap(),
        Netlink::open_in(&right).unwrap(),
    );
    l.add_veth("up", "down", Some(&right), 9000).await.unwrap();
    for (netlink, name, four, six) in [
        (&l, "up", "10.1.0.1/24", "fd00::1/64"),
        (&r, "down", "10.1.0.2/24", "fd00::2/64"),
    ] {
        for address in [four, six] {
            netlink.add_address(name, net(address)).await.unwrap();
            netlink.add_address(name, net(address)).await.unwrap();
        }
        netlink.link_up(name).await.unwrap();
        let link = netlink.link(name).await.unwrap().unwrap();
        assert_eq!((link.mtu, link.up), (9000, true));
    }
    for (one, other) in [("10.1.0.1:0", "10.1.0.2:0"), ("[fd00::1]:0", "[fd00::2]:0")] {
        let from = left.run(|| UdpSocket::bind(one)).unwrap();
        let to = right.run(|| UdpSocket::bind(other)).unwrap();
        to.set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        from.send_to(b"over", to.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        let (len, sender) = to.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..len], sender),
            (&b"over"[..], from.local_addr().unwrap())
        );
    }
    l.rename_link("up", "renamed").await.unwrap();
    l.delete_link("renamed").await.unwrap();
    l.delete_link("renamed").await.unwrap();
    assert!(!l.link_exists("renamed").await.unwrap());
    assert!(!r.link_exists("down").await.unwrap());
}

#[tokio::test]
async fn routes_and_rules_can_be_set_and_taken_back_twice() {
    let namespace = Namespace::new().unwrap();
    let netlink = Netlink::open_in(&namespace).unwrap();
    let (_tun, name) = namespace.run(|| tun::create("t0", false)).unwrap();
    netlink
        .add_address(&name, net("10.2.0.1/32"))
        .await
        .unwrap();
    netlink
        .add_address(&name, net("fd02::1/128"))
        .await
        .unwrap();
    netlink.set_mtu(&name, 1380).await.unwrap();
    netlink.link_up(&name).await.unwrap();
    let routes = [
        Route::to(net("10.3.0.0/16")).dev(&name).mtu(1280),
        Route::to(net("10.4.0.0/16"))
            .dev(&name)
            .via("10.2.0.9".parse().unwrap())
            .on_link(),
        Route::to(net("10.5.0.0/16")).blackhole().metric(7),
        Route::to(net("0.0.0.0/0")).dev(&name).table(1000),
        Route::to(net("fd03::/16")).dev(&name).metric(5),
        Route::to(net("::/0"))
            .dev(&name)
            .table(1000)
            .source("fd02::1".parse().unwrap()),
        Route::to(net("fd05::/64")).blackhole(),
    ];
    let rules = [
        Rule {
            source: net("10.2.0.1/32"),
            table: 1000,
            priority: 100,
        },
        Rule {
            source: net("fd02::1/128"),
            table: 1000,
            priority: 100,
        },
    ];
    for _ in 0..2 {
        for route in &routes {
            netlink.replace_route(route).await.unwrap();
        }
        for rule in rules {
            netlink.add_rule(rule).await.unwrap();
        }
    }
    let main = netlink.routes(TABLE_MAIN).await.unwrap();
    assert!(
        main.iter()
            .any(|route| route.destination == net("10.3.0.0/16") && route.mtu == Some(1280)),
        "{main:#?}"
    );
    assert!(
        main.iter()
            .any(|route| route.destination == net("10.5.0.0/16") && route.blackhole)
    );
    assert!(
        main.iter()
            .any(|route| route.destination == net("fd05::/64") && route.blackhole),
        "{main:#?}"
    );
    assert_eq!(netlink.routes(1000).await.unwrap().len(), 2);
    for _ in 0..2 {
        for route in &routes {
            netlink.delete_route(route).await.unwrap();
        }
        for rule in rules {
            netlink.delete_rule(rule).await.unwrap();
        }
    }
    assert!(netlink.routes(1000).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_tun_has_as_many_queues_as_were_opened_and_goes_with_the_last() {
    let namespace = Namespace::new().unwrap();
    let netlink = Netlink::open_in(&namespace).unwrap();
    let (first, name) = namespace.run(|| tun::create("vl3-%d", true)).unwrap();
    assert_eq!(name, "vl3-0");
    let (second, same) = namespace.run(|| tun::create(&name, true)).unwrap();
    assert_eq!(same, name);
    drop(first);
    assert!(netlink.link_exists(&name).await.unwrap());
    let busy = namespace.run(|| tun::create(&name, false)).unwrap_err();
    assert!(busy.errno().is_some(), "{busy}");
    drop(second);
    eventually_gone(&netlink, &name).await;
}

#[tokio::test]
async fn a_wrong_interface_is_named_in_the_error() {
    let namespace = Namespace::new().unwrap();
    let netlink = Netlink::open_in(&namespace).unwrap();
    let error = netlink.link_up("missing").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "bring up missing: no interface named missing"
    );
    assert!(netlink.addresses("missing").await.is_err());
}

#[tokio::test]
async fn a_child_lives_in_the_namespaces_and_dies_with_its_spawner() {
    let namespace = Namespace::with_resolv_conf("nameserver 192.0.2.1\n").unwrap();
    namespace
        .run(|| sysctl::write("net/ipv4/ip_forward", "1"))
        .unwrap();
    let spawner = Spawner::start().unwrap();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "cat /proc/sys/net/ipv4/ip_forward /etc/resolv.conf"])
        .stdout(Stdio::piped());
    let mut child = spawner.spawn(command, Some(&namespace)).unwrap();
    assert!(child.wait().await.unwrap().success());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.pipes().stdout.take().unwrap(), &mut text).unwrap();
    assert_eq!(text, "1\nnameserver 192.0.2.1\n");
    namespace.set_resolv_conf("search red.vl3\n").unwrap();
    assert_eq!(namespace.resolv_conf().unwrap(), "search red.vl3\n");

    let mut command = Command::new("/bin/sleep");
    command.arg("600");
    let mut child = spawner.spawn(command, Some(&namespace)).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(spawner);
    let status = child.wait().await.unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
}

#[tokio::test]
async fn sysctls_and_sockets_of_one_namespace_leave_others_alone() {
    let (one, other) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    one.run(sysctl::enable_forwarding).unwrap();
    assert_eq!(
        one.run(|| sysctl::read("net/ipv6/conf/all/forwarding"))
            .unwrap(),
        "1"
    );
    assert_eq!(
        other
            .run(|| sysctl::read("net/ipv6/conf/all/forwarding"))
            .unwrap(),
        "0"
    );
    let here: IpAddr = "127.0.0.1".parse().unwrap();
    let taken = one.run(|| UdpSocket::bind((here, 5353))).unwrap();
    let free = other.run(|| UdpSocket::bind((here, 5353))).unwrap();
    assert!(taken.as_fd().try_clone_to_owned().is_ok() && free.local_addr().is_ok());
}

/// A child that another test is just starting holds every descriptor until its exec.
async fn eventually_gone(netlink: &Netlink, name: &str) {
    for _ in 0..200 {
        if !netlink.link_exists(name).await.expect("a link query") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{name} is still there");
}

#[test]
fn a_thread_keeps_the_capabilities_it_names_and_gets_no_others_back() {
    let line = |status: &str, key: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(key));
        found.unwrap().trim().to_owned()
    };
    // Capabilities belong to threads: this one alone gives its own up.
    let limited = std::thread::spawn(|| {
        keep_only(&[Capability::NetAdmin]).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        keep_only(&[Capability::NetAdmin, Capability::SysAdmin]).unwrap();
        let later = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        (status, later)
    });
    let (status, later) = limited.join().unwrap();
    for status in [status, later] {
        for key in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(line(&status, key), "0000000000001000", "{key}");
        }
        for key in ["CapInh:", "CapAmb:"] {
            assert_eq!(line(&status, key), "0000000000000000", "{key}");
        }
        assert_eq!(line(&status, "NoNewPrivs:"), "1");
    }
}
