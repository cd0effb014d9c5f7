//! Which versions of the program read a command.
//!
//! A member that cannot read a command in the log cannot go on: it stops until it runs a
//! later version. While the nodes of a cluster are restarted with a new version one after
//! the other, its new commands wait until the last one is.
//!
//! Invariant: a command is written only where every member's program reads it, as far as
//! its registered version tells.

use semver::Version;

use crate::{
    admission::Admission,
    command::{Command, NodeFacts},
    error::ClusterError,
    signing::KeyChange,
    table::Table,
    watch::Nodes,
};

/// The first version of which a member reads `command`; `None`: any.
pub(crate) fn since(command: &Command) -> Option<Version> {
    match command {
        Command::Want(_)
        | Command::CommitWhole { .. }
        | Command::Use { .. }
        | Command::Revoke(_)
        | Command::IssueToken { .. }
        | Command::RevokeToken { .. }
        | Command::NoteAudit { .. }
        | Command::Admission(_)
        | Command::RootSays { .. }
        | Command::Keys(_)
        | Command::Stamped(_) => Some(Version::new(0, 2, 0)),
        _ => None,
    }
}

/// The first version that reads a record of `table`; `None`: any.
pub(crate) fn since_table(table: Table) -> Option<Version> {
    match table {
        Table::Entries
        | Table::Epochs
        | Table::Blobs
        | Table::Leases
        | Table::Failures
        | Table::Nodes
        | Table::Counters
        | Table::Objects
        | Table::Sessions => None,
        Table::Wanted
        | Table::Pieces
        | Table::References
        | Table::Uses
        | Table::Revocations
        | Table::Tokens
        | Table::AuditHeads
        | Table::Admissions
        | Table::Roots
        | Table::Certificates
        | Table::SigningKeys
        | Table::Published
        | Table::NextRoots
        | Table::NextCertificates => Some(Version::new(0, 2, 0)),
    }
}

/// Whether hits are counted by key. While a member runs an earlier version, all count as that
/// one does: by the artifact's bytes.
pub(crate) fn count_by_key(nodes: &Nodes) -> bool {
    let used = Command::Use { node: 0, hits: Vec::new(), at_unix_ms: 0 };
    check(nodes, &used).is_ok()
}

/// Whether every member notes when, and under which key, an artifact was published.
pub(crate) fn stamp(nodes: &Nodes) -> bool {
    let rotate = KeyChange::Rotate { node: 0, key: [0; 32], at_unix_ms: 0 };
    check(nodes, &Command::Keys(rotate)).is_ok()
}

/// Whether joining by a token is known to every member.
pub(crate) fn admit_by_token(nodes: &Nodes) -> bool {
    let need = Admission::Need { needs_token: true, node: 0, first: true };
    check(nodes, &Command::Admission(need)).is_ok()
}

/// Whether a candidate needs a token: as the cluster was told, and until then as its leader's
/// settings say, once every member can pass a token on.
pub(crate) fn joining_needs_token(told: Option<bool>, settings: bool, nodes: &Nodes) -> bool {
    told.unwrap_or(settings && admit_by_token(nodes))
}

/// Whether the program of `node` reads an index that needs `needs`. `Invalid`: it does not,
/// and would stop at what it cannot read.
pub(crate) fn admit(needs: Option<&Version>, node: &NodeFacts) -> Result<(), ClusterError> {
    match needs.filter(|needs| is_older(&node.version, needs)) {
        None => Ok(()),
        Some(needs) => Err(ClusterError::invalid(format!(
            "the node at {} runs Kiln {}, and this cluster's index has what only {needs} or later \
             reads: start it with {needs} or later",
            node.grpc, node.version,
        ))),
    }
}

/// Whether every member reads `command`. `Unavailable`: the first that does not.
pub(crate) fn check(nodes: &Nodes, command: &Command) -> Result<(), ClusterError> {
    let Some(since) = since(command) else { return Ok(()) };
    let old = nodes.iter().find(|(_, node)| !node.left && is_older(&node.facts.version, &since));
    match old {
        None => Ok(()),
        Some((id, node)) => Err(ClusterError::unavailable(format!(
            "node {id} runs Kiln {}, which cannot read \"{command}\": every node has to run \
             {since} or later",
            node.facts.version,
        ))),
    }
}

/// Whether whoever is let in by a member can prove that: each member's version endorses those.
pub(crate) fn all_endorse(nodes: &Nodes) -> bool {
    let since = Version::new(0, 2, 0);
    !nodes.values().any(|node| !node.left && is_older(&node.facts.version, &since))
}

/// Whether a node of `version` takes its peers' calls on the port of its clients, as
/// nodes did before 0.2.
pub(crate) fn shares_a_port(version: &str) -> bool {
    is_older(version, &Version::new(0, 2, 0))
}

/// Whether a member calls its peers on the ports of their clients, or is registered as
/// one that is called there.
pub(crate) fn share_a_port(nodes: &Nodes) -> bool {
    nodes.values().any(|node| !node.left && shares_a_port(&node.facts.version))
}

/// A build of its own that gives itself another kind of name is not known to be older.
pub(crate) fn is_older(version: &str, than: &Version) -> bool {
    let numbers = |version: &Version| (version.major, version.minor, version.patch);
    Version::parse(version).is_ok_and(|version| numbers(&version) < numbers(than))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::{command::NodeFacts, state::tests::list_of, watch::NodeInfo};

    /// The commands of 0.1.0, which every version reads, in the order of the log's format.
    #[rustfmt::skip]
    const OLDEST: &[&str] = &[
        "Found",
        "Join",
        "Leave",
        "Facts",
        "Acquire",
        "Publish",
        "Expire",
        "Fail",
        "Lift",
        "MarkStored",
        "Report",
        "SetPinned",
        "Tombstone",
        "Retire",
        "Condemn",
        "Forget",
        "Put",
        "SetVoter",
        "SetVoters",
        "AcquireAgain",
        "Commit",
        "RetireAbsent",
        "OpenSession",
        "Write",
        "StoreObject",
        "AdoptObject",
        "CondemnObject",
        "ForgetObject",
        "SetAway",
        "LoseObject",
    ];

    /// Every command by name and number, as serde has them.
    fn commands() -> &'static [&'static str] {
        let mut names: &[&str] = &[];
        // It reads no value, and says so.
        assert!(Command::deserialize(Variants(&mut names)).is_err());
        names
    }

    struct Variants<'a>(&'a mut &'static [&'static str]);

    impl<'de> serde::Deserializer<'de> for Variants<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_enum<V: serde::de::Visitor<'de>>(
            self,
            _: &'static str,
            variants: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = variants;
            Err(serde::de::Error::custom("names alone"))
        }

        fn deserialize_any<V: serde::de::Visitor<'de>>(
            self,
            _: V,
        ) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("an enum"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier
            ignored_any
        }
    }

    /// Who adds a command tells here since when it is read; who renumbers one breaks every log.
    #[test]
    fn every_command_that_came_later_waits_for_all_members() {
        let (oldest, later) = commands().split_at(OLDEST.len());
        assert_eq!(oldest, OLDEST, "a command's number is in every log: add new ones at the end");
        for (name, number) in later.iter().zip(OLDEST.len()..) {
            // All zeros is a value of each of them; where it is none, write one here.
            let bytes = [&[u8::try_from(number).unwrap()][..], &[0; 1024]].concat();
            let (command, _) = postcard::take_from_bytes::<Command>(&bytes)
                .unwrap_or_else(|e| panic!("{name}: no value of zeros: {e}"));
            let since = since(&command);
            assert!(since.is_some(), "{name} is written whether or not all members read it");
            let program = Version::parse(env!("CARGO_PKG_VERSION")).unwrap();
            assert!(since <= Some(program), "{name} is of a version to come");
            assert!(check(&nodes(&["0.1.0"]), &command).is_err(), "{name}");
        }
    }

    fn nodes(versions: &[&str]) -> Nodes {
        let node = |(version, id): (&&str, u64)| {
            let key = ed25519_dalek::SigningKey::from_bytes(&[id as u8; 32]).verifying_key();
            let facts = NodeFacts { version: (*version).to_owned(), ..NodeFacts::default() };
            let candidate = [id as u8; 16];
            let (left, away, eligible, revoked) = (false, false, true, None);
            let keys = NodeInfo::only(key);
            (id, NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate })
        };
        versions.iter().zip(1..).map(node).collect::<BTreeMap<_, _>>()
    }

    #[test]
    fn a_new_command_waits_for_the_last_node_of_an_earlier_version() {
        let want = || Command::Want(list_of(1, &[2], 3));
        let judge = |versions: &[&str]| check(&nodes(versions), &want());
        assert_eq!(judge(&["0.2.0", "0.2.0-next", "1.0.0"]), Ok(()));
        let refused = judge(&["0.2.0", "0.1.9", "0.2.0"]);
        let Err(ClusterError::Unavailable(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("node 2 runs Kiln 0.1.9"), "{why}");
        assert_eq!(check(&nodes(&["0.1.0"]), &Command::SetAway(2)), Ok(()), "an old command");

        let mut gone = nodes(&["0.2.0", "0.1.9"]);
        gone.get_mut(&2).into_iter().for_each(|node| node.left = true);
        assert_eq!(check(&gone, &want()), Ok(()), "who left reads nothing more");
        let mut away = nodes(&["0.2.0", "0.1.9"]);
        away.get_mut(&2).into_iter().for_each(|node| node.away = true);
        assert!(check(&away, &want()).is_err(), "who is silent comes back, and reads the log");
    }

    #[test]
    fn peers_call_the_members_port_of_those_that_have_one() {
        let facts = |transfer: &str, version: &str| NodeFacts {
            grpc: "a:1".into(),
            transfer: transfer.into(),
            version: version.into(),
            ..NodeFacts::default()
        };
        assert_eq!(facts("a:2", "0.2.0").members(), "a:2");
        assert_eq!(facts("a:2", "main-4f2a").members(), "a:2");
        assert_eq!(facts("a:2", "0.1.0").members(), "a:1");
        assert_eq!(facts("", "0.2.0").members(), "a:1", "it has no other");
        assert!(share_a_port(&nodes(&["0.2.0", "0.1.0"])));
        assert!(!share_a_port(&nodes(&["0.2.0", "0.2.1"])));
    }

    #[test]
    fn uses_are_counted_by_key_once_every_member_can() {
        let used = Command::Use { node: 1, hits: Vec::new(), at_unix_ms: 0 };
        assert_eq!(check(&nodes(&["0.2.0", "0.2.0"]), &used), Ok(()));
        assert!(check(&nodes(&["0.2.0", "0.1.0"]), &used).is_err());
    }

    #[test]
    fn settings_ask_for_no_token_before_every_member_can_pass_one_on() {
        let (old, new) = (nodes(&["0.2.0", "0.1.0"]), nodes(&["0.2.0", "0.2.0"]));
        assert!(!joining_needs_token(None, true, &old), "nobody could join");
        assert!(joining_needs_token(None, true, &new) && !joining_needs_token(None, false, &new));
        assert!(joining_needs_token(Some(true), false, &old), "as it was told");
        assert!(!joining_needs_token(Some(false), true, &new));
    }

    #[test]
    fn a_build_with_a_name_of_its_own_counts_as_a_new_one() {
        assert_eq!(check(&nodes(&["", "main-4f2a"]), &Command::Want(list_of(1, &[2], 3))), Ok(()));
    }
}
