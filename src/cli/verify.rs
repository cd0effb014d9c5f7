//! `kiln verify`: whether an artifact is what its source compiles to.
//!
//! Invariant: exit code 0 says that it was compiled again and is the same; that nothing was
//! compared is no success.

use std::path::PathBuf;

use clap::Args;
use kiln_proto::{FailureKind, convert, pb};
use serde::Serialize;

use super::{
    CliError, ClientArgs,
    client::Client,
    output,
    source::SourceArgs,
    why::{Subject, subject},
};

const EXAMPLES: &str = "\
Examples:
  kiln verify 3f2a91c0
  kiln verify k.cu --target sm_90
  kiln verify 3f2a91c0 --endpoint http://another-node:7400";

/// Compile an artifact once more, and compare it with what is stored.
///
/// The node that is asked compiles; ask another one than the artifact's signer (kiln inspect
/// names it). Of CUDA C++ and the native compiler, which give the same bytes each time. One
/// that differs is removed from the whole fleet, its signer is named, and whether that
/// one is to be revoked (kiln signer revoke) is yours to decide. `trust.spot_checks` does
/// this for a share of all hits.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// A key, its first digits, or the file that it was compiled of.
    #[arg(value_name = "KEY|FILE")]
    subject: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Serialize)]
struct VerifyView {
    key: String,
    result: String,
    node: u64,
}

impl VerifyArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let asked = async |client| self.ask(client).await;
        let answer = self.client.endpoints.attempt(asked).await?;
        let pb::RecheckResponse { key, result, why, different, skipped, signer, node, .. } = answer;
        let key =
            convert::key("key", &key).map_err(|e| anyhow::anyhow!("the node's answer: {e}"))?;
        if different {
            let what = match (answer.removed, answer.unremoved) {
                (true, _) => "it is removed from all nodes".to_owned(),
                (false, why) if why.is_empty() => "somebody has removed it already".to_owned(),
                (false, why) => format!("it could not be removed ({why}): kiln rm {key}"),
            };
            let message = format!(
                "{key} is not what its source compiles to on node {node}: {why}; it has node \
                 {signer}'s signature (kiln signer list), and {what}"
            );
            return Err(CliError::failed(FailureKind::WrongOutput, message));
        }
        if skipped {
            return Err(CliError::Refused(format!("{key} was not compared: {why}")));
        }
        let key = key.to_string();
        match self.client.json {
            true => output::json(&VerifyView { key, result, node }),
            false => {
                output::line(format_args!("{key} is what node {node} compiles, byte for byte"))
            }
        }
    }

    async fn ask(&self, mut client: Client) -> Result<pb::RecheckResponse, CliError> {
        use pb::recheck_request::Subject as Of;
        let subject = match subject(&self.subject)? {
            Subject::File(file) => Of::Request(self.source.request(file)?),
            Subject::Key(key) => {
                let key = key.resolve(&mut client, &self.source.namespace.namespace).await?;
                Of::Key(key.as_bytes().to_vec().into())
            }
        };
        let request = pb::RecheckRequest { subject: Some(subject) };
        let answer = client.recheck(request).await.map_err(|e| CliError::from_status(&e))?;
        Ok(answer.into_inner())
    }
}
