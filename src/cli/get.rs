//! `kiln get`: fetch an artifact by its key.

use std::path::PathBuf;

use clap::Args;

use super::{
    CliError, ClientArgs, NamespaceArgs, SocketArgs, fetch,
    keys::KeyArg,
    output::{self, size},
    view::{self, FetchView},
};

const EXAMPLES: &str = "\
Examples:
  kiln get 3f2a91c0 -o out
  kiln get KEY -o out --json";

/// Fetch an artifact by its key and write its files.
///
/// All bytes are checked against the manifest before a file is written.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Get {
    /// The key, or its first digits.
    key: KeyArg,
    /// Folder to write into.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Get {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let fetched = self.fetch().await?;
        let folder = fetch::write_files(&self.output, &fetched.manifest, &fetched.pack)?;
        let found = FetchView {
            key: fetched.manifest.key.to_string(),
            tier: view::tier(fetched.tier),
            artifact: fetched.manifest.pack_digest.to_string(),
            bytes: fetched.manifest.pack_size,
            files: view::files(&fetched.manifest),
            directory: folder.display().to_string(),
        };
        if self.client.json {
            return output::json(&found);
        }
        for file in &found.files {
            output::line(format_args!(
                "{}  {}",
                folder.join(&file.path).display(),
                size(file.bytes)
            ))?;
        }
        Ok(())
    }
    async fn fetch(&self) -> Result<fetch::Fetched, CliError> {
        if let (KeyArg::Whole(key), Some(socket)) = (&self.key, &self.socket.socket) {
            return fetch::fetch_local(socket, key).await;
        }
        let namespace = &self.namespace.namespace;
        let fetched = self.client.endpoints.attempt(async |mut client| {
            let key = self.key.resolve(&mut client, namespace).await?;
            match &self.socket.socket {
                Some(socket) => fetch::fetch_local(socket, &key).await,
                None => fetch::fetch(&mut client, &key, namespace).await,
            }
        });
        fetched.await
    }
}
