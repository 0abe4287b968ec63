//! Where the registries of the demo keep their state: a file, or an etcd per domain.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use vl3_lab::etcd::{EtcdMember, arguments, program};
use vl3_lab::{Host, Process, ProcessSpec};

use super::args::Store;

/// One etcd of one member on a gateway, for that domain's registry alone.
#[derive(Debug)]
pub(super) struct Etcd {
    program: PathBuf,
    member: EtcdMember,
    host: Host,
    process: Option<Process>,
}

/// The etcd to use; None: files. An error where there is none.
pub(super) fn etcd_of(store: Store) -> anyhow::Result<Option<PathBuf>> {
    match store {
        Store::File => Ok(None),
        Store::Etcd => program().map(Some),
    }
}

impl Etcd {
    pub(super) fn new(base: &Path, domain: &str, host: &Host, program: &Path) -> Self {
        let member = EtcdMember {
            name: domain.to_owned(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            data: base.join("state").join(format!("etcd-{domain}")),
        };
        Self {
            program: program.to_owned(),
            member,
            host: host.clone(),
            process: None,
        }
    }

    /// What the registry is told: TOML tables.
    pub(super) fn tables(&self) -> String {
        format!(
            "[store]\nengine = \"etcd\"\n[store.etcd]\nendpoints = [\"http://{}:2379\"]\n",
            self.member.address
        )
    }

    /// The registry waits for it by itself.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let members = std::slice::from_ref(&self.member);
        let spec = ProcessSpec::new(format!("etcd-{}", self.member.name), &self.program)
            .args(arguments(members, 0, None));
        self.process = Some(self.host.spawn(spec)?);
        Ok(())
    }
}
