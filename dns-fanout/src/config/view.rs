//! `[[view]]`: what one set of clients sees (R1.1), and which view a client gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use vl3_runtime::Section;

use super::upstream::is_name;
use super::{Config, read_view};

/// What the view of the file's own keys is called.
pub(crate) const DEFAULT_VIEW: &str = "default";
/// Views of one process: each has a thread and a store of answers of its own.
const VIEWS_MAX: usize = 64;
const NAME_ALLOWED: &str = "1 to 63 letters, digits, '-', '_', '.', used once, and not \"default\"";

/// One `[[view]]`: its name, and keys as at the top of the file.
#[derive(Clone, Debug)]
pub struct View {
    pub name: String,
    pub config: Config,
}

/// `None` only after a problem was recorded.
pub(super) fn read(section: &mut Section<'_>) -> Option<View> {
    let name = section.required::<String>("name");
    if let Some(bad) = name
        .as_ref()
        .filter(|name| !is_name(name) || *name == DEFAULT_VIEW)
    {
        section.problem("name", Some(format!("{bad:?}")), NAME_ALLOWED);
    }
    let config = read_view(section, true);
    Some(View {
        name: name?,
        config: config?,
    })
}

/// What is wrong with the views as a whole: key, value, what is allowed.
pub(super) fn problems(config: &Config) -> Vec<(String, Option<String>, String)> {
    let mut problems = Vec::new();
    if config.views.len() > VIEWS_MAX {
        let allowed = format!("at most {VIEWS_MAX} views");
        problems.push((
            "view".to_owned(),
            Some(config.views.len().to_string()),
            allowed,
        ));
    }
    let mut names = BTreeSet::new();
    for (at, view) in config.views.iter().enumerate() {
        if !names.insert(&view.name) {
            let value = Some(format!("{:?}", view.name));
            problems.push((format!("view[{at}].name"), value, NAME_ALLOWED.to_owned()));
        }
    }
    for (at, view) in config.views.iter().enumerate() {
        let own = &view.config;
        if own.listen.is_empty() && config.listen.is_empty() && own.router.is_none() {
            let allowed = "a list of addresses with port, here or at the top of the file";
            problems.push((format!("view[{at}].listen"), None, allowed.to_owned()));
        }
    }
    let views = config.all_views();
    for (address, sharing) in by_address(&config.listen, &views) {
        let mut known: BTreeMap<IpNet, &str> = BTreeMap::new();
        for (place, view) in sharing.iter().filter_map(|at| Some((*at, views.get(*at)?))) {
            for client in &view.config.clients {
                if let Some(other) = known.insert(client.trunc(), &view.name) {
                    // The default view comes first, where there is one.
                    let number = (place + config.views.len()).checked_sub(views.len());
                    let key = number.map_or_else(
                        || "clients".to_owned(),
                        |number| format!("view[{number}].clients"),
                    );
                    let allowed = format!(
                        "clients of one view: on {address} these are the view {other}'s already"
                    );
                    problems.push((key, Some(client.to_string()), allowed));
                }
            }
        }
    }
    problems
}

/// Which views answer on each address, by their places: those that name it, and on addresses of
/// the file's top all that name none.
pub(crate) fn by_address(top: &[SocketAddr], views: &[View]) -> BTreeMap<SocketAddr, Vec<usize>> {
    let mut addresses: BTreeMap<SocketAddr, Vec<usize>> = BTreeMap::new();
    for (at, view) in views.iter().enumerate() {
        let own = &view.config.listen;
        for address in if own.is_empty() { top } else { own } {
            addresses.entry(*address).or_default().push(at);
        }
    }
    addresses
}

impl Config {
    /// Whether the keys at the top of the file make a view.
    fn has_default_view(&self) -> bool {
        self.views.is_empty() || self.router.is_some() || !self.upstreams.is_empty()
    }

    /// Every view of the process, the default one first.
    pub(crate) fn all_views(&self) -> Vec<View> {
        let default = self.has_default_view().then(|| View {
            name: DEFAULT_VIEW.to_owned(),
            config: Self {
                listen: Vec::new(),
                views: Vec::new(),
                ..self.clone()
            },
        });
        let named = self.views.iter().map(|view| View {
            name: view.name.clone(),
            config: Self {
                cookie_keys: self.cookie_keys.clone(),
                query_log: self.query_log,
                ..view.config.clone()
            },
        });
        default.into_iter().chain(named).collect()
    }
}
