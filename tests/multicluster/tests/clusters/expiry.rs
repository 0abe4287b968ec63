//! Rights that end: a workload that is gone, an issuer that is gone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vl3_lab::SiteSpec;
use vl3_lab::tools::{Continuous, QueryType, Rcode, reverse_name};
use vl3_multicluster::{Addresses, Country, Mechanism, eventually};

use crate::{JOINED_MAX, Steady, pair_in, pair_with};

/// Of every path token in these tests.
const SHORT: &str = "token_lifetime = \"5s\"\n";
const TOKEN_LIFE: Duration = Duration::from_secs(5);
/// At most 5 s of token are left of who is killed, and 25 s are allowed after that.
const GONE_MAX: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(100);

/// What a router holds of a workload, by its addresses.
fn traces(status: &Value, at: Addresses) -> Vec<String> {
    let (v4, v6) = (at.v4.to_string(), at.v6.to_string());
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let holds = |entry: &Value| {
        let texts = entry["addresses"].as_array().into_iter().flatten();
        let prefix = entry["prefix"]
            .as_str()
            .map(|prefix| prefix.split('/').next());
        texts
            .filter_map(Value::as_str)
            .chain(prefix.flatten())
            .any(|text| text == v4 || text == v6)
    };
    let mut found = Vec::new();
    for key in ["workloads", "names", "routes"] {
        let held = list(key).into_iter().filter(|entry| holds(entry));
        found.extend(held.map(|entry| format!("{key}: {entry}")));
    }
    found
}

fn members(status: &Value) -> usize {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    peers
        .iter()
        .filter(|peer| peer["class"] == "Member")
        .count()
}

/// What must be the same before and after, whoever else died.
fn lasting(status: &Value, gone: &[Addresses]) -> Value {
    let without = |key: &str, fields: &[&str]| -> Vec<Value> {
        let entries = status[key].as_array().into_iter().flatten();
        entries
            .filter(|entry| {
                let one = json!({ key: [entry] });
                !gone.iter().any(|at| !traces(&one, *at).is_empty())
            })
            .map(|entry| fields.iter().map(|field| entry[*field].clone()).collect())
            .collect()
    };
    json!({
        "lease": status["lease"],
        "links": without("links", &["router", "generation", "endpoint", "state", "port"]),
        "received": without("received", &["router", "live", "prefixes"]),
        "workloads": without("workloads", &["connection", "name", "addresses", "port", "live"]),
        "names": without("names", &["name", "addresses"]),
        "routes": without("routes", &["prefix", "via", "port", "class", "mtu"]),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workload_is_gone_soon_after_its_token_and_nothing_else_changes()
-> anyhow::Result<()> {
    let country = Country::new().await?;
    let mut world = pair_in(country, SiteSpec::default(), SiteSpec::default(), SHORT).await?;
    let red = [("red", Mechanism::Tun)];
    let mut west_b = world
        .west
        .add_workload(&world.country, "west-b", &red, SHORT)
        .await?;
    let at_west_b = west_b.attach("red").await?;
    let mut west_c = world
        .west
        .add_workload(&world.country, "west-c", &red, SHORT)
        .await?;
    let at_west_c = west_c.attach("red").await?;
    let names = [
        ("west-a.west.red.vl3", world.at_west_a),
        ("west-b.west.red.vl3", at_west_b),
    ];
    for (name, at) in names {
        world.east_a.resolves(name, at.v6, JOINED_MAX).await?;
    }
    world.east_a.reaches_both(at_west_c, JOINED_MAX).await?;
    let others = Steady::start(&[("east to west", &world.east_a.host, at_west_c)])?;
    let doomed = [world.at_west_a, at_west_b];
    let before = world.west.router("red")?.status().await?;
    let east_before = world.east.router("red")?.status().await?;
    for at in doomed {
        anyhow::ensure!(
            traces(&before, at).len() >= 4,
            "a workload, a name and two routes are expected of {at:?}: {before:#}"
        );
    }

    world.west_a.client.kill().await?;
    west_b.client.kill().await?;
    let killed = Instant::now();
    let left = || {
        GONE_MAX
            .saturating_sub(killed.elapsed())
            .max(Duration::from_secs(1))
    };
    let router = world.west.router("red")?;
    let peers_left = members(&before) - doomed.len();
    let waited = eventually("names, peers and routes are gone", GONE_MAX, || async {
        let status = router.status().await?;
        let traces: Vec<_> = doomed.iter().flat_map(|at| traces(&status, *at)).collect();
        anyhow::ensure!(traces.is_empty(), "{}", traces.join("\n"));
        anyhow::ensure!(members(&status) == peers_left, "{}", status["peers"]);
        Ok(true)
    });
    waited.await?;
    for (name, at) in names {
        let reverse = [reverse_name(at.v4.into()), reverse_name(at.v6.into())];
        let questions = [(name.to_owned(), QueryType::Aaaa)]
            .into_iter()
            .chain(reverse.map(|name| (name, QueryType::Ptr)));
        for (name, kind) in questions {
            eventually(&format!("{name} is gone"), left(), || async {
                Ok(world.east_a.ask(&name, kind).await?.rcode == Rcode::NxDomain)
            })
            .await?;
        }
    }

    others.lost_nothing().await?;
    let after = world.west.router("red")?.status().await?;
    let (was, is) = (lasting(&before, &doomed), lasting(&after, &doomed));
    anyhow::ensure!(was == is, "west held {was:#}, holds {is:#}");
    let east_after = world.east.router("red")?.status().await?;
    let (was, is) = (
        lasting(&east_before, &doomed),
        lasting(&east_after, &doomed),
    );
    anyhow::ensure!(was == is, "east held {was:#}, holds {is:#}");
    // The router serves whoever comes next.
    let mut west_d = world
        .west
        .add_workload(&world.country, "west-d", &red, SHORT)
        .await?;
    let at = west_d.attach("red").await?;
    world.east_a.reaches_both(at, JOINED_MAX).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_goes_on_when_the_issuer_is_gone_for_longer_than_a_token_lives()
-> anyhow::Result<()> {
    let country = Country::new().await?;
    let world = pair_in(country, SiteSpec::default(), SiteSpec::default(), SHORT).await?;
    let red = [("red", Mechanism::Wireguard)];
    let mut east_b = world
        .east
        .add_workload(&world.country, "east-b", &red, SHORT)
        .await?;
    // Its certificate ends soon, and nobody renews the files.
    world.country.issue("east", "client", "east-b", "15s")?;
    let issued = Instant::now();
    let at = east_b.attach("red").await?;
    east_b.reaches_both(world.at_west_a, JOINED_MAX).await?;
    let pings = Continuous::start(&world.west_a.host, None, at.v4.into(), INTERVAL)?;
    eventually(
        "certificate and every token have ended",
        Duration::from_secs(60),
        || async { Ok(issued.elapsed() > Duration::from_secs(30)) },
    )
    .await?;
    let report = pings.stop(Duration::from_secs(1)).await;
    anyhow::ensure!(
        report.lost() == 0,
        "{} of {} packets lost",
        report.lost(),
        report.sent()
    );
    // The issuer is back: the right is renewed, with the same addresses.
    world.country.issue("east", "client", "east-b", "24h")?;
    east_b.reaches_both(world.at_west_a, JOINED_MAX).await?;
    anyhow::ensure!(
        east_b.addresses("red").await? == at,
        "its addresses changed"
    );
    Ok(())
}

/// Connections are refreshed by tokens that the new key signs; a connection whose refreshes are
/// refused is stale after a token's life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_goes_on_when_every_identity_is_renewed() -> anyhow::Result<()> {
    let country = Country::new().await?;
    let sites = [SiteSpec::default(), SiteSpec::default()];
    let mut world = pair_with(country, sites, SHORT, SHORT).await?;
    world
        .east_a
        .resolves("west-a.west.red.vl3", world.at_west_a.v6, JOINED_MAX)
        .await?;
    let traffic = Steady::start(&[
        ("east to west", &world.east_a.host, world.at_west_a),
        ("west to east", &world.west_a.host, world.at_east_a),
    ])?;

    for domain in ["east", "west"] {
        let router = format!("red-{domain}");
        let workload = format!("{domain}-a");
        let roles: [(&str, &str); 4] = [
            ("registry", domain),
            ("router", &router),
            ("dns", &router),
            ("client", &workload),
        ];
        for (role, name) in roles {
            world.country.issue(domain, role, name, "24h")?;
        }
    }
    let renewed = Instant::now();
    let fresh = "every connection was refreshed after the last former token ended";
    eventually(fresh, TOKEN_LIFE * 8, || async {
        Ok(renewed.elapsed() > TOKEN_LIFE * 3)
    })
    .await?;
    for domain in [&mut world.east, &mut world.west] {
        let router = domain.router("red")?;
        eventually("workloads live, links up", TOKEN_LIFE, || async {
            let status = router.status().await?;
            let all = |key: &str, holds: &dyn Fn(&Value) -> bool| {
                let list = status[key].as_array().map_or(&[][..], Vec::as_slice);
                !list.is_empty() && list.iter().all(holds)
            };
            let live = all("workloads", &|one| {
                one["live"] == true && one["stale"] == false
            });
            let linked = all("links", &|one| {
                one["state"] == "up" && one["last_error"].is_null()
            });
            anyhow::ensure!(
                live && linked,
                "{:#} {:#}",
                status["workloads"],
                status["links"]
            );
            Ok(true)
        })
        .await?;
    }
    traffic.lost_nothing().await?;

    let red = [("red", Mechanism::Tun)];
    let mut west_b = world
        .west
        .add_workload(&world.country, "west-b", &red, SHORT)
        .await?;
    let at = west_b.attach("red").await?;
    world.east_a.reaches_both(at, JOINED_MAX).await?;
    world
        .east_a
        .resolves("west-b.west.red.vl3", at.v6, JOINED_MAX)
        .await
}
