//! Who may join: whether a candidate needs a token, and the tokens for candidates.
//!
//! Invariant: a token lets in as many disks as it says, counted by the replicated log; a
//! disk that has its id needs none, so who repeats a join uses nothing up. Of a token's
//! secret only the digest is kept.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use kiln_proto::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    command::NewNode,
    tokens::{LONGEST_NAME, TokenEnd},
};

/// Most tokens for candidates that a cluster keeps: they are one record.
pub const MOST_JOIN_TOKENS: usize = 256;
/// Longest life of a token with a bounded number of uses.
pub const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a candidate is not let in. Its words never repeat what was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotAdmitted {
    /// It showed no token.
    #[error("joining this cluster needs a token, and none was shown")]
    NoToken,
    /// What it showed has not the form of one.
    #[error("what was shown to join is no token: a token is kiln_ID_SECRET")]
    Malformed,
    /// There is no such token here.
    #[error("the join token is not known here: it was never made, or not in this cluster")]
    Unknown,
    /// It was revoked.
    #[error("the join token was revoked")]
    Revoked,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// As many disks were let in with it as it was made for.
    #[error("the join token is used up")]
    UsedUp,
}

impl NotAdmitted {
    /// The reason in metrics and in the audit log.
    pub const fn why(self) -> &'static str {
        match self {
            Self::NoToken => "join_no_token",
            Self::Malformed => "join_malformed",
            Self::Unknown => "join_unknown",
            Self::Revoked => "join_revoked",
            Self::Expired => "join_expired",
            Self::UsedUp => "join_used_up",
        }
    }
}

/// A token for candidates, about to be good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewJoinToken {
    /// Its public part: no two tokens, of clients either, have the same.
    pub id: u64,
    /// BLAKE3 of its secret.
    pub digest: [u8; 32],
    /// For people.
    pub name: String,
    /// How many disks it lets in; 0: any number.
    pub uses: u32,
    /// For how long, in milliseconds from now on; `None`: until it is revoked.
    pub lifetime_ms: Option<u64>,
    /// Who asked for it.
    pub by: String,
}

impl NewJoinToken {
    /// What is wrong with it, for people.
    pub fn check(&self) -> Result<(), String> {
        let longest = u64::try_from(LONGEST_LIFE.as_millis()).unwrap_or(u64::MAX);
        if self.name.len().max(self.by.len()) > LONGEST_NAME {
            return Err(format!("a token's name has at most {LONGEST_NAME} bytes"));
        }
        if self.name.chars().any(char::is_control) {
            return Err("a token's name has no control characters".into());
        }
        match self.lifetime_ms {
            Some(0) => Err("it would expire at once".into()),
            _ if self.uses == 0 => Ok(()),
            Some(lifetime) if lifetime <= longest => Ok(()),
            _ => Err("a join token for a number of nodes is good for at most 7 days; one without \
                      a bound (--uses 0) for as long as you say"
                .into()),
        }
    }
}

/// A token for candidates, as the index has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// BLAKE3 of its secret.
    pub digest: [u8; 32],
    /// For people.
    pub name: String,
    /// How many disks it lets in; 0: any number.
    pub uses: u32,
    /// How many it let in.
    pub used: u32,
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

impl JoinToken {
    /// Whether it lets anybody in at `unix_ms`.
    pub fn check(&self, unix_ms: u64) -> Result<(), NotAdmitted> {
        if self.revoked.is_some() {
            return Err(NotAdmitted::Revoked);
        }
        if self.expires_unix_ms.is_some_and(|end| end <= unix_ms) {
            return Err(NotAdmitted::Expired);
        }
        match self.uses != 0 && self.used >= self.uses {
            true => Err(NotAdmitted::UsedUp),
            false => Ok(()),
        }
    }
}

/// What a cluster asks of those who join.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admissions {
    /// Whether they need a token; `None`: nobody has said, and they need none.
    pub needs_token: Option<bool>,
    /// Tokens by id, also those that are good no more.
    pub tokens: BTreeMap<u64, JoinToken>,
}

impl Admissions {
    /// Whether the token of this id and digest lets a disk in at `unix_ms`.
    pub(crate) fn judge(
        &self,
        id: u64,
        digest: &[u8; 32],
        unix_ms: u64,
    ) -> Result<(), NotAdmitted> {
        // The library compares hashes in constant time. Who guesses ids learns nothing.
        let is_of = |token: &&JoinToken| {
            blake3::Hash::from_bytes(token.digest) == blake3::Hash::from_bytes(*digest)
        };
        self.tokens.get(&id).filter(is_of).ok_or(NotAdmitted::Unknown)?.check(unix_ms)
    }
}

/// A change of what joining takes, or a join that takes it. Grows at its end alone, as
/// [`crate::command::Command`] does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Admission {
    /// A token is good. The leader writes the time.
    Issue { token: NewJoinToken, node: NodeId, at_unix_ms: u64 },
    /// Whether joining needs a token; `first`: only where nobody has said yet.
    Need { needs_token: bool, node: NodeId, first: bool },
    /// [`crate::command::Command::Join`] by this word. The leader writes the time.
    Admit { node: NewNode, by: Word, at_unix_ms: u64 },
}

/// On whose word a candidate is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    /// An admin's, who named its address.
    Admin,
    /// That of whoever made this token.
    Token { id: u64, digest: [u8; 32] },
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issue { token, .. } => write!(f, "issue the join token {:016x}", token.id),
            Self::Need { needs_token, .. } => write!(f, "joining needs a token: {needs_token}"),
            Self::Admit { node, .. } => write!(f, "admit {}", node.facts.grpc),
        }
    }
}

/// A candidate that asked this node to be let in.
#[derive(Debug, Clone)]
pub struct Candidacy {
    /// Where the call came from.
    pub from: Option<SocketAddr>,
    /// Where it says that its members' port is.
    pub address: String,
    /// The id of the token that it showed.
    pub token: Option<u64>,
    /// The id that it got, or why it got none.
    pub outcome: Result<NodeId, NotAdmitted>,
}

/// Is told of each candidate that asked this node, once it was judged.
#[derive(Clone)]
pub struct Witness(pub Arc<dyn Fn(&Candidacy) + Send + Sync>);

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(uses: u32, lifetime_ms: Option<u64>) -> NewJoinToken {
        let (name, by) = (String::new(), String::new());
        NewJoinToken { id: 1, digest: [1; 32], name, uses, lifetime_ms, by }
    }

    #[test]
    fn a_token_for_a_number_of_nodes_ends_within_a_week() {
        let week = 7 * 24 * 3_600_000;
        for good in [new(1, Some(1)), new(9, Some(week)), new(0, None), new(0, Some(2 * week))] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        let long = NewJoinToken { name: "x".repeat(257), ..new(1, Some(1)) };
        let odd = NewJoinToken { name: "a\nb".into(), ..new(1, Some(1)) };
        for bad in
            [new(1, None), new(1, Some(week + 1)), new(0, Some(0)), new(1, Some(0)), long, odd]
        {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_digest_is_of_its_own_id_alone() {
        let token = JoinToken {
            digest: [1; 32],
            name: String::new(),
            uses: 2,
            used: 0,
            by: String::new(),
            node: 1,
            at_unix_ms: 0,
            expires_unix_ms: Some(10),
            revoked: None,
        };
        let used = JoinToken { used: 2, ..token.clone() };
        let end = TokenEnd { by: String::new(), node: 1, at_unix_ms: 1 };
        let revoked = JoinToken { revoked: Some(end), ..token.clone() };
        let tokens = BTreeMap::from([(1, token), (2, used), (3, revoked)]);
        let admissions = Admissions { needs_token: Some(true), tokens };
        let judge = |id, digest, at| admissions.judge(id, &[digest; 32], at);
        assert_eq!(judge(1, 1, 9), Ok(()));
        assert_eq!(judge(1, 1, 10), Err(NotAdmitted::Expired));
        assert_eq!(judge(1, 2, 9), Err(NotAdmitted::Unknown));
        assert_eq!(judge(9, 1, 9), Err(NotAdmitted::Unknown));
        assert_eq!(judge(2, 1, 9), Err(NotAdmitted::UsedUp));
        assert_eq!(judge(3, 1, 9), Err(NotAdmitted::Revoked));
    }
}
