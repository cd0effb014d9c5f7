//! Where bytes are kept.
//!
//! Invariant: a tier's figures carry the label `tier`.

use crate::telemetry::metric::{Metric, bytes, counter, gauge};

pub(super) const METRICS: &[Metric] = &[
    counter("kiln_tier_hits_total", &["tier"], "Blobs that were asked of a tier and there."),
    counter("kiln_tier_misses_total", &["tier"], "Blobs that were asked of a tier and not there."),
    counter("kiln_tier_evictions_total", &["tier"], "Blobs that made room for others."),
    bytes("kiln_tier_bytes", &["tier"], "Bytes kept."),
    bytes("kiln_tier_capacity_bytes", &["tier"], "Most bytes that a tier keeps; none: no bound."),
    gauge("kiln_tier_entries", &["tier"], "Blobs kept."),
    counter("kiln_tier_lost_total", &["tier"], "Blobs known to a tier that were gone from it."),
    counter("kiln_tier_corrupt_total", &["tier"], "Blobs read that did not match their digest."),
    counter("kiln_tier_errors_total", &["tier", "kind"], "Operations that a tier failed."),
    counter(
        "kiln_tier_degraded_total",
        &["tier"],
        "Blobs kept in memory alone because the disk did not take them.",
    ),
    counter("kiln_tier_swept_total", &["tier", "what"], "Leftovers that the sweep at start saw."),
    gauge("kiln_tier_uploads_pending", &["tier"], "Blobs that wait for their upload."),
    counter("kiln_tier_uploads_total", &["tier", "outcome"], "Uploads by how they ended."),
    bytes("kiln_blob_memory_bytes", &[], "Bytes of blobs in memory, those under way included."),
    counter("kiln_blob_memory_refused_total", &[], "Blobs for which there was no memory."),
    counter("kiln_pins_changed_total", &["change"], "Pins set and taken back on this node."),
];
