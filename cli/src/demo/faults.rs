//! `vl3 demo fault`: what a person can break and mend by hand.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::args::Fault;
use super::service::Service;
use super::world::World;

/// Does it; what was done, for the person.
pub(super) async fn apply(world: &mut World, fault: &Fault) -> anyhow::Result<String> {
    match fault {
        Fault::KillRouter { domain, network } => kill(router(world, domain, network)?).await,
        Fault::StartRouter { domain, network } => start(router(world, domain, network)?),
        Fault::KillRegistry { domain } => kill(&mut world.domain_mut(domain)?.registry).await,
        Fault::StartRegistry { domain } => start(&mut world.domain_mut(domain)?.registry),
        Fault::KillDns { domain, network } => kill(dns(world, domain, network)?).await,
        Fault::StartDns { domain, network } => start(dns(world, domain, network)?),
        Fault::KillClient { workload } => kill(&mut world.workload_mut(workload)?.client).await,
        Fault::StartClient { workload } => start(&mut world.workload_mut(workload)?.client),
        Fault::Partition { one, other } => {
            let (one, other) = (&world.domain(one)?.site, &world.domain(other)?.site);
            world.internet.partition(one, other).await?;
            Ok(format!(
                "{} and {} do not see each other",
                one.name(),
                other.name()
            ))
        }
        Fault::Heal { one, other } => {
            let (one, other) = (&world.domain(one)?.site, &world.domain(other)?.site);
            world.internet.heal(one, other).await?;
            Ok(format!(
                "{} and {} see each other again",
                one.name(),
                other.name()
            ))
        }
        Fault::Loss { percent } => {
            ensure!(
                *percent <= 100,
                "the loss must be 0 to 100 percent, not {percent}"
            );
            world.kiosk.relay().set_loss(f64::from(*percent) / 100.0);
            Ok(format!(
                "the kiosk loses {percent} percent of its packets each way"
            ))
        }
        Fault::Delay { milliseconds } => {
            ensure!(
                *milliseconds <= 10_000,
                "the delay must be at most 10000 ms, not {milliseconds}"
            );
            world
                .kiosk
                .relay()
                .set_delay(Duration::from_millis(*milliseconds));
            Ok(format!(
                "the kiosk's packets take {milliseconds} ms more each way"
            ))
        }
        Fault::RebindNat => {
            world.kiosk.relay().rebind();
            Ok("the kiosk's NAT has forgotten its mappings".to_owned())
        }
    }
}

fn router<'a>(
    world: &'a mut World,
    domain: &str,
    network: &str,
) -> anyhow::Result<&'a mut Service> {
    let domain = world.domain_mut(domain)?;
    domain
        .routers
        .get_mut(network)
        .with_context(|| format!("no router of {network} in {}", domain.name))
}

fn dns<'a>(world: &'a mut World, domain: &str, network: &str) -> anyhow::Result<&'a mut Service> {
    let domain = world.domain_mut(domain)?;
    domain
        .dns
        .get_mut(network)
        .with_context(|| format!("no DNS server of {network} in {}", domain.name))
}

async fn kill(service: &mut Service) -> anyhow::Result<String> {
    service.kill().await?;
    Ok(format!("{} is dead", service.label()))
}

fn start(service: &mut Service) -> anyhow::Result<String> {
    service.start()?;
    Ok(format!("{} runs", service.label()))
}
