//! `kiln pin` and `kiln unpin`: protect a key from eviction and collection.

use clap::Args;
use kiln_proto::pb;

use super::{CliError, ClientArgs, NamespaceArgs, keys::KeyArg, output};

/// Protect a key from eviction and collection.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln pin 3f2a91c0")]
pub(crate) struct Pin {
    /// The key, or its first digits.
    key: KeyArg,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Let a pinned key be evicted and collected again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln unpin 3f2a91c0")]
pub(crate) struct Unpin {
    /// The key, or its first digits.
    key: KeyArg,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Pin {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        set(&self.key, &self.namespace, &self.client, true).await
    }
}

impl Unpin {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        set(&self.key, &self.namespace, &self.client, false).await
    }
}

async fn set(
    key: &KeyArg,
    namespace: &NamespaceArgs,
    client: &ClientArgs,
    pinned: bool,
) -> Result<(), CliError> {
    let set = client.endpoints.attempt(async |mut client| {
        let key = key.resolve(&mut client, &namespace.namespace).await?;
        let request = pb::PinRequest { key: key.as_bytes().to_vec().into(), pinned };
        client.pin(request).await.map_err(|e| CliError::from_status(&e))?;
        Ok(key)
    });
    let key = set.await?;
    match client.json {
        true => output::json(&serde_json::json!({ "key": key.to_string(), "pinned": pinned })),
        false => output::line(format_args!("{} {key}", if pinned { "pinned" } else { "unpinned" })),
    }
}
