//! `vl3 demo status`: hosts, processes and addresses as tables.

use vl3_lab::admin;

use super::world::World;
use crate::output::table;

pub(super) async fn world(world: &World) -> String {
    let mut text = String::from("Workloads\n");
    let mut grid = table(
        &[
            "workload",
            "domain",
            "network",
            "mechanism",
            "IPv4",
            "IPv6",
            "client",
        ]
        .map(str::to_owned),
    );
    for workload in &world.workloads {
        for (network, mechanism) in workload.plan.networks {
            let held = workload.in_network(network);
            grid.add_row(vec![
                workload.name().to_owned(),
                workload.plan.domain.to_owned(),
                (*network).to_owned(),
                mechanism.word().to_owned(),
                held.map(|held| held.v4.to_string()).unwrap_or_default(),
                held.map(|held| held.v6.to_string()).unwrap_or_default(),
                workload
                    .client
                    .id()
                    .map_or_else(|| "dead".to_owned(), |id| id.to_string()),
            ]);
        }
    }
    text.push_str(&grid.to_string());
    text.push_str("\n\nRoles\n");
    let mut grid = table(&["role", "host", "process", "ready", "MiB"].map(str::to_owned));
    for service in world.services() {
        grid.add_row(vec![
            service.label(),
            service.host().name().to_owned(),
            service
                .id()
                .map_or_else(|| "dead".to_owned(), |id| id.to_string()),
            if admin::is_ready(service.run_dir()).await {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
            (service.memory_kib() / 1024).to_string(),
        ]);
    }
    text.push_str(&grid.to_string());
    text.push_str("\n\nNetworks\n");
    let mut grid = table(&["network", "zone", "uid", "version", "IPv6 pool"].map(str::to_owned));
    for network in &world.networks {
        grid.add_row(vec![
            network.plan.name.to_owned(),
            network.plan.zone.to_owned(),
            network.uid.clone(),
            network.version().to_string(),
            network.pool6.to_string(),
        ]);
    }
    text.push_str(&grid.to_string());
    text.push('\n');
    text
}
