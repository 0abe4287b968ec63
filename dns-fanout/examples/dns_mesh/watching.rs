//! Names that come and go, watched at every server of the mesh.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::world::{Mesh, canonical, found, shared};

/// How long a name is there, and how long it is looked for afterwards: longer than any answer of
/// before is stored.
const PRESENT: Duration = Duration::from_millis(2_000);
const ABSENT: Duration = Duration::from_millis(3_000);

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Canonical,
    Shared,
}

impl Kind {
    /// Names at one time, and the time between two looks at one server: a shared name that is
    /// not there costs a query to every domain.
    const fn pace(self) -> (usize, Duration) {
        match self {
            Self::Canonical => (10, Duration::from_millis(50)),
            Self::Shared => (2, Duration::from_millis(250)),
        }
    }

    const fn rounds(self) -> usize {
        match self {
            Self::Canonical => 3,
            Self::Shared => 5,
        }
    }
}

/// What was seen, one time per name and server, milliseconds.
#[derive(Default)]
pub(crate) struct Changes {
    appeared: Vec<f64>,
    vanished: Vec<f64>,
    /// Answers without the name between its first appearance at that server and its end.
    denied: usize,
    /// Answers that were neither the name's address nor "no such name".
    wrong: usize,
}

/// One look at one server.
struct Look {
    /// When its answer came.
    at: Instant,
    found: bool,
    wrong: bool,
}

impl Changes {
    pub(crate) async fn watch(mesh: &Arc<Mesh>, kind: Kind) -> Self {
        let mut changes = Self::default();
        let (names, _) = kind.pace();
        for round in 0..kind.rounds() {
            let mut all = JoinSet::new();
            for number in 0..names {
                // Homes spread over all domains.
                let home = (round * names + number) * 7 % mesh.nodes.len();
                let label = format!("late-{round}-{number}");
                all.spawn(one(Arc::clone(mesh), kind, home, label));
            }
            while let Some(ended) = all.join_next().await {
                let one = ended.unwrap();
                changes.appeared.extend(one.appeared);
                changes.vanished.extend(one.vanished);
                changes.denied += one.denied;
                changes.wrong += one.wrong;
            }
        }
        changes
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "appeared": spread(&self.appeared),
            "vanished": spread(&self.vanished),
            "denied": self.denied,
            "wrong": self.wrong,
        })
    }
}

async fn one(mesh: Arc<Mesh>, kind: Kind, home: usize, label: String) -> Changes {
    let name = match kind {
        Kind::Canonical => canonical(&label, &mesh.node(home).name),
        Kind::Shared => shared(&label),
    };
    let (stop, stopped) = watch::channel(false);
    let mut lookers = JoinSet::new();
    for number in 0..mesh.nodes.len() {
        let looker = look(
            Arc::clone(&mesh),
            kind,
            number,
            name.clone(),
            stopped.clone(),
        );
        lookers.spawn(looker);
    }
    // They look for a name that is not there yet.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let came = Instant::now();
    let address = mesh.node(home).attach(&label);
    tokio::time::sleep(PRESENT).await;
    let went = Instant::now();
    mesh.node(home).close(&label);
    tokio::time::sleep(ABSENT).await;
    stop.send_replace(true);
    let mut changes = Changes::default();
    while let Some(ended) = lookers.join_next().await {
        changes.take(&ended.unwrap()(&address), came, went);
    }
    changes
}

/// Looks for a name at one server until it is told to stop. What it saw depends on the address,
/// which is known later.
async fn look(
    mesh: Arc<Mesh>,
    kind: Kind,
    number: usize,
    name: String,
    stopped: watch::Receiver<bool>,
) -> impl FnOnce(&str) -> Vec<Look> {
    let client = mesh.node(number).client().await;
    let (_, pace) = kind.pace();
    // Servers are looked at one after another, not all at once.
    tokio::time::sleep(pace * u32::try_from(number).unwrap() / 50).await;
    let mut seen = Vec::new();
    while !*stopped.borrow() {
        let reply = client.ask(&name, RecordType::A).await;
        seen.push((Instant::now(), reply));
        tokio::time::sleep(pace).await;
    }
    move |address: &str| {
        let looks = seen.into_iter().map(|(at, reply)| {
            let addresses = found(&reply);
            let found = addresses.is_some();
            let code = reply.metadata.response_code;
            let wrong = match addresses {
                Some(addresses) => addresses != [address],
                None => code != ResponseCode::NXDomain,
            };
            Look { at, found, wrong }
        });
        looks.collect()
    }
}

impl Changes {
    fn take(&mut self, looks: &[Look], came: Instant, went: Instant) {
        let millis = |since: Instant, at: Instant| (at - since).as_secs_f64() * 1e3;
        self.wrong += looks.iter().filter(|look| look.wrong).count();
        let first = looks.iter().position(|look| look.found);
        let Some(first) = first else {
            // Never seen: as late as can be told.
            self.appeared.push(millis(came, went));
            return;
        };
        self.appeared.push(millis(came, looks[first].at));
        let later = &looks[first..];
        let denied = |look: &&Look| !look.found && look.at < went;
        self.denied += later.iter().filter(denied).count();
        let last = later.iter().rfind(|look| look.found && look.at >= went);
        // Nobody told of it after its end: at once.
        let last = last.map_or(0.0, |look| millis(went, look.at));
        self.vanished.push(last);
    }
}

fn spread(values: &[f64]) -> Value {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: usize| {
        let place = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
        sorted.get(place).copied().unwrap_or_default()
    };
    json!({ "count": sorted.len(), "p50": at(50), "p99": at(99), "p100": at(100) })
}
