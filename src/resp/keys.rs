//! Commands about keys: EXISTS, DEL, SCAN, DBSIZE.
//!
//! Invariant: a client sees the keys of its namespace and no other's; a scan
//! holds one page at a time, and a count ends within the time of a command.

use std::sync::Arc;

use bytes::Bytes;
use kiln_cluster::{ClusterError, Index};
use kiln_proto::{ArtifactKey, value};
use tokio::time::timeout_at;

use super::{connection::Connection, pattern::matches, reply::Reply};

/// Keys of all kinds that one call of SCAN looks at, at most.
const MOST_LOOKED_AT: usize = 10_000;
const DEFAULT_COUNT: usize = 10;
/// Why there is no number.
const NOT_COUNTED: &str = "there are too many keys to count them in time: use SCAN";

impl Connection {
    /// Whether there is a value under `name`.
    pub(super) async fn has(&mut self, name: &[u8]) -> bool {
        self.values.entry(&self.key(name)).await.is_some()
    }

    /// EXISTS: counts, the same key each time that it is named.
    pub(super) async fn exists(&mut self, names: &[Bytes]) -> Reply {
        let (mut found, time) = (0, self.time());
        for (done, name) in names.iter().enumerate() {
            if time.is_over() {
                return time.left_out(names.len() - done, names.len());
            }
            found += i64::from(self.has(name).await);
        }
        Reply::Integer(found)
    }

    /// DEL: from the whole cluster.
    pub(super) async fn del(&mut self, names: &[Bytes]) -> Reply {
        let (mut removed, time) = (0, self.time());
        for (done, name) in names.iter().enumerate() {
            if time.is_over() {
                return time.left_out(names.len() - done, names.len());
            }
            let key = self.key(name);
            match self.values.delete(&key).await {
                Ok(existed) => {
                    if existed {
                        self.session.did("remove", &key);
                    }
                    removed += i64::from(existed);
                }
                Err(error) => {
                    let name = value::shown(name);
                    tracing::warn!(name, %error, "a DEL failed");
                    return Reply::error(format!("ERR not deleted: {error}"));
                }
            }
        }
        Reply::Integer(removed)
    }

    /// SCAN cursor [MATCH pattern] [COUNT count].
    pub(super) async fn scan(&mut self, words: &[Bytes]) -> Reply {
        let number = |word: &Bytes| std::str::from_utf8(word).ok()?.parse::<u64>().ok();
        let Some(cursor) = number(&words[0]) else { return Reply::error("ERR invalid cursor") };
        let (mut pattern, mut count) = (None, DEFAULT_COUNT);
        for option in words[1..].chunks(2) {
            match (option[0].to_ascii_uppercase().as_slice(), option.get(1)) {
                (b"MATCH", Some(text)) => pattern = Some(text.clone()),
                (b"COUNT", Some(text)) => match number(text) {
                    Some(wanted @ 1..) => count = wanted as usize,
                    _ => return Reply::error("ERR value is not an integer or out of range"),
                },
                (b"TYPE", Some(_)) => {}
                _ => return Reply::error("ERR syntax error"),
            }
        }
        let count = count.min(MOST_LOOKED_AT);
        let page = self.page(cursor, count, pattern).await;
        match page {
            Ok((next, names)) => {
                let names = names.into_iter().map(|name| Reply::Bulk(name.into())).collect();
                Reply::Array(vec![Reply::text(next.to_string()), Reply::Array(names)])
            }
            Err(why) => Reply::error(format!("ERR {why}")),
        }
    }

    /// DBSIZE: this namespace's values. Whoever asks while they are counted waits for that.
    pub(super) async fn dbsize(&mut self) -> Reply {
        let time = self.time();
        let counting = self.values.sizes.of(&self.session.namespace, async || {
            let (mut cursor, mut size) = (0, 0);
            loop {
                // What is counted for nobody any more would keep others waiting.
                if time.is_over() {
                    return Err(NOT_COUNTED.to_owned());
                }
                let (next, names) = self.page(cursor, MOST_LOOKED_AT, None).await?;
                size += names.len() as i64;
                cursor = next;
                if cursor == 0 {
                    return Ok(size);
                }
            }
        });
        match timeout_at(time.end(), counting).await {
            Ok(Ok(size)) => Reply::Integer(size),
            Ok(Err(why)) => Reply::error(format!("ERR {why}")),
            Err(_) => Reply::error(format!("ERR {NOT_COUNTED}")),
        }
    }

    async fn page(
        &self,
        cursor: u64,
        count: usize,
        pattern: Option<Bytes>,
    ) -> Result<(u64, Vec<Vec<u8>>), String> {
        if self.values.has_left() {
            return Ok((0, Vec::new()));
        }
        let (index, namespace) = (self.values.parts.index.clone(), self.session.namespace.clone());
        let scan = move || page(&index, &namespace, cursor, count, pattern.as_deref());
        let scanned = tokio::task::spawn_blocking(scan).await.map_err(|e| e.to_string())?;
        scanned.map_err(|e| e.to_string())
    }
}

/// Names of values among the next `count` keys, and the cursor behind them. Keys
/// are hashes, so their first 8 bytes are a cursor; 0 is the end.
fn page(
    index: &Index,
    namespace: &Arc<str>,
    cursor: u64,
    count: usize,
    pattern: Option<&[u8]>,
) -> Result<(u64, Vec<Vec<u8>>), ClusterError> {
    let after = (cursor != 0).then(|| {
        let mut bytes = [0xff; 32];
        bytes[..8].copy_from_slice(&cursor.to_be_bytes());
        ArtifactKey::from_bytes(bytes)
    });
    let entries = index.blocking_scan(after.as_ref(), "", count)?;
    let next = match entries.last() {
        Some(last) if entries.len() == count => {
            let mut first = [0; 8];
            first.copy_from_slice(&last.key.as_bytes()[..8]);
            u64::from_be_bytes(first)
        }
        _ => 0,
    };
    let names = entries.iter().filter_map(|entry| {
        let manifest = entry.manifest.read_unverified().ok()?;
        let ours =
            manifest.fingerprint.compiler == value::FAMILY && manifest.namespace == **namespace;
        let name = ours.then(|| value::name_of(&manifest.label))?;
        pattern.is_none_or(|pattern| matches(pattern, &name)).then_some(name)
    });
    Ok((next, names.collect()))
}
