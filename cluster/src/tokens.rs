//! Tokens of clients: who may ask a cluster for what, as all of its nodes know it.
//!
//! Invariant: of a token's secret only the digest is kept, in the log, the index and
//! memory; a token that was revoked is never good again.

use std::fmt;

use kiln_proto::NodeId;
pub use kiln_proto::{is_pattern, namespace_matches as matches};
use serde::{Deserialize, Serialize};

pub use crate::secret::Secret;

/// Most tokens that a cluster keeps: all of them are in every node's memory.
pub const MOST_TOKENS: usize = 4096;
/// Most patterns of namespaces in one token.
const MOST_PATTERNS: usize = 64;
/// Longest name of a token or of who asked for something, in bytes.
pub const LONGEST_NAME: usize = 256;

/// What a client may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look and fetch.
    Read,
    /// Also compile, publish, pin and remove.
    Write,
    /// Also whatever changes the cluster, its signers and its tokens.
    Admin,
}

impl Role {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The role of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Admin].into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A token about to be good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// Its public part: no two tokens have the same.
    pub id: u64,
    /// BLAKE3 of its secret.
    pub digest: [u8; 32],
    /// For people.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// In which namespaces: see [`is_pattern`].
    pub namespaces: Vec<String>,
    /// For how long, in milliseconds from now on; `None`: until it is revoked.
    pub lifetime_ms: Option<u64>,
    /// Who asked for it.
    pub by: String,
}

impl NewToken {
    /// What is wrong with it, for people.
    pub fn check(&self) -> Result<(), String> {
        if self.name.len().max(self.by.len()) > LONGEST_NAME {
            return Err(format!("a token's name has at most {LONGEST_NAME} bytes"));
        }
        if self.name.chars().any(char::is_control) {
            return Err("a token's name has no control characters".into());
        }
        if self.namespaces.is_empty() || self.namespaces.len() > MOST_PATTERNS {
            return Err(format!("a token is for 1 to {MOST_PATTERNS} namespaces; \"*\" is all"));
        }
        match self.namespaces.iter().find(|pattern| !is_pattern(pattern)) {
            Some(bad) => Err(format!(
                "{bad:?} is no namespace: write a name, its beginning with * behind it, or *"
            )),
            None if self.lifetime_ms == Some(0) => Err("it would expire at once".into()),
            None => Ok(()),
        }
    }
}

/// A token as the index has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// BLAKE3 of its secret.
    pub digest: [u8; 32],
    /// For people.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// In which namespaces: see [`is_pattern`].
    pub namespaces: Vec<String>,
    /// Who asked for it, and the node that was asked.
    pub by: String,
    /// That node.
    pub node: NodeId,
    /// When, by the leader's clock, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// When it ends, in the same; `None`: it does not.
    pub expires_unix_ms: Option<u64>,
    /// Once it was revoked.
    pub revoked: Option<TokenEnd>,
}

impl TokenInfo {
    /// Whether it was good at `unix_ms`, as far as time goes.
    pub fn has_expired(&self, unix_ms: u64) -> bool {
        self.expires_unix_ms.is_some_and(|end| end <= unix_ms)
    }
}

/// Who ended a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEnd {
    /// Who asked.
    pub by: String,
    /// The node that was asked.
    pub node: NodeId,
    /// When, by the leader's clock, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// How far the audit log of a node has come: whoever shortens it on that node's disk
/// cannot shorten this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// The number of its last line.
    pub sequence: u64,
    /// BLAKE3 of that line.
    pub digest: [u8; 32],
    /// When the leader was told, by its clock, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(namespaces: &[&str]) -> NewToken {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let (role, digest) = (Role::Read, [1; 32]);
        let (name, by) = (String::new(), String::new());
        NewToken { id: 1, digest, name, role, namespaces, lifetime_ms: None, by }
    }

    #[test]
    fn a_pattern_is_a_name_or_the_beginning_of_names() {
        for good in ["team", "team-*", "*"] {
            assert_eq!(token(&[good]).check(), Ok(()), "{good}");
        }
        for bad in ["", "te*am", "*x", "**", "a b", "a/b", "\n"] {
            assert!(token(&[bad]).check().is_err(), "{bad:?}");
        }
        assert!(token(&[]).check().is_err(), "none is not all");
        assert!(matches("team-*", "team-a") && matches("*", "") && matches("a", "a"));
        assert!(!matches("team-*", "team") && !matches("a", "ab") && !matches("ab", "a"));
    }

    #[test]
    fn a_token_has_bounds() {
        let long = NewToken { name: "x".repeat(257), ..token(&["*"]) };
        let odd = NewToken { name: "a\nb".into(), ..token(&["*"]) };
        let over = NewToken { lifetime_ms: Some(0), ..token(&["*"]) };
        let many = token(&["a"; 65]);
        for bad in [long, odd, over, many] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roles_rise() {
        assert!(Role::Read < Role::Write && Role::Write < Role::Admin);
        for role in [Role::Read, Role::Write, Role::Admin] {
            assert_eq!(Role::named(role.name()), Some(role));
        }
        assert_eq!(Role::named("root"), None);
    }
}
