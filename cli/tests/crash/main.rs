//! `kill -9` of a registry's process at random instants, under load: whatever was acknowledged
//! is there after the restart, and what is on disk breaks no invariant. Some kills hit a registry
//! that starts, and the journal is rewritten all the time.
//!
//! `VL3_CRASH_KILLS` and `VL3_CRASH_SEED` make it a longer or another run (`cargo xtask crash`).

mod model;
mod world;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use model::{Load, eventually_over};
use world::World;

const KILLS: u32 = 40;
/// From the first operation of a life to its end.
const LIFE_MS: std::ops::Range<u64> = 5..150;
/// From the start of the process to its end, for one life in `EARLY`: it takes about as long
/// until it serves.
const EARLY_MS: std::ops::Range<u64> = 0..60;
const EARLY: u32 = 3;
/// Kills after which chance is no excuse for a run without this.
const MANY: u32 = 40;

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_to_a_kill() {
    vl3_identity::install_crypto_provider();
    let kills = setting("VL3_CRASH_KILLS").unwrap_or(KILLS);
    let seed = setting("VL3_CRASH_SEED").unwrap_or_else(rand::random::<u64>);
    println!("{kills} kills, seed {seed} (the instants of the disk are not in it)");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    let mut load = Load::new(&world, rng.random());
    let started = Instant::now();
    let (mut checked, mut rewrites, mut starting) = (0, 0, 0);
    for kill in 1..=kills {
        world.start();
        if kill % EARLY == 0 {
            eventually_over(Duration::from_millis(rng.random_range(EARLY_MS))).await;
            starting += u32::from(!world.is_ready().await);
            world.kill();
        } else {
            let status = world.eventually_status().await;
            load.compare(&status)
                .unwrap_or_else(|lost| panic!("kill {}, seed {seed}: {lost}", kill - 1));
            let life = Duration::from_millis(rng.random_range(LIFE_MS));
            load.run(&world, life).await;
            rewrites += world.rewrites().await;
            load.dies_now();
            world.kill();
            load.settle().await;
        }
        checked += world.check();
        if kill % 25 == 0 || kill == kills {
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "{kill} kills in {seconds:.0} s ({:.1}/s): {}",
                f64::from(kill) / seconds,
                load.told()
            );
        }
    }
    world.start();
    let status = world.eventually_status().await;
    load.compare(&status)
        .unwrap_or_else(|lost| panic!("the last kill, seed {seed}: {lost}"));
    println!("{}", load.table());
    println!("checks: {kills} clean, {checked} records looked at");
    println!("{rewrites} rewrites of the journal, {starting} kills before it served");
    assert!(
        kills < MANY || (rewrites > 0 && starting > 0),
        "{rewrites} rewrites of the journal, {starting} kills before it served"
    );
    assert!(
        load.acknowledged() > u64::from(kills),
        "hardly any load: {}",
        load.told()
    );
}
