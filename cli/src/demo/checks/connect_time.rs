//! From the Request to the first packet that is answered, as each client measured it.

use anyhow::bail;
use serde_json::Value;
use vl3_lab::admin;

use crate::demo::plan::Mechanism;
use crate::demo::world::World;

pub(in crate::demo) async fn run(world: &World) -> anyhow::Result<String> {
    let mut times = [
        (Mechanism::Tun, Vec::new()),
        (Mechanism::Wireguard, Vec::new()),
    ];
    for workload in &world.workloads {
        let status = admin::status(workload.client.run_dir()).await?;
        for (network, mechanism) in workload.plan.networks {
            let Some(time) = connect_ms(&status, network) else {
                bail!(
                    "the status of {} does not tell connect_ms of {network}",
                    workload.name()
                );
            };
            for (of, list) in &mut times {
                if of == mechanism {
                    list.push(time);
                }
            }
        }
    }
    let mut detail = Vec::new();
    for (mechanism, mut list) in times {
        list.sort_by(f64::total_cmp);
        if let (Some(median), Some(slowest)) = (list.get(list.len() / 2), list.last()) {
            detail.push(format!(
                "{}: median {median:.0} ms, slowest {slowest:.0} ms",
                mechanism.word()
            ));
        }
    }
    Ok(detail.join("; "))
}

fn connect_ms(status: &Value, network: &str) -> Option<f64> {
    let attachments = status.pointer("/client/attachments")?.as_array()?;
    let of = attachments
        .iter()
        .find(|entry| entry.get("network").and_then(Value::as_str) == Some(network))?;
    of.get("connect_ms")?.as_f64()
}
