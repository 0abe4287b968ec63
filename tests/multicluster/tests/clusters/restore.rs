//! A registry that loses its state gets it back from a backup, under traffic.

use std::time::Duration;

use serde_json::Value;
use vl3_lab::SiteSpec;
use vl3_multicluster::{Mechanism, Service, verb};

use crate::{JOINED_MAX, Steady, pair};

/// One verb of an operator at a registry, as JSON.
fn ask(world: &crate::Pair, words: &[&str], registry: &Service) -> anyhow::Result<Value> {
    let run_dir = registry.run_dir().display().to_string();
    let words = [&["registry"], words, &[&run_dir, "-o", "json"]].concat();
    Ok(serde_json::from_str(&verb(world.country.base(), &words)?)?)
}

/// Who holds an address, without what runs with the clock or is this registry's own past.
fn owners(answer: &Value) -> Vec<(String, String)> {
    let found = answer["found"].as_array().into_iter().flatten();
    let told = found.map(|entry| {
        let fields = [
            "name",
            "identity",
            "router",
            "range",
            "prefixes",
            "generation",
            "instance",
            "since",
        ];
        let fields = fields.map(|field| entry[field].to_string());
        (entry["what"].to_string(), fields.join(" "))
    });
    told.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_restored_after_a_wipe_costs_no_packet_address_or_lease() -> anyhow::Result<()> {
    let mut world = pair(SiteSpec::default(), SiteSpec::default()).await?;
    let steady = Steady::start(&[
        ("east to west", &world.east_a.host, world.at_west_a),
        ("west to east", &world.west_a.host, world.at_east_a),
    ])?;
    let address = world.at_west_a.v4.to_string();
    let mut registry = world.west.registry.take().expect("a registry");
    let before = ask(&world, &["who-owns", &address], &registry)?;
    anyhow::ensure!(before["found"][0]["what"] == "workload", "{before}");
    let leases = ask(&world, &["leases"], &registry)?;
    let file = world.country.base().join("west.backup");
    let file = file.display().to_string();
    let report = ask(&world, &["backup", &file], &registry)?;
    anyhow::ensure!(report["clean"] == true && report["leases"] == 1, "{report}");

    registry.kill().await?;
    let state = world.country.base().join("state/registry-west");
    std::fs::remove_dir_all(&state)?;
    let state = state.display().to_string();
    verb(
        world.country.base(),
        &["registry", "restore", &file, "--state-dir", &state],
    )?;
    registry.start()?;
    registry.ready().await?;

    let after = ask(&world, &["who-owns", &address], &registry)?;
    anyhow::ensure!(owners(&after) == owners(&before), "{before}\n{after}");
    let same = |leases: &Value| {
        let rows = leases["leases"].as_array().into_iter().flatten();
        let told = rows.map(|row| (row["router"].clone(), row["prefixes"].clone()));
        told.collect::<Vec<_>>()
    };
    let leases_after = ask(&world, &["leases"], &registry)?;
    anyhow::ensure!(
        same(&leases_after) == same(&leases),
        "{leases}\n{leases_after}"
    );
    let report = ask(&world, &["check"], &registry)?;
    anyhow::ensure!(
        report["clean"] == true && report["readopting"] == 1,
        "{report}"
    );
    world.west.registry = Some(registry);
    // A newcomer attaches to the router, which needs no new lease for that.
    let mut west_b = world
        .west
        .add_workload(&world.country, "west-b", &[("red", Mechanism::Tun)], "")
        .await?;
    let at_west_b = west_b.attach("red").await?;
    world.east_a.reaches_both(at_west_b, JOINED_MAX).await?;
    world
        .east_a
        .resolves("west-b.west.red.vl3", at_west_b.v6, JOINED_MAX)
        .await?;
    steady.lost_nothing().await?;
    anyhow::ensure!(
        world.west_a.addresses("red").await? == world.at_west_a,
        "other addresses"
    );
    world
        .east_a
        .reaches_both(world.at_west_a, Duration::from_secs(1))
        .await
}
