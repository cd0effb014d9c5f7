//! Why keys had to be compiled, counted by the part of the key that differs from the
//! nearest stored entry.
//!
//! Invariant: no request waits for it; one search runs at a time, for a bounded time, and a
//! miss that comes meanwhile is counted as `unknown`. A reason is one of the names in the
//! code or of this node's own toolchain, whatever clients store.

use std::{sync::Arc, time::Duration};

use kiln_proto::{ArtifactKey, Difference, component};
use tokio::sync::Semaphore;

use super::Manager;
use crate::{
    compiler::Prepared,
    scan::{
        Bounds,
        nearest::{Nearest, nearest},
    },
};

/// What one search may take; a larger index is looked at in part.
const BOUNDS: Bounds = Bounds { page: 256, time: Duration::from_millis(200) };

/// The parts of a key that may be named, but for the toolchain's own.
const PARTS: [&str; 6] = [
    component::GRAPH,
    component::INPUTS,
    component::OPTIONS,
    component::FINGERPRINT,
    component::TARGET,
    component::NAMESPACE,
];

/// One search at a time.
pub(super) fn one_at_a_time() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

impl Manager {
    /// Counts a miss by its reason, which is looked for in the background.
    pub(super) fn note_miss(&self, prepared: &Arc<Prepared>) {
        let counters = self.counters.clone();
        let Ok(place) = self.looking.clone().try_acquire_owned() else {
            counters.missed("unknown");
            return;
        };
        let (index, prepared, stop) = (self.index.clone(), prepared.clone(), self.stop.clone());
        tokio::task::spawn_blocking(move || {
            let mut searches = [Nearest::new(&prepared.components)];
            let scanned = nearest(&index, BOUNDS, &stop, &mut searches);
            let [search] = searches;
            match scanned {
                Ok(_) => counters.missed(reason(search.found(), &prepared)),
                Err(e) => {
                    tracing::debug!(error = %e, "the reason of a miss is not known");
                    counters.missed("unknown");
                }
            }
            drop(place);
        });
    }
}

/// The part of the key that differs.
fn reason(nearest: Option<(ArtifactKey, Vec<Difference>)>, prepared: &Prepared) -> String {
    let Some((_, differences)) = nearest else { return "none".into() };
    let versions = prepared.fingerprint.versions.keys().map(String::as_str);
    named(&differences, versions).into()
}

fn named<'a>(differences: &[Difference], mut versions: impl Iterator<Item = &'a str>) -> &'a str {
    let mut parts: Vec<&str> = differences.iter().map(|d| d.component.as_str()).collect();
    parts.sort_unstable();
    parts.dedup();
    // Another program differs in much that follows from it.
    if parts.contains(&component::GRAPH) {
        return component::GRAPH;
    }
    let [part] = parts[..] else { return "several" };
    let Some(part) = PARTS.into_iter().find(|known| *known == part) else { return "several" };
    match differences {
        [one] if part == component::FINGERPRINT => {
            versions.find(|version| *version == one.field).unwrap_or(part)
        }
        _ => part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(component: &str, field: &str) -> Difference {
        let (component, field) = (component.to_owned(), field.to_owned());
        Difference { component, field, ours: "a".into(), theirs: "b".into() }
    }

    #[test]
    fn a_reason_is_a_name_of_the_code_or_of_the_toolchain() {
        let of = |differences: &[(&str, &str)]| {
            let all: Vec<_> = differences.iter().map(|(c, f)| difference(c, f)).collect();
            named(&all, ["driver", "nvrtc"].into_iter()).to_owned()
        };
        assert_eq!(of(&[("fingerprint", "driver")]), "driver");
        assert_eq!(of(&[("fingerprint", "driver"), ("fingerprint", "nvrtc")]), "fingerprint");
        assert_eq!(of(&[("fingerprint", "made up by a client")]), "fingerprint");
        assert_eq!(of(&[("options", "a.b.c")]), "options");
        assert_eq!(of(&[("options", "x"), ("target", "compute")]), "several");
        assert_eq!(of(&[("graph", "source"), ("inputs", "0.dtype")]), "graph");
        assert_eq!(of(&[("made up by a client", "x")]), "several");
    }
}
