//! The overview call: what the dashboard shows, for nodes and the command line.
//!
//! Invariant: `node_only` asks no other node.

use kiln_proto::pb;
use serde::Serialize;

use crate::{dashboard::Dashboard, error::Error};

/// The view of the cluster, or this node's figures.
pub(super) async fn overview(
    dashboard: &Dashboard,
    request: &pb::OverviewRequest,
) -> Result<pb::OverviewResponse, Error> {
    if request.node_only {
        return encoded(&dashboard.figures(request.samples_after));
    }
    let none = || Error::Unavailable("there is no view yet: try again".into());
    encoded(&dashboard.shown(true).await.ok_or_else(none)?.view)
}

fn encoded(shown: &impl Serialize) -> Result<pb::OverviewResponse, Error> {
    let json = serde_json::to_vec(shown).map_err(|e| Error::Storage(e.to_string()))?;
    Ok(pb::OverviewResponse { json: json.into() })
}
