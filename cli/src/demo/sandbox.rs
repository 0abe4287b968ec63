//! Where the demo's files are: a file system in memory that only this process and its children
//! see. Nothing of it can stay, however the demo ends.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use vl3_net::Namespace;

/// Places that exist on every machine and are usually empty; the first empty one is used.
const PLACES: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/tmp"];

/// A limit: logs, stores and certificates of thirty processes are a few MiB, but each etcd
/// allocates 128 MiB ahead.
const SIZE: &str = "size=1g,mode=700";

/// Checks what the demo needs, then hides one empty directory behind a file system in memory.
/// Must run on the main thread before any other is started: threads take the mounts of the one
/// that starts them.
pub(super) fn enter() -> anyhow::Result<PathBuf> {
    check_needs()?;
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(
        None::<&Path>,
        "/",
        None::<&Path>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&Path>,
    )
    .context("make the mounts private")?;
    let place = PLACES
        .into_iter()
        .map(PathBuf::from)
        .find(|place| is_empty(place))
        .or_else(|| Some(PathBuf::from("/tmp")).filter(|tmp| tmp.is_dir()))
        .with_context(|| {
            format!("none of {PLACES:?} is an empty directory; make one: mkdir -p /mnt")
        })?;
    mount(
        Some("vl3-demo"),
        &place,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(SIZE),
    )
    .with_context(|| format!("mount a file system in memory at {}", place.display()))?;
    Ok(place)
}

fn is_empty(place: &Path) -> bool {
    std::fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none())
}

/// One clear error for the first thing that is missing, with the command that gets it.
fn check_needs() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes network namespaces and needs root: sudo vl3 demo");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!(
            "/dev/net/tun is missing: modprobe tun (in a container: --device /dev/net/tun --cap-add NET_ADMIN)"
        );
    }
    if !Path::new("/proc/sys/net/ipv6/conf").exists() {
        bail!("the kernel runs without IPv6: boot without ipv6.disable=1");
    }
    Namespace::new().context(
        "network namespaces are not allowed here (in a container: docker run --privileged)",
    )?;
    Ok(())
}
