//! Packs of folders that a later version of Kiln wrote.
//!
//! Invariant: what cannot be read of a pack's own files is never taken for nothing: without
//! them its outputs would be restored as current, and captured without what they had.

use kiln::artifact;
use kiln_native::version;
use kiln_proto::{FailureKind, Manifest};

use super::{index, inputs};
use crate::cli::CliError;

/// Refuses a pack whose own files are of a version to come. It stays as it is: nothing is
/// restored from it, and nothing takes its place.
pub(crate) fn check(manifest: &Manifest, pack: &[u8]) -> Result<(), CliError> {
    let known = [(index::PATH, index::VERSION), (inputs::PATH, inputs::VERSION)];
    for (path, known) in known {
        let Ok(bytes) = artifact::file(manifest, pack, path) else { continue };
        if let Some(later) = version::said(bytes).filter(|said| *said > known) {
            let why = format!(
                "{path} of the stored folder has version {later}, and this Kiln {} reads {known}: it \
                 is left as it is; use the version that wrote it",
                kiln::VERSION,
            );
            return Err(CliError::failed(FailureKind::Incompatible, why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fetch::tests::artifact;

    #[test]
    fn a_folder_of_a_version_to_come_is_refused_and_an_odd_one_is_not() {
        for path in [index::PATH, inputs::PATH] {
            let judge = |text: &[u8]| {
                let (manifest, pack) = artifact(&[(path, text), ("x", b"1")]);
                check(&manifest, &pack).map_err(|refused| refused.exit_code())
            };
            assert_eq!(judge(br#"{"version":2,"files":"of another kind"}"#), Err(13), "{path}");
            for passes in [br#"{"version":1}"#.as_slice(), b"", b"[]"] {
                assert_eq!(judge(passes), Ok(()), "{path}");
            }
        }
        let (manifest, pack) = artifact(&[("x", b"1")]);
        assert!(check(&manifest, &pack).is_ok());
    }
}
