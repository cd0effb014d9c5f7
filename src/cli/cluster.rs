//! `kiln cluster`: membership.

use clap::{Args, Subcommand};
use kiln_proto::pb;

use super::{CliError, ClientArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln cluster add 10.0.0.4:7400
  kiln cluster remove 3
  kiln cluster leave --endpoint http://10.0.0.4:7400";

/// Change who belongs to the cluster.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    change: Change,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Admit the node that serves at an address.
    Add {
        /// Its gRPC address, HOST:PORT.
        address: String,
    },
    /// Remove a node for good, dead or alive.
    Remove {
        /// Its id; see kiln status.
        id: u64,
    },
    /// Make the node asked leave its cluster.
    Leave,
}

impl ClusterArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        // Connected once: a change that may have been made is not asked for again elsewhere.
        let mut client = self.client.endpoints.connect().await?;
        let refused = |status| CliError::from_status(&status);
        let (done, json) = match self.change {
            Change::Add { address } => {
                let request = pb::AddNodeRequest { address: address.clone() };
                let id = client.add_node(request).await.map_err(refused)?.into_inner().id;
                let json = serde_json::json!({ "added": id, "address": address });
                (format!("added node {id} at {address}"), json)
            }
            Change::Remove { id } => {
                client.remove_node(pb::RemoveNodeRequest { id }).await.map_err(refused)?;
                (format!("removed node {id}"), serde_json::json!({ "removed": id }))
            }
            Change::Leave => {
                client.leave(pb::LeaveRequest {}).await.map_err(refused)?;
                ("the node left its cluster".to_owned(), serde_json::json!({ "left": true }))
            }
        };
        if self.client.json { output::json(&json) } else { output::line(done) }
    }
}
