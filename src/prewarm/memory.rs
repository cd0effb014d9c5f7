//! The profile of use in a file, so that a node that starts again knows the habits.
//!
//! Invariant: what cannot be read, or cannot be, is no profile: the node begins a new one.

use std::{
    io::{self, Write},
    path::Path,
};

use super::Profile;
use crate::unfinished;

/// Before the profile; another form of it is another first byte.
const FORM: u8 = 1;

/// The profile in that file; an empty one where there is none.
pub(super) fn read(file: &Path) -> Profile {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Profile::default(),
        Err(e) => {
            tracing::warn!(file = %file.display(), error = %e, "the profile of use is not read");
            return Profile::default();
        }
    };
    let read = bytes.split_first().filter(|(form, _)| **form == FORM);
    let read = read.and_then(|(_, rest)| postcard::from_bytes::<Profile>(rest).ok());
    read.filter(Profile::is_sound).unwrap_or_else(|| {
        tracing::warn!(file = %file.display(), "the profile of use is not sound: a new one begins");
        Profile::default()
    })
}

/// Replaces the file at once.
pub(super) fn write(file: &Path, profile: &Profile) -> io::Result<()> {
    let bytes = postcard::to_extend(profile, vec![FORM]).map_err(io::Error::other)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut temp = unfinished::create(folder)?;
    temp.write_all(&bytes)?;
    temp.persist(file)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kiln_proto::ArtifactKey;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("use");
        assert!(read(&file).is_empty());
        let mut profile = Profile::default();
        profile.look(7).count(&ArtifactKey::from_bytes([3; 32]), 9, 7);
        write(&file, &profile).unwrap();
        assert_eq!(read(&file), profile);
        let bytes = std::fs::read(&file).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            assert!(read(&file).is_empty(), "cut to {cut}");
        }
        let mut other = bytes.clone();
        other[0] = FORM + 1;
        std::fs::write(&file, other).unwrap();
        assert!(read(&file).is_empty());
        // A rate that is no number.
        let mut odd = bytes;
        let end = odd.len();
        odd[end - 8..].copy_from_slice(&f64::NAN.to_le_bytes());
        std::fs::write(&file, odd).unwrap();
        assert!(read(&file).is_empty());
    }
}
