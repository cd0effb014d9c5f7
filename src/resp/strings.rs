//! SET, MSET, MGET and their kin.
//!
//! Invariant: a SET that could not be stored is answered as one that was,
//! counted and logged: a cache that fails must not fail its clients. Only where
//! a client asks whether it was the first, it is told that it was not.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use kiln_cluster::PutMode;

use super::{
    connection::{Connection, Ended},
    counters::Count,
    decode::{Admitted, Arg},
    reply::Reply,
    values::{Set, Stored, Value},
};

/// Values of one MSET that are stored at once.
const STORED_AT_ONCE: usize = 8;

/// What stands behind SET's value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SetOptions {
    /// NX is [`PutMode::Create`].
    pub(super) mode: Option<PutMode>,
    /// XX.
    pub(super) only_existing: bool,
    /// GET.
    pub(super) return_old: bool,
}

impl SetOptions {
    /// Reads the words. Times are checked, and not honoured: this is a cache,
    /// which drops values when room is short.
    pub(super) fn parse(words: &[Bytes]) -> Result<Self, Reply> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.to_ascii_uppercase().as_slice() {
                b"NX" => options.mode = Some(PutMode::Create),
                b"XX" => options.only_existing = true,
                b"GET" => options.return_old = true,
                b"KEEPTTL" | b"PERSIST" => {}
                b"EX" | b"PX" | b"EXAT" | b"PXAT" => Self::time(words.next(), "set")?,
                _ => return Err(Reply::error("ERR syntax error")),
            }
        }
        match options.mode.is_some() && options.only_existing {
            true => Err(Reply::error("ERR syntax error")),
            false => Ok(options),
        }
    }

    /// Checks a time.
    pub(super) fn time(word: Option<&Bytes>, command: &str) -> Result<(), Reply> {
        let word = word.ok_or_else(|| Reply::error("ERR syntax error"))?;
        let number = std::str::from_utf8(word).ok().and_then(|text| text.parse::<i64>().ok());
        match number {
            None => Err(Reply::error("ERR value is not an integer or out of range")),
            Some(1..) => Ok(()),
            Some(_) => Err(Reply::error(format!("ERR invalid expire time in '{command}' command"))),
        }
    }
}

impl Connection {
    /// Stores `value` under `key`.
    pub(super) async fn set(
        &mut self,
        key: Arg,
        value: Arg,
        options: &SetOptions,
        admitted: Admitted,
    ) -> Result<Reply, Ended> {
        let Some(set) = self.prepare(key, value, options.mode, Arc::new(admitted)) else {
            return Ok(if options.mode.is_some() { Reply::Null } else { Reply::OK });
        };
        let artifact = self.key(&set.name);
        let old = match options.return_old {
            true => self.values.anywhere(&artifact, &set.namespace).await,
            false => None,
        };
        let old = old.map_or(Reply::Null, Reply::Value);
        if options.only_existing && self.values.entry(&artifact).await.is_none() {
            return Ok(old);
        }
        let stored = self.values.set(set).await;
        Ok(match (options.return_old, stored, options.mode) {
            (true, ..) => old,
            (false, Stored::Existing | Stored::Superseded | Stored::No, Some(_)) => Reply::Null,
            _ => Reply::OK,
        })
    }

    /// `None`: it cannot be stored, which was counted.
    fn prepare(
        &mut self,
        key: Arg,
        value: Arg,
        mode: Option<PutMode>,
        admitted: Arc<Admitted>,
    ) -> Option<Set> {
        let Arg::Bytes(name) = key else {
            self.values.failed("...", &"its key is too long");
            return None;
        };
        let value = match value {
            Arg::Blob(blob) => Ok(Value::Blob(blob)),
            Arg::Bytes(bytes) => Ok(Value::Bytes(bytes)),
            Arg::Skipped(size) => Err(format!("no room for its {size} bytes")),
        };
        let artifact = self.key(&name);
        let (seconds, lease) = self.misses.fill(&artifact, &self.values);
        match value {
            Ok(value) => Some(Set {
                deed: self.session.deed("publish", &artifact),
                namespace: self.session.namespace.clone(),
                name: name[..].into(),
                value,
                mode: mode.unwrap_or(PutMode::Replace),
                seconds,
                lease,
                admitted,
            }),
            Err(why) => {
                self.values.failed(&kiln_proto::value::shown(&name), &why);
                None
            }
        }
    }

    /// MSET: each on its own, not all or nothing. Of tens of thousands of values, only
    /// those that are being stored have a descriptor. Those for which there was no time are
    /// told, unlike those that could not be stored: whoever names fewer at once has them stored.
    pub(super) async fn mset(&mut self, args: Vec<Arg>, admitted: Admitted) -> Reply {
        if !args.len().is_multiple_of(2) {
            return Reply::wrong_arguments("mset");
        }
        let (time, all) = (self.time(), args.len() / 2);
        let (admitted, values) = (Arc::new(admitted), self.values.clone());
        let mut args = args.into_iter();
        let pairs = std::iter::from_fn(|| Some((args.next()?, args.next()?)));
        // Made ready as each begins: what is left out was never published, and fills no miss.
        let stores = pairs.map(|(key, value)| {
            let set = self.prepare(key, value, None, admitted.clone());
            let values = values.clone();
            async move {
                match set {
                    Some(set) => {
                        values.set(set).await;
                    }
                    // Of very many that cannot be stored: others have their turn.
                    None => tokio::task::yield_now().await,
                }
            }
        });
        let left = all - time.run(stores, STORED_AT_ONCE).count().await;
        if left == 0 {
            return Reply::OK;
        }
        values.failed_all(left, &"an MSET had more of them than there was time for");
        time.left_out(left, all)
    }

    /// MGET: never waits for another client.
    pub(super) async fn mget(&mut self, names: &[Bytes]) -> Result<(), Ended> {
        let namespace = self.session.namespace.clone();
        self.out.push_array_of(names.len());
        // One question to the leader brings the local replica up for all of them.
        let (mut asked, time) = (false, self.time());
        for name in names {
            let key = self.key(name);
            let mut found = match time.is_over() {
                false => self.values.local(&key, &namespace).await,
                // What takes no time: the others are a miss.
                true => self.values.known(&key, &namespace),
            };
            if time.is_over() {
                asked = true;
            }
            if found.is_none() && !std::mem::replace(&mut asked, true) {
                found = self.values.anywhere(&key, &namespace).await;
            }
            self.values.count(if found.is_some() { Count::Hits } else { Count::Misses });
            self.push(found.map_or(Reply::Null, Reply::Value));
            self.flush_if_long().await?;
        }
        Ok(())
    }

    /// GETRANGE: of the value's bytes, ends included.
    pub(super) async fn get_range(&mut self, words: &[Bytes]) -> Reply {
        let number = |word: &Bytes| std::str::from_utf8(word).ok()?.parse::<i64>().ok();
        let (Some(first), Some(last)) = (number(&words[1]), number(&words[2])) else {
            return Reply::error("ERR value is not an integer or out of range");
        };
        let (key, namespace) = (self.key(&words[0]), self.session.namespace.clone());
        let found = self.values.anywhere(&key, &namespace).await;
        self.values.count(if found.is_some() { Count::Hits } else { Count::Misses });
        let Some(blob) = found else { return Reply::Bulk(Bytes::new()) };
        let size = blob.len() as i64;
        let from_start = |at: i64| if at < 0 { (size + at).max(0) } else { at };
        let (first, end) = (from_start(first), from_start(last).min(size - 1) + 1);
        match first < end {
            true => Reply::Bulk(Bytes::from_owner(blob).slice(first as usize..end as usize)),
            false => Reply::Bulk(Bytes::new()),
        }
    }

    /// STRLEN, without bringing the value here.
    pub(super) async fn strlen(&mut self, name: &[u8]) -> Reply {
        let entry = self.values.entry(&self.key(name)).await;
        Reply::Integer(entry.map_or(0, |entry| entry.pack_size.cast_signed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<SetOptions, String> {
        let words: Vec<_> = text.split_whitespace().map(|w| Bytes::from(w.to_owned())).collect();
        SetOptions::parse(&words).map_err(|refused| match refused {
            Reply::Error(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn options_of_set_are_those_of_redis() {
        let plain = SetOptions::default();
        assert_eq!(parsed(""), Ok(plain));
        assert_eq!(parsed("ex 10 KEEPTTL"), Ok(plain));
        assert_eq!(parsed("PXAT 1 nx"), Ok(SetOptions { mode: Some(PutMode::Create), ..plain }));
        assert_eq!(
            parsed("XX get"),
            Ok(SetOptions { only_existing: true, return_old: true, ..plain })
        );
        for wrong in ["NX XX", "EX", "10", "nope"] {
            assert_eq!(parsed(wrong), Err("ERR syntax error".into()), "{wrong}");
        }
        assert!(parsed("EX 0").unwrap_err().contains("invalid expire time"));
        assert!(parsed("EX 1.5").unwrap_err().contains("not an integer"));
    }
}
