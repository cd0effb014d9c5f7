//! `kiln inspect`: what is in an artifact.

mod code;
mod pieces;
mod view;

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use clap::Args;
use kiln_proto::Manifest;

use super::{
    CliError, ClientArgs, NamespaceArgs, SocketArgs, fetch,
    keys::KeyArg,
    output::{self, table},
};
use view::View;

const EXAMPLES: &str = "\
Examples:
  kiln inspect out
  kiln inspect out --json
  kiln inspect out --source k3_rows
  kiln inspect 3f2a91c0 --sass";

/// Show what is in an artifact: its kernels, what they compute and what they
/// take, its buffers, its inputs and outputs.
///
/// ARTIFACT is a folder that `kiln compile -o` or `kiln get` wrote, or the key of
/// an artifact in the cluster.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Inspect {
    /// Folder of the artifact, or its key, or the key's first digits.
    artifact: String,
    #[command(flatten)]
    code: Code,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Code to print instead: all of it, or one kernel's.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Code {
    /// Print the generated CUDA C++.
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "")]
    source: Option<String>,
    /// Print the PTX, where the artifact has any.
    #[arg(long)]
    ptx: bool,
    /// Print the machine code, by cuobjdump or nvdisasm of the CUDA toolkit.
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "")]
    sass: Option<String>,
}

/// An artifact's files, by their paths.
type Files = BTreeMap<String, Vec<u8>>;

impl Inspect {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let (files, manifest) = match Path::new(&self.artifact) {
            folder if folder.is_dir() => (read_folder(folder)?, None),
            _ => self.fetch().await.map(|(files, manifest)| (files, Some(manifest)))?,
        };
        let pieces = pieces::of(&files, manifest.as_ref())?;
        let Code { source, ptx, sass } = &self.code;
        if !pieces.is_empty() && (source.is_some() || *ptx || sass.is_some()) {
            return Err(pieces::has_no_code(&pieces));
        }
        let text = match (source, ptx, sass) {
            (Some(kernel), ..) => Some(code::source(&files, kernel)?),
            (None, true, _) => Some(code::ptx(&files)?),
            (None, false, Some(kernel)) => Some(code::sass(&files, kernel)?),
            (None, false, None) => None,
        };
        match text {
            Some(text) if self.client.json => output::json(&serde_json::json!({ "text": text })),
            Some(text) => output::line(text.trim_end()),
            None => {
                let mut view = View::new(&files)?;
                view.pieces = pieces;
                if self.client.json { output::json(&view) } else { output::line(shown(&view)) }
            }
        }
    }

    async fn fetch(&self) -> Result<(Files, Manifest), CliError> {
        let key: KeyArg = self.artifact.parse().map_err(|why| {
            CliError::Usage(format!("{:?} is no folder, and no key: {why}", self.artifact))
        })?;
        let namespace = &self.namespace.namespace;
        let belief = self.client.endpoints.belief().await?;
        let fetched = self.client.endpoints.attempt(async |mut client| {
            let key = key.resolve(&mut client, namespace).await?;
            match &self.socket.socket {
                Some(socket) => {
                    fetch::fetch_local(
                        socket,
                        self.client.endpoints.token()?,
                        &key,
                        namespace,
                        fetch::Purpose::Look,
                        &belief,
                    )
                    .await
                }
                None => {
                    fetch::fetch(&mut client, &key, namespace, fetch::Purpose::Look, &belief).await
                }
            }
        });
        let fetched = fetched.await?;
        let files = fetch::checked_files(&fetched.manifest, &fetched.pack)
            .map(|file| file.map(|(path, bytes)| (path.to_owned(), bytes.to_vec())))
            .collect::<Result<_, _>>()?;
        Ok((files, fetched.manifest))
    }
}

fn read_folder(folder: &Path) -> Result<Files, CliError> {
    let (mut files, mut folders) = (Files::new(), Vec::new());
    let context = || format!("read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_type().with_context(context)?.is_file() {
            let bytes = fs::read(entry.path())
                .with_context(|| format!("read {}", entry.path().display()))?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
        } else if entry.file_type().with_context(context)?.is_dir() {
            folders.push(entry.path().display().to_string());
        }
    }
    if files.is_empty() {
        folders.sort();
        let what = match folders.is_empty() {
            true => "is empty".to_owned(),
            false => format!("has an artifact for each target: name one, {}", folders.join(" or ")),
        };
        return Err(CliError::Usage(format!("{} {what}", folder.display())));
    }
    Ok(files)
}

/// Sections with a table each, for people.
fn shown(view: &View) -> String {
    let mut sections = vec![view.summary()];
    if !view.pieces.is_empty() {
        let heading = ["PIECE", "KEY", "SIZE", "RUNS"];
        let rows = view.pieces.iter().map(pieces::Piece::row);
        sections.push(table(heading, &rows.collect::<Vec<_>>()));
    }
    if !view.symbols.is_empty() {
        let heading = ["SYMBOL", "FROM", "TO", "IS"];
        sections
            .push(table(heading, &view.symbols.iter().map(view::Symbol::row).collect::<Vec<_>>()));
    }
    if !view.tensors.is_empty() {
        let heading = ["TENSOR", "NAME", "KIND", "TYPE", "SHAPE", "STRIDES"];
        sections
            .push(table(heading, &view.tensors.iter().map(view::Tensor::row).collect::<Vec<_>>()));
    }
    if !view.kernels.is_empty() {
        let heading = [
            "KERNEL", "KIND", "GRID", "BLOCK", "REGS", "SHARED", "LOCAL", "PARAMS", "CODE",
            "COMPUTES",
        ];
        sections
            .push(table(heading, &view.kernels.iter().map(view::Kernel::row).collect::<Vec<_>>()));
    }
    if !view.buffers.is_empty() {
        let heading = ["BUFFER", "TYPE", "SHAPE", "OFFSET", "WRITTEN BY", "LAST READ BY"];
        let rows = view.buffers.iter().enumerate().map(|(i, buffer)| buffer.row(i));
        sections.push(table(heading, &rows.collect::<Vec<_>>()));
    }
    let rows: Vec<[String; 2]> =
        view.files.iter().map(|file| [file.path.clone(), output::size(file.bytes)]).collect();
    sections.push(table(["FILE", "SIZE"], &rows));
    sections.join("\n\n")
}
