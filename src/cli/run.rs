//! `kiln run`: any JIT cache folder, filled once in the cluster.
//!
//! Invariant: COMMAND runs, whatever becomes of Kiln: stdin, stdout and the exit
//! code are COMMAND's alone, and what `kiln run` has to say goes to stderr, with
//! `--json` as well.

mod builds;
mod capture;
mod child;
mod course;
mod current;
mod enter;
mod fill;
mod folder;
mod follow;
mod index;
mod inputs;
mod later;
mod moved;
mod patterns;
mod profiles;
mod publish;
mod report;
mod restore;
mod scan;
mod session;
mod share;
mod spool;
mod toolchain;
mod uses;
mod watch;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kiln_proto::Target;
use tokio::sync::oneshot;

use self::{
    folder::{Facts, Folder},
    profiles::{Environment, PROFILES},
    report::RunReport,
    session::{Session, Settings},
    share::Share,
};
use super::{CliError, ClientArgs, NamespaceArgs, SocketArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln run --profile vllm --tag llama-8b -- vllm serve meta-llama/Llama-3.1-8B
  kiln run --profile inductor --profile triton -- python train.py
  kiln run --dir kernels=/var/cache/kernels -- ./serve
  kiln run --list-profiles

Wrap the launcher (torchrun), not each rank. With KILN_DISABLE=1 COMMAND runs alone.";

/// Without a namespace the node's own default is meant, which is this one.
const DEFAULT_NAMESPACE: &str = "default";
/// Ranks of one job wait for one another, so they cannot wait for one of them.
const JOB_SIZES: &[&str] = &["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Run COMMAND with its JIT cache folders shared by the cluster.
///
/// Before COMMAND each folder is restored. If the cluster does not have it, one
/// process in the cluster fills it while the others wait. What is new in a folder
/// is published when it has settled, and after COMMAND; what others publish comes
/// while COMMAND runs. COMMAND keeps stdin, stdout and its exit code, and runs
/// without Kiln where no node can be reached.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// A tool whose cache folder is shared; see --list-profiles. Can be repeated.
    #[arg(long = "profile", value_name = "NAME")]
    profiles: Vec<String>,
    /// Another folder to share, under its own name or LABEL. Can be repeated.
    #[arg(long = "dir", value_name = "[LABEL=]DIR")]
    dirs: Vec<String>,
    /// Keeps what has one tag apart from what has another: a model, a branch.
    #[arg(long, default_value = "")]
    tag: String,
    /// Wait this long for another process that fills the folder.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Do not wait for another process: start cold.
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Publish what is new, and bring what others published, this often while COMMAND
    /// runs.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = positive)]
    every: Duration,
    /// Publish a file when it has rested this long, and no file was added for as long.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive)]
    settle: Duration,
    /// A folder is filled, and who waits for it goes on, when COMMAND has ended or added
    /// no file for this long. Default: six times --settle, for compilers are silent.
    #[arg(long, value_name = "TIME", value_parser = positive)]
    filled: Option<Duration>,
    /// Largest pack; the newest files are kept.
    #[arg(long, value_name = "BYTES", default_value = "2GiB")]
    max_bytes: ByteSize,
    /// Leave files out: a name, or a path from the folder with a leading '/'; '*'
    /// stands for anything. Can be repeated.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Publish what was in the folder before COMMAND as well.
    #[arg(long)]
    seed: bool,
    /// Publish what is new even where COMMAND fails.
    #[arg(long)]
    publish_failed: bool,
    /// GPU that the files are for: gpu_90, or any. Default: what nvidia-smi tells.
    #[arg(long)]
    target: Option<Target>,
    /// Interpreter that is asked for its packages' versions. Default: COMMAND's.
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Show the profiles with their folders, and do nothing else.
    #[arg(long)]
    list_profiles: bool,
    /// Write what happened to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Say nothing on stderr but warnings.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
    /// What to run, and its arguments.
    #[arg(last = true, required_unless_present = "list_profiles")]
    command: Vec<OsString>,
}

fn positive(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        Ok(_) => Err("a time is more than nothing".into()),
        Err(e) => Err(format!("{e}; write 30s or 5m")),
    }
}

impl Run {
    pub(crate) fn run(self) -> Result<ExitCode, CliError> {
        if self.list_profiles {
            return self.list().map(|()| ExitCode::SUCCESS);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let code = runtime.block_on(self.with_folders());
        // A read that hangs is not waited for.
        runtime.shutdown_background();
        code.map(ExitCode::from)
    }

    fn list(&self) -> Result<(), CliError> {
        with_environment(|env| {
            let rows: Vec<_> = PROFILES
                .iter()
                .map(|profile| {
                    let folder =
                        profile.locate(env).map(|(folder, _)| folder.display().to_string());
                    let variables = profile.variables.join(", ");
                    [
                        profile.name.into(),
                        folder.unwrap_or_default(),
                        variables,
                        profile.about.into(),
                    ]
                })
                .collect();
            output::line(output::table(["PROFILE", "FOLDER", "VARIABLE", "WHAT"], &rows))
        })
    }

    fn folders(&self) -> Result<Vec<Folder>, CliError> {
        let folders: Vec<Folder> = with_environment(|env| {
            let profiles =
                self.profiles.iter().map(|name| Folder::of_profile(name, env, &self.exclude));
            let dirs = self.dirs.iter().map(|text| Folder::of_path(text, env, &self.exclude));
            profiles.chain(dirs).collect::<Result<_, _>>()
        })?;
        if folders.is_empty() {
            let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
            let why = format!("name a folder: --dir DIR, or --profile {}", names.join("|"));
            return Err(CliError::Usage(why));
        }
        folder::check_apart(&folders)?;
        Ok(folders)
    }

    async fn with_folders(self) -> Result<u8, CliError> {
        let folders = self.folders()?;
        // Lossy: what is no text is no key either, and must not count as unset.
        let signers = std::env::var_os("KILN_SIGNERS").unwrap_or_default();
        let signers = share::signers(&signers.to_string_lossy()).map_err(CliError::Usage)?;
        let variables: Vec<_> =
            folders.iter().flat_map(|folder| folder.variables.clone()).collect();
        let began = Instant::now();
        let mut sessions = match std::env::var_os("KILN_DISABLE").is_some_and(|set| set == "1") {
            true => Vec::new(),
            false => self.open(folders, signers).await,
        };
        for session in &mut sessions {
            session.start().await;
        }
        let before = began.elapsed();
        let began = Instant::now();
        let mut running = match child::start(&self.command, &variables) {
            Ok(running) => running,
            Err(error) => {
                eprintln!("kiln run: {}: {error}", self.command[0].display());
                return Ok(child::no_start(&error));
            }
        };
        let (stop, stopped) = oneshot::channel();
        let ending = async {
            let ended = running.end().await;
            let lasted = began.elapsed();
            // Its receiver is gone where there is no folder to keep.
            let _ = stop.send(());
            ended.map(|ended| (ended, lasted))
        };
        let (ended, mut sessions) = tokio::join!(ending, keep(sessions, stopped));
        let (ended, lasted) = ended?;
        let began = Instant::now();
        let finish = async {
            for session in &mut sessions {
                session.finish(ended).await;
            }
        };
        tokio::select! {
            () = finish => {}
            () = running.hurried() => {}
        }
        self.print_report(&RunReport {
            exit_code: ended.code,
            command_seconds: lasted.as_secs_f64(),
            before_seconds: before.as_secs_f64(),
            after_seconds: began.elapsed().as_secs_f64(),
            folders: sessions.into_iter().map(|session| session.report).collect(),
        });
        Ok(ended.code)
    }

    /// Restores or leases each folder.
    async fn open(
        &self,
        mut folders: Vec<Folder>,
        signers: Vec<ed25519_dalek::VerifyingKey>,
    ) -> Vec<Session> {
        let facts = self.facts(&folders).await;
        let share = Share {
            endpoints: self.client.endpoints.clone(),
            socket: self.socket.socket.clone(),
            namespace: facts.namespace.clone(),
            signers,
        };
        let settings = Settings {
            wait: self.wait(),
            every: self.every,
            settle: self.settle,
            filled: self.filled.unwrap_or_else(|| fill::filled_after(self.settle)),
            max_bytes: self.max_bytes.as_u64(),
            seed: self.seed,
            publish_failed: self.publish_failed,
        };
        // All processes in one order: none waits for another that waits for it.
        folders.sort_by_cached_key(|folder| folder.key(&facts));
        let bar = self.bar();
        let mut sessions = Vec::new();
        for folder in folders {
            bar.set_message(format!("restoring {}", folder.path.display()));
            let waiting = |label: &str| {
                bar.set_message(format!("waiting for another process that fills {label}"));
                self.say(&format!("{label}: another process fills it; waiting"));
            };
            let (facts, share, settings) = (facts.clone(), share.clone(), settings.clone());
            let session = Session::open(folder, facts, share, settings, waiting).await;
            self.say(&session.report.opening());
            sessions.push(session);
        }
        bar.finish_and_clear();
        sessions
    }

    async fn facts(&self, folders: &[Folder]) -> Facts {
        let mut tools: Vec<_> = folders.iter().flat_map(|f| f.tools().iter().copied()).collect();
        tools.sort_unstable();
        tools.dedup();
        let versions = toolchain::versions(&tools, &self.command[0], self.python.as_deref());
        let (versions, (target, gpus)) = tokio::join!(versions, async {
            match self.target {
                Some(target) => (target, target.to_string()),
                None => toolchain::gpu().await,
            }
        });
        let namespace = match self.namespace.namespace.as_str() {
            "" => DEFAULT_NAMESPACE,
            named => named,
        };
        Facts { versions, target, gpus, tag: self.tag.clone(), namespace: namespace.into() }
    }

    /// How long to wait for another process, if at all.
    fn wait(&self) -> Option<Duration> {
        if self.no_wait {
            return None;
        }
        let size = |name: &&str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ranks = JOB_SIZES.iter().filter_map(size).max().unwrap_or(1);
        if self.wait.is_none() && ranks > 1 {
            self.say(&format!("one of {ranks} ranks: not waiting for another process"));
            return None;
        }
        Some(self.wait.unwrap_or(Duration::from_secs(600)))
    }

    fn bar(&self) -> ProgressBar {
        if self.quiet || self.client.json {
            return ProgressBar::hidden();
        }
        // Draws nothing where stderr is no terminal.
        let bar = ProgressBar::new_spinner();
        if let Ok(template) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(template);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn say(&self, text: &str) {
        if !self.quiet && !self.client.json {
            eprintln!("kiln run: {text}");
        }
    }

    fn print_report(&self, report: &RunReport) {
        for folder in &report.folders {
            for line in [folder.using(), folder.closing()].into_iter().flatten() {
                self.say(&line);
            }
        }
        let Ok(line) = serde_json::to_string(report) else { return };
        if self.client.json {
            eprintln!("{line}");
        }
        if let Some(path) = &self.report
            && let Err(error) = std::fs::write(path, format!("{line}\n"))
        {
            eprintln!("kiln run: write {}: {error}", path.display());
        }
    }
}

/// Looks after the folders until COMMAND has ended.
async fn keep(mut sessions: Vec<Session>, mut stopped: oneshot::Receiver<()>) -> Vec<Session> {
    let Some(mut pause) = sessions.iter().map(Session::pause).min() else { return sessions };
    loop {
        tokio::select! {
            _ = &mut stopped => return sessions,
            () = tokio::time::sleep(pause) => {}
        }
        for session in &mut sessions {
            // A capture that is under way is given up: the last one has it all.
            tokio::select! {
                _ = &mut stopped => return sessions,
                () = session.tick() => {}
            }
        }
        pause = sessions.iter().map(Session::pause).min().unwrap_or(pause);
    }
}

fn with_environment<T>(ask: impl FnOnce(&Environment<'_>) -> T) -> T {
    let folder = std::env::current_dir().unwrap_or_else(|_| Path::new("/").into());
    ask(&Environment { variable: &|name| std::env::var_os(name), folder: &folder })
}
