//! What the node tells about itself: metrics for Prometheus and for people, traces for a
//! collector.
//!
//! The parts record through the `metrics` and `tracing` facades and know nothing of this
//! module but the spans of [`trace`]; [`table`] says what there is, [`recorder`] keeps it.
//!
//! Invariant: nothing that is told waits for whoever reads it: a collector that is away, a
//! scraper that never comes and one that comes all the time cost a bounded amount.

pub mod compilation;
pub mod document;
pub mod exposition;
mod metric;
pub mod recorder;
pub mod table;
pub mod trace;
mod wire;

#[cfg(test)]
mod tests;

pub use self::{
    metric::{Kind, Metric},
    recorder::Recorder,
};
