//! `kiln get`: fetch an artifact by its key.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use kiln::exec::layout;
use kiln_proto::ArtifactKey;

use super::{
    CliError, ClientArgs, NamespaceArgs, SocketArgs,
    belief::Belief,
    client::Client,
    fetch::{self, Fetched},
    keys::KeyArg,
    output::{self, size},
    view::{self, FetchView},
    whole::{self, Staged},
};

const EXAMPLES: &str = "\
Examples:
  kiln get 3f2a91c0 -o out
  kiln get KEY -o out --json";

/// Fetch an artifact by its key and write its files.
///
/// All bytes are checked against the manifest before a file is written. An artifact of
/// pieces comes with them, in DIR/pieces/N.
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
        let (fetched, staged) = tokio::select! {
            fetched = self.fetch() => fetched?,
            // So that what is half fetched goes.
            e = interrupted() => return Err(e),
        };
        match staged {
            Some(staged) => staged.finish(&fetched)?,
            None => {
                whole::clear_sizes(&self.output)
                    .with_context(|| self.output.display().to_string())?;
                fetch::write_files(&self.output, &fetched.manifest, &fetched.pack)?;
                whole::clear_whole(&self.output)
                    .with_context(|| self.output.display().to_string())?;
            }
        }
        let found = FetchView {
            key: fetched.manifest.key.to_string(),
            namespace: fetched.manifest.namespace.clone(),
            tier: view::tier(fetched.tier),
            artifact: fetched.manifest.pack_digest.to_string(),
            bytes: fetched.manifest.pack_size,
            files: view::files(&fetched.manifest),
            directory: self.output.display().to_string(),
            pieces: view::pieces(&fetched.manifest),
        };
        if self.client.json {
            return output::json(&found);
        }
        if self.client.endpoints.pinned.is_set() && self.namespace.namespace.is_empty() {
            output::line(format_args!("in the namespace {}", found.namespace))?;
        }
        for file in &found.files {
            let path = self.output.join(&file.path);
            output::line(format_args!("{}  {}", path.display(), size(file.bytes)))?;
        }
        for piece in &found.pieces {
            let folder = layout::piece_dir(&self.output, piece.index);
            output::line(format_args!("{}/  {}", folder.display(), size(piece.bytes)))?;
        }
        Ok(())
    }

    /// The artifact, and where its pieces are if it has any.
    async fn fetch(&self) -> Result<(Fetched, Option<Staged>), CliError> {
        let belief = self.client.endpoints.belief().await?;
        if let (KeyArg::Whole(key), Some(socket)) = (&self.key, &self.socket.socket) {
            let namespace = &self.namespace.namespace;
            let fetch = async |key: &ArtifactKey| {
                fetch::fetch_local(
                    socket,
                    self.client.endpoints.token()?,
                    key,
                    namespace,
                    fetch::Purpose::Look,
                    &belief,
                )
                .await
            };
            let fetched = fetch(key).await?;
            let staged = self.stage(&fetched, fetch).await?;
            return Ok((fetched, staged));
        }
        self.client.endpoints.attempt(async |client| self.fetch_from(client, &belief).await).await
    }

    async fn fetch_from(
        &self,
        mut client: Client,
        belief: &Belief,
    ) -> Result<(Fetched, Option<Staged>), CliError> {
        let namespace = &self.namespace.namespace;
        let key = self.key.resolve(&mut client, namespace).await?;
        let mut fetch = async |key: &ArtifactKey| match &self.socket.socket {
            Some(socket) => {
                fetch::fetch_local(
                    socket,
                    self.client.endpoints.token()?,
                    key,
                    namespace,
                    fetch::Purpose::Look,
                    belief,
                )
                .await
            }
            None => fetch::fetch(&mut client, key, namespace, fetch::Purpose::Look, belief).await,
        };
        let fetched = fetch(&key).await?;
        let staged = self.stage(&fetched, fetch).await?;
        Ok((fetched, staged))
    }

    async fn stage(
        &self,
        fetched: &Fetched,
        mut fetch: impl AsyncFnMut(&ArtifactKey) -> Result<Fetched, CliError>,
    ) -> Result<Option<Staged>, CliError> {
        if fetched.manifest.pieces.is_empty() {
            return Ok(None);
        }
        let mut staged = Staged::new(&self.output)?;
        for piece in &fetched.manifest.pieces {
            staged.add(piece, &fetch(&piece.key).await?)?;
        }
        Ok(Some(staged))
    }
}

/// Ends when this process is asked to.
async fn interrupted() -> CliError {
    use tokio::signal::unix::{SignalKind, signal};
    let ended = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = ended(SignalKind::interrupt()) => {}
        () = ended(SignalKind::terminate()) => {}
    }
    CliError::Local(anyhow::anyhow!("interrupted: nothing was written"))
}
