//! `kiln cluster`: membership.

use clap::{Args, Subcommand};
use kiln_proto::pb;

use super::{CliError, ClientArgs, backup, output};

const EXAMPLES: &str = "\
Examples:
  kiln cluster add 10.0.0.4:7400
  kiln cluster remove 3
  kiln cluster leave --endpoint http://10.0.0.4:7400
  kiln cluster voters 5
  kiln cluster backup > index.kiln
  kiln cluster restore < index.kiln";

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
    /// Set how many voters the cluster strives for: 1, 3, 5 or 7.
    Voters {
        /// The number.
        number: u64,
    },
    /// Write the index to stdout: every key with its signed manifest. The bytes of
    /// artifacts are not in it: those are in the object tier.
    Backup,
    /// Read a backup from stdin into this cluster. Keys that it has stay as they are.
    Restore,
}

impl ClusterArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        match self.change {
            Change::Backup => return backup::write(&self.client.endpoints).await,
            Change::Restore => return backup::read(&self.client).await,
            _ => {}
        }
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
            Change::Voters { number } => {
                let request = pb::SetVotersRequest { voters: number };
                client.set_voters(request).await.map_err(refused)?;
                (format!("{number} voters wanted"), serde_json::json!({ "voters": number }))
            }
            // Done above: neither is a change of the membership.
            Change::Backup | Change::Restore => return Ok(()),
        };
        if self.client.json { output::json(&json) } else { output::line(done) }
    }
}
