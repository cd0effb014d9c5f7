//! What comes in through each port.
//!
//! Invariant: a request that was answered is in one histogram of its door.

use crate::telemetry::metric::{Metric, REQUESTS, bytes_total, counter, gauge, seconds};

pub(super) const METRICS: &[Metric] = &[
    seconds(
        "kiln_grpc_request_seconds",
        REQUESTS,
        &["method"],
        "gRPC calls of the public API, from their headers to the end of the answer.",
    ),
    counter("kiln_grpc_requests_total", &["method", "code"], "gRPC calls by their status code."),
    counter(
        "kiln_trace_spans_total",
        &["result"],
        "Spans given to the trace collector: sent, or failed.",
    ),
    gauge("kiln_grpc_open_requests", &[], "gRPC calls of the public API under way."),
    seconds(
        "kiln_resp_request_seconds",
        REQUESTS,
        &["family"],
        "Requests of Redis clients by family of command (read, write, other), waits included.",
    ),
    seconds("kiln_http_request_seconds", REQUESTS, &["route"], "Requests of the HTTP port."),
    seconds(
        "kiln_transfer_request_seconds",
        REQUESTS,
        &["door", "kind"],
        "Requests for bytes by door (peers, socket) and kind (blob, artifact, keep), sending \
         included.",
    ),
    bytes_total("kiln_transfer_sent_bytes_total", &["door"], "Bytes of blobs given out."),
    counter("kiln_refused_connections_total", &["port"], "Connections over a port's limit."),
    counter(
        "kiln_tls_refused_total",
        &["port", "why"],
        "Connections that were refused before anything was served: plain text on a port that \
         takes TLS alone, or a handshake that failed.",
    ),
    counter(
        "kiln_plain_connections_total",
        &["port"],
        "Connections in plain text to a port that takes TLS as well: none is left when it may take \
         TLS alone.",
    ),
    counter(
        "kiln_refused_peers_total",
        &["why"],
        "Peers that were refused: their certificate names another node or key, or one that has not \
         joined, left or was revoked, they came to the clients' port, no TLS came about with them, or they had no \
         good token to join.",
    ),
    counter(
        "kiln_unproved_peers_total",
        &["door"],
        "Peers that were served though they have not joined, as far as the node can know: \
         `tls.members.proofs = \"require\"` refuses them.",
    ),
    counter(
        "kiln_access_refused_total",
        &["door", "why"],
        "Calls that were refused for who asked them: no token, one that is unknown, revoked or \
         expired, a role that is too small, another's namespace, or more than one client may have; at \
         the door `members`, nodes that had no good token to join, or have not joined.",
    ),
    counter(
        "kiln_oidc_failures_total",
        &[],
        "Fetches of an issuer's keys (access.oidc) that failed.",
    ),
    counter("kiln_audit_events_total", &[], "Events that the audit log was given."),
    counter(
        "kiln_audit_lost_total",
        &[],
        "Events that are in no line of the audit log: it could not be written, or too many came.",
    ),
    counter(
        "kiln_audit_failures_total",
        &[],
        "Writes and syncs of the audit log that failed, as on a full disk.",
    ),
    gauge(
        "kiln_tls_certificate_expiry_seconds",
        &["audience"],
        "Until this node's certificate ends; negative once it has.",
    ),
    counter(
        "kiln_tls_reloads_total",
        &["audience", "result"],
        "New certificates that were taken, or refused.",
    ),
    gauge(
        "kiln_tls_reload_failed",
        &["audience"],
        "1 while the certificate files on disk cannot be used and older ones are in force.",
    ),
    gauge("kiln_resp_connections", &[], "Redis clients connected."),
    seconds(
        "kiln_resp_wait_seconds",
        REQUESTS,
        &[],
        "How long GETs waited for the SET of another client.",
    ),
    counter("kiln_resp_requests_total", &[], "Requests of Redis clients."),
    counter("kiln_resp_hits_total", &[], "Keys that were asked for and found."),
    counter("kiln_resp_misses_total", &[], "Keys that were asked for and not found."),
    counter("kiln_resp_waits_total", &[], "GETs that waited for another client's SET."),
    counter("kiln_resp_wait_hits_total", &[], "Of these, the ones that got its value."),
    counter("kiln_resp_leases_total", &[], "Misses whose client got the lease of the key."),
    counter("kiln_resp_sets_stored_total", &[], "SETs that were committed."),
    counter("kiln_resp_sets_unchanged_total", &[], "SETs of the bytes that the key had already."),
    counter("kiln_resp_sets_failed_total", &[], "SETs that were answered and not stored."),
    counter("kiln_resp_sets_late_total", &[], "SETs that were answered before their commit."),
    counter("kiln_resp_sets_superseded_total", &[], "SETs whose place a later one took."),
    counter("kiln_resp_refused_connections_total", &[], "Redis clients over the limit."),
];
