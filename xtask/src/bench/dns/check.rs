//! Questions of our own beside the load: every address that comes back is looked at.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use vl3_lab::tools::{self, QueryType, Rcode};

use super::World;
use super::servers::{Running, address_of};

/// Between two questions: far below what any server notices.
const PAUSE: Duration = Duration::from_millis(10);
/// Under saturation questions are lost; the load counts those.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What came back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Checked {
    pub(super) asked: f64,
    pub(super) wrong: f64,
}

/// Checks that run until they are finished.
pub(super) struct Checks {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<anyhow::Result<Checked>>,
}

/// Starts asking for names of the file, again and again.
pub(super) fn start(world: &World, server: &Running, questions: &Path) -> anyhow::Result<Checks> {
    let text = std::fs::read_to_string(questions).context("read the questions")?;
    let names: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .step_by(7)
        .map(str::to_owned)
        .collect();
    let (host, address) = (world.host.clone(), server.address);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let task = tokio::spawn(async move {
        let mut checked = Checked::default();
        for name in names.iter().cycle() {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            checked.asked += 1.0;
            let answer = tools::ask(&host, None, address, name, QueryType::A, TIMEOUT).await;
            if let Ok(answer) = answer
                && (answer.rcode != Rcode::NoError || answer.addresses != [address_of(name)?])
            {
                checked.wrong += 1.0;
            }
        }
        Ok(checked)
    });
    Ok(Checks { stop, task })
}

impl Checks {
    pub(super) async fn finish(self) -> anyhow::Result<Checked> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.context("the checks")?
    }
}
