//! Which calls are traced: decided once, at their head.
//!
//! Invariant: a caller that decided is obeyed; else a share of the calls is chosen, and a
//! call that was [`chosen`] before its span is made is not asked about again.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{Link, SpanKind, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// Marks the span of a call that was chosen.
pub(super) const CHOSEN: &str = "kiln.chosen";

/// Of 2^64, how many calls are chosen.
static SHARE: AtomicU64 = AtomicU64::new(0);

/// Sets the share of calls that [`chosen`] chooses.
pub fn set_ratio(ratio: f64) {
    // The cast saturates: 1 is all but one of 2^64.
    SHARE.store((ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64, Ordering::Relaxed);
}

/// Whether the call that begins now is traced. For doors where even a span that is thrown
/// away would cost too much.
pub fn chosen() -> bool {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }
    let share = SHARE.load(Ordering::Relaxed);
    if share == 0 {
        return false;
    }
    // xorshift64*: calls of one thread in no pattern.
    let drawn = STATE.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    });
    drawn <= share
}

/// Obeys the caller, takes what was chosen, and a share of the rest.
#[derive(Debug, Clone)]
pub(super) struct Head(Sampler);

impl Head {
    pub(super) fn new(ratio: f64) -> Self {
        Self(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
    }
}

impl ShouldSample for Head {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_chosen = |a: &KeyValue| a.key.as_str() == CHOSEN && a.value == Value::Bool(true);
        if attributes.iter().any(is_chosen) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            };
        }
        self.0.should_sample(parent, trace, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_the_share_of_calls_is_chosen() {
        set_ratio(0.1);
        let of_many = (0..100_000).filter(|_| chosen()).count();
        assert!((8_000..12_000).contains(&of_many), "{of_many} of 100000 at 0.1");
        set_ratio(1.0);
        assert!((0..1000).all(|_| chosen()));
        set_ratio(0.0);
        assert!(!(0..1000).any(|_| chosen()));
    }
}
