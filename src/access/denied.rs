//! Why a caller is not served.
//!
//! Invariant: no text of it repeats what a caller showed.

use std::time::Duration;

/// Why a caller is not served. Its words never repeat what was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It showed nothing, and nobody is served so.
    #[error("this cluster wants to know who asks: show a token (--token-file, KILN_TOKEN_FILE)")]
    NoCredential,
    /// What it showed has not the form of a token.
    #[error("what was shown is no token: a token is kiln_ID_SECRET")]
    Malformed,
    /// No such token is known here.
    #[error("the token is not known here: it was never made, or not in this cluster")]
    Unknown,
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked,
    /// Its time is over.
    #[error("the token has expired: ask for a new one")]
    Expired,
    /// Its certificate is in no row of the configuration.
    #[error("no row of access.certificates is for the names of this certificate: show a token")]
    NoRow,
    /// Its user has no rights on this socket.
    #[error("this user has no rights at the node's socket: show a token (--token-file)")]
    NoUser,
    /// This node has not yet read the index, and so knows no token.
    #[error("this node is still joining, and knows no tokens yet: retry later")]
    NotYet,
    /// This node has not heard of its cluster for so long that it may have missed what was
    /// revoked.
    #[error(
        "this node has not heard from its cluster for too long to know which tokens are good: ask \
         another node, or retry later"
    )]
    Offline,
    /// Its role is too small.
    #[error("its role does not allow this call")]
    Role,
    /// Not in that namespace.
    #[error("it has no right to this namespace")]
    Namespace,
    /// It is of another issuer, and not signed by a key of it that is known, or says what it may
    /// not.
    #[error("the token is not good: its signature, its key or what it says is not its issuer's")]
    Signature,
    /// It is of another issuer, and for somebody else.
    #[error("the token is for another audience: ask its issuer for one for this cluster")]
    Audience,
    /// It is of another issuer, and nobody who has rights here.
    #[error("no row of access.oidc is for whom this token names")]
    NoSubject,
    /// It is of another issuer, whose keys this node does not know, or no more.
    #[error("the keys of the token's issuer cannot be fetched: retry later")]
    NoKeys,
    /// No password of `resp.users` is this one.
    #[error("no user has this password")]
    Password,
    /// On the clients' port no members' call is served.
    #[error("this is the clients' port, and that a call between members")]
    NotClients,
    /// It asks for more than one client may.
    #[error("{}: ask again after {} ms", .0.words(), .1.as_millis().max(1))]
    Limit(Limited, Duration),
    /// The node that its certificate names is none that this one knows.
    #[error(
        "the node of this certificate has not joined, as far as this member knows: a node joins \
         before it asks for anything else; retry later"
    )]
    NotJoined,
    /// On the members' port only members' calls are served.
    #[error("members do not send this call: it belongs on the clients' port")]
    NotMembers,
}

impl Denied {
    /// The reason in metrics and in the audit log.
    pub const fn why(self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::NoRow => "certificate",
            Self::NoUser => "user",
            Self::NotYet => "joining",
            Self::Offline => "offline",
            Self::Role => "role",
            Self::Namespace => "namespace",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::NoSubject => "subject",
            Self::NoKeys => "issuer_away",
            Self::Password => "password",
            Self::NotClients => "clients_port",
            Self::NotJoined => "not_joined",
            Self::NotMembers => "members_port",
            Self::Limit(limited, _) => limited.why(),
        }
    }

    /// Whether the same call may be let through later: this node cannot say now who may, or
    /// its caller asked for too much.
    pub const fn is_passing(self) -> bool {
        matches!(
            self,
            Self::NotYet | Self::Offline | Self::NoKeys | Self::NotJoined | Self::Limit(..)
        )
    }

    /// When to ask again, where that is known.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Limit(_, after) => Some(after),
            _ => None,
        }
    }

    /// Whether something was shown that is no good: who tries many is stopped.
    pub(super) const fn is_bad_try(self) -> bool {
        matches!(
            self,
            Self::Malformed
                | Self::Unknown
                | Self::Revoked
                | Self::Expired
                | Self::Signature
                | Self::Audience
                | Self::Password
        )
    }

    /// Whether it is known who asked, who may not.
    pub const fn is_known(self) -> bool {
        matches!(self, Self::Role | Self::Namespace | Self::NotClients | Self::NotMembers)
    }
}

/// What a client has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Calls in a second.
    Calls,
    /// Tokens and passwords that are no good, from one address.
    Failures,
    /// Bytes on their way at once.
    Bytes,
}

impl Limited {
    /// The reason in metrics and in the audit log.
    const fn why(self) -> &'static str {
        match self {
            Self::Calls => "limit_calls",
            Self::Failures => "limit_failures",
            Self::Bytes => "limit_bytes",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Calls => "too many calls of one client (access.calls_per_second)",
            Self::Failures => {
                "too many bad tokens or passwords from this address (access.failures_per_minute)"
            }
            Self::Bytes => "too many bytes of one client on their way (access.bytes_in_flight)",
        }
    }
}
