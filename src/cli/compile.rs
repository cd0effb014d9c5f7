//! `kiln compile`: compile a file, or get what was compiled before.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use kiln::exec::layout::{self, SIZES, SizeKey};
use kiln_native::split::stitch::STITCHING;
use kiln_proto::{ArtifactKey, FailureKind, pb};

use super::{
    CliError, ClientArgs, SocketArgs,
    asking::{Answer, Answered, ask},
    belief::is_of,
    client::Client,
    fetch::{self, Fetched},
    output::{self, seconds, size},
    pieces::{FailedView, PieceView},
    progress::{Progress, ProgressStyle},
    sizes::{self, SizeView},
    source::{self, SourceArgs},
    view::CompileView,
    whole::{self, Staged},
};

/// What only graphs' artifacts have: in one compile, and in pieces.
const OF_GRAPHS: [&str; 2] = ["plan.json", STITCHING];
/// The node's own time-out answers first; this is for a node that says nothing.
const GRACE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  kiln compile saxpy.cu --target sm_90 --target sm_80 -o out
  kiln compile gemm.cu -I include -D TILE=64 -- -use_fast_math
  kiln compile block.pt2 --json
  kiln compile model.pt2 --piecewise always --explain
  kiln compile model.pt2 --compile-sizes 1,8,512 -o out
  kiln compile model.pt2 --no-fallback
  kiln compile k.cu --endpoint http://10.0.0.1:7400,http://10.0.0.2:7400";

/// Compile a CUDA C++ file or a torch.export archive, or get what was compiled before.
///
/// One answer for each target: compiled on the node asked, a hit from one of its
/// tiers or from a peer, or coalesced with a compile that ran already.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Compile {
    /// CUDA C++ source, or a .pt2 archive.
    file: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    /// Write the files here; with several targets into a folder for each.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Compile even where the cache has it, and publish nothing.
    #[arg(long, conflicts_with = "output")]
    no_cache: bool,
    /// Fail where the compile fails, whatever else could answer.
    #[arg(long, conflicts_with = "fallback")]
    no_fallback: bool,
    /// Where the compile fails take whatever answers, down to the graph as it is (eager),
    /// though a compiler was asked for by --backend. Without a backend that is the default;
    /// with one, what that compiler makes with other options or in pieces. Of a whole in
    /// pieces those that fail are replaced so, and the others are kept.
    #[arg(long)]
    fallback: bool,
    /// Give up after this long: 30s, 5m. Default: the node's own bound.
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<Duration>,
    /// Tell how it is compiled, and why so: in one compile or in pieces, with what each
    /// was thought to take; and what was tried before it.
    #[arg(long)]
    explain: bool,
    /// How to tell on stderr what happens meanwhile; auto: a spinner and a bar for each
    /// piece on a terminal, elsewhere a line for each piece.
    #[arg(long, value_enum, default_value_t = ProgressStyle::Auto, value_name = "STYLE")]
    progress: ProgressStyle,
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

fn deadline(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_millis() > 0 => Ok(time),
        Ok(_) => Err("a deadline is at least 1ms".into()),
        Err(e) => Err(format!("{e}; write 30s or 5m")),
    }
}

/// What came of a request: the targets answered, and why not all of them were.
struct Compiled {
    done: Vec<CompileView>,
    failed: Option<(FailedView, CliError)>,
}

impl Compile {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut request = self.source.request(&self.file)?;
        request.disable_cache = self.no_cache;
        request.set_fallback(match (self.fallback, self.no_fallback) {
            (true, _) => pb::FallbackPolicy::Any,
            (_, true) => pb::FallbackPolicy::None,
            _ => pb::FallbackPolicy::Auto,
        });
        request.deadline_ms = self.deadline.map_or(0, |d| d.as_millis() as u64);
        let endpoints = &self.client.endpoints;
        let answered = endpoints.attempt(async |client| self.ask(client, request.clone()).await);
        let answered = match self.deadline {
            None => answered.await?,
            Some(deadline) => {
                tokio::time::timeout(deadline + GRACE, answered).await.map_err(|_| {
                    CliError::failed(FailureKind::Timeout, "no node answered before the deadline")
                })??
            }
        };
        for view in &answered.done {
            // Whatever stdout is for: this is not what was asked for.
            if let Some(fallback) = &view.fallback {
                eprintln!("{}", fallback.for_people(&view.tried));
            }
            match self.client.json {
                true => output::json(view)?,
                false => {
                    output::line(for_people(view, output::width()))?;
                    if endpoints.pinned.is_set() && self.source.namespace.namespace.is_empty() {
                        output::line(format_args!("in the namespace {}", view.namespace))?;
                    }
                    if let (Some(why), true) = (&view.unverified, self.source.verifies()) {
                        output::line(format_args!("not verified: {why}"))?;
                    }
                    self.explain(&view.strategy, &view.reasons, &view.pieces)?;
                    for tried in view.tried.iter().filter(|_| self.explain) {
                        output::line(tried)?;
                    }
                    for size in &view.sizes {
                        output::line(size)?;
                        self.explain(&size.strategy, &[], &size.pieces)?;
                    }
                }
            }
        }
        let failed = answered.done.iter().find_map(|view| sizes::error_of(&view.sizes));
        let Some((view, error)) = answered.failed else { return failed.map_or(Ok(()), Err) };
        match self.client.json {
            // Without pieces the error says it all.
            true if !view.pieces.is_empty() => output::json(&view)?,
            true => {}
            false => self.explain(&view.strategy, &view.reasons, &view.pieces)?,
        }
        Err(error)
    }

    fn explain(
        &self,
        strategy: &Option<&str>,
        reasons: &[String],
        pieces: &[PieceView],
    ) -> Result<(), CliError> {
        let (true, Some(strategy)) = (self.explain, strategy) else { return Ok(()) };
        output::line(format_args!("strategy: {strategy}"))?;
        for reason in reasons {
            output::line(format_args!("  {reason}"))?;
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = pieces.iter().map(PieceView::row).collect();
        let heading =
            ["PIECE", "TIMES", "OUTCOME", "NODE", "ESTIMATE", "COMPILE", "VERIFIED", "KEY"];
        output::line(output::table(heading, &rows))
    }

    /// Asks one node. `Unreachable` moves on to the next: all of this may be repeated.
    async fn ask(
        &self,
        mut client: Client,
        request: pb::CompileRequest,
    ) -> Result<Compiled, CliError> {
        let mut progress = Progress::start(self.progress, &self.file.display().to_string());
        let answered = ask(&mut client, request, &mut progress, &self.client.endpoints).await?;
        let Answered { done: answers, failed } = answered;
        drop(progress);
        let mut done = Vec::with_capacity(answers.len());
        for answer in &answers {
            done.push(self.settle(&mut client, answer).await?);
        }
        Ok(Compiled { done, failed })
    }

    /// One target is done: its view, and its files where they are wanted.
    async fn settle(&self, client: &mut Client, answer: &Answer) -> Result<CompileView, CliError> {
        let manifest = fetch::manifest(answer.done.manifest.clone().unwrap_or_default())?;
        is_of(&manifest, &self.source.namespace.namespace)?;
        // All that belongs to it is of the same one; where none was asked for, it is told.
        let namespace = &manifest.namespace;
        let mut view = CompileView::new(&answer.done, &manifest);
        view.sizes = answer.sizes.iter().map(SizeView::new).collect();
        if let Some(output) = &self.output {
            let folder = match self.source.targets() {
                1 => output.clone(),
                _ => output.join(&view.target),
            };
            self.lay_out(client, &manifest.key, namespace, &folder).await?;
            let mut written = Vec::new();
            for sized in &answer.sizes {
                let Ok((_, manifest)) = &sized.end else { continue };
                let place = layout::size_dir(&folder, sized.size);
                self.lay_out(client, &manifest.key, namespace, &place).await?;
                written.push(SizeKey { size: sized.size, key: manifest.key });
            }
            if !written.is_empty() {
                // Last: without it there is the dynamic artifact alone.
                fetch::write_file(&folder, &folder.join(SIZES), &layout::sizes_file(&written))?;
            }
            view.directory = Some(folder.display().to_string());
        }
        Ok(view)
    }

    /// Writes an artifact's files, and those of its pieces.
    async fn lay_out(
        &self,
        client: &mut Client,
        key: &ArtifactKey,
        namespace: &str,
        folder: &Path,
    ) -> Result<(), CliError> {
        let fetched = self.fetch(client, key, namespace).await?;
        if fetched.manifest.pieces.is_empty() {
            whole::clear_sizes(folder).with_context(|| folder.display().to_string())?;
            fetch::write_files(folder, &fetched.manifest, &fetched.pack)?;
            whole::clear_whole(folder).with_context(|| folder.display().to_string())?;
        } else {
            let mut staged = Staged::new(folder)?;
            for piece in &fetched.manifest.pieces {
                staged.add(piece, &self.fetch(client, &piece.key, namespace).await?)?;
            }
            staged.finish(&fetched)?;
        }
        if fetched.manifest.files.iter().any(|file| OF_GRAPHS.contains(&file.path.as_str())) {
            self.write_signature(folder)?;
        }
        Ok(())
    }

    /// An artifact, by the shortest way.
    async fn fetch(
        &self,
        client: &mut Client,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<Fetched, CliError> {
        let belief = self.client.endpoints.belief().await?;
        match &self.socket.socket {
            Some(socket) => {
                fetch::fetch_local(
                    socket,
                    self.client.endpoints.token()?,
                    key,
                    namespace,
                    fetch::Purpose::Use,
                    &belief,
                )
                .await
            }
            None => fetch::fetch(client, key, namespace, fetch::Purpose::Use, &belief).await,
        }
    }

    /// What the program calls its inputs, beside the artifact's files: the
    /// artifact serves every program of its key, so it has no names.
    fn write_signature(&self, folder: &Path) -> Result<(), CliError> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let archive = source::archive(&self.file)?.unwrap_or_default();
        let signature = kiln_native::signature(&archive)
            .map_err(|failure| CliError::failed(failure.kind, failure.message))?;
        let mut text = serde_json::to_vec_pretty(&signature).map_err(anyhow::Error::from)?;
        text.push(b'\n');
        fetch::write_file(folder, &folder.join(kiln_native::SIGNATURE_FILE), &text)
    }
}

/// Where the key stands in a line.
const INDENT: usize = 10;

/// One line; on a terminal that has no room for it, with the first digits of the key, by which
/// every command knows it too.
fn for_people(view: &CompileView, width: Option<usize>) -> String {
    let from = view.tier.map(|tier| format!(" from {tier}")).unwrap_or_default();
    let verified = if view.verified == Some(true) { ", verified" } else { "" };
    let written = view.directory.as_ref().map(|d| format!("  -> {d}")).unwrap_or_default();
    let line = |key: &str| {
        format!(
            "{:<9} {key}  {}  {}{from} on node {} in {} (compile: {}){verified}{written}",
            view.outcome,
            view.target,
            size(view.bytes),
            view.node,
            seconds(view.elapsed_seconds),
            seconds(view.compile_seconds),
        )
    };
    let whole = line(&view.key);
    match width.is_some_and(|width| whole.chars().count() > width) {
        true => output::wrapped(&line(output::short(&view.key)), INDENT, width),
        false => whole,
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::Failure;

    use super::*;
    use crate::cli::fetch::tests::artifact;

    #[test]
    fn the_json_shape_holds() {
        let (manifest, _) = artifact(&[("module.cubin", b"12345")]);
        let mut piece = pb::Piece {
            key: vec![0xab; 32].into(),
            node: 3,
            compile_seconds: 1.5,
            times: 16,
            ..Default::default()
        };
        piece.set_stage(pb::PieceStage::Done);
        piece.set_outcome(pb::Outcome::Compiled);
        piece.check = Some(pb::Check { relative_error: 1e-7, limit: 1e-5, ..Default::default() });
        let done = pb::Done {
            outcome: pb::Outcome::Hit.into(),
            tier: pb::Tier::Peer.into(),
            node: 2,
            elapsed_seconds: 0.25,
            strategy: Some(pb::Strategy {
                choice: pb::Choice::Piecewise.into(),
                reasons: vec!["asked for".into()],
                ..Default::default()
            }),
            pieces: vec![piece],
            manifest: None,
            check: Some(pb::Check { unchecked: "no GPU".into(), ..Default::default() }),
            size: None,
            fallback: Some(pb::Fallback {
                wanted: vec![0xcd; 32].into(),
                rung: "patched".into(),
                valid_seconds: 120.0,
                pieces: vec![pb::PieceFallback {
                    index: 3,
                    wanted: vec![0xef; 32].into(),
                    rung: "eager".into(),
                }],
            }),
            tried: vec![pb::Rung {
                name: "wanted".into(),
                key: vec![0xcd; 32].into(),
                failure: Some((&Failure::new(FailureKind::Timeout, "late")).into()),
                seconds: 1.5,
                piece: Some(3),
            }],
        };
        let view = serde_json::to_value(CompileView::new(&done, &manifest)).unwrap();
        let digest = manifest.pack_digest.to_string();
        assert_eq!(
            view,
            serde_json::json!({
                "key": manifest.key.to_string(), "outcome": "hit", "tier": "peer", "node": 2,
                "namespace": "default",
                "target": "sm_90", "artifact": digest, "bytes": 5,
                "files": [{"path": "module.cubin", "bytes": 5, "digest": digest}],
                "compile_seconds": 0.5, "elapsed_seconds": 0.25, "directory": null,
                "strategy": "piecewise", "reasons": ["asked for"],
                "pieces": [{
                    "index": 0, "key": "ab".repeat(32), "outcome": "compiled", "node": 3,
                    "compile_seconds": 1.5, "times": 16, "estimated_seconds": null,
                    "verified": true, "unverified": null, "error": null,
                }],
                "sizes": [],
                "verified": null, "unverified": "no GPU",
                "fallback": {
                    "wanted": "cd".repeat(32), "rung": "patched", "valid_seconds": 120.0,
                    "pieces": [{"index": 3, "wanted": "ef".repeat(32), "rung": "eager"}],
                },
                "tried": [{
                    "rung": "wanted", "piece": 3, "key": "cd".repeat(32), "seconds": 1.5,
                    "error": {
                        "code": "C004", "kind": "timeout", "message": "late",
                        "advice": FailureKind::Timeout.advice(),
                    },
                }],
            })
        );
        let done = pb::Done { outcome: pb::Outcome::Compiled.into(), tier: 0, ..done };
        let view = CompileView::new(&done, &manifest);
        let said = view.fallback.as_ref().unwrap().for_people(&view.tried);
        let begins = "fallback: patched (piece 3 by eager) answers in place of cdcd";
        assert!(said.starts_with(begins), "{said}");
        assert!(said.contains("(piece 3 wanted: C004 timeout: late)"), "{said}");
        assert_eq!((view.outcome, view.tier), ("compiled", None));
        let line = for_people(&view, None);
        assert!(line.starts_with("compiled  ") && line.contains(&view.key), "{line}");
        assert_eq!(for_people(&view, Some(line.chars().count())), line);
        let short = for_people(&view, Some(80));
        assert!(short.contains(&format!("  {}  ", &view.key[..16])), "{short}");
    }

    #[test]
    fn deadlines_are_positive_times() {
        assert_eq!(deadline("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(deadline("0s").is_err() && deadline("soon").is_err());
    }
}
