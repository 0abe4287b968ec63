//! Both networks are signed documents, and one IPv4 pool serves both.

use anyhow::{Context, ensure};

use crate::demo::world::World;

pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    let host = world.domain("east")?.site.gateway();
    let mut pools = Vec::new();
    let mut detail = Vec::new();
    for network in &world.networks {
        network.verify(host).await?;
        let chain = network.chain()?;
        let document = chain.document();
        pools.push(document.pool4.context("it has an IPv4 pool")?);
        detail.push(format!(
            "{} version {} with {} members",
            document.name,
            document.version,
            document.members.len()
        ));
    }
    ensure!(
        pools.windows(2).all(|pair| pair[0] == pair[1]),
        "the IPv4 pools differ: {pools:?}"
    );
    let pool = pools.first().context("there is a network")?;
    Ok(format!(
        "{}; the signatures are right; both use {pool}",
        detail.join(", ")
    ))
}
