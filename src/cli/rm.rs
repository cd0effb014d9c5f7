//! `kiln rm`: remove a wrong artifact from the whole fleet.

use clap::Args;
use kiln_proto::pb;

use super::{CliError, ClientArgs, NamespaceArgs, keys::KeyArg, output};

/// Remove a wrong artifact from the whole fleet at once.
///
/// The key is free for a new compile afterwards. The reason is kept with the
/// removal, for whoever asks later.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln rm 3f2a91c0 --reason 'wrong results on driver 580.65'")]
pub(crate) struct Rm {
    /// The key, or its first digits.
    key: KeyArg,
    /// Why: recorded in the index.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Rm {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.client.endpoints.connect().await?;
        let key = self.key.resolve(&mut client, &self.namespace.namespace).await?;
        let request = pb::TombstoneRequest {
            key: key.as_bytes().to_vec().into(),
            reason: self.reason.clone(),
        };
        let answer = client.tombstone(request).await.map_err(|e| CliError::from_status(&e))?;
        if !answer.into_inner().existed {
            return Err(CliError::NotFound(format!("there is no artifact of key {key}")));
        }
        match self.client.json {
            true => output::json(&serde_json::json!({ "key": key.to_string(), "removed": true })),
            false => output::line(format_args!("removed {key}")),
        }
    }
}
