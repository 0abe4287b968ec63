//! Admin keys in files: 32 bytes in hexadecimal, for their owner alone.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context, anyhow};
use vl3_core::document::AdminSecret;

use crate::app::Failure;

/// Reads a key that nobody else can read.
pub(crate) fn load(path: &Path) -> Result<AdminSecret, Failure> {
    let next = "vl3 network init NAME (makes a key), or --admin-key FILE";
    let failed = |error: std::io::Error| {
        Failure::with_next(
            anyhow::Error::new(error).context(format!("read the admin key {}", path.display())),
            next,
        )
    };
    let mode = std::fs::metadata(path)
        .map_err(failed)?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        let error = anyhow!(
            "{}: mode {:o} lets others read the admin key, 0600 is allowed",
            path.display(),
            mode & 0o777
        );
        return Err(Failure::with_next(
            error,
            format!("chmod 600 {}", path.display()),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let bytes = decode(text.trim()).ok_or_else(|| {
        anyhow!(
            "{}: no admin key, 64 hexadecimal digits are expected",
            path.display()
        )
    })?;
    Ok(AdminSecret::from_bytes(&bytes))
}

/// Reads the key, or makes one where there is none.
pub(crate) fn load_or_make(path: &Path) -> Result<AdminSecret, Failure> {
    let seed: [u8; 32] = rand::random();
    let mut file = match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return load(path),
        Err(error) => {
            return Err(anyhow::Error::new(error)
                .context(format!("make {}", path.display()))
                .into());
        }
    };
    let text: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{text}").with_context(|| format!("write {}", path.display()))?;
    Ok(AdminSecret::from_bytes(&seed))
}

fn decode(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        let made = load_or_make(&path).ok().unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(load_or_make(&path).ok().unwrap().public(), made.public());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = load(&path).err().unwrap();
        assert!(
            refused.error.to_string().contains("0600"),
            "{}",
            refused.error
        );
    }
}
