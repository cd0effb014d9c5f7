//! What a connection is: HELLO, AUTH, CLIENT and what else only changes itself.
//!
//! Invariant: a client that has not authenticated, where it must, gets nothing
//! but an error from anything else than HELLO, AUTH, QUIT and RESET.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use kiln_cluster::Caller;
use kiln_proto::ArtifactKey;

use super::{
    reply::{Reply, Version},
    rights::{self, Judge},
    users::Auth,
};
use crate::{
    access::{Access, Denied, Grant, Identity},
    audit::Event,
};

/// The version of Redis whose commands these are, as clients look at it.
pub(super) const REDIS_VERSION: &str = "7.2.0";

/// What a client asked for, which may come to nothing: a line of the audit log once it is done.
pub(super) struct Deed {
    event: Event,
    access: Arc<Access>,
}

impl Deed {
    /// Notes it.
    pub(super) fn done(self) {
        self.access.audit().record(self.event);
    }
}

/// One connection's state.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) version: Version,
    /// Empty until [`authenticated`](Self::authenticated).
    pub(super) namespace: Arc<str>,
    pub(super) authenticated: bool,
    /// What it may do; `None` until then.
    pub(super) grant: Option<Grant>,
    pub(super) quits: bool,
    name: Bytes,
    library: [Bytes; 2],
    address: String,
    caller: Caller,
    judge: Arc<Judge>,
}

impl Session {
    pub(super) fn new(id: u64, address: String, caller: Caller, judge: Arc<Judge>) -> Self {
        let (grant, namespace) = judge.connected(&caller).unzip();
        Self {
            id,
            version: Version::Two,
            authenticated: grant.is_some(),
            grant,
            namespace: namespace.unwrap_or_default(),
            quits: false,
            name: Bytes::new(),
            library: Default::default(),
            address,
            caller,
            judge,
        }
    }

    /// RESET: as after connecting.
    pub(super) fn reset(&mut self) -> Reply {
        let address = std::mem::take(&mut self.address);
        let caller = std::mem::take(&mut self.caller);
        *self = Self::new(self.id, address, caller, self.judge.clone());
        Reply::Simple("RESET")
    }

    /// AUTH [user] password.
    pub(super) async fn auth(&mut self, words: &[Bytes]) -> Reply {
        let (user, password) = match words {
            [password] => (None, password),
            [user, password] => (Some(&user[..]), password),
            _ => return Reply::error("ERR syntax error"),
        };
        let from = self.from();
        if let Err(denied) = self.judge.access.may_try(from) {
            self.judge.access.refused(denied, "resp", "auth", &self.who());
            return rights::refusal(denied);
        }
        if let Ok(token) = std::str::from_utf8(password) {
            self.judge.access.freshen(token, from).await;
        }
        match self.judge.token(user, password) {
            Some(Ok((grant, namespace))) => {
                (self.grant, self.namespace, self.authenticated) = (Some(grant), namespace, true);
                return Reply::OK;
            }
            Some(Err(denied)) => {
                self.judge.access.tried(denied, from);
                self.judge.access.refused(denied, "resp", "auth", &self.who());
                return Reply::error(format!("WRONGPASS {denied}"));
            }
            None => {}
        }
        match self.judge.users.authenticate(user, password) {
            Auth::Granted(namespace) => {
                self.grant = Some(self.judge.password(&namespace));
                (self.namespace, self.authenticated) = (namespace, true);
                Reply::OK
            }
            Auth::Refused => {
                self.judge.access.tried(Denied::Password, from);
                self.judge.access.refused(Denied::Password, "resp", "auth", &self.who());
                Reply::error("WRONGPASS invalid username-password pair or user is disabled.")
            }
            Auth::NoPassword => Reply::error(
                "ERR AUTH <password> called without any password configured for the default \
                 user. Are you sure your configuration is correct?",
            ),
        }
    }

    /// The refusal of a command that this client may not run now, which is one of its calls.
    pub(super) fn denied(&mut self, command: &str) -> Option<Reply> {
        let grant = self.grant.as_ref()?;
        let allowed = self.judge.allows(grant, &self.namespace, command);
        let denied =
            allowed.and_then(|()| self.judge.access.spend(grant.who(), self.from())).err()?;
        Some(self.refuse(denied, command))
    }

    fn refuse(&mut self, denied: Denied, command: &str) -> Reply {
        self.judge.access.refused(denied, "resp", command, &self.who());
        if !denied.is_known() && !denied.is_passing() {
            // What it showed is good no more.
            (self.grant, self.authenticated) = (None, false);
        }
        rights::refusal(denied)
    }

    /// The refusal of a command of a transaction, for a client that may be known no more. It
    /// was counted as a call when it was queued: no bound cuts a transaction in two.
    pub(super) fn denied_at(&mut self, command: &str) -> Option<Reply> {
        if !self.authenticated {
            return Some(self.unknown(command));
        }
        let grant = self.grant.as_ref()?;
        let denied = self.judge.allows(grant, &self.namespace, command).err()?;
        Some(self.refuse(denied, command))
    }

    /// The refusal of a command of a client that has not said who it is.
    pub(super) fn unknown(&self, command: &str) -> Reply {
        self.judge.access.refused(Denied::NoCredential, "resp", command, &Identity::Anyone);
        rights::refusal(Denied::NoCredential)
    }

    /// Whether it may store values where it is.
    pub(super) fn may_write(&self) -> bool {
        let grant = self.grant.as_ref();
        grant.is_some_and(|grant| self.judge.allows(grant, &self.namespace, "set").is_ok())
    }

    /// Whether it may see what values there are where it is.
    pub(super) fn may_read(&self) -> bool {
        let grant = self.grant.as_ref();
        grant.is_some_and(|grant| self.judge.allows(grant, &self.namespace, "dbsize").is_ok())
    }

    /// Notes in the audit log what this client did, where values are in it.
    pub(super) fn did(&self, what: &'static str, key: &ArtifactKey) {
        if let Some(deed) = self.deed(what, key) {
            deed.done();
        }
    }

    /// What this client is about to do, where values are in the audit log.
    pub(super) fn deed(&self, what: &'static str, key: &ArtifactKey) -> Option<Deed> {
        self.judge.audits_values.then(|| {
            let event = Event::new(what, &self.who()).of(key).within(&self.namespace);
            Deed { event: event.of_values().saying("redis"), access: self.judge.access.clone() }
        })
    }

    fn from(&self) -> Option<IpAddr> {
        self.caller.from.map(|from| from.ip())
    }

    fn who(&self) -> Identity {
        self.grant.as_ref().map_or(Identity::Anyone, |grant| grant.who().clone())
    }

    /// HELLO [version [AUTH user password] [SETNAME name]].
    pub(super) async fn hello(&mut self, words: &[Bytes]) -> Reply {
        let version = match words.first().map(|word| &word[..]) {
            None => self.version,
            Some(b"2") => Version::Two,
            Some(b"3") => Version::Three,
            Some(word) if word.iter().all(u8::is_ascii_digit) => {
                return Reply::error("NOPROTO unsupported protocol version");
            }
            Some(_) => {
                return Reply::error("ERR Protocol version is not an integer or out of range");
            }
        };
        let mut rest = words.get(1..).unwrap_or_default();
        let mut name = None;
        while let Some(option) = rest.first() {
            rest = if option.eq_ignore_ascii_case(b"AUTH") && rest.len() >= 3 {
                let refused = self.auth(&rest[1..3]).await;
                if let Reply::Error(_) = refused {
                    return refused;
                }
                &rest[3..]
            } else if option.eq_ignore_ascii_case(b"SETNAME") && rest.len() >= 2 {
                name = Some(rest[1].clone());
                &rest[2..]
            } else {
                let option = String::from_utf8_lossy(option).into_owned();
                return Reply::error(format!("ERR Syntax error in HELLO option '{option}'"));
            };
        }
        if !self.authenticated {
            return Reply::error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise \
                 the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the \
                 client and select the RESP protocol version at the same time",
            );
        }
        if let Some(name) = name
            && let refused @ Reply::Error(_) = self.set_name(&name)
        {
            return refused;
        }
        self.version = version;
        let text = Reply::text;
        Reply::Map(vec![
            (text("server"), text("redis")),
            (text("version"), text(REDIS_VERSION)),
            (text("proto"), Reply::Integer(if version == Version::Two { 2 } else { 3 })),
            (text("id"), Reply::Integer(self.id.cast_signed())),
            (text("mode"), text("standalone")),
            (text("role"), text("master")),
            (text("modules"), Reply::Array(Vec::new())),
        ])
    }

    /// CLIENT and its many words.
    pub(super) fn client(&mut self, words: &[Bytes]) -> Reply {
        let Some((command, rest)) = words.split_first() else {
            return Reply::wrong_arguments("client");
        };
        match (command.to_ascii_uppercase().as_slice(), rest) {
            (b"ID", []) => Reply::Integer(self.id.cast_signed()),
            (b"GETNAME", []) if self.name.is_empty() => Reply::Null,
            (b"GETNAME", []) => Reply::Bulk(self.name.clone()),
            (b"SETNAME", [name]) => self.set_name(name),
            (b"SETINFO", [attribute, value]) => {
                let at = match attribute.to_ascii_uppercase().as_slice() {
                    b"LIB-NAME" => 0,
                    b"LIB-VER" => 1,
                    _ => return Reply::error("ERR Unrecognized option"),
                };
                match is_plain(value) {
                    true => {
                        self.library[at] = Bytes::copy_from_slice(value);
                        Reply::OK
                    }
                    false => Reply::error("ERR library info has characters that it may not have"),
                }
            }
            (b"INFO" | b"LIST", _) => Reply::text(self.shown()),
            (b"GETREDIR", []) => Reply::Integer(-1),
            // Nothing is pushed, tracked or evicted here: what asks for less of it is met, and
            // what asks for more is refused, for the client would wait for it in vain.
            (b"NO-EVICT" | b"NO-TOUCH", [_, ..]) => Reply::OK,
            (b"TRACKING" | b"MAINT_NOTIFICATIONS", [off, ..])
                if off.eq_ignore_ascii_case(b"OFF") =>
            {
                Reply::OK
            }
            (b"MAINT_NOTIFICATIONS", [_, ..]) => {
                Reply::error("ERR maintenance notifications are not sent here")
            }
            (b"CACHING" | b"UNPAUSE" | b"PAUSE" | b"REPLY" | b"KILL" | b"TRACKING", _) => {
                let command = String::from_utf8_lossy(command).to_lowercase();
                Reply::error(format!("ERR CLIENT {command} is not supported"))
            }
            _ => Reply::error(format!(
                "ERR unknown subcommand or wrong number of arguments for '{}'. Try CLIENT HELP.",
                String::from_utf8_lossy(&command[..command.len().min(128)])
            )),
        }
    }

    fn set_name(&mut self, name: &[u8]) -> Reply {
        if !is_plain(name) {
            return Reply::error(
                "ERR Client names cannot contain spaces, newlines or special characters.",
            );
        }
        // A copy: what came shares a buffer with much else.
        self.name = Bytes::copy_from_slice(name);
        Reply::OK
    }

    fn shown(&self) -> String {
        let shown = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        format!(
            "id={} addr={} name={} db=0 user={} resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.address,
            shown(&self.name),
            self.namespace,
            if self.version == Version::Two { 2 } else { 3 },
            shown(&self.library[0]),
            shown(&self.library[1]),
        )
    }
}

/// Names are shown in lists: short, and no spaces.
fn is_plain(name: &[u8]) -> bool {
    name.len() <= 256 && name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::{
        access::{Limits, Settings, SocketAdmin},
        audit::Audit,
        resp::users::Users,
    };

    #[test]
    fn a_transaction_that_was_queued_is_not_cut_in_two_by_the_bound_on_calls() {
        let settings = Settings {
            required: false,
            shared: Vec::new(),
            certificates: Vec::new(),
            oidc: Vec::new(),
            socket_admin: SocketAdmin::First,
            offline: Duration::from_secs(3600),
            limits: Limits { calls_per_second: 1, ..Limits::default() },
        };
        let judge = Judge {
            access: Arc::new(Access::new(settings, Audit::off())),
            users: Arc::new(Users::read(None, "default").unwrap()),
            namespace: "default".into(),
            audits_values: false,
        };
        let caller = Caller { from: Some("10.0.0.1:1".parse().unwrap()), ..Caller::default() };
        let mut session = Session::new(1, String::new(), caller, Arc::new(judge));
        let mut queued = 0;
        while session.denied("set").is_none() {
            queued += 1;
            assert!(queued < 100_000, "it is bound");
        }
        assert!(session.denied_at("set").is_none(), "it was counted when it was queued");
    }
}
