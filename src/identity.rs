//! The node's signing key, and other keys in files of their own.
//!
//! Invariant: made once, at first start, readable by its owner alone; a key
//! file that is damaged or open to others stops the node instead of being
//! replaced, because a new key is a new signer.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use ed25519_dalek::SigningKey;
use fail::fail_point;

const FILE: &str = "signing.key";

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("signing key in {folder}: {source}")]
    Io {
        /// The data folder, or the file.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read it: run `chmod 600`.
    #[error("the signing key {0} is open to others (mode {1:o}); make it 600, or replace it")]
    Open(String, u32),
    /// It is not 32 bytes.
    #[error("the signing key {0} is damaged; restore it, or start with an empty data folder")]
    Damaged(String),
}

/// Reads the key in `folder`, or makes it there.
pub fn load_or_create(folder: &Path) -> Result<SigningKey, IdentityError> {
    let path = folder.join(FILE);
    let io = |source| IdentityError::Io { folder: folder.display().to_string(), source };
    match read(&path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create_in(folder, &path).map_err(io)
        }
        read => read,
    }
}

/// Reads the key in the file `path`.
pub fn read(path: &Path) -> Result<SigningKey, IdentityError> {
    let io = |source| IdentityError::Io { folder: path.display().to_string(), source };
    let bytes = fs::read(path).map_err(io)?;
    let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Open(path.display().to_string(), mode));
    }
    let damaged = |_| IdentityError::Damaged(path.display().to_string());
    Ok(SigningKey::from_bytes(&<[u8; 32]>::try_from(bytes).map_err(damaged)?))
}

/// Makes a key in the new file `path`; one that is there stays, and is an error.
pub fn create(path: &Path) -> Result<SigningKey, IdentityError> {
    let io = |source| IdentityError::Io { folder: path.display().to_string(), source };
    let secret = secret().map_err(io)?;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(io)?;
    file.write_all(&secret).and_then(|()| file.sync_all()).map_err(io)?;
    Ok(SigningKey::from_bytes(&secret))
}

fn secret() -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    Ok(secret)
}

fn create_in(folder: &Path, path: &Path) -> io::Result<SigningKey> {
    let secret = secret()?;
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&secret)?;
    fail_point!("key.written");
    file.sync_all()?;
    fail_point!("key.synced");
    fs::rename(&temporary, path)?;
    fail_point!("key.renamed");
    fs::File::open(folder)?.sync_all()?;
    Ok(SigningKey::from_bytes(&secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_create(folder.path()).unwrap();
        let again = load_or_create(folder.path()).unwrap();
        assert_eq!(first.to_bytes(), again.to_bytes());
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        load_or_create(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load_or_create(folder.path()), Err(IdentityError::Open(..))));
    }

    #[test]
    fn a_file_of_its_own_is_made_once_and_read_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let made = create(&path).unwrap();
        assert_eq!(read(&path).unwrap().to_bytes(), made.to_bytes());
        assert!(matches!(create(&path), Err(IdentityError::Io { .. })), "it is there");
        assert_eq!(read(&path).unwrap().to_bytes(), made.to_bytes());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(IdentityError::Open(..))));
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        load_or_create(folder.path()).unwrap();
        fs::write(folder.path().join(FILE), b"short").unwrap();
        assert!(matches!(load_or_create(folder.path()), Err(IdentityError::Damaged(_))));
    }
}
