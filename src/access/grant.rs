//! What a caller may do, once it is known who it is.
//!
//! Invariant: a grant without a namespace reads nothing but what is shared, and writes
//! nothing at all; what is shared is written only by who has that namespace by name.

use std::{fmt, sync::Arc};

use kiln_cluster::tokens::{Role, matches};
use kiln_proto::NodeId;

use super::Denied;

/// The pattern of all namespaces.
const ALL: &str = "*";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// Somebody, where nobody has to say who.
    Anyone,
    /// The bearer of a token.
    Token {
        /// Its id.
        id: u64,
        /// Its name, for people.
        name: Arc<str>,
    },
    /// Whoever has the key of a certificate with this name.
    Certificate(Arc<str>),
    /// Whom a token of another issuer names.
    Subject {
        /// Its name, and its issuer's.
        name: Arc<str>,
        /// When its token ends, in seconds since 1970.
        expires: u64,
    },
    /// A user of this machine.
    User(u32),
    /// A Redis client with the password of this namespace.
    Password(Arc<str>),
    /// A member, or whoever its port takes for one.
    Member(Option<NodeId>),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Token { id, name } if name.is_empty() => write!(f, "token {id:016x}"),
            Self::Token { id, name } => write!(f, "token {id:016x} ({name})"),
            Self::Subject { name, .. } => write!(f, "subject {name}"),
            Self::Certificate(name) => write!(f, "certificate {name}"),
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::Password(namespace) => write!(f, "password of {namespace}"),
            Self::Member(Some(node)) => write!(f, "node {node}"),
            Self::Member(None) => f.write_str("a member"),
        }
    }
}

/// The rights of one caller. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Grant(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    who: Identity,
    role: Role,
    namespaces: Vec<String>,
    shared: Arc<[String]>,
}

impl Grant {
    /// `role` in the namespaces of these patterns, and the right to read what is `shared`.
    pub fn new(who: Identity, role: Role, namespaces: &[String], shared: Arc<[String]>) -> Self {
        Self(Arc::new(Inner { who, role, namespaces: namespaces.to_vec(), shared }))
    }

    /// All rights.
    pub fn all(who: Identity, shared: Arc<[String]>) -> Self {
        Self::new(who, Role::Admin, &[ALL.to_owned()], shared)
    }

    /// Who has it.
    pub fn who(&self) -> &Identity {
        &self.0.who
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// Its namespaces, as patterns.
    pub fn namespaces(&self) -> &[String] {
        &self.0.namespaces
    }

    /// The one namespace that it is for, where it is for one.
    pub fn home(&self) -> Option<&str> {
        match self.0.namespaces.as_slice() {
            [one] if !one.ends_with('*') => Some(one),
            _ => None,
        }
    }

    /// Whether its role is `role`, or one that may do more.
    pub fn needs(&self, role: Role) -> Result<(), Denied> {
        if self.0.role >= role { Ok(()) } else { Err(Denied::Role) }
    }

    /// The same, in all namespaces.
    pub fn needs_all(&self, role: Role) -> Result<(), Denied> {
        self.needs(role)?;
        if self.reads_all() { Ok(()) } else { Err(Denied::Namespace) }
    }

    /// Whether it may read all namespaces that there are.
    pub fn reads_all(&self) -> bool {
        self.0.namespaces.iter().any(|pattern| pattern == ALL)
    }

    /// Whether it may read what is in `namespace`.
    pub fn may_read(&self, namespace: &str) -> bool {
        let mut may = self.0.namespaces.iter().chain(self.0.shared.iter());
        may.any(|pattern| matches(pattern, namespace))
    }

    /// The right to read what is in `namespace`.
    pub fn reads(&self, namespace: &str) -> Result<(), Denied> {
        if self.may_read(namespace) { Ok(()) } else { Err(Denied::Namespace) }
    }

    /// The right to change what is in `namespace`.
    pub fn writes(&self, namespace: &str) -> Result<(), Denied> {
        self.needs(Role::Write)?;
        match self.0.namespaces.iter().any(|pattern| matches(pattern, namespace)) {
            true => Ok(()),
            false => Err(Denied::Namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(role: Role, namespaces: &[&str]) -> Grant {
        let namespaces: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let shared: Arc<[String]> = ["release".to_owned()].into();
        Grant::new(Identity::Anyone, role, &namespaces, shared)
    }

    #[test]
    fn a_namespace_is_read_and_written_by_who_has_it() {
        let team = grant(Role::Write, &["team", "lab-*"]);
        for own in ["team", "lab-1"] {
            assert_eq!((team.reads(own), team.writes(own)), (Ok(()), Ok(())), "{own}");
        }
        for other in ["", "default", "team2", "lab"] {
            assert_eq!(team.reads(other), Err(Denied::Namespace), "{other}");
            assert_eq!(team.writes(other), Err(Denied::Namespace), "{other}");
        }
        assert!(!team.reads_all());
        assert_eq!(team.home(), None);
        assert_eq!(grant(Role::Read, &["team"]).home(), Some("team"));
    }

    #[test]
    fn what_is_shared_is_read_by_all_and_written_by_who_has_it_by_name() {
        let team = grant(Role::Write, &["team"]);
        assert_eq!(team.reads("release"), Ok(()));
        assert_eq!(team.writes("release"), Err(Denied::Namespace));
        assert_eq!(grant(Role::Write, &["release"]).writes("release"), Ok(()));
    }

    #[test]
    fn a_reader_writes_nothing_not_even_its_own() {
        assert_eq!(grant(Role::Read, &["*"]).writes("team"), Err(Denied::Role));
        assert_eq!(grant(Role::Read, &["*"]).reads("team"), Ok(()));
        assert_eq!(grant(Role::Write, &["*"]).needs(Role::Admin), Err(Denied::Role));
        assert_eq!(grant(Role::Admin, &["*"]).needs(Role::Read), Ok(()));
    }
}
