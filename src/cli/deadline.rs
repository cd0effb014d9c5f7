//! How long a node may take to answer.
//!
//! Invariant: a call that a healthy node answers at once has a deadline, so that no
//! command waits for ever for a node that takes connections and answers nothing.

use std::time::Duration;

use tonic::{GrpcMethod, Request};

/// More than a cluster needs to find another leader and to commit.
pub(super) const ANSWER: Duration = Duration::from_secs(60);

/// Calls that only look something up, or commit something small.
const SHORT: [&str; 23] = [
    "List",
    "Explain",
    "Pin",
    "Tombstone",
    "Loaded",
    "Status",
    "AddNode",
    "RemoveNode",
    "Signers",
    "RevokeSigner",
    "RotateSigner",
    "RootSays",
    "CreateToken",
    "RevokeToken",
    "Tokens",
    "AuditHead",
    "SetVoters",
    "SetJoining",
    "Metrics",
    "Overview",
    "Monitor",
    "Undo",
    "Emergency",
];

/// Gives `request` a deadline where its call is short and it has none of its own.
pub(super) fn set(request: &mut Request<()>) {
    let method = request.extensions().get::<GrpcMethod<'_>>().map(GrpcMethod::method);
    let short = method.is_some_and(|method| SHORT.contains(&method));
    if short && !request.metadata().contains_key("grpc-timeout") {
        request.set_timeout(ANSWER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that last as long as a compile, a transfer, or what their request says.
    const LONG: [&str; 11] = [
        "Attest",
        "Compile",
        "Lookup",
        "Fetch",
        "Lease",
        "Publish",
        "Leave",
        "Restore",
        "Plan",
        "Recheck",
        "Recompile",
    ];

    fn deadline(method: &'static str) -> bool {
        let mut request = Request::new(());
        request.extensions_mut().insert(GrpcMethod::new("kiln.v1.Kiln", method));
        set(&mut request);
        request.metadata().contains_key("grpc-timeout")
    }

    #[test]
    fn every_call_has_a_deadline_or_a_reason_to_have_none() {
        let text = include_str!("../../proto/proto/kiln/v1/kiln.proto");
        let calls =
            text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        let mut known = 0;
        for call in calls {
            known += 1;
            let call = SHORT.iter().chain(&LONG).find(|name| **name == call);
            let call = call.unwrap_or_else(|| panic!("a call that is neither short nor long"));
            assert_eq!(deadline(call), SHORT.contains(call), "{call}");
        }
        assert_eq!(known, SHORT.len() + LONG.len());
    }

    #[test]
    fn a_deadline_that_a_command_chose_stays() {
        let mut request = Request::new(());
        request.extensions_mut().insert(GrpcMethod::new("kiln.v1.Kiln", "Status"));
        request.set_timeout(Duration::from_secs(1));
        let chosen = request.metadata().get("grpc-timeout").cloned();
        set(&mut request);
        assert_eq!(request.metadata().get("grpc-timeout").cloned(), chosen);
    }
}
