//! What is asked of a node, and what compiling costs and saves.
//!
//! Invariant: each request for an artifact adds to one series of `kiln_requests_total`.

use crate::telemetry::metric::{COMPILES, Metric, REQUESTS, counter, gauge, seconds};

pub(super) const METRICS: &[Metric] = &[
    counter(
        "kiln_requests_total",
        &["outcome", "tier"],
        "Requests for an artifact by how they ended (hit, coalesced, compiled, failed) and where \
         the bytes came from (memory, disk, peer, object, none).",
    ),
    seconds(
        "kiln_request_seconds",
        REQUESTS,
        &["outcome"],
        "Time from a compile request to its answer, by outcome: of coalesced ones, the wait for \
         another's compile.",
    ),
    seconds(
        "kiln_load_seconds",
        REQUESTS,
        &["tier"],
        "Time to bring the verified bytes of a stored artifact here, by where they came from.",
    ),
    seconds(
        "kiln_saved_compile_seconds",
        COMPILES,
        &["outcome"],
        "What the compile took that a hit or a coalesced request did without: the sum is \
         compile-seconds saved.",
    ),
    counter(
        "kiln_misses_total",
        &["reason"],
        "Keys that had to be compiled, by the part of the key that differs from the nearest \
         stored entry: graph, inputs, options, namespace, a toolchain version, target, several, \
         none (nothing is stored), unknown (not looked for).",
    ),
    counter("kiln_failures_total", &["code", "kind"], "Requests that failed, by code and kind."),
    counter(
        "kiln_compiler_runs_total",
        &["compiler", "ok"],
        "Compiler runs on this node, and whether they made something.",
    ),
    seconds(
        "kiln_compile_seconds",
        COMPILES,
        &["compiler"],
        "Time of a compiler run that made something: the sum is total compile seconds.",
    ),
    gauge(
        "kiln_compiler_sandbox_lacks",
        &[],
        "Things that a compile can do on this node that a newer kernel would refuse: the log and \
         kiln doctor name them.",
    ),
    gauge("kiln_compiler_processes", &[], "Compiler and check processes alive, warm ones too."),
    counter("kiln_saved_total", &[], "Artifacts that this node committed to the index."),
    counter(
        "kiln_loaded_total",
        &[],
        "Artifacts that clients' engines loaded after they had them.",
    ),
    counter(
        "kiln_unused_restores_total",
        &[],
        "Folders that `kiln run` restored for a COMMAND that opened none of their files.",
    ),
    counter("kiln_corrupt_copies_total", &[], "Copies that did not match their digest."),
    counter("kiln_remote_corrupt_total", &[], "Of these, bytes from a peer or the object store."),
    counter("kiln_lost_packs_total", &[], "Entries retired because their bytes were nowhere."),
    counter(
        "kiln_unreachable_packs_total",
        &[],
        "Entries whose bytes may be at a place that did not answer.",
    ),
    counter(
        "kiln_unpublished_compiles_total",
        &[],
        "Compiles that were answered and could not be published.",
    ),
    counter(
        "kiln_forwarded_compiles_total",
        &[],
        "Requests sent on to a node that has the compiler.",
    ),
    counter("kiln_pieces_taken_total", &[], "Pieces of other nodes' wholes that this node began."),
    counter(
        "kiln_piece_lists_refused_total",
        &[],
        "Lists of pieces whose keys are not what another node says.",
    ),
    counter("kiln_bad_manifests_total", &[], "Manifests in the index that failed their checks."),
    counter(
        "kiln_unbelieved_total",
        &[],
        "Times that an artifact was not given out because the root does not let its signer sign \
         in that namespace.",
    ),
    counter("kiln_checks_total", &["result"], "Artifacts that were run, to see if they are right."),
    counter(
        "kiln_spot_checks_total",
        &["result", "reason"],
        "Stored artifacts that were to be compared with a new compile (equal, different, skipped), \
         and why one was skipped (own, compiler, pieces, toolchain, request, busy, known, \
         unsteady, failed, refused, time).",
    ),
];
