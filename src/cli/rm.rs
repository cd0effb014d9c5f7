//! `kiln rm`: remove a wrong artifact from the whole fleet.

use clap::Args;
use kiln_proto::{ArtifactKey, pb};

use super::{
    CliError, ClientArgs, NamespaceArgs, client::Client, confirm::YesArgs, fetch, keys::KeyArg,
    output,
};

/// Remove a wrong artifact from the whole fleet at once.
///
/// The key is free for a new compile afterwards. The reason is kept with the
/// removal, for whoever asks later: `kiln why KEY` tells it.
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
    yes: YesArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Rm {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.client.endpoints.connect().await?;
        let key = self.key.resolve(&mut client, &self.namespace.namespace).await?;
        if self.yes.asks() {
            let label = label(&mut client, &key).await?;
            self.yes.confirm(&format!("Remove {label} ({key}) from all nodes?"))?;
        }
        let request = pb::TombstoneRequest {
            key: key.as_bytes().to_vec().into(),
            reason: self.reason.clone(),
        };
        let answer = client.tombstone(request).await.map_err(|e| CliError::from_status(&e))?;
        if !answer.into_inner().existed {
            return Err(nothing(&key));
        }
        match self.client.json {
            true => output::json(&serde_json::json!({ "key": key.to_string(), "removed": true })),
            false => output::line(format_args!("removed {key}")),
        }
    }
}

/// What an artifact is called.
async fn label(client: &mut Client, key: &ArtifactKey) -> Result<String, CliError> {
    let request = pb::ListRequest { prefix: key.to_string(), limit: 1, ..Default::default() };
    let found = client.list(request).await.map_err(|e| CliError::from_status(&e))?;
    let entry = found.into_inner().entries.into_iter().next();
    let entry = entry.ok_or_else(|| nothing(key))?;
    let manifest = fetch::manifest(entry.manifest.unwrap_or_default())?;
    Ok(format!("{:?} for {}", manifest.label, manifest.target))
}

fn nothing(key: &ArtifactKey) -> CliError {
    CliError::NotFound(format!("there is no artifact of key {key}"))
}
