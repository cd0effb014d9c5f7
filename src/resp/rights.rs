//! What a Redis client may do: its grant, asked again at each command.
//!
//! Invariant: where access is required, a command on values runs only for who has the right
//! in the session's namespace at that moment; one that takes no lease away from others is
//! all that a reader can do.

use std::sync::Arc;

use kiln_cluster::Caller;
use kiln_proto::is_namespace;

use super::{reply::Reply, users::Users};
use crate::access::{Access, Denied, Grant, Identity, Role, Shown};

/// Commands of a client that has not said who it is.
const OPEN: [&str; 4] = ["hello", "auth", "quit", "reset"];
/// Commands that are about the connection, for whoever has any right.
const OWN: [&str; 12] = [
    "client", "command", "config", "discard", "echo", "exec", "info", "multi", "ping", "select",
    "unwatch", "watch",
];

/// What a command needs in the session's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing at all.
    Nothing,
    /// Any right.
    Known,
    /// To read there.
    Read,
    /// To write there.
    Write,
}

impl Needs {
    /// Of a command of the table.
    pub(super) fn of(command: &str) -> Self {
        match command {
            _ if OPEN.contains(&command) => Self::Nothing,
            _ if OWN.contains(&command) => Self::Known,
            "get" | "getex" | "getrange" | "substr" | "mget" | "strlen" | "exists" | "touch"
            | "ttl" | "pttl" | "type" | "scan" | "dbsize" => Self::Read,
            // Those that change something, and one that nobody has thought of.
            _ => Self::Write,
        }
    }
}

/// The judge of a port's clients.
pub(super) struct Judge {
    pub(super) access: Arc<Access>,
    pub(super) users: Arc<Users>,
    /// What a client sees that names no namespace.
    pub(super) namespace: Arc<str>,
    /// Whether what clients store and remove is in the audit log.
    pub(super) audits_values: bool,
}

/// What a client got.
pub(super) type Granted = (Grant, Arc<str>);

impl Judge {
    /// What a client may who has sent nothing yet; `None`: it has to say who it is.
    pub(super) fn connected(&self, caller: &Caller) -> Option<Granted> {
        if !self.access.is_required() {
            let namespace = self.users.anonymous()?;
            return Some((self.access.all(Identity::Anyone), namespace));
        }
        let (certificate, uid) = (caller.names.clone(), caller.uid);
        let grant = self.access.judge(&Shown { bearer: None, certificate, uid }).ok()?;
        let namespace = self.home(&grant);
        Some((grant, namespace))
    }

    /// AUTH with a token as the password, where `user` names the namespace, if any. `None`:
    /// it is none, and is judged as a password.
    pub(super) fn token(
        &self,
        user: Option<&[u8]>,
        password: &[u8],
    ) -> Option<Result<Granted, Denied>> {
        if !self.access.is_required() {
            return None;
        }
        let token = std::str::from_utf8(password).ok().filter(|text| self.access.is_token(text));
        let Some(token) = token else {
            return (!self.users.have_passwords()).then_some(Err(Denied::Malformed));
        };
        let shown = Shown { bearer: Some(token.to_owned()), ..Shown::default() };
        Some(self.access.judge(&shown).and_then(|grant| {
            let namespace = match user.filter(|user| *user != super::users::DEFAULT_USER.as_bytes())
            {
                None => self.home(&grant),
                Some(user) => {
                    let named = std::str::from_utf8(user).ok();
                    named.filter(|name| is_namespace(name)).ok_or(Denied::Namespace)?.into()
                }
            };
            grant.reads(&namespace)?;
            Ok((grant, namespace))
        }))
    }

    /// The rights of who has shown the password of `namespace`: those of before there were
    /// tokens.
    pub(super) fn password(&self, namespace: &Arc<str>) -> Grant {
        match self.access.is_required() {
            false => self.access.all(Identity::Password(namespace.clone())),
            true => {
                let who = Identity::Password(namespace.clone());
                Grant::new(who, Role::Write, &[namespace.to_string()], Vec::new().into())
            }
        }
    }

    /// Refuses, now, who may not run `command` in `namespace`.
    pub(super) fn allows(
        &self,
        grant: &Grant,
        namespace: &str,
        command: &str,
    ) -> Result<(), Denied> {
        if !self.access.is_required() {
            return Ok(());
        }
        let needs = Needs::of(command);
        if needs == Needs::Nothing {
            return Ok(());
        }
        self.access.still(grant)?;
        match needs {
            Needs::Nothing | Needs::Known => Ok(()),
            Needs::Read => grant.reads(namespace),
            Needs::Write => grant.writes(namespace),
        }
    }

    fn home(&self, grant: &Grant) -> Arc<str> {
        grant.home().map_or_else(|| self.namespace.clone(), Into::into)
    }
}

/// A refusal in Redis's own words, which clients look for.
pub(super) fn refusal(denied: Denied) -> Reply {
    match denied {
        Denied::Role | Denied::Namespace => Reply::error(format!("NOPERM {denied}")),
        Denied::NoCredential => Reply::error("NOAUTH Authentication required."),
        denied if denied.is_passing() => Reply::error(format!("TRYAGAIN {denied}")),
        _ => Reply::error(format!("NOAUTH {denied}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::table::{COMMANDS, Family};

    #[test]
    fn what_takes_values_in_needs_the_right_to_write() {
        for (command, _) in COMMANDS {
            let needs = Needs::of(command);
            match Family::of(command) {
                Family::Write => assert_eq!(needs, Needs::Write, "{command}"),
                Family::Read => assert_eq!(needs, Needs::Read, "{command}"),
                Family::Other => {}
            }
        }
        for command in ["del", "unlink", "a command to come"] {
            assert_eq!(Needs::of(command), Needs::Write, "{command}");
        }
        for command in OPEN.into_iter().chain(OWN) {
            assert!(COMMANDS.iter().any(|(known, _)| *known == command), "{command}");
        }
    }
}
