//! `kiln cluster`: membership.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kiln_proto::pb;
use tonic::Status;

use super::{
    CliError, ClientArgs, backup, client::Client, confirm::YesArgs, deadline, output,
    view::LeavingView,
};

/// How often who waits for a node to leave is told how far it is.
const TELL: Duration = Duration::from_secs(2);

/// What handing over may take where nothing else is said: the node's own default.
const WITHIN: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  kiln cluster add 10.0.0.4:7402
  kiln cluster remove 3
  kiln cluster remove 3 --yes
  kiln cluster leave --endpoint http://10.0.0.4:7400
  kiln cluster leave --within 5m
  kiln cluster voters 5
  kiln cluster joining token
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
        /// Its members' port, HOST:PORT.
        address: String,
    },
    /// Remove a node for good, dead or alive, without asking it. What its disk alone has of
    /// what was stored is lost; a node that runs hands that over when it is told to leave.
    Remove {
        /// Its id; see kiln status.
        id: u64,
        #[command(flatten)]
        yes: YesArgs,
    },
    /// Make the node asked leave its cluster for good. It takes nothing new, hands over what
    /// only its disk has, to the object store or to other nodes, and stays where that fails.
    Leave {
        /// What handing over may take; 60 s if not given.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        within: Option<Duration>,
        /// Leave then all the same: what no other place took is lost.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
    /// Set how many voters the cluster strives for: 1, 3, 5 or 7.
    Voters {
        /// The number.
        number: u64,
    },
    /// Say what joining the cluster takes, from now on. Members need nothing to come back.
    Joining {
        /// What a new node shows.
        #[arg(value_enum)]
        takes: Takes,
    },
    /// Write the index to stdout: every key with its signed manifest. The bytes of
    /// artifacts are not in it: those are in the object tier.
    Backup,
    /// Read a backup from stdin into this cluster. Keys that it has stay as they are.
    Restore,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Takes {
    /// A token: kiln token create --role join.
    Token,
    /// Nothing: whoever reaches the members' port, with a certificate where TLS is required.
    Nothing,
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
            Change::Remove { id, yes } => {
                if yes.asks() {
                    let (_, node) = named(&mut client, Some(id)).await?;
                    yes.confirm(&format!(
                        "Remove {node} for good? What only its disk has is lost."
                    ))?;
                }
                client.remove_node(pb::RemoveNodeRequest { id }).await.map_err(refused)?;
                (format!("removed node {id}"), serde_json::json!({ "removed": id }))
            }
            Change::Leave { within, force, yes } => {
                let (id, node) = named(&mut client, None).await?;
                let lost = if force { " What no other place takes is lost." } else { "" };
                yes.confirm(&format!("Make {node} leave its cluster for good?{lost}"))?;
                let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                let request = pb::LeaveRequest { force, within_ms: within.map(millis) };
                let lost = leave(client, request).await.map_err(refused)?;
                left(id, &node, lost)
            }
            Change::Voters { number } => {
                let request = pb::SetVotersRequest { voters: number };
                client.set_voters(request).await.map_err(refused)?;
                (format!("{number} voters wanted"), serde_json::json!({ "voters": number }))
            }
            Change::Joining { takes } => {
                let needs_token = matches!(takes, Takes::Token);
                let request = pb::SetJoiningRequest { needs_token };
                let answer = client.set_joining(request).await.map_err(refused)?;
                let changed = answer.into_inner().changed;
                let said =
                    if needs_token { "joining needs a token" } else { "joining needs no token" };
                let json =
                    serde_json::json!({ "join_needs_token": needs_token, "changed": changed });
                (said.to_owned(), json)
            }
            // Done above: neither is a change of the membership.
            Change::Backup | Change::Restore => return Ok(()),
        };
        if self.client.json { output::json(&json) } else { output::line(done) }
    }
}

/// Makes the node leave, and tells how far it is; what was lost by force.
async fn leave(client: Client, request: pb::LeaveRequest) -> Result<Option<LeavingView>, Status> {
    let progress = async {
        let mut told = None;
        loop {
            tokio::time::sleep(TELL).await;
            // It is news: a node that is busy gives it later.
            let status = client.clone().status(pb::StatusRequest::default()).await;
            let leaving = status.ok().and_then(|status| status.into_inner().leaving);
            let leaving = leaving.map(LeavingView::from);
            if let Some(left) = leaving.filter(|left| told != Some(*left)) {
                eprintln!("handing over: {left}");
                told = Some(left);
            }
        }
    };
    let mut leaving = client.clone();
    // The node ends it by itself: this is for one that does not answer any more.
    let within = request.within_ms.map_or(WITHIN, Duration::from_millis);
    let mut request = tonic::Request::new(request);
    request.set_timeout(within.saturating_add(deadline::ANSWER));
    tokio::select! {
        left = leaving.leave(request) => Ok(left?.into_inner().lost.map(Into::into)),
        never = progress => never,
    }
}

/// The node of that id, or the one that is asked: its id, and what it is called.
async fn named(client: &mut Client, id: Option<u64>) -> Result<(u64, String), CliError> {
    let status = client.status(pb::StatusRequest::default()).await;
    let status = status.map_err(|e| CliError::from_status(&e))?.into_inner();
    let id = id.unwrap_or(status.node);
    let Some(node) = status.nodes.iter().find(|node| node.id == id) else {
        // No member, or not any more: the call itself says what that means.
        return Ok((id, format!("node {id}")));
    };
    let role = match (id == status.leader, node.voter) {
        (true, _) => "the leader",
        (false, true) => "a voter",
        (false, false) => "a learner",
    };
    Ok((id, format!("node {id} at {} ({role} of {} nodes)", node.grpc, status.nodes.len())))
}

/// What is said of a node that left.
fn left(id: u64, node: &str, lost: Option<LeavingView>) -> (String, serde_json::Value) {
    match lost {
        None => {
            (format!("{node} left its cluster"), serde_json::json!({ "left": true, "node": id }))
        }
        Some(lost) => (
            format!("{node} left its cluster by force; lost: {lost}"),
            serde_json::json!({ "left": true, "node": id, "lost": lost }),
        ),
    }
}
