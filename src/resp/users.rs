//! Who may connect, and which namespace they see.
//!
//! Invariant: with a file of users, a connection sees no namespace before it
//! showed that namespace's password; a comparison takes as long for a wrong
//! password as for a right one.

use std::{collections::HashMap, io, path::Path, sync::Arc};

use kiln_proto::{NAMESPACE_RULE, is_namespace};

/// The user that clients name who name none.
pub(super) const DEFAULT_USER: &str = "default";

/// How AUTH ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Auth {
    /// The connection sees this namespace.
    Granted(Arc<str>),
    /// An unknown user, or the wrong password.
    Refused,
    /// A password without a user, where no user has one.
    NoPassword,
}

/// Everyone who may connect.
pub(super) struct Users {
    default_namespace: Arc<str>,
    /// Digests of the passwords; none: anybody may connect.
    passwords: Option<HashMap<String, blake3::Hash>>,
}

impl Users {
    /// Reads `file`, if there is one.
    pub(super) fn read(file: Option<&Path>, default_namespace: &str) -> io::Result<Self> {
        let passwords = match file {
            None => None,
            Some(path) => Some(parse(&std::fs::read_to_string(path)?).map_err(|why| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
            })?),
        };
        Ok(Self { default_namespace: default_namespace.into(), passwords })
    }

    /// Whether there is a file of users.
    pub(super) fn have_passwords(&self) -> bool {
        self.passwords.is_some()
    }

    /// What a connection sees that has not authenticated.
    pub(super) fn anonymous(&self) -> Option<Arc<str>> {
        self.passwords.is_none().then(|| self.default_namespace.clone())
    }

    /// AUTH with the words that came.
    pub(super) fn authenticate(&self, user: Option<&[u8]>, password: &[u8]) -> Auth {
        let user = match user.map(std::str::from_utf8) {
            Some(Ok(user)) if user != DEFAULT_USER => user,
            Some(Err(_)) => return Auth::Refused,
            None if self.passwords.is_none() => return Auth::NoPassword,
            _ => &self.default_namespace,
        };
        let granted = match &self.passwords {
            None => !user.is_empty() && is_namespace(user),
            // Digests are compared in constant time.
            Some(passwords) => {
                passwords.get(user).is_some_and(|known| *known == blake3::hash(password))
            }
        };
        if granted { Auth::Granted(user.into()) } else { Auth::Refused }
    }
}

/// `NAMESPACE PASSWORD` a line; empty lines and those with `#` are skipped.
fn parse(text: &str) -> Result<HashMap<String, blake3::Hash>, String> {
    let mut passwords = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words = line.split_once(char::is_whitespace).map(|(user, rest)| (user, rest.trim()));
        let (user, password) =
            words.ok_or_else(|| format!("line {number}: write NAMESPACE PASSWORD"))?;
        if !is_namespace(user) {
            return Err(format!("line {number}: a namespace has {NAMESPACE_RULE}"));
        }
        if passwords.insert(user.to_owned(), blake3::hash(password.as_bytes())).is_some() {
            return Err(format!("line {number}: this namespace has a password already"));
        }
    }
    match passwords.is_empty() {
        true => Err("it names no user".into()),
        false => Ok(passwords),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(text: Option<&str>) -> Users {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text.unwrap_or_default()).unwrap();
        Users::read(text.map(|_| file.path()), "main").unwrap()
    }

    #[test]
    fn without_a_file_a_user_is_a_namespace() {
        let users = users(None);
        assert_eq!(users.anonymous().as_deref(), Some("main"));
        assert_eq!(users.authenticate(Some(b"team"), b"x"), Auth::Granted("team".into()));
        assert_eq!(users.authenticate(Some(b"default"), b"x"), Auth::Granted("main".into()));
        for bad in [&b"no/team"[..], b"", b"\xff"] {
            assert_eq!(users.authenticate(Some(bad), b"x"), Auth::Refused);
        }
        assert_eq!(users.authenticate(None, b"x"), Auth::NoPassword);
    }

    #[test]
    fn with_a_file_only_its_passwords_open_a_namespace() {
        let users = users(Some("# teams\nmain  m pw \n\nteam secret\n"));
        assert_eq!(users.anonymous(), None);
        assert_eq!(users.authenticate(Some(b"team"), b"secret"), Auth::Granted("team".into()));
        assert_eq!(users.authenticate(None, b"m pw"), Auth::Granted("main".into()));
        assert_eq!(users.authenticate(Some(b"default"), b"m pw"), Auth::Granted("main".into()));
        for (user, password) in [("team", "m pw"), ("team", ""), ("other", "secret")] {
            let refused = users.authenticate(Some(user.as_bytes()), password.as_bytes());
            assert_eq!(refused, Auth::Refused);
        }
    }

    #[test]
    fn a_file_that_says_nothing_clear_is_refused() {
        for text in ["", "# none", "alone", "a/b pw", "a pw\na pw2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
