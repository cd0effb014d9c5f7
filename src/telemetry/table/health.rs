//! What falls, and what a node does about itself.
//!
//! Invariant: a fallback is one request's; the gauges are of the last cycle.

use crate::telemetry::metric::{Metric, counter, gauge};

pub(super) const METRICS: &[Metric] = &[
    counter(
        "kiln_fallbacks_total",
        &["rung", "kind"],
        "Requests that were answered by something else than what they wanted: by which rung of the \
         ladder, and what the wanted failed of.",
    ),
    counter(
        "kiln_piece_fallbacks_total",
        &["rung", "kind"],
        "Pieces of wholes that were answered by something else, the other pieces being kept: by \
         which rung, and what the piece failed of.",
    ),
    counter(
        "kiln_fallbacks_replaced_total",
        &[],
        "Wanted artifacts that were compiled after all, behind a fallback.",
    ),
    gauge("kiln_emergency", &["system"], "1: the node does without this (compilers, cache)."),
    gauge("kiln_monitor_cycles", &[], "Cycles of the monitor since the node started."),
    gauge("kiln_monitor_anomalies", &[], "What the monitor finds out of the ordinary."),
    counter("kiln_optimizer_changes_total", &["knob"], "Changes that the optimizer made."),
    counter(
        "kiln_alerts_sent_total",
        &["receiver", "result"],
        "Alerts and their ends by the form of their receiver, and whether it took them.",
    ),
];
