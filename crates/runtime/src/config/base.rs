//! The keys that every role has.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Section;

/// Keys common to every role.
#[derive(Clone, Debug)]
pub struct Common {
    pub role: &'static str,
    /// `name`, NSM_NAME; the role's own word when unset.
    pub name: String,
    /// Sockets. Default `/run/vl3/<role>-<name>`.
    pub run_dir: PathBuf,
    /// What survives a restart. Default `/var/lib/vl3/<role>-<name>`; unset (`state_dir = ""`)
    /// means ephemeral.
    pub state_dir: Option<PathBuf>,
    pub identity: IdentitySource,
    /// The admin endpoint on TCP beside `run_dir/admin.sock`.
    pub admin_listen: Option<SocketAddr>,
    pub log: Log,
}

/// Where the SVID comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentitySource {
    /// `identity.dir`: `svid.pem`, `key.pem`, `bundle.pem`, watched.
    Dir(PathBuf),
    /// `identity.workload_api`, SPIFFE_ENDPOINT_SOCKET: `unix:///path`.
    WorkloadApi(String),
    /// None given, and the role needs none: one that nobody trusts is made at start.
    Unneeded,
}

#[derive(Clone, Debug)]
pub struct Log {
    /// A level or a filter of tracing-subscriber: `info`, `info,vl3_router=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

pub(super) const ENVIRONMENT: &[(&str, &str)] = &[
    ("NSM_NAME", "name"),
    ("NSM_LOG_LEVEL", "log.level"),
    ("SPIFFE_ENDPOINT_SOCKET", "identity.workload_api"),
];

impl Common {
    /// Everything below one directory (`run`, `state`, `identity`): for tests and for several
    /// roles in one process.
    pub fn in_dir(role: &'static str, name: &str, dir: &Path) -> Self {
        Self {
            role,
            name: name.to_owned(),
            run_dir: dir.join("run"),
            state_dir: Some(dir.join("state")),
            identity: IdentitySource::Dir(dir.join("identity")),
            admin_listen: None,
            log: Log {
                level: "info".to_owned(),
                format: LogFormat::Text,
            },
        }
    }

    pub(super) fn read(
        role: &'static str,
        section: &mut Section<'_>,
        needs_identity: bool,
    ) -> Option<Self> {
        let name = section.or("name", role.to_owned());
        let fits = name.len() <= 63
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !name.starts_with('.');
        if !fits {
            section.problem(
                "name",
                Some(format!("{name:?}")),
                "1 to 63 letters, digits, '-', '_', '.' (it names directories)",
            );
        }
        let run_dir = section.or("run_dir", PathBuf::from(format!("/run/vl3/{role}-{name}")));
        // A unix socket's path has at most 107 bytes.
        if run_dir.as_os_str().len() > 95 {
            section.problem(
                "run_dir",
                Some(format!("{run_dir:?}")),
                "at most 95 bytes long (socket paths end at 107)",
            );
        }
        let state_dir = section.or_empty("state_dir", || {
            PathBuf::from(format!("/var/lib/vl3/{role}-{name}"))
        });
        let identity = section.table("identity", |identity| {
            let dir = identity.optional::<PathBuf>("dir");
            let api = identity.optional::<String>("workload_api");
            match (dir, api) {
                // A file identity that was asked for by the file goes before an inherited
                // environment variable.
                (Some(dir), _) => {
                    let (shown, asked) = (format!("{dir:?}"), dir.clone());
                    // At start it is waited for: the issuer may come up after the role.
                    identity.look_when_asked("dir", shown, move || identity_dir(&asked));
                    Some(IdentitySource::Dir(dir))
                }
                (None, Some(api)) => Some(IdentitySource::WorkloadApi(api)),
                (None, None) if !needs_identity => Some(IdentitySource::Unneeded),
                (None, None) => {
                    if !identity.has("dir") && !identity.has("workload_api") {
                        identity.problem(
                            "dir",
                            None,
                            "a directory with svid.pem, key.pem and bundle.pem (`vl3 identity issue` makes one), or set identity.workload_api (SPIFFE_ENDPOINT_SOCKET)",
                        );
                    }
                    None
                }
            }
        });
        let admin_listen = section.optional("admin_listen");
        let log = section.table("log", |log| {
            let level = log.or("level", "info".to_owned());
            if !crate::telemetry::is_filter(&level) {
                log.problem(
                    "level",
                    Some(format!("{level:?}")),
                    "error, warn, info, debug, trace, or a filter as info,vl3_router=debug",
                );
            }
            let format = log.choice(
                "format",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                LogFormat::Text,
            );
            Log { level, format }
        });
        Some(Self {
            role,
            name,
            run_dir,
            state_dir,
            identity: identity?,
            admin_listen,
            log,
        })
    }
}

fn identity_dir(dir: &Path) -> Result<(), String> {
    const FILES: [&str; 3] = ["svid.pem", "key.pem", "bundle.pem"];
    let allowed = "a directory with svid.pem, key.pem and bundle.pem";
    if !dir.is_dir() {
        return Err(format!("{allowed}; there is no such directory"));
    }
    let absent: Vec<&str> = FILES
        .into_iter()
        .filter(|file| !dir.join(file).exists())
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(format!("{allowed}; {} is missing", absent.join(", ")))
}
