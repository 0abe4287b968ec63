//! What `cargo metadata` says, in the shape that the checks ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::shell::{cargo, output};

/// One package of the resolved graph.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) licence: Option<String>,
    pub(crate) registry: Option<String>,
    pub(crate) manifest: PathBuf,
    pub(crate) member: bool,
    /// Ids of the packages that its normal and build dependencies resolve to.
    pub(crate) needs: BTreeSet<String>,
    /// Ids that its tests add.
    pub(crate) test_needs: BTreeSet<String>,
}

/// Packages by id.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) packages: BTreeMap<String, Package>,
}

impl Graph {
    /// Of this workspace with the features a plain build turns on, for the platform we ship.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1", "--locked"]);
        command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
        let (ok, text, errors) = output(&mut command)?;
        if !ok {
            bail!("cargo metadata: {}", errors.trim());
        }
        Self::read(&serde_json::from_str(&text).context("read cargo metadata")?)
    }

    fn read(document: &Value) -> anyhow::Result<Self> {
        let members: BTreeSet<&str> = list(&document["workspace_members"])
            .filter_map(Value::as_str)
            .collect();
        let mut packages = BTreeMap::new();
        for package in list(&document["packages"]) {
            let id = text(&package["id"]).context("a package without id")?;
            packages.insert(
                id.clone(),
                Package {
                    name: text(&package["name"]).context("a package without name")?,
                    version: text(&package["version"]).unwrap_or_default(),
                    licence: text(&package["license"]),
                    registry: text(&package["source"]),
                    manifest: text(&package["manifest_path"]).unwrap_or_default().into(),
                    member: members.contains(id.as_str()),
                    needs: BTreeSet::new(),
                    test_needs: BTreeSet::new(),
                },
            );
        }
        for node in list(&document["resolve"]["nodes"]) {
            let Some(package) = node["id"].as_str().and_then(|id| packages.get_mut(id)) else {
                continue;
            };
            for dependency in list(&node["deps"]) {
                let Some(id) = text(&dependency["pkg"]) else {
                    continue;
                };
                for kind in list(&dependency["dep_kinds"]) {
                    if kind["kind"] == "dev" {
                        package.test_needs.insert(id.clone());
                    } else {
                        package.needs.insert(id.clone());
                    }
                }
            }
        }
        Ok(Self { packages })
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.values().filter(|package| package.member)
    }

    pub(crate) fn member(&self, name: &str) -> Option<(&String, &Package)> {
        self.packages
            .iter()
            .find(|(_, package)| package.member && package.name == name)
    }

    /// Names of everything that `name` is built from, with the way that leads there.
    pub(crate) fn tree(&self, name: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut open: Vec<(String, String)> = self
            .member(name)
            .map(|(id, _)| (id.clone(), name.to_owned()))
            .into_iter()
            .collect();
        let mut seen = BTreeSet::new();
        while let Some((id, way)) = open.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            let Some(package) = self.packages.get(&id) else {
                continue;
            };
            for next in &package.needs {
                let Some(needed) = self.packages.get(next) else {
                    continue;
                };
                let way = format!("{way} -> {}", needed.name);
                found
                    .entry(needed.name.clone())
                    .or_insert_with(|| way.clone());
                open.push((next.clone(), way));
            }
        }
        found
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
