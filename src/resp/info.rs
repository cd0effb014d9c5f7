//! What the server tells about itself: INFO, COMMAND, CONFIG GET.
//!
//! Invariant: plain facts, asked by tools and people; no client's work depends
//! on them.

use bytes::Bytes;

use super::{
    connection::Connection, counters::Count, pattern::matches, reply::Reply,
    session::REDIS_VERSION, table::COMMANDS, values::Values,
};
use crate::counters::CounterSource;

/// Settings that benchmarks and consoles ask Redis for.
const SETTINGS: [(&str, &str); 4] =
    [("appendonly", "no"), ("databases", "1"), ("maxmemory-policy", "allkeys-lfu"), ("save", "")];

impl Connection {
    /// INFO: all sections, whichever are asked for, but for the number of keys, which is
    /// counted where it is asked for.
    pub(super) async fn info(&mut self, sections: &[Bytes]) -> Reply {
        let asked = |section: &Bytes| {
            let all = ["keyspace", "default", "all", "everything"];
            all.iter().any(|name| section.eq_ignore_ascii_case(name.as_bytes()))
        };
        let mut text = facts(&self.values);
        // Whoever may not count by DBSIZE does not count here.
        let wanted = sections.is_empty() || sections.iter().any(asked);
        if wanted && self.session.may_read() {
            text.push_str("\r\n# Keyspace\r\n");
            // As DBSIZE has it.
            match self.dbsize().await {
                Reply::Integer(0) => {}
                Reply::Integer(keys) => {
                    text.push_str(&format!("db0:keys={keys},expires=0,avg_ttl=0\r\n"));
                }
                error => return error,
            }
        }
        Reply::text(text)
    }
}

fn facts(values: &Values) -> String {
    let parts = &values.parts;
    let status = parts.cluster.status();
    let memory = parts.tiers.usage().first().map_or(0, |(_, usage)| usage.bytes);
    let mut text = format!(
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\n\
         kiln_version:{}\r\nkiln_node:{}\r\nprocess_id:{}\r\n\r\n\
         # Clients\r\nconnected_clients:{}\r\n\r\n\
         # Memory\r\nused_memory:{memory}\r\n\r\n\
         # Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n\
         # Stats\r\ntotal_commands_processed:{}\r\nkeyspace_hits:{}\r\nkeyspace_misses:{}\r\n",
        crate::VERSION,
        status.node.unwrap_or_default(),
        std::process::id(),
        parts.counters.connections(),
        parts.counters.get(Count::Requests),
        parts.counters.get(Count::Hits),
        parts.counters.get(Count::Misses),
    );
    for (name, value) in parts.counters.snapshot() {
        text.push_str(&format!("kiln_{name}:{value}\r\n"));
    }
    text.push_str(&format!(
        "\r\n# Cluster\r\nkiln_quorum:{}\r\nkiln_entries:{}\r\n",
        u8::from(status.quorum),
        status.entries,
    ));
    text
}

/// COMMAND and its words.
pub(super) fn command(words: &[Bytes]) -> Reply {
    let described = |(name, arity): &(&str, i64)| {
        let first =
            i64::from(*arity != 1 && !matches!(*name, "auth" | "client" | "echo" | "hello"));
        Reply::Array(vec![
            Reply::text(*name),
            Reply::Integer(*arity),
            Reply::Array(Vec::new()),
            Reply::Integer(first),
            Reply::Integer(first),
            Reply::Integer(first),
        ])
    };
    let upper = words.first().map(|word| word.to_ascii_uppercase());
    match upper.as_deref() {
        None => Reply::Array(COMMANDS.iter().map(described).collect()),
        Some(b"COUNT") => Reply::Integer(COMMANDS.len() as i64),
        Some(b"DOCS") => Reply::Map(Vec::new()),
        Some(b"LIST") => {
            Reply::Array(COMMANDS.iter().map(|(name, _)| Reply::text(*name)).collect())
        }
        Some(b"INFO") => {
            let found = |word: &Bytes| {
                let name = String::from_utf8_lossy(word).to_lowercase();
                COMMANDS.iter().find(|(known, _)| *known == name).map_or(Reply::Null, described)
            };
            Reply::Array(words[1..].iter().map(found).collect())
        }
        Some(_) => Reply::error("ERR unknown subcommand. Try COMMAND HELP."),
    }
}

/// CONFIG GET pattern...; nothing can be set.
pub(super) fn config(words: &[Bytes]) -> Reply {
    match words.split_first() {
        Some((get, patterns)) if get.eq_ignore_ascii_case(b"GET") => {
            let asked = |name: &str| {
                patterns
                    .iter()
                    .any(|pattern| matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
            };
            let settings = SETTINGS.iter().filter(|(name, _)| asked(name));
            Reply::Map(settings.map(|(n, v)| (Reply::text(*n), Reply::text(*v))).collect())
        }
        Some((reset, [])) if reset.eq_ignore_ascii_case(b"RESETSTAT") => Reply::OK,
        _ => Reply::error("ERR only CONFIG GET is supported"),
    }
}
