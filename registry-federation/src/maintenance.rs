//! What an operator does to a registry's store: check it, back it up, restore it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use vl3_core::Wall;
use vl3_core::allocator::LeaseRecord;
use vl3_core::document::Chain;
use vl3_core::ids::DomainName;
use vl3_core::registry::{Record, Report, Violation, check};
use vl3_runtime::clock;

use crate::app::STATE_FILE;
use crate::store::{
    Backup, Contents, Entry, Job, Redb, StateLock, Store, Swap, decode, encode, sync_parent,
};

/// Where a restore puts the store that it replaces.
const REPLACED_FILE: &str = "registry.redb.before-restore";
const REPLACED_MAX: usize = 100;
const NEW_FILE: &str = "registry.redb.restoring";

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Restored {
    pub report: Report,
    pub taken: Wall,
    /// What stood there before.
    pub replaced: Option<PathBuf>,
}

/// What a stopped registry kept in its state directory, every page of it verified. Nothing is
/// created but its lock.
pub fn read_state(state_dir: &Path) -> anyhow::Result<Contents> {
    let file = state_dir.join(STATE_FILE);
    ensure!(
        file.is_file(),
        "{} holds no {STATE_FILE}: no registry kept its state there",
        state_dir.display()
    );
    let mut store = Redb::open(&file)?;
    store.verify()?;
    Ok(Contents::read(&mut store)?)
}

/// Decodes and checks: what cannot be decoded is a violation as well. `domain` is whose registry
/// it is; empty where that is not known.
pub fn check_kept(kept: &Contents, domain: &str) -> Report {
    let mut records = Vec::new();
    let mut undecodable = Vec::new();
    let entries = kept.journal.iter().map(|entry| &entry.bytes);
    let objects = kept.objects.iter().map(|(_, value)| value);
    for (position, bytes) in entries.chain(objects).enumerate() {
        match decode(bytes) {
            Ok(record) => records.push(record),
            Err(error) => undecodable.push(Violation {
                rule: "records can be read",
                what: format!("record {position}: {error}"),
            }),
        }
    }
    for (key, value) in &kept.objects {
        let said = decode(value).ok().and_then(|record| record.object_key());
        if said.is_some_and(|said| said.to_string() != *key) {
            undecodable.push(Violation {
                rule: "objects stand under their own key",
                what: key.clone(),
            });
        }
    }
    let mut report = check(&records, DomainName::new(domain).ok().as_ref());
    report.violations.splice(0..0, undecodable);
    report
}

/// As `vl3 registry check -o json` prints it.
pub fn report_json(report: &Report) -> Value {
    let list = |found: &[Violation]| {
        let shown = found
            .iter()
            .map(|found| json!({ "rule": found.rule, "what": found.what }));
        shown.collect::<Vec<_>>()
    };
    json!({
        "clean": report.violations.is_empty(),
        "records": report.records,
        "networks": report.networks,
        "leases": report.leases,
        "names": report.names,
        "services": report.services,
        "endpoints": report.endpoints,
        "remote_endpoints": report.remote,
        "readopting": report.readopting,
        "violations": list(&report.violations),
        "notices": list(&report.notices),
    })
}

/// Writes what a registry kept, whether it makes sense or not: the report says which.
pub fn write_backup(kept: Contents, domain: &str, file: &Path) -> anyhow::Result<Report> {
    let report = check_kept(&kept, domain);
    let backup = Backup {
        domain: domain.to_owned(),
        taken: clock::wall(),
        kept,
    };
    backup
        .store(file)
        .with_context(|| format!("write {}", file.display()))?;
    Ok(report)
}

pub fn load_backup(file: &Path) -> anyhow::Result<Backup> {
    Backup::load(file).with_context(|| format!("read {}", file.display()))
}

/// Puts a backup into the state directory of a stopped registry of that domain (any, where it
/// is not known), marked: its next start only takes leases back for two renewal periods, in the
/// networks of the backup and in those that it serves now (`served`).
/// All or nothing: the store is built beside and renamed, and what stood there keeps its name
/// until then.
pub fn restore(
    file: &Path,
    state_dir: &Path,
    domain: Option<&str>,
    served: &[Chain],
    force: bool,
) -> anyhow::Result<Restored> {
    let backup = load_backup(file)?;
    if let Some(domain) = domain
        && !backup.domain.is_empty()
        && backup.domain != domain
    {
        bail!(
            "{} is of domain {}, the registry is of domain {domain}",
            file.display(),
            backup.domain
        );
    }
    let known = domain.unwrap_or(&backup.domain);
    let report = check_kept(&backup.kept, known);
    if let Some(first) = report.violations.first() {
        bail!(
            "{} does not make sense ({} violations, the first: {}: {})",
            file.display(),
            report.violations.len(),
            first.rule,
            first.what
        );
    }
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("create {}", state_dir.display()))?;
    let path = state_dir.join(STATE_FILE);
    // Held until the end: no registry starts meanwhile, also where there is no file yet.
    let lock = StateLock::take(&path)?;
    let held = path.exists().then(|| Redb::open_locked(&path, &lock));
    let replaced = match &held {
        None => None,
        Some(_) if force => Some(free_name(state_dir)?),
        Some(Err(error)) => bail!("{error}; --force puts the backup in its place"),
        Some(Ok(_)) => Some(free_name(state_dir)?),
    };
    if let (false, Some(Ok(mut held))) = (force, held) {
        ensure!(
            Contents::read(&mut held)?.is_empty(),
            "{} is not empty; --force replaces what it holds",
            path.display()
        );
    }
    let new = state_dir.join(NEW_FILE);
    // What an earlier restore left that was cut off.
    remove(&new)?;
    fill(&mut Redb::open_locked(&new, &lock)?, &backup.kept, served)?;
    if let Some(aside) = &replaced {
        std::fs::hard_link(&path, aside)
            .with_context(|| format!("link {} to {}", path.display(), aside.display()))?;
    }
    std::fs::rename(&new, &path)
        .with_context(|| format!("rename {} to {}", new.display(), path.display()))?;
    sync_parent(&path).with_context(|| format!("sync {}", state_dir.display()))?;
    Ok(Restored {
        report,
        taken: backup.taken,
        replaced,
    })
}

/// Where what is replaced stays; nothing of an earlier restore is overwritten.
fn free_name(state_dir: &Path) -> anyhow::Result<PathBuf> {
    let names = std::iter::once(REPLACED_FILE.to_owned())
        .chain((2..=REPLACED_MAX).map(|number| format!("{REPLACED_FILE}-{number}")));
    let mut paths = names.map(|name| state_dir.join(name));
    paths.find(|path| !path.exists()).with_context(|| {
        format!(
            "{} holds {REPLACED_MAX} stores of earlier restores ({REPLACED_FILE}-...): remove some",
            state_dir.display()
        )
    })
}

/// A file that need not be there.
fn remove(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Everything with its times, and the mark of every network, in one step.
fn fill(store: &mut dyn Store, kept: &Contents, served: &[Chain]) -> anyhow::Result<()> {
    let at = clock::wall();
    let mut journal = kept.journal.clone();
    let mut networks = Vec::new();
    for entry in &kept.journal {
        if let Ok(Record::Document { chain }) = decode(&entry.bytes)
            && !networks.contains(&chain.uid())
        {
            networks.push(chain.uid());
        }
    }
    // What the domain joined after the backup was taken has leases that it does not know.
    for chain in served {
        if !networks.contains(&chain.uid()) {
            networks.push(chain.uid());
            let chain = chain.clone();
            let bytes = encode(&Record::Document { chain });
            journal.extend(bytes.map(|bytes| Entry { at, bytes }));
        }
    }
    let mark = |uid| {
        let record = LeaseRecord::Restored { floor: None };
        encode(&Record::Lease { uid, record })
    };
    let marks = networks.into_iter().filter_map(mark);
    journal.extend(marks.map(|bytes| Entry { at, bytes }));
    let mut append = kept.history.clone();
    append.extend(journal.iter().cloned());
    let swaps = kept.objects.iter().map(|(key, value)| Swap {
        key: key.clone(),
        expected: None,
        value: Some(value.clone()),
    });
    let job = Job {
        id: rand::random(),
        append,
        rewrite: (!kept.history.is_empty()).then_some(journal),
        swaps: swaps.collect(),
    };
    store.commit(&job).context("fill the new store")?;
    Ok(())
}
