//! Which version of its format a file of an artifact says that it has.
//!
//! Invariant: the version is read before anything else: what another version wrote is told
//! apart from what is damaged, though the rest of it means nothing here.

use serde::Deserialize;

#[derive(Deserialize)]
struct Versioned {
    version: Option<u32>,
}

/// The version that a JSON file says; `None`: it says none that could be read.
pub fn said(bytes: &[u8]) -> Option<u32> {
    serde_json::from_slice::<Versioned>(bytes).ok()?.version
}

/// Refuses a file of another version than `known`, with what to do about it. One that says
/// none passes: whoever reads it tells what is wrong with it.
pub fn check(bytes: &[u8], known: u32) -> Result<(), String> {
    check_from(bytes, known, known)
}

/// The same, where those from `oldest` on are read too.
pub fn check_from(bytes: &[u8], oldest: u32, known: u32) -> Result<(), String> {
    match said(bytes) {
        Some(version) if (oldest..=known).contains(&version) => Ok(()),
        Some(version) if version > known => Err(format!(
            "version {version}, which a later Kiln wrote; this one reads {known}: use the later one, \
             or compile again"
        )),
        Some(version) => Err(format!("version {version}, not {known}: compile it again")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let later = check(br#"{"all": [{"is": "new"}], "version": 3}"#, 2);
        assert!(later.is_err_and(|why| why.contains("version 3, which a later Kiln wrote")));
        let earlier = check(br#"{"version": 1}"#, 2);
        assert!(earlier.is_err_and(|why| why.contains("compile it again")));
        for read_on in [br#"{"version": 2, "x": 1}"#.as_slice(), b"", b"{", b"[]", b"{}"] {
            assert_eq!(check(read_on, 2), Ok(()));
        }
        for (version, is_read) in [(1, false), (2, true), (3, true), (4, false)] {
            let bytes = format!(r#"{{"version": {version}}}"#);
            assert_eq!(check_from(bytes.as_bytes(), 2, 3).is_ok(), is_read, "{version}");
        }
    }
}
