//! `kiln compile`: compile a file, or get what was compiled before.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle as Template};
use kiln_proto::{ArtifactKey, FailureKind, convert, pb};
use pb::compile_event::Event;

use super::{
    CliError, ClientArgs, SocketArgs,
    client::Client,
    fetch,
    output::{self, seconds, size},
    source::{self, SourceArgs},
    view::CompileView,
};

/// What only graphs' artifacts have.
const PLAN: &str = "plan.json";
/// The node's own time-out answers first; this is for a node that says nothing.
const GRACE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  kiln compile saxpy.cu --target sm_90 --target sm_80 -o out
  kiln compile gemm.cu -I include -D TILE=64 -- -use_fast_math
  kiln compile block.pt2 --json
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
    /// Give up after this long: 30s, 5m. Default: the node's own bound.
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<Duration>,
    /// How to tell on stderr what happens meanwhile; auto: a spinner on a
    /// terminal, nothing elsewhere.
    #[arg(long, value_enum, default_value_t = ProgressStyle::Auto, value_name = "STYLE")]
    progress: ProgressStyle,
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProgressStyle {
    Auto,
    /// A line for each step.
    Plain,
    None,
}

fn deadline(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_millis() > 0 => Ok(time),
        Ok(_) => Err("a deadline is at least 1ms".into()),
        Err(e) => Err(format!("{e}; write 30s or 5m")),
    }
}

/// What came of a request: the targets answered, and why not all of them were.
struct Answered {
    done: Vec<CompileView>,
    error: Option<CliError>,
}

impl Compile {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut request = self.source.request(&self.file)?;
        request.disable_cache = self.no_cache;
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
            if self.client.json { output::json(view)? } else { output::line(for_people(view))? }
        }
        answered.error.map_or(Ok(()), Err)
    }

    /// Asks one node. `Unreachable` moves on to the next: all of this may be repeated.
    async fn ask(
        &self,
        mut client: Client,
        request: pb::CompileRequest,
    ) -> Result<Answered, CliError> {
        let progress = Progress::start(self.progress, &self.file);
        let answer = client.compile(request).await.map_err(|e| CliError::from_status(&e))?;
        let mut events = answer.into_inner();
        let mut done = Vec::new();
        loop {
            let event = match events.message().await {
                Ok(event) => event,
                Err(status) => match CliError::from_status(&status) {
                    lost @ CliError::Unreachable(_) => return Err(lost),
                    error => return Ok(Answered { done, error: Some(error) }),
                },
            };
            match event {
                None if done.len() == self.source.targets() => {
                    return Ok(Answered { done, error: None });
                }
                None => {
                    return Err(CliError::Unreachable("the node ended its answer early".into()));
                }
                Some(pb::CompileEvent { event: Some(Event::Done(answer)) }) => {
                    done.push(self.settle(&mut client, &answer).await?);
                }
                Some(pb::CompileEvent { event }) => progress.show(event.as_ref()),
            }
        }
    }

    /// One target is done: its view, and its files where they are wanted.
    async fn settle(&self, client: &mut Client, done: &pb::Done) -> Result<CompileView, CliError> {
        let manifest = fetch::manifest(done.manifest.clone().unwrap_or_default())?;
        let mut view = CompileView::new(done, &manifest);
        if let Some(output) = &self.output {
            let folder = match self.source.targets() {
                1 => output.clone(),
                _ => output.join(&view.target),
            };
            let fetched = match &self.socket.socket {
                Some(socket) => fetch::fetch_local(socket, &manifest.key).await?,
                None => {
                    let namespace = &self.source.namespace.namespace;
                    fetch::fetch(client, &manifest.key, namespace).await?
                }
            };
            let folder = fetch::write_files(&folder, &fetched.manifest, &fetched.pack)?;
            if fetched.manifest.files.iter().any(|file| file.path == PLAN) {
                self.write_signature(&folder)?;
            }
            view.directory = Some(folder.display().to_string());
        }
        Ok(view)
    }

    /// What the program calls its inputs, beside the artifact's files: the
    /// artifact serves every program of its key, so it has no names.
    fn write_signature(&self, folder: &Path) -> Result<(), CliError> {
        let archive = source::archive(&self.file)?.unwrap_or_default();
        let signature = kiln_native::signature(&archive)
            .map_err(|failure| CliError::failed(failure.kind, failure.message))?;
        let mut text = serde_json::to_vec_pretty(&signature).map_err(anyhow::Error::from)?;
        text.push(b'\n');
        fetch::write_file(folder, &folder.join(kiln_native::SIGNATURE_FILE), &text)
    }
}

fn for_people(view: &CompileView) -> String {
    let from = view.tier.map(|tier| format!(" from {tier}")).unwrap_or_default();
    let written = view.directory.as_ref().map(|d| format!("  -> {d}")).unwrap_or_default();
    format!(
        "{:<9} {}  {}  {}{from} on node {} in {} (compile: {}){written}",
        view.outcome,
        view.key,
        view.target,
        size(view.bytes),
        view.node,
        seconds(view.elapsed_seconds),
        seconds(view.compile_seconds),
    )
}

/// Tells on stderr what happens until the answer is there.
enum Progress {
    Spinner(ProgressBar),
    Plain,
    None,
}

impl Progress {
    fn start(style: ProgressStyle, file: &Path) -> Self {
        match style {
            ProgressStyle::None => return Self::None,
            ProgressStyle::Plain => return Self::Plain,
            ProgressStyle::Auto => {}
        }
        // Draws nothing where stderr is no terminal.
        let bar = ProgressBar::new_spinner();
        if let Ok(template) = Template::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(template);
        }
        bar.set_message(format!("asking about {}", file.display()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Spinner(bar)
    }

    fn show(&self, event: Option<&Event>) {
        let Some(step) = event.and_then(step) else { return };
        match self {
            Self::Spinner(bar) => bar.set_message(step),
            Self::Plain => eprintln!("{step}"),
            Self::None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `started KEY for sm_90`, `waiting KEY`, `compiling KEY`: the plain lines.
fn step(event: &Event) -> Option<String> {
    let shown = |key: &[u8]| ArtifactKey::try_from(key).map(|k| k.to_string()).unwrap_or_default();
    match event {
        Event::Started(started) => {
            let target = started.target.as_ref().and_then(|t| convert::target(t).ok());
            let target = target.map(|t| format!(" for {t}")).unwrap_or_default();
            Some(format!("started {}{target}", shown(&started.key)))
        }
        Event::Waiting(waiting) => Some(format!("waiting {}", shown(&waiting.key))),
        Event::Compiling(compiling) => Some(format!("compiling {}", shown(&compiling.key))),
        Event::Done(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fetch::tests::artifact;

    #[test]
    fn the_json_shape_holds() {
        let (manifest, _) = artifact(&[("module.cubin", b"12345")]);
        let done = pb::Done {
            outcome: pb::Outcome::Hit.into(),
            tier: pb::Tier::Peer.into(),
            node: 2,
            elapsed_seconds: 0.25,
            manifest: None,
        };
        let view = serde_json::to_value(CompileView::new(&done, &manifest)).unwrap();
        let digest = manifest.pack_digest.to_string();
        assert_eq!(
            view,
            serde_json::json!({
                "key": manifest.key.to_string(), "outcome": "hit", "tier": "peer", "node": 2,
                "target": "sm_90", "artifact": digest, "bytes": 5,
                "files": [{"path": "module.cubin", "bytes": 5, "digest": digest}],
                "compile_seconds": 0.5, "elapsed_seconds": 0.25, "directory": null,
            })
        );
        let done = pb::Done { outcome: pb::Outcome::Compiled.into(), tier: 0, ..done };
        let view = CompileView::new(&done, &manifest);
        assert_eq!((view.outcome, view.tier), ("compiled", None));
        assert!(for_people(&view).starts_with("compiled  "));
    }

    #[test]
    fn plain_progress_is_a_word_and_a_key() {
        let key = vec![0xab; 32];
        let waiting = Event::Waiting(pb::Waiting { key: key.clone().into() });
        assert_eq!(step(&waiting), Some(format!("waiting {}", "ab".repeat(32))));
        let target = Some(kiln_proto::Target::cubin(90).into());
        let started = Event::Started(pb::Started { key: key.into(), target });
        assert_eq!(step(&started), Some(format!("started {} for sm_90", "ab".repeat(32))));
    }

    #[test]
    fn deadlines_are_positive_times() {
        assert_eq!(deadline("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(deadline("0s").is_err() && deadline("soon").is_err());
    }
}
