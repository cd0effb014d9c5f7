//! What a rung answered with, marked as what it is.
//!
//! Invariant: an answer under the key that was wanted is no fallback; every other one is
//! counted, told, remembered and, where that may go well, compiled behind.

use std::{sync::Arc, time::Duration};

use kiln_proto::ArtifactKey;
use tokio::time::Instant;

use super::{Event, Fallback, PieceFallback, Rung, Tried};
use crate::manager::{Answer, Manager, Request};

/// An answer that is not what was asked for.
pub(super) struct Reached {
    pub(super) rung: Rung,
    pub(super) answer: Answer,
    /// For how long it is to be used.
    pub(super) valid: Duration,
    /// Whether what was wanted may be compiled later.
    pub(super) may_mend: bool,
    /// What stands for which pieces.
    pub(super) pieces: Vec<PieceFallback>,
}

impl Reached {
    /// The answer. `wanted`: the key that was asked for, if the request came to one.
    pub(super) fn marked(
        self,
        manager: &Arc<Manager>,
        wanted: Option<ArtifactKey>,
        tried: Vec<Tried>,
        request: &Request,
    ) -> Answer {
        let Self { rung, answer, valid, may_mend, pieces } = self;
        let tried: Arc<[Tried]> = tried.into();
        if rung == Rung::Again || wanted == Some(answer.manifest.key) {
            return Answer { tried, ..answer };
        }
        let kind = tried[0].failure.kind;
        tracing::warn!(
            wanted = wanted.map(tracing::field::display),
            key = %answer.manifest.key,
            rung = rung.name(),
            kind = kind.name(),
            "answered by a fallback"
        );
        tried.iter().for_each(|tried| manager.remembered.note(tried, Instant::now() + valid));
        manager.counters.fell(rung.name(), kind.name());
        for PieceFallback { rung, failed_of, .. } in &pieces {
            manager.counters.piece_fell(rung.name(), failed_of.name());
        }
        manager.events.tell(Event::Fell { wanted, kind, rung });
        if let (Some(wanted), true) = (wanted, may_mend) {
            manager.compile_behind(wanted, request);
        }
        let fallback = Some(Arc::new(Fallback { wanted, rung, valid, pieces }));
        Answer { fallback, tried, ..answer }
    }
}
