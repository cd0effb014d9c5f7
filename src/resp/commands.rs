//! Which commands there are, and who answers them.
//!
//! Invariant: whatever is sent gets exactly one reply; an unknown command, or
//! one with too few words, gets Redis's own error.

use bytes::Bytes;
use kiln_cluster::PutMode;

use super::{
    connection::{Connection, Ended},
    decode::{Admitted, Arg, Request},
    info,
    reply::Reply,
    strings::SetOptions,
    table,
};

/// How much of an unknown command's words is repeated.
const SHOWN: usize = 128;

impl Connection {
    /// Answers one request, whose command is `named` where there is such a one.
    pub(super) async fn answer(
        &mut self,
        request: Request,
        named: Option<(&'static str, i64)>,
    ) -> Result<(), Ended> {
        let Some((name, arity)) = named else {
            self.refuse(unknown(&request.args));
            return Ok(());
        };
        let count = request.args.len() as i64;
        if (arity > 0 && count != arity) || count < -arity {
            self.refuse(Reply::wrong_arguments(name));
            return Ok(());
        }
        if !self.session.authenticated && !matches!(name, "hello" | "auth" | "quit" | "reset") {
            let refused = self.session.unknown(name);
            self.refuse(refused);
            return Ok(());
        }
        if let Some(refused) = self.session.denied(name) {
            self.refuse(refused);
            return Ok(());
        }
        match self.in_transaction(name, request).await? {
            Some(request) => self.execute(name, request).await,
            None => Ok(()),
        }
    }

    /// Runs one command, whose number of arguments is right.
    pub(super) async fn execute(
        &mut self,
        name: &'static str,
        request: Request,
    ) -> Result<(), Ended> {
        // Again of what waited in a transaction: a token may have ended meanwhile.
        if self.executing.is_some()
            && let Some(refused) = self.session.denied_at(name)
        {
            self.push(refused);
            return Ok(());
        }
        let Request { mut args, admitted } = request;
        args.remove(0);
        match name {
            "set" | "setex" | "psetex" | "setnx" => {
                let reply = self.set_command(name, args, admitted).await?;
                self.push(reply);
                return Ok(());
            }
            "mset" => {
                let reply = self.mset(args, admitted).await;
                self.push(reply);
                return Ok(());
            }
            _ => {}
        }
        // No other command takes anything long.
        let words: Option<Vec<Bytes>> = args
            .into_iter()
            .map(|arg| match arg {
                Arg::Bytes(bytes) => Some(bytes),
                Arg::Blob(_) | Arg::Skipped(_) => None,
            })
            .collect();
        let Some(words) = words else {
            self.push(Reply::error("ERR an argument is too long"));
            return Ok(());
        };
        let reply = match name {
            "get" => self.get(&words[0]).await?.map_or(Reply::Null, Reply::Value),
            "getex" => match SetOptions::parse(&words[1..]) {
                Ok(_) => self.get(&words[0]).await?.map_or(Reply::Null, Reply::Value),
                Err(refused) => refused,
            },
            "getrange" | "substr" => self.get_range(&words).await,
            "mget" => return self.mget(&words).await,
            "strlen" => self.strlen(&words[0]).await,
            "exists" | "touch" => self.exists(&words).await,
            "del" | "unlink" => self.del(&words).await,
            "ttl" | "pttl" => Reply::Integer(if self.has(&words[0]).await { -1 } else { -2 }),
            // Values leave when room is short, whatever their age.
            "expire" | "pexpire" | "expireat" | "pexpireat" => {
                Reply::flag(self.has(&words[0]).await)
            }
            "persist" => Reply::flag(false),
            "type" => Reply::Simple(if self.has(&words[0]).await { "string" } else { "none" }),
            "scan" => self.scan(&words).await,
            "dbsize" => self.dbsize().await,
            "ping" => match words.as_slice() {
                [] => Reply::Simple("PONG"),
                [word] => Reply::Bulk(word.clone()),
                _ => Reply::wrong_arguments(name),
            },
            "echo" => Reply::Bulk(words[0].clone()),
            "select" => match &words[0][..] {
                b"0" => Reply::OK,
                _ => Reply::error("ERR DB index is out of range"),
            },
            "hello" => self.session.hello(&words).await,
            "auth" => self.session.auth(&words).await,
            "client" => self.session.client(&words),
            "reset" => {
                self.misses.clear(&self.values).await;
                // The reply is in the version that a new connection has.
                self.session.reset()
            }
            "quit" => {
                self.session.quits = true;
                Reply::OK
            }
            "info" => self.info(&words).await,
            "command" => info::command(&words),
            "config" => info::config(&words),
            _ => unknown(&[Arg::Bytes(Bytes::from_static(name.as_bytes()))]),
        };
        self.push(reply);
        Ok(())
    }

    /// SET and its older forms.
    async fn set_command(
        &mut self,
        name: &str,
        mut args: Vec<Arg>,
        admitted: Admitted,
    ) -> Result<Reply, Ended> {
        let options = match name {
            "set" => {
                let words: Option<Vec<_>> = args[2..].iter().map(word).collect();
                let parsed = words.ok_or_else(|| Reply::error("ERR syntax error"));
                match parsed.and_then(|words| SetOptions::parse(&words)) {
                    Ok(options) => options,
                    Err(refused) => return Ok(refused),
                }
            }
            "setnx" => SetOptions { mode: Some(PutMode::Create), ..SetOptions::default() },
            _ => {
                if let Err(refused) = SetOptions::time(word(&args[1]).as_ref(), name) {
                    return Ok(refused);
                }
                args.remove(1);
                SetOptions::default()
            }
        };
        args.truncate(2);
        let (Some(value), Some(key)) = (args.pop(), args.pop()) else {
            return Ok(Reply::wrong_arguments(name));
        };
        let reply = self.set(key, value, &options, admitted).await?;
        Ok(match (name, reply) {
            ("setnx", Reply::Simple(_)) => Reply::flag(true),
            ("setnx", Reply::Null) => Reply::flag(false),
            (_, reply) => reply,
        })
    }
}

/// The command of a request.
pub(super) fn named(request: &Request) -> Option<(&'static str, i64)> {
    match &request.args[0] {
        Arg::Bytes(word) => table::find(word),
        Arg::Blob(_) | Arg::Skipped(_) => None,
    }
}

fn word(arg: &Arg) -> Option<Bytes> {
    match arg {
        Arg::Bytes(bytes) => Some(bytes.clone()),
        Arg::Blob(_) | Arg::Skipped(_) => None,
    }
}

/// Redis's own words, which clients look for.
fn unknown(args: &[Arg]) -> Reply {
    let shown = |arg: &Arg| match arg {
        Arg::Bytes(bytes) => {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
            text.replace(|c: char| c.is_control(), " ")
        }
        Arg::Blob(_) | Arg::Skipped(_) => "...".into(),
    };
    let mut text = format!("ERR unknown command '{}', with args beginning with: ", shown(&args[0]));
    for arg in &args[1..] {
        if text.len() > SHOWN {
            break;
        }
        text.push_str(&format!("'{}' ", shown(arg)));
    }
    Reply::error(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_command_is_named_on_one_line() {
        let args = ["LPUSH", "a\r\nb", "c"].map(|word| Arg::Bytes(Bytes::from(word)));
        let Reply::Error(text) = unknown(&args) else { panic!("no error") };
        assert_eq!(text, "ERR unknown command 'LPUSH', with args beginning with: 'a  b' 'c' ");
    }
}
