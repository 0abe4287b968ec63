//! The run directory and its sockets: one live instance each.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};

/// Makes a directory with its parents, mode 0755 where it is new: workloads and a DNS server of
/// other users reach the sockets within. What is secret has a mode of its own.
pub fn make_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .with_context(|| format!("create directory {}", path.display()))
}

/// Clears the way for binding a unix socket: a socket that nobody answers on is removed; one
/// that somebody answers on is an error that names the second instance.
pub fn claim_socket(path: &Path) -> anyhow::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("look at {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        bail!(
            "{} exists and is no socket; choose another run_dir or remove it",
            path.display()
        );
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "another instance answers on {}; stop it (a stopping one ends within seconds) or give this one another name or run_dir",
            path.display()
        ),
        // Somebody else's socket may be alive.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(error)
            .with_context(|| {
                format!(
                    "{} is another user's: run as root or as that user, or choose another run_dir",
                    path.display()
                )
            }),
        Err(_) => std::fs::remove_file(path)
            .with_context(|| format!("remove the stale socket {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn every_user_may_pass_through_and_nobody_else_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/router");
        make_dir(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "{mode:o}");
        assert_eq!(mode & 0o700, 0o700, "{mode:o}");
    }

    #[test]
    fn a_stale_socket_is_removed_and_a_live_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        claim_socket(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(
            claim_socket(&path)
                .unwrap_err()
                .to_string()
                .contains("another instance")
        );
        drop(listener);
        claim_socket(&path).unwrap();
        assert!(!path.exists());
    }
}
