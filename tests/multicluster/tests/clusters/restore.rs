//! A registry that loses its state gets it back from a backup, under traffic.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tonic::{Code, Status};
use vl3_core::allocator::{Acquire, Lease};
use vl3_core::ids::{InstanceId, NetworkUid, RouterName};
use vl3_identity::{Source, Trust};
use vl3_lab::SiteSpec;
use vl3_multicluster::{Country, Mechanism, Service, eventually_some, verb};
use vl3_proto::lease::{decode_granted, encode_acquire};
use vl3_proto::vl3::ipam::v1::ipam_client::IpamClient;
use vl3_runtime::grpc::{Dialer, Expect};

use crate::{JOINED_MAX, Steady, joined};

/// After a restore leases are only taken back for twice as long.
const RENEW_AFTER: &str = "renew_after = \"15s\"\n";
const TAKING_BACK_MAX: Duration = Duration::from_secs(60);

/// A router of west that does nothing but lease.
struct Router {
    name: &'static str,
    identity: PathBuf,
    uid: NetworkUid,
    socket: PathBuf,
}

impl Router {
    fn new(country: &Country, name: &'static str, registry: &Service) -> anyhow::Result<Self> {
        let uid = country.network("red")?.uid.parse();
        Ok(Self {
            name,
            identity: country.issue("west", "router", name, "24h")?,
            uid: uid.map_err(|_| anyhow::anyhow!("no uid"))?,
            socket: registry.run_dir().join("registry.sock"),
        })
    }

    /// With what it holds, where it holds something.
    async fn acquire(&self, held: Option<Lease>) -> anyhow::Result<Result<Lease, Status>> {
        let source = Source::from_dir(&self.identity)?;
        let trust = Trust::new(&source);
        let url = format!("unix://{}", self.socket.display()).parse()?;
        let dialer = Dialer::new(source, trust);
        let connection = dialer.dial(&url, Expect::anybody()).await?;
        let acquire = Acquire {
            router: RouterName::new(self.name)?,
            instance: InstanceId([7; 16]),
            held,
            prefix_len4: Some(28),
            exclusions: Vec::new(),
        };
        let mut client = IpamClient::new(connection.plain());
        Ok(
            match client.acquire(encode_acquire(self.uid, &acquire)).await {
                Ok(granted) => Ok(decode_granted(granted.get_ref())?.lease),
                Err(status) => Err(status),
            },
        )
    }
}

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

/// These are among the leases, and no two leases overlap.
fn no_prefix_twice(leases: &Value, among: &[&Lease]) -> anyhow::Result<()> {
    let rows = leases["leases"].as_array().into_iter().flatten();
    let prefixes = rows.flat_map(|row| row["prefixes"].as_array().into_iter().flatten());
    let prefixes: Vec<ipnet::IpNet> = prefixes
        .map(|prefix| Ok(prefix.as_str().unwrap_or_default().parse()?))
        .collect::<anyhow::Result<_>>()?;
    for (at, one) in prefixes.iter().enumerate() {
        let mut others = prefixes[..at].iter();
        let twice = others.find(|other| other.contains(one) || one.contains(*other));
        anyhow::ensure!(twice.is_none(), "{one} and {twice:?}: {leases}");
    }
    for lease in among {
        let listed = lease.prefixes().all(|prefix| prefixes.contains(&prefix));
        anyhow::ensure!(listed, "{lease:?} is not among {leases}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_restored_after_a_wipe_costs_no_packet_address_or_lease() -> anyhow::Result<()> {
    let country = Country::new().await?;
    let east = country.add_domain("east", SiteSpec::default()).await?;
    let mut west = country.add_domain("west", SiteSpec::default()).await?;
    west.registry_keys = RENEW_AFTER.to_owned();
    let mut world = joined(country, east, west, "").await?;
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

    // What the backup knows nothing of.
    let second = Router::new(&world.country, "red-second", &registry)?;
    let held = second.acquire(None).await??;

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
    // Who asks for a new prefix could get the second router's: nobody does until it is back.
    let third = Router::new(&world.country, "red-third", &registry)?;
    let refused = third.acquire(None).await?;
    anyhow::ensure!(
        matches!(&refused, Err(status) if status.code() == Code::Unavailable
            && status.message().contains("restored")),
        "a new prefix while leases are taken back: {refused:?}"
    );
    let kept = second.acquire(Some(held.clone())).await??;
    anyhow::ensure!(
        (kept.prefix4, kept.prefix6) == (held.prefix4, held.prefix6),
        "{held:?} came back as {kept:?}"
    );
    let new = eventually_some("new prefixes are leased again", TAKING_BACK_MAX, || async {
        Ok(third.acquire(None).await?.ok())
    })
    .await?;
    let leases = ask(&world, &["leases"], &registry)?;
    no_prefix_twice(&leases, &[&kept, &new])?;
    let report = ask(&world, &["check"], &registry)?;
    anyhow::ensure!(
        report["clean"] == true && report["readopting"] == 0 && report["leases"] == 3,
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
