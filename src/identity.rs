//! The node's signing key, and other keys in files of their own.
//!
//! Invariant: made once, at first start, readable by its owner alone; a key
//! file that is damaged or open to others stops the node instead of being
//! replaced, because a new key is a new signer. The next key takes the place of the present
//! one in one step, after its own file and the name that the first one gave were on disk, and
//! only where it is the one that is meant. Of two that make the same file at once, one makes
//! it, and both have what that one made.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use fail::fail_point;
use tempfile::{NamedTempFile, PersistError};

use crate::unfinished;

const FILE: &str = "signing.key";
/// The key that is to follow.
const NEXT: &str = "signing.next";
/// The public half of the key with which the node joined, once another one followed it.
const NAME: &str = "signing.name";

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
    /// The key that is to take its place is not there: nothing was changed.
    #[error("neither the next signing key in {folder} nor the present one is {wanted}")]
    Another {
        /// The data folder.
        folder: String,
        /// The public key that was to be there, in hexadecimal.
        wanted: String,
    },
}

impl IdentityError {
    /// Whether there is no such file.
    fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads the key in `folder`, or makes it there.
pub fn load_or_create(folder: &Path) -> Result<SigningKey, IdentityError> {
    let path = folder.join(FILE);
    let io = |source| IdentityError::Io { folder: folder.display().to_string(), source };
    match read(&path) {
        Err(e) if e.is_missing() => create_in(folder, &path).map_err(io)?,
        _ => {}
    }
    read(&path)
}

/// The key that is to follow the one in `folder`, if there is one.
pub fn next(folder: &Path) -> Result<Option<SigningKey>, IdentityError> {
    match read(&folder.join(NEXT)) {
        Err(e) if e.is_missing() => Ok(None),
        read => read.map(Some),
    }
}

/// Makes the key that is to follow the one in `folder`; one that is there already is kept.
pub fn prepare(folder: &Path) -> Result<SigningKey, IdentityError> {
    let io = |source| IdentityError::Io { folder: folder.display().to_string(), source };
    if !folder.join(NAME).exists() {
        write_name(folder, &name(folder)?)?;
        fail_point!("rotate.named");
    }
    match next(folder)? {
        Some(known) => return Ok(known),
        None => create_in(folder, &folder.join(NEXT)).map_err(io)?,
    }
    fail_point!("rotate.prepared");
    read(&folder.join(NEXT))
}

/// Puts the next key in the place of the present one, which is gone then. The next one has to
/// be `wanted`; where that is the present one already, nothing is to be done.
pub fn finish(folder: &Path, wanted: &VerifyingKey) -> Result<(), IdentityError> {
    let is_wanted = |key: &SigningKey| key.verifying_key() == *wanted;
    if next(folder)?.as_ref().is_some_and(is_wanted) {
        let finish = || {
            fs::rename(folder.join(NEXT), folder.join(FILE))?;
            fail_point!("rotate.replaced");
            fs::File::open(folder)?.sync_all()
        };
        finish()
            .map_err(|source| IdentityError::Io { folder: folder.display().to_string(), source })?;
        fail_point!("rotate.finished");
        return Ok(());
    }
    match read(&folder.join(FILE)) {
        Ok(present) if is_wanted(&present) => Ok(()),
        Err(e) if !e.is_missing() => Err(e),
        _ => Err(IdentityError::Another {
            folder: folder.display().to_string(),
            wanted: hex::encode(wanted.as_bytes()),
        }),
    }
}

/// Notes that the node of `folder` joined with `joined`, where [`name`] would say another key:
/// that of another membership, whose file outlived it.
pub fn correct_name(folder: &Path, joined: &VerifyingKey) -> Result<(), IdentityError> {
    match name(folder) {
        Ok(known) if known == *joined => Ok(()),
        Ok(_) | Err(IdentityError::Damaged(_)) => write_name(folder, joined),
        Err(e) => Err(e),
    }
}

fn write_name(folder: &Path, name: &VerifyingKey) -> Result<(), IdentityError> {
    let path = folder.join(NAME);
    let text = hex::encode(name.as_bytes());
    let placed = placed(folder, text.as_bytes(), |file| file.persist(&path));
    placed
        .and_then(|()| fs::File::open(folder)?.sync_all())
        .map_err(|source| IdentityError::Io { folder: folder.display().to_string(), source })
}

/// The public key by which certificates of members name the node of `folder`: that with which
/// it joined, or is to join. Makes its key where it has none.
pub fn name(folder: &Path) -> Result<VerifyingKey, IdentityError> {
    let path = folder.join(NAME);
    let io = |source| IdentityError::Io { folder: path.display().to_string(), source };
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(load_or_create(folder)?.verifying_key());
        }
        read => read.map_err(io)?,
    };
    let bytes = hex::decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    key.ok_or_else(|| IdentityError::Damaged(path.display().to_string()))
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

/// Makes a key in the file `path` of `folder`; one that came there meanwhile stays.
fn create_in(folder: &Path, path: &Path) -> io::Result<()> {
    match placed(folder, &secret()?, |file| file.persist_noclobber(path)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    fail_point!("key.renamed");
    fs::File::open(folder)?.sync_all()
}

/// Writes `bytes` as what is to become a file of `folder`, and gives it its name by `place`. A command of the operator may do so while the node of the folder starts, which
/// removes what nobody named yet: that is done again.
fn placed(
    folder: &Path,
    bytes: &[u8],
    place: impl Fn(NamedTempFile) -> Result<fs::File, PersistError>,
) -> io::Result<()> {
    match place(written(folder, bytes)?) {
        Err(e) if e.error.kind() == io::ErrorKind::NotFound => place(written(folder, bytes)?),
        placed => placed,
    }
    .map(drop)
    .map_err(|e| e.error)
}

/// What is to become a file of `folder`, durable under a name that nobody else has; its owner's
/// alone.
fn written(folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = unfinished::create(folder)?;
    file.write_all(bytes)?;
    fail_point!("key.written");
    file.as_file().sync_all()?;
    fail_point!("key.synced");
    Ok(file)
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
    fn the_next_key_follows_in_one_step_and_the_name_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let first = load_or_create(at).unwrap().verifying_key();
        assert!(next(at).unwrap().is_none());
        let second = prepare(at).unwrap();
        // Whoever is killed here goes on with both.
        assert_eq!(prepare(at).unwrap().to_bytes(), second.to_bytes());
        assert_eq!(load_or_create(at).unwrap().verifying_key(), first);
        let wanted = second.verifying_key();
        finish(at, &wanted).unwrap();
        assert_eq!(load_or_create(at).unwrap().to_bytes(), second.to_bytes());
        assert!(next(at).unwrap().is_none() && name(at).unwrap() == first);
        finish(at, &wanted).unwrap();
        let third = prepare(at).unwrap().verifying_key();
        assert!(matches!(finish(at, &first), Err(IdentityError::Another { .. })), "another key");
        assert_eq!(next(at).unwrap().map(|key| key.verifying_key()), Some(third));
        assert_eq!(load_or_create(at).unwrap().to_bytes(), second.to_bytes());
        finish(at, &third).unwrap();
        assert_eq!(name(at).unwrap(), first, "also after one more");
        assert!(finish(at, &wanted).is_err(), "it is gone");
        let mode = fs::metadata(at.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn who_makes_the_same_key_at_once_has_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        load_or_create(at).unwrap();
        for make in [prepare, load_or_create] {
            let _ = fs::remove_file(at.join(FILE));
            let start = std::sync::Barrier::new(8);
            let made: Vec<_> = std::thread::scope(|scope| {
                let making = || {
                    start.wait();
                    make(at).unwrap().to_bytes()
                };
                let all: Vec<_> = (0..8).map(|_| scope.spawn(making)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert!(made.iter().all(|key| *key == made[0]));
            assert_eq!(make(at).unwrap().to_bytes(), made[0]);
        }
        let names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
        let left =
            |name: &std::ffi::OsString| name.to_string_lossy().starts_with(unfinished::PREFIX);
        assert!(!names.iter().any(left), "{names:?}");
    }

    #[test]
    fn a_name_of_another_membership_is_corrected() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let first = load_or_create(at).unwrap().verifying_key();
        correct_name(at, &first).unwrap();
        assert!(!at.join(NAME).exists(), "the key says it");
        let second = prepare(at).unwrap().verifying_key();
        finish(at, &second).unwrap();
        correct_name(at, &first).unwrap();
        assert_eq!(name(at).unwrap(), first);
        // Its index was emptied, and it joined again with the key that it has.
        correct_name(at, &second).unwrap();
        assert_eq!(name(at).unwrap(), second);
        fs::write(at.join(NAME), "torn").unwrap();
        assert!(matches!(name(at), Err(IdentityError::Damaged(_))));
        correct_name(at, &first).unwrap();
        assert_eq!(name(at).unwrap(), first);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        load_or_create(folder.path()).unwrap();
        fs::write(folder.path().join(FILE), b"short").unwrap();
        assert!(matches!(load_or_create(folder.path()), Err(IdentityError::Damaged(_))));
    }
}
