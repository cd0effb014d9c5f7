//! What a worker may still touch once its library is loaded.
//!
//! Invariant: where the kernel has Landlock, a source can read CUDA's headers, the folder of
//! NVRTC's library, its own files, and nothing else of the machine, whatever its macros
//! spell. Without Landlock the daemon warns: [`super::super::request`] refuses what is
//! spelled plainly, but not in a source whose headers are a tree.

use std::path::Path;

use kiln_proto::{Failure, FailureKind};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};

/// Newest interface asked for; older kernels enforce what they know.
const WANTED: ABI = ABI::V6;

/// Leaves this thread, and those it starts, read access to `library`'s folder
/// and `include`, and all access to `own`, the worker's folder. Returns whether the kernel
/// enforces it.
pub(super) fn confine(library: &Path, include: &[String], own: &Path) -> Result<bool, Failure> {
    let readable = include.iter().map(Path::new).chain(library.parent());
    let read: BitFlags<AccessFs> = AccessFs::from_read(WANTED);
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(WANTED)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(path_beneath_rules(readable, read)))
        .and_then(|rules| rules.add_rules(path_beneath_rules([own], AccessFs::from_all(WANTED))))
        .and_then(|rules| rules.restrict_self());
    match status {
        Ok(status) => Ok(status.ruleset != RulesetStatus::NotEnforced),
        Err(e) => Err(Failure::new(FailureKind::Crashed, format!("confine the worker: {e}"))),
    }
}
