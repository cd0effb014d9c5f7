//! The commands that there are.
//!
//! Invariant: sorted by name, so that a command is found by a binary search.

/// Name and arity as COMMAND tells them: the name counts, and a negative number
/// is a least one.
pub(super) const COMMANDS: [(&str, i64); 41] = [
    ("auth", -2),
    ("client", -2),
    ("command", -1),
    ("config", -2),
    ("dbsize", 1),
    ("del", -2),
    ("discard", 1),
    ("echo", 2),
    ("exec", 1),
    ("exists", -2),
    ("expire", -3),
    ("expireat", -3),
    ("get", 2),
    ("getex", -2),
    ("getrange", 4),
    ("hello", -1),
    ("info", -1),
    ("mget", -2),
    ("mset", -3),
    ("multi", 1),
    ("persist", 2),
    ("pexpire", -3),
    ("pexpireat", -3),
    ("ping", -1),
    ("psetex", 4),
    ("pttl", 2),
    ("quit", -1),
    ("reset", 1),
    ("scan", -2),
    ("select", 2),
    ("set", -3),
    ("setex", 4),
    ("setnx", 3),
    ("strlen", 2),
    ("substr", 4),
    ("touch", -2),
    ("ttl", 2),
    ("type", 2),
    ("unlink", -2),
    ("unwatch", 1),
    ("watch", -2),
];

/// What a command does to values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Gives values out.
    Read,
    /// Takes values in.
    Write,
    /// Anything else.
    Other,
}

impl Family {
    /// In the order of their numbers.
    pub(super) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Other];

    /// The name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Other => "other",
        }
    }

    /// The name in traces.
    pub(super) const fn span(self) -> &'static str {
        match self {
            Self::Read => "resp read",
            Self::Write => "resp write",
            Self::Other => "resp other",
        }
    }

    /// Of a command in [`COMMANDS`].
    pub(super) fn of(command: &str) -> Self {
        match command {
            "get" | "getex" | "getrange" | "mget" | "substr" => Self::Read,
            "mset" | "psetex" | "set" | "setex" | "setnx" => Self::Write,
            _ => Self::Other,
        }
    }
}

/// Longest name of a command, and a bit.
const LONGEST: usize = 16;

/// The command that `word` names, in whichever case.
pub(super) fn find(word: &[u8]) -> Option<(&'static str, i64)> {
    let mut name = [0; LONGEST];
    let name = name.get_mut(..word.len())?;
    name.copy_from_slice(word);
    name.make_ascii_lowercase();
    let found = COMMANDS.binary_search_by(|(known, _)| known.as_bytes().cmp(&*name));
    found.ok().map(|at| COMMANDS[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_by_name() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(COMMANDS.iter().all(|(name, _)| name.len() <= LONGEST));
        assert_eq!(find(b"GeT"), Some(("get", 2)));
        for unknown in [&b""[..], b"gett", b"an endless name of a command", b"\xff"] {
            assert_eq!(find(unknown), None);
        }
    }
}
