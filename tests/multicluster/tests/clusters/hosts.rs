//! What a client does to its host's name resolution, and that it is undone.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use vl3_lab::SiteSpec;
use vl3_multicluster::{
    Country, Domain, Mechanism, NetworkSpec, Workload, eventually, eventually_some,
};

/// Between two looks at the file a client lets five seconds pass.
const SEEN_MAX: Duration = Duration::from_secs(15);
const STOP_MAX: Duration = Duration::from_secs(10);
const RED: [(&str, Mechanism); 1] = [("red", Mechanism::Wireguard)];

/// No line end at the end.
const BY_HAND: &str = "# by hand\nnameserver 192.0.2.53\nsearch corp.example";
const BY_DHCP: &str = "# by a DHCP client\nsearch lan\nnameserver 198.51.100.53\n";

async fn east() -> anyhow::Result<(Country, Domain)> {
    let mut country = Country::new().await?;
    let mut east = country.add_domain("east", SiteSpec::default()).await?;
    country.add_network(NetworkSpec::RED, &[&east])?;
    east.start(&country, &["red"]).await?;
    Ok((country, east))
}

fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Until the file's last search line is this one, and a server stands before the host's own.
async fn eventually_searches(path: &Path, search: &str) -> anyhow::Result<()> {
    eventually(&format!("{search:?} in resolv.conf"), SEEN_MAX, || async {
        let lines = lines(path)?;
        let last = lines.iter().rfind(|line| line.starts_with("search "));
        let server = lines.iter().find(|line| line.starts_with("nameserver "));
        let is_ours = server.is_some_and(|line| line.starts_with("nameserver 10.80."));
        Ok(is_ours && last.is_some_and(|line| line == search))
    })
    .await
    .with_context(|| format!("{:#?}", lines(path)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_clients_lines_are_taken_out_by_the_next_start_of_any() -> anyhow::Result<()> {
    let (country, east) = east().await?;
    let path = country.base().join("resolv.conf");
    std::fs::write(&path, BY_HAND)?;
    let keys = format!("resolv_conf = {path:?}\n");
    let mut first = east.add_workload(&country, "east-a", &RED, &keys).await?;
    first.attach("red").await?;
    eventually_searches(&path, "search corp.example red.vl3").await?;

    // Written anew by somebody else, it gets the lines again.
    std::fs::write(&path, BY_DHCP)?;
    eventually_searches(&path, "search lan red.vl3").await?;

    first.client.kill().await?;
    let left = std::fs::read_to_string(&path)?;
    assert!(left.contains("# vl3 client east-a "), "{left}");

    // Another client on the same file puts it right for both.
    let mut second = east.add_workload(&country, "east-b", &RED, &keys).await?;
    second.attach("red").await?;
    eventually_searches(&path, "search lan red.vl3").await?;
    let text = std::fs::read_to_string(&path)?;
    assert!(!text.contains("# vl3 client east-a "), "{text}");
    first.client.start()?;
    eventually("both are in the file", SEEN_MAX, || async {
        let text = std::fs::read_to_string(&path)?;
        Ok(["east-a", "east-b"]
            .iter()
            .all(|name| text.contains(&format!("# vl3 client {name} "))))
    })
    .await?;
    second.client.stop(STOP_MAX).await?;
    eventually_searches(&path, "search lan red.vl3").await?;
    first.client.kill().await?;
    first.client.start()?;
    first.addresses("red").await?;
    eventually_searches(&path, "search lan red.vl3").await?;
    first.client.stop(STOP_MAX).await?;
    assert_eq!(std::fs::read_to_string(&path)?, BY_DHCP);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_written_costs_the_names_and_not_the_network() -> anyhow::Result<()> {
    let (country, east) = east().await?;
    let path = country.base().join("dangling");
    std::os::unix::fs::symlink("nowhere", &path)?;
    let keys = format!("resolv_conf = {path:?}\n");
    let mut client = east.add_workload(&country, "east-a", &RED, &keys).await?;
    client.attach("red").await?;
    let error = eventually_shown(&client, "error").await?;
    assert!(error.contains("a link to one that is not there"), "{error}");
    // Once it is there, the names are as well.
    std::fs::write(country.base().join("nowhere"), BY_HAND)?;
    eventually_searches(&path, "search corp.example red.vl3").await?;
    client.client.stop(STOP_MAX).await?;
    assert_eq!(std::fs::read_to_string(&path)?, BY_HAND);
    Ok(())
}

/// What the client's status says about names, once it says something.
async fn eventually_shown(client: &Workload, key: &str) -> anyhow::Result<String> {
    let what = format!("names.{key} in the status");
    eventually_some(&what, SEEN_MAX, || async {
        let status = client.client.status().await?;
        let shown = status["names"][key].as_str().map(str::to_owned);
        Ok(shown.filter(|shown| shown != "nothing"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_told_or_given_to_systemd_resolved_as_asked() -> anyhow::Result<()> {
    let (country, east) = east().await?;
    let none = "resolv_conf = \"none\"\n";
    let mut told = east.add_workload(&country, "east-a", &RED, none).await?;
    told.attach("red").await?;
    let add = eventually_shown(&told, "add").await?;
    assert!(
        add.starts_with("nameserver 10.80.")
            && add.ends_with("red.vl3 at the end of the search line"),
        "{add}"
    );
    assert_eq!(told.host.namespace().resolv_conf()?, "", "it was changed");

    let calls = country.base().join("calls");
    let bin = country.base().join("bin");
    std::fs::create_dir(&bin)?;
    write_program(
        &bin.join("resolvectl"),
        &format!("#!/bin/sh\necho \"$@\" >> {}\n", calls.display()),
    )?;
    let resolved = "resolved = true\n";
    let mut given = east
        .add_workload(&country, "east-b", &RED, resolved)
        .await?;
    let path = bin.to_string_lossy().into_owned();
    given.client.environment.push(("PATH".to_owned(), path));
    given.attach("red").await?;
    eventually("the last call", SEEN_MAX, || async {
        Ok(calls.exists() && lines(&calls)?.len() >= 5)
    })
    .await?;
    given.client.stop(STOP_MAX).await?;
    let calls = lines(&calls)?;
    assert!(calls[0].starts_with("dns red 10.80."), "{calls:#?}");
    assert!(
        calls[1].starts_with("domain red red.vl3 ~80.10.in-addr.arpa ~"),
        "{calls:#?}"
    );
    assert_eq!(calls[2], "default-route red no");
    assert_eq!(calls.last().map(String::as_str), Some("revert red"));

    // Without it the network is up, and what is missing is said.
    let mut missing = east
        .add_workload(&country, "east-c", &RED, resolved)
        .await?;
    let nowhere = country.base().to_string_lossy().into_owned();
    missing
        .client
        .environment
        .push(("PATH".to_owned(), nowhere));
    missing.attach("red").await?;
    let error = eventually_shown(&missing, "error").await?;
    assert!(error.contains("resolvectl is not on the PATH"), "{error}");
    Ok(())
}

/// By another process: a file that is open for writing here cannot be run by whoever inherits it.
fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .arg(text)
        .status()?;
    anyhow::ensure!(written.success(), "write {}", path.display());
    Ok(())
}
