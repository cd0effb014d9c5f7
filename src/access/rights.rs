//! What each call of the API needs: the one table of it.
//!
//! Invariant: every method of every service that a port serves has a row; one that has none
//! is for nobody.

use kiln_cluster::tokens::Role;

/// What a call needs before it is looked at; its namespaces are judged where they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Nothing: for probes, which have no token.
    Open,
    /// This role, in some namespace.
    Needs(Role),
    /// This role in all namespaces.
    NeedsAll(Role),
}

use Right::{Needs, NeedsAll, Open};
use Role::{Admin, Read, Write};

/// The calls of the API.
const API: &str = "kiln.v1.Kiln";

/// Method, what it needs, and whether members send it to each other.
const KILN: &[(&str, Right, bool)] = &[
    ("AddNode", NeedsAll(Admin), false),
    ("Attest", Needs(Read), false),
    ("AuditHead", NeedsAll(Admin), false),
    // Fills the cache where it misses.
    ("Compile", Needs(Write), true),
    ("CreateToken", NeedsAll(Admin), false),
    ("Emergency", NeedsAll(Admin), false),
    ("Explain", Needs(Read), false),
    ("Fetch", Needs(Read), false),
    ("Lease", Needs(Write), false),
    ("Leave", NeedsAll(Admin), false),
    ("List", Needs(Read), false),
    ("Loaded", Needs(Read), false),
    ("Lookup", Needs(Read), false),
    ("Metrics", Needs(Read), true),
    ("Monitor", Needs(Read), false),
    // Shows artifacts of all namespaces.
    ("Overview", NeedsAll(Read), true),
    ("Pin", Needs(Write), false),
    ("Plan", Needs(Read), false),
    ("Publish", Needs(Write), false),
    // Removes what is wrong.
    ("Recheck", Needs(Write), false),
    ("Recompile", Needs(Write), false),
    ("RemoveNode", NeedsAll(Admin), false),
    ("Restore", NeedsAll(Admin), false),
    ("RevokeSigner", NeedsAll(Admin), false),
    ("RevokeToken", NeedsAll(Admin), false),
    ("RootSays", NeedsAll(Admin), false),
    ("RotateSigner", NeedsAll(Admin), false),
    ("SetJoining", NeedsAll(Admin), false),
    ("SetVoters", NeedsAll(Admin), false),
    ("Signers", Needs(Read), false),
    ("Status", Needs(Read), true),
    ("Tokens", NeedsAll(Admin), false),
    ("Tombstone", Needs(Write), false),
    ("Undo", NeedsAll(Admin), false),
];

/// What the call of that path needs; `None`: nobody may.
pub fn method(path: &str) -> Option<Right> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match service {
        API => KILN.iter().find(|(name, ..)| *name == method).map(|(_, right, _)| *right),
        "grpc.health.v1.Health" => Some(Open),
        "grpc.reflection.v1.ServerReflection" => Some(Needs(Read)),
        _ => None,
    }
}

/// The method of that path, for the log: those that there are not have one name.
pub fn name(path: &str) -> &'static str {
    let called = path.rsplit('/').next().unwrap_or_default();
    KILN.iter().find(|(name, ..)| *name == called).map_or("other", |(name, ..)| name)
}

/// The method of that path, if it is one of the API.
fn of_api(path: &str) -> Option<&str> {
    path.strip_prefix('/')?.strip_prefix(API)?.strip_prefix('/')
}

/// Whether the call of that path is one of the API.
pub fn is_of_api(path: &str) -> bool {
    of_api(path).is_some()
}

/// Whether members send each other the call of that path, of the API.
pub fn of_members(path: &str) -> bool {
    of_api(path)
        .is_none_or(|method| KILN.iter().any(|(name, _, members)| *name == method && *members))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_method_of_the_api_has_a_row_and_no_row_is_of_none() {
        let text = include_str!("../../proto/proto/kiln/v1/kiln.proto");
        let methods = text.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        let methods: Vec<_> = methods.map(|rest| rest.split_once('(').unwrap().0).collect();
        for name in &methods {
            let path = format!("/kiln.v1.Kiln/{name}");
            let right = method(&path).unwrap_or_else(|| panic!("{path} has no row"));
            assert_ne!(right, Open, "{path}");
            assert_eq!(self::name(&path), *name);
        }
        assert_eq!(methods.len(), KILN.len(), "a row of no method");
        assert_eq!(text.matches("\nservice ").count(), 1, "another service");
        assert!(KILN.is_sorted_by(|a, b| a.0 < b.0), "once each");
    }

    #[test]
    fn what_changes_the_cluster_is_for_admins_and_what_is_unknown_for_nobody() {
        for name in ["AddNode", "RemoveNode", "Leave", "SetVoters", "RevokeSigner", "CreateToken"] {
            assert_eq!(method(&format!("/kiln.v1.Kiln/{name}")), Some(NeedsAll(Admin)), "{name}");
        }
        for path in [
            "",
            "/",
            "/kiln.v1.Kiln",
            "/kiln.v1.Kiln/None",
            "/kiln.cluster.v1.Peer/Vote",
            "/x/Status",
        ] {
            assert_eq!(method(path), None, "{path}");
        }
        assert!(of_members("/kiln.v1.Kiln/Compile") && of_members("/kiln.cluster.v1.Peer/Vote"));
        assert!(!of_members("/kiln.v1.Kiln/Publish") && !of_members("/kiln.v1.Kiln/None"));
    }
}
