//! `kiln inspect`: what is in an artifact.

mod code;
mod page;
mod pieces;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use kiln::exec::layout;
use kiln_proto::{ArtifactKey, FailureKind, Manifest, component};

use super::{
    CliError, ClientArgs, NamespaceArgs, SocketArgs,
    fetch::{self, Fetched},
    keys::KeyArg,
    output::{self, table},
    whole::check_piece,
};
use page::{Found, Page};
use view::View;

const EXAMPLES: &str = "\
Examples:
  kiln inspect out
  kiln inspect out --json
  kiln inspect out --source k3_rows
  kiln inspect 3f2a91c0 --sass
  kiln inspect out --html page.html --graph model.pt2";

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
    /// With --html: the archive that was compiled, whose nodes have names and shapes.
    #[arg(long, value_name = "MODEL.pt2", requires = "html")]
    graph: Option<PathBuf>,
    /// With --html: what `kiln exec --json` printed, the kernels' times.
    #[arg(long, value_name = "FILE", requires = "html")]
    times: Option<PathBuf>,
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
    /// Write a page of its own to this file, - for standard output: the graph, the fusion
    /// groups and their kernels, and the memory plan over time.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// An artifact's files, by their paths.
type Files = BTreeMap<String, Vec<u8>>;

impl Inspect {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let Code { source, ptx, sass, html } = &self.code;
        if self.client.json && html.as_deref() == Some(Path::new("-")) {
            let why = "--html - and --json both write to standard output: name a file";
            return Err(CliError::Usage(why.to_owned()));
        }
        let folder = Some(Path::new(&self.artifact)).filter(|folder| folder.is_dir());
        let (graph, times) = (self.graph.as_deref(), self.times.as_deref());
        // Before anything is fetched.
        if let Some(path) = html.as_deref().filter(|path| *path != Path::new("-")) {
            page::check(path, folder, &[graph, times])?;
        }
        let mut all = All { found: Vec::new(), left: 0, wanted: html.is_some() };
        let manifest = match folder {
            Some(folder) => {
                all.read(folder)?;
                None
            }
            None => Some(self.fetch(&mut all).await?),
        };
        let All { mut found, left, .. } = all;
        let pieces = pieces::of(&found[0].files, manifest.as_ref())?;
        if let Some(path) = html {
            let mut key = manifest.iter().flat_map(|manifest| manifest.components.iter());
            let key = key.find(|component| component.name == component::GRAPH);
            let name = &self.artifact;
            let page = Page { name, found, left, key, pieces, graph, times }.text()?;
            return page::write(path, &page, self.client.json);
        }
        let files = found.swap_remove(0).files;
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

    /// Fetches the artifact, and where they are wanted its pieces behind it.
    async fn fetch(&self, all: &mut All) -> Result<Manifest, CliError> {
        let key: KeyArg = self.artifact.parse().map_err(|why| {
            CliError::Usage(format!("{:?} is no folder, and no key: {why}", self.artifact))
        })?;
        let namespace = &self.namespace.namespace;
        let belief = self.client.endpoints.belief().await?;
        let wanted = all.wanted;
        let fetched = self.client.endpoints.attempt(async |mut client| {
            let key = key.resolve(&mut client, namespace).await?;
            let mut fetch = async |key: &ArtifactKey| match &self.socket.socket {
                Some(socket) => {
                    fetch::fetch_local(
                        socket,
                        self.client.endpoints.token()?,
                        key,
                        namespace,
                        fetch::Purpose::Look,
                        &belief,
                    )
                    .await
                }
                None => {
                    fetch::fetch(&mut client, key, namespace, fetch::Purpose::Look, &belief).await
                }
            };
            let whole = fetch(&key).await?;
            let mut found = vec![Found::of(String::new(), None, files_of(&whole)?)];
            let pieces: &[_] = if wanted { &whole.manifest.pieces } else { &[] };
            for (at, piece) in pieces.iter().enumerate().take(page::MOST_PARTS - 1) {
                let fetched = fetch(&piece.key).await?;
                check_piece(at, piece, &fetched.manifest)?;
                found.push(Found::of(format!("piece {at}"), Some(at), files_of(&fetched)?));
            }
            let left = pieces.len() - (found.len() - 1);
            Ok((found, left, whole.manifest))
        });
        let (found, left, manifest) = fetched.await?;
        (all.found, all.left) = (found, left);
        Ok(manifest)
    }
}

/// Parts of an artifact, as many as a page has room for.
struct All {
    /// The artifact itself first.
    found: Vec<Found>,
    /// Those that are not read.
    left: usize,
    /// Whether pieces and static sizes are wanted.
    wanted: bool,
}

fn files_of(fetched: &Fetched) -> Result<Files, CliError> {
    fetch::checked_files(&fetched.manifest, &fetched.pack)
        .map(|file| file.map(|(path, bytes)| (path.to_owned(), bytes.to_vec())))
        .collect()
}

impl All {
    /// Reads the artifact in `folder`, and where they are wanted its pieces and what there is
    /// for static sizes.
    fn read(&mut self, folder: &Path) -> Result<(), CliError> {
        let files = read_folder(folder)?;
        if !self.wanted {
            self.found.push(Found::of(String::new(), None, files));
            return Ok(());
        }
        self.with_pieces(folder, None, files)?;
        let context = || format!("read {}", folder.join(layout::SIZES).display());
        let mut known = BTreeSet::new();
        for of in layout::sizes(folder).with_context(context)? {
            let fixed = layout::size_dir(folder, of.size);
            if !known.insert(of.size) {
                let why = format!("{} names size {} twice", layout::SIZES, of.size);
                return Err(CliError::failed(FailureKind::Corrupt, why));
            }
            if !self.has_room() {
                continue;
            }
            let files = part(&fixed, &format!("what {} has for size {}", layout::SIZES, of.size))?;
            self.with_pieces(&fixed, Some(of.size), files)?;
        }
        Ok(())
    }

    /// Whether another part is read; counts it where it is not.
    fn has_room(&mut self) -> bool {
        let is_room = self.found.len() < page::MOST_PARTS;
        self.left += usize::from(!is_room);
        is_room
    }

    fn with_pieces(
        &mut self,
        folder: &Path,
        size: Option<u64>,
        files: Files,
    ) -> Result<(), CliError> {
        let count = pieces::of(&files, None)?.len();
        let title = size.map_or_else(String::new, |size| format!("size {size}"));
        self.found.push(Found { size, ..Found::of(title.clone(), None, files) });
        for at in 0..count {
            if !self.has_room() {
                continue;
            }
            let name = [title.clone(), format!("piece {at}")];
            let name: Vec<String> = name.into_iter().filter(|part| !part.is_empty()).collect();
            let name = name.join(", ");
            let files = part(&layout::piece_dir(folder, at), &name)?;
            self.found.push(Found { size, ..Found::of(name, Some(at), files) });
        }
        Ok(())
    }
}

/// The files of a folder that another one names.
fn part(folder: &Path, name: &str) -> Result<Files, CliError> {
    if !folder.is_dir() {
        let why = format!("{name} is missing: {}; fetch it again", folder.display());
        return Err(CliError::failed(FailureKind::Corrupt, why));
    }
    read_folder(folder)
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
