//! What this node is about and what it lately missed, for who looks on.
//!
//! Invariant: bounded in entries, whatever is asked of the node; nothing that is
//! recorded waits for who looks, and no request depends on it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use kiln_proto::{ArtifactKey, Components, value};
use parking_lot::Mutex;

use super::{Found, latency::Latencies};
use crate::{clock, compiler::Prepared};

/// Misses that are kept: of compiles, and of Redis clients.
const MISSES: usize = 64;
const VALUES: usize = 32;
/// Who makes values: their clients.
pub const VALUE: &str = "redis";
/// Longest name of a value that is kept, in characters.
const LONGEST_NAME: usize = 120;

/// What lately happened on this node.
#[derive(Debug, Default)]
pub struct Recent {
    begun: Mutex<HashMap<ArtifactKey, Begun>>,
    misses: Mutex<Ring>,
    /// How long requests took.
    pub latencies: Latencies,
}

/// A flight of this node, for people.
#[derive(Debug, Clone)]
pub(super) struct Begun {
    /// A name to show.
    pub(super) label: String,
    /// Who compiles it.
    pub(super) compiler: String,
    /// When this node began.
    pub(super) since: Instant,
}

/// A request that the cache could not answer.
#[derive(Debug, Clone)]
pub struct Miss {
    /// Counts the misses of this node, from 1: no two have the same.
    pub number: u64,
    /// This node's clock.
    pub at_unix_ms: u64,
    /// What was asked for.
    pub key: ArtifactKey,
    /// A name to show.
    pub label: String,
    /// Who would make it: a compiler, or `redis` for a client's own value.
    pub maker: String,
    /// What became of it.
    pub cause: Cause,
    /// What decided the key; `None` for values, whose keys are names.
    pub components: Option<Arc<Components>>,
}

/// Why the cache could not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No entry has the key.
    NotStored,
    /// An entry has it, and its bytes were nowhere.
    Lost,
    /// An entry has it, and its bytes or those of a piece cannot be had now.
    Unreachable(String),
}

#[derive(Debug, Default)]
struct Ring {
    told: u64,
    compiles: VecDeque<Miss>,
    values: VecDeque<Miss>,
}

impl Cause {
    /// Of what was found instead of the artifact.
    pub(super) fn of(found: &Found) -> Self {
        match found {
            Found::Here(_) | Found::Retired => Self::Lost,
            Found::Unreachable(why) => Self::Unreachable(why.clone()),
            Found::Incomplete(piece) => Self::Unreachable(piece.to_string()),
        }
    }
}

impl Recent {
    /// A flight begins for what was missed; it is listed until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, prepared: &Prepared, cause: Cause) -> Listed {
        let key = prepared.components.key();
        let (label, compiler) = (prepared.label.clone(), prepared.fingerprint.compiler.clone());
        let components = Some(Arc::new(prepared.components.clone()));
        self.missed(
            |ring| &mut ring.compiles,
            MISSES,
            |number| Miss {
                number,
                at_unix_ms: clock::unix_ms(),
                key,
                label: label.clone(),
                maker: compiler.clone(),
                cause,
                components,
            },
        );
        self.begun.lock().insert(key, Begun { label, compiler, since: Instant::now() });
        Listed { recent: self.clone(), key }
    }

    /// A Redis client asked for the value of `name`, which nobody has.
    pub fn missed_value(&self, key: &ArtifactKey, name: &[u8]) {
        let name = &name[..name.len().min(LONGEST_NAME * 4)];
        let label = value::shown(name).chars().take(LONGEST_NAME).collect();
        self.missed(
            |ring| &mut ring.values,
            VALUES,
            |number| Miss {
                number,
                at_unix_ms: clock::unix_ms(),
                key: *key,
                label,
                maker: VALUE.to_owned(),
                cause: Cause::NotStored,
                components: None,
            },
        );
    }

    fn missed(
        &self,
        kind: impl FnOnce(&mut Ring) -> &mut VecDeque<Miss>,
        most: usize,
        miss: impl FnOnce(u64) -> Miss,
    ) {
        let mut ring = self.misses.lock();
        ring.told += 1;
        let number = ring.told;
        let kept = kind(&mut ring);
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back(miss(number));
    }

    /// What was missed lately, the latest first.
    pub fn misses(&self) -> Vec<Miss> {
        let ring = self.misses.lock();
        let mut all: Vec<Miss> = ring.compiles.iter().chain(&ring.values).cloned().collect();
        drop(ring);
        all.sort_unstable_by_key(|miss| std::cmp::Reverse(miss.number));
        all
    }

    /// The flights that are listed now.
    pub(super) fn begun(&self) -> HashMap<ArtifactKey, Begun> {
        self.begun.lock().clone()
    }
}

/// A flight's place in the list.
#[derive(Debug)]
pub(super) struct Listed {
    recent: Arc<Recent>,
    key: ArtifactKey,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.recent.begun.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_kept_up_to_a_bound_the_latest_first_and_values_push_no_compile_out() {
        let recent = Recent::default();
        let key = ArtifactKey::from_bytes([1; 32]);
        recent.missed(
            |ring| &mut ring.compiles,
            MISSES,
            |number| Miss {
                number,
                at_unix_ms: 0,
                key,
                label: "compile".into(),
                maker: "cuda".into(),
                cause: Cause::NotStored,
                components: None,
            },
        );
        for n in 0..VALUES * 3 {
            recent.missed_value(&key, format!("name-{n}").as_bytes());
        }
        let misses = recent.misses();
        assert_eq!(misses.len(), VALUES + 1);
        assert_eq!(misses[0].label, format!("name-{}", VALUES * 3 - 1));
        assert_eq!(misses[VALUES].label, "compile");
    }

    #[test]
    fn a_hostile_name_is_cut() {
        let recent = Recent::default();
        recent.missed_value(&ArtifactKey::from_bytes([1; 32]), &[0xff; 1 << 20]);
        assert!(recent.misses()[0].label.chars().count() <= LONGEST_NAME);
    }
}
