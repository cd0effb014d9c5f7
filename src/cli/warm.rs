//! `kiln warm`: have a list of models compiled before anybody waits for them.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use futures::{StreamExt, stream};
use indicatif::MultiProgress;
use kiln_proto::pb;
use serde::Serialize;

use super::{
    CliError, ClientArgs,
    asking::{Answer, Answered, ask},
    client::Client,
    error::FailureView,
    fetch,
    output::{self, seconds},
    pieces::{FailedView, PieceView},
    progress::{Progress, ProgressStyle},
    sizes::SizeView,
    source::SourceArgs,
    view::CompileView,
};

const EXAMPLES: &str = "\
Examples:
  kiln warm llama.pt2 qwen.pt2 --target sm_80,sm_90
  kiln warm llama.pt2 qwen.pt2 --compile-sizes x.1=1,8,512 --targets sm_80,sm_90
  kiln warm models/*.pt2 --piecewise always --jobs 8 --json";

/// Have programs compiled for all targets, so that whoever needs them has a hit.
///
/// Nothing is fetched, and no GPU is needed. What fails leaves the rest: the exit code is
/// 1 then.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Warm {
    /// torch.export archives (.pt2), or CUDA C++ sources.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    /// Requests at once: a file for one target is one.
    #[arg(short, long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// How to tell on stderr what happens meanwhile.
    #[arg(long, value_enum, default_value_t = ProgressStyle::Auto, value_name = "STYLE")]
    progress: ProgressStyle,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `kiln warm --json`: one for each file and target, as they end.
#[derive(Debug, Serialize)]
struct WarmedView {
    file: String,
    target: String,
    /// Null where it is not known.
    key: Option<String>,
    /// `compiled`, `hit`, `coalesced` or `failed`.
    outcome: &'static str,
    strategy: Option<&'static str>,
    pieces: Vec<PieceView>,
    compile_seconds: Option<f64>,
    elapsed_seconds: Option<f64>,
    /// Whether all of it was run and is right; null: it was not run.
    verified: Option<bool>,
    /// Why it was not run.
    unverified: Option<String>,
    error: Option<FailureView>,
    /// Of `--compile-sizes`.
    sizes: Vec<SizeView>,
}

/// `kiln warm --json`, last: as `{"summary": ..}`.
#[derive(Debug, Default, Serialize)]
struct WarmView {
    compiled: usize,
    /// Those that another request was compiling among them.
    hits: usize,
    failed: usize,
    pieces_compiled: usize,
    pieces_hit: usize,
    sizes_compiled: usize,
    /// Those that another request was compiling among them.
    sizes_hit: usize,
    sizes_failed: usize,
    seconds: f64,
}

impl Warm {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let began = Instant::now();
        let client = self.client.endpoints.connect().await?;
        let terminal = MultiProgress::new();
        let mut jobs = Vec::new();
        for file in &self.files {
            // Read one after the other, and all before anything is asked: a file that is
            // not there is a mistake of the command line.
            let mut request = self.source.request(file)?;
            // What answers in its place is no use to whoever comes later.
            request.set_fallback(pb::FallbackPolicy::None);
            for target in &request.targets {
                let request = pb::CompileRequest { targets: vec![*target], ..request.clone() };
                jobs.push(self.one(client.clone(), file, request, &terminal));
            }
        }
        let mut summary = WarmView::default();
        let mut ended = stream::iter(jobs).buffer_unordered(self.jobs.into());
        while let Some(warmed) = ended.next().await {
            summary.add(&warmed);
            match self.client.json {
                true => output::json(&warmed)?,
                false => terminal.suspend(|| output::line(for_people(&warmed)))?,
            }
        }
        drop(ended);
        summary.seconds = began.elapsed().as_secs_f64();
        match self.client.json {
            true => output::json(&serde_json::json!({ "summary": summary }))?,
            false => output::line(summary.for_people())?,
        }
        match (summary.failed, summary.sizes_failed) {
            (0, 0) => Ok(()),
            (failed, 0) => {
                Err(CliError::Local(anyhow::anyhow!("{failed} of {} failed", summary.all())))
            }
            (failed, sizes) => {
                let all = summary.all();
                Err(CliError::Local(anyhow::anyhow!("{failed} of {all} and {sizes} sizes failed")))
            }
        }
    }

    /// One file for one target.
    async fn one(
        &self,
        mut client: Client,
        file: &Path,
        request: pb::CompileRequest,
        terminal: &MultiProgress,
    ) -> WarmedView {
        let name = file.display().to_string();
        let mut progress = Progress::within(self.progress, &name, terminal);
        let endpoints = &self.client.endpoints;
        let answered = match ask(&mut client, request.clone(), &mut progress, endpoints).await {
            // The node went away: any other one will do.
            Err(CliError::Unreachable(_)) => {
                let again = endpoints.attempt(async |mut client| {
                    let mut progress = Progress::within(self.progress, &name, terminal);
                    ask(&mut client, request.clone(), &mut progress, endpoints).await
                });
                again.await
            }
            answered => answered,
        };
        drop(progress);
        let target = request.targets.first().and_then(|t| kiln_proto::convert::target(t).ok());
        let target = target.map(|target| target.to_string()).unwrap_or_default();
        let ended = answered.and_then(|Answered { mut done, failed }| match (done.pop(), failed) {
            (Some(Answer { done, sizes }), None) => {
                let manifest = fetch::manifest(done.manifest.clone().unwrap_or_default())?;
                let sizes = sizes.iter().map(SizeView::new).collect();
                Ok(Ok(CompileView { sizes, ..CompileView::new(&done, &manifest) }))
            }
            (_, Some(failed)) => Ok(Err(failed)),
            (None, None) => Err(CliError::Unreachable("the node ended its answer early".into())),
        });
        match ended {
            Ok(Ok(view)) => WarmedView::done(name, view),
            Ok(Err((view, error))) => WarmedView::failed(name, target, view, error.fields()),
            Err(error) => WarmedView::failed(name, target, Default::default(), error.fields()),
        }
    }
}

impl WarmedView {
    /// Of what has an artifact.
    fn done(file: String, view: CompileView) -> Self {
        Self {
            file,
            target: view.target,
            key: Some(view.key),
            outcome: view.outcome,
            strategy: view.strategy,
            pieces: view.pieces,
            compile_seconds: Some(view.compile_seconds),
            elapsed_seconds: Some(view.elapsed_seconds),
            verified: view.verified,
            unverified: view.unverified,
            error: None,
            sizes: view.sizes,
        }
    }

    /// Of what has none.
    fn failed(file: String, target: String, view: FailedView, error: FailureView) -> Self {
        Self {
            file,
            target,
            key: view.key,
            outcome: "failed",
            strategy: view.strategy,
            pieces: view.pieces,
            compile_seconds: None,
            elapsed_seconds: None,
            verified: None,
            unverified: None,
            error: Some(error),
            sizes: Vec::new(),
        }
    }
}

impl WarmView {
    /// Counts one more.
    fn add(&mut self, warmed: &WarmedView) {
        let counter = match warmed.outcome {
            "compiled" => &mut self.compiled,
            "failed" => &mut self.failed,
            _ => &mut self.hits,
        };
        *counter += 1;
        for size in &warmed.sizes {
            let counter = match size.outcome {
                "compiled" => &mut self.sizes_compiled,
                "failed" => &mut self.sizes_failed,
                _ => &mut self.sizes_hit,
            };
            *counter += 1;
        }
        let of_sizes = warmed.sizes.iter().flat_map(|size| &size.pieces);
        for piece in warmed.pieces.iter().chain(of_sizes) {
            self.pieces_compiled += usize::from(piece.outcome == "compiled");
            self.pieces_hit += usize::from(["hit", "coalesced"].contains(&piece.outcome));
        }
    }

    fn for_people(&self) -> String {
        let Self { compiled, hits, failed, pieces_compiled, pieces_hit, .. } = self;
        let mut text = format!(
            "{compiled} compiled, {hits} hits, {failed} failed in {}; \
             pieces: {pieces_compiled} compiled, {pieces_hit} hits",
            seconds(self.seconds)
        );
        let Self { sizes_compiled, sizes_hit, sizes_failed, .. } = self;
        if sizes_compiled + sizes_hit + sizes_failed > 0 {
            text += &format!(
                "; sizes: {sizes_compiled} compiled, {sizes_hit} hits, {sizes_failed} failed"
            );
        }
        text
    }

    /// How many there were.
    fn all(&self) -> usize {
        self.compiled + self.hits + self.failed
    }
}

fn for_people(warmed: &WarmedView) -> String {
    let WarmedView { file, target, outcome, elapsed_seconds, pieces, error, .. } = warmed;
    let of = |outcome: &str| pieces.iter().filter(|piece| piece.outcome == outcome).count();
    let pieces = match pieces.len() {
        0 => String::new(),
        all => format!(", {} of {all} pieces compiled", of("compiled")),
    };
    let after = match (error, elapsed_seconds) {
        (Some(error), _) => format!(": {}", error.message),
        (None, Some(elapsed)) => format!(" in {}{pieces}", seconds(*elapsed)),
        (None, None) => pieces,
    };
    let mut text = format!("{outcome:<9} {file}  {target}{after}");
    for size in &warmed.sizes {
        text += &format!("\n{size}");
    }
    text
}
