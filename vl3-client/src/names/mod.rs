//! The networks' names on this host, which stays its owner's: they are told, or put into
//! resolv.conf, or systemd-resolved is told, as the configuration says.

mod file;
mod process;
mod resolved;
mod text;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;
use vl3_runtime::Said;

pub(crate) use file::ResolvConf;
use resolved::Resolved;
pub(crate) use text::Entries;

/// Between two looks at resolv.conf, which others (a DHCP client) write anew.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What a client does about names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Says what to add, and changes nothing.
    #[default]
    Told,
    /// Adds lines to this file.
    ResolvConf(PathBuf),
    /// Tells systemd-resolved.
    Resolved,
}

/// One network's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) interface: String,
    /// In order; stub resolvers ask the first.
    pub(crate) servers: Vec<IpAddr>,
    /// The zone, by which names are searched.
    pub(crate) suffixes: Vec<String>,
    /// Whose reverse names it knows.
    pub(crate) prefixes: Vec<IpNet>,
}

enum Way {
    Told,
    ResolvConf(ResolvConf),
    Resolved(Resolved),
}

/// Brings the host to what the networks need.
pub(crate) struct Keeper {
    way: Way,
    wanted: Vec<Network>,
    shown: watch::Sender<Value>,
    said: Said,
}

impl Keeper {
    pub(crate) fn new(names: &Names, client: &str) -> std::io::Result<Self> {
        let way = match names {
            Names::Told => Way::Told,
            Names::ResolvConf(path) => Way::ResolvConf(ResolvConf::new(path.clone(), client)?),
            Names::Resolved => Way::Resolved(Resolved::new()),
        };
        Ok(Self {
            way,
            wanted: Vec::new(),
            shown: watch::Sender::new(Value::Null),
            said: Said::default(),
        })
    }

    /// For the client's status.
    pub(crate) fn shown(&self) -> watch::Receiver<Value> {
        self.shown.subscribe()
    }

    /// The file, for who must see it put back.
    pub(crate) fn file(&self) -> Option<ResolvConf> {
        match &self.way {
            Way::ResolvConf(file) => Some(file.clone()),
            Way::Told | Way::Resolved(_) => None,
        }
    }

    /// Names are never worth a network: what goes wrong is told, and tried again.
    pub(crate) async fn set(&mut self, wanted: Vec<Network>) {
        let changed = self.wanted != wanted;
        self.wanted = wanted;
        self.apply(changed).await;
    }

    /// Waits until it is time to look at what others may have changed; for ever where nothing is.
    pub(crate) async fn due(&self) {
        match self.way {
            Way::ResolvConf(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            Way::Told | Way::Resolved(_) => std::future::pending().await,
        }
    }

    /// Puts back in what others took out.
    pub(crate) async fn look(&mut self) {
        self.apply(false).await;
    }

    async fn apply(&mut self, asked: bool) {
        let entries = self.entries();
        let outcome = match &mut self.way {
            Way::Told => {
                if asked && !entries.is_empty() {
                    tracing::info!(
                        add = told(&entries),
                        "names: nothing is changed on this host"
                    );
                }
                Ok(Vec::new())
            }
            Way::ResolvConf(file) => match file.set(&entries).await {
                Ok(done) => {
                    if done.changed {
                        let path = file.path().display();
                        tracing::info!(%path, add = told(&entries), asked, "names: resolv.conf is written");
                    }
                    Ok(done.left_out)
                }
                Err(error) => Err(anyhow::Error::from(error)),
            },
            Way::Resolved(resolved) => match resolved.set(&self.wanted).await {
                Ok(()) => Ok(Vec::new()),
                Err(error) => Err(anyhow::Error::from(error)),
            },
        };
        let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        match &error {
            None => self.said.reset(),
            Some(error) => {
                if let Some(unsaid) = self.said.say(error) {
                    let add = told(&entries);
                    tracing::warn!(error, unsaid, add, "names: this host does not know them");
                }
            }
        }
        let left_out = outcome.unwrap_or_default();
        if !left_out.is_empty() && asked {
            let servers = texts(&left_out);
            tracing::warn!(?servers, "names: resolv.conf has no room for all servers");
        }
        self.shown
            .send_replace(self.status(&entries, &left_out, error));
    }

    fn entries(&self) -> Entries {
        let mut entries = Entries::default();
        for network in &self.wanted {
            // Stub resolvers read few: one per network.
            entries.servers.extend(network.servers.first());
            for suffix in &network.suffixes {
                if !entries.suffixes.contains(suffix) {
                    entries.suffixes.push(suffix.clone());
                }
            }
        }
        entries
    }

    fn status(&self, entries: &Entries, left_out: &[IpAddr], error: Option<String>) -> Value {
        let mut shown = match &self.way {
            Way::Told => json!({
                "kept_by": "nobody",
                "add": told(entries),
                "or": "--resolv-conf or --resolved",
            }),
            Way::ResolvConf(file) => json!({
                "kept_by": "resolv.conf",
                "file": file.path().display().to_string(),
                "add": told(entries),
            }),
            Way::Resolved(_) => json!({
                "kept_by": "systemd-resolved",
                "interfaces": self.wanted.iter().map(|one| one.interface.as_str()).collect::<Vec<_>>(),
                "add": told(entries),
            }),
        };
        if let Some(shown) = shown.as_object_mut() {
            if !left_out.is_empty() {
                shown.insert("no_room_for".to_owned(), json!(texts(left_out)));
            }
            if let Some(error) = error {
                shown.insert("error".to_owned(), json!(error));
            }
        }
        shown
    }
}

/// What a person would add to resolv.conf, and where.
fn told(entries: &Entries) -> String {
    if entries.is_empty() {
        return "nothing".to_owned();
    }
    let mut parts: Vec<String> = Vec::new();
    for server in &entries.servers {
        parts.push(format!("nameserver {server} above the host's own"));
    }
    if !entries.suffixes.is_empty() {
        let suffixes = entries.suffixes.join(" ");
        parts.push(format!("{suffixes} at the end of the search line"));
    }
    parts.join(", ")
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
