//! `kiln signer`: whose signatures count.

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use kiln_proto::pb;
use serde::Serialize;

use super::{CliError, ClientArgs, confirm::YesArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln signer list
  kiln signer revoke 3 --reason 'its disk was sold'
  kiln signer revoke 3 --reason 'replaced by node 7' --keep";

/// Show whose signatures count, and revoke one.
///
/// Each node signs what it makes. Of a revoked signer nothing is taken any more, and what
/// it made is removed from the whole fleet: the keys miss, and are compiled again elsewhere.
/// A node that is revoked goes on to serve what others signed; to be rid of it, remove it
/// too: kiln cluster remove.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SignerArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every node that ever was a member, with its public key.
    List,
    /// Trust a node's signature no more, for good.
    Revoke {
        /// The node's id.
        node: u64,
        /// Why: kept with each artifact that goes, and told by `kiln why`.
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        reason: String,
        /// Leave what it signed before: for a node that is replaced, not for one that
        /// somebody else may have had.
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
}

#[derive(Debug, Serialize)]
struct SignerView {
    node: u64,
    key: String,
    left: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<RevokedView>,
}

#[derive(Debug, Serialize)]
struct RevokedView {
    keep: bool,
    reason: String,
    by: u64,
    at_unix_ms: u64,
}

impl From<pb::SignerStatus> for SignerView {
    fn from(signer: pb::SignerStatus) -> Self {
        let revoked = signer.revocation.map(|revoked| RevokedView {
            keep: revoked.keep,
            reason: revoked.reason,
            by: revoked.by,
            at_unix_ms: revoked.at_unix_ms,
        });
        Self { node: signer.node, key: hex::encode(signer.key), left: signer.left, revoked }
    }
}

impl SignerView {
    fn state(&self) -> String {
        match (&self.revoked, self.left) {
            (Some(revoked), _) => format!("revoked: {}", revoked.reason),
            (None, true) => "left".to_owned(),
            (None, false) => "member".to_owned(),
        }
    }
}

impl SignerArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.client.endpoints.connect().await?;
        let refused = |status| CliError::from_status(&status);
        match self.what {
            What::List => {
                let answer = client.signers(pb::SignersRequest {}).await.map_err(refused)?;
                let signers = answer.into_inner().signers.into_iter().map(SignerView::from);
                let signers: Vec<_> = signers.collect();
                if self.client.json {
                    return output::json(&signers);
                }
                output::line(format_args!("{:<6}{:<66}STATE", "NODE", "PUBLIC KEY"))?;
                for signer in &signers {
                    let SignerView { node, key, .. } = signer;
                    output::line(format_args!("{node:<6}{key:<66}{}", signer.state()))?;
                }
                Ok(())
            }
            What::Revoke { node, reason, keep, yes } => {
                let what = if keep { "stays" } else { "is removed from all nodes" };
                yes.confirm(&format!(
                    "Revoke the signature of node {node} for good? What it signed {what}."
                ))?;
                let request = pb::RevokeSignerRequest { node, reason, keep };
                let answer = client.revoke_signer(request).await.map_err(refused)?;
                let removed = answer.into_inner().removed;
                match self.client.json {
                    true => {
                        output::json(&serde_json::json!({ "revoked": node, "removed": removed }))
                    }
                    false => output::line(format_args!(
                        "revoked the signature of node {node}; artifacts removed: {removed}"
                    )),
                }
            }
        }
    }
}
