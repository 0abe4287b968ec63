use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::Error;
use crate::{sys, tun};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where the private file system stands for the moment of the bind mount.
const SCRATCH_PLACES: [&str; 4] = ["/tmp", "/mnt", "/media", "/srv"];

/// A network namespace (and, where asked for, a mount namespace) that lives as long as its last
/// clone, process or device-holding descriptor. It has no name and leaves no file.
#[derive(Clone, Debug)]
pub struct Namespace {
    net: Arc<OwnedFd>,
    mounts: Option<Arc<Mounts>>,
}

/// A mount namespace of its own, with an `/etc/resolv.conf` of its own.
#[derive(Debug)]
struct Mounts {
    namespace: OwnedFd,
    /// Open for writing: the file has no path outside of the namespace.
    resolv_conf: Option<File>,
}

impl Namespace {
    /// A fresh network namespace whose loopback is up.
    pub fn new() -> Result<Self, Error> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::errno_of("make a network namespace", errno))?;
            loopback_up()?;
            Ok(Self {
                net: Arc::new(open_own("net")?),
                mounts: None,
            })
        })
    }

    /// A fresh network and mount namespace. Inside, `/etc/resolv.conf` is a private file with
    /// `resolv_conf` as content; [`Namespace::set_resolv_conf`] rewrites it. Where the machine has
    /// no such file, programs inside see none either.
    pub fn with_resolv_conf(resolv_conf: &str) -> Result<Self, Error> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .map_err(|errno| Error::errno_of("make a network and mount namespace", errno))?;
            loopback_up()?;
            mount(
                None::<&Path>,
                "/",
                None::<&Path>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&Path>,
            )
            .map_err(|errno| Error::errno_of("make the mounts private", errno))?;
            let file = if Path::new(RESOLV_CONF).exists() {
                Some(private_resolv_conf(resolv_conf)?)
            } else {
                None
            };
            let mounts = Mounts {
                namespace: open_own("mnt")?,
                resolv_conf: file,
            };
            Ok(Self {
                net: Arc::new(open_own("net")?),
                mounts: Some(Arc::new(mounts)),
            })
        })
    }

    /// The network namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Ok(Self {
            net: Arc::new(open_own("net")?),
            mounts: None,
        })
    }

    /// Runs `work` on a thread inside the network namespace (the mounts stay the caller's) and
    /// waits for it. Sockets and devices that it opens belong to the namespace for ever.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_own_thread(move || {
            setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)
                .expect("a namespace descriptor can be entered by whoever could make it");
            work()
        })
    }

    /// Starts a named thread that spends its life inside the network namespace.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<T>, Error> {
        let namespace = self.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                setns(namespace.net.as_fd(), CloneFlags::CLONE_NEWNET)
                    .expect("a namespace descriptor can be entered by whoever could make it");
                work()
            })
            .map_err(|source| Error::kernel(format!("start thread {name}"), source))
    }

    /// Replaces the content of the private `/etc/resolv.conf`; without one this does nothing.
    pub fn set_resolv_conf(&self, content: &str) -> Result<(), Error> {
        let Some(file) = self
            .mounts
            .as_ref()
            .and_then(|mounts| mounts.resolv_conf.as_ref())
        else {
            return Ok(());
        };
        rewrite(file, content)
            .map_err(|source| Error::kernel("write the private resolv.conf", source))
    }

    /// The content of the private `/etc/resolv.conf`, as programs inside read it.
    pub fn resolv_conf(&self) -> Result<String, Error> {
        use std::io::{Read, Seek};
        let Some(file) = self
            .mounts
            .as_ref()
            .and_then(|mounts| mounts.resolv_conf.as_ref())
        else {
            return Ok(String::new());
        };
        let mut content = String::new();
        let mut file = file;
        file.rewind()
            .and_then(|()| file.read_to_string(&mut content))
            .map_err(|source| Error::kernel("read the private resolv.conf", source))?;
        Ok(content)
    }

    pub(crate) fn mount_fd(&self) -> Option<BorrowedFd<'_>> {
        self.mounts.as_ref().map(|mounts| mounts.namespace.as_fd())
    }
}

impl AsFd for Namespace {
    /// The network namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }
}

/// Runs `work` on a thread that ends with it, so that what it enters never leaks into another.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn open_own(kind: &str) -> Result<OwnedFd, Error> {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path)
        .map(OwnedFd::from)
        .map_err(|source| Error::kernel(format!("open {path}"), source))
}

fn loopback_up() -> Result<(), Error> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| Error::errno_of("open a socket", errno))?;
    sys::interface_up(socket.as_fd(), tun::interface_name("lo")?)
        .map_err(|source| Error::kernel("bring the loopback up", source))
}

/// A file on a file system that has no other mount: it is gone with the mount namespace.
fn private_resolv_conf(content: &str) -> Result<File, Error> {
    let failed = |operation: &'static str| move |errno| Error::errno_of(operation, errno);
    let scratch = SCRATCH_PLACES
        .into_iter()
        .map(Path::new)
        .find(|place| place.is_dir())
        .ok_or(Error::Invalid {
            field: "scratch directory",
            value: String::new(),
            allowed: "/tmp or /mnt",
        })?;
    mount(
        Some("vl3"),
        scratch,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("size=64k,mode=755"),
    )
    .map_err(failed("mount a private tmpfs"))?;
    let path = scratch.join("resolv.conf");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|file| rewrite(&file, content).map(|()| file))
        .map_err(|source| Error::kernel("create a private resolv.conf", source))?;
    mount(
        Some(&path),
        RESOLV_CONF,
        None::<&Path>,
        MsFlags::MS_BIND,
        None::<&Path>,
    )
    .map_err(failed("bind a private file to /etc/resolv.conf"))?;
    // The bind mount keeps the file system; the place itself is as before.
    umount2(scratch, MntFlags::MNT_DETACH).map_err(failed("detach the private tmpfs"))?;
    Ok(file)
}

/// Rewrites in place: a bind-mounted file cannot be replaced by rename.
fn rewrite(mut file: &File, content: &str) -> std::io::Result<()> {
    use std::io::Seek;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(content.as_bytes())
}
