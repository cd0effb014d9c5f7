//! The command line: one file for each command, all of them clients of the
//! gRPC API but `serve` and `dev`.
//!
//! Invariant: results go to stdout, everything else to stderr; with `--json`
//! stdout has JSON objects only, one a line, an error among them.

mod asking;
mod attest;
mod audit;
mod backup;
mod belief;
mod certs;
mod client;
mod cluster;
mod compile;
mod completions;
mod confirm;
mod credential;
mod deadline;
mod dev;
mod doctor;
mod emergency;
mod error;
mod exec;
mod explain;
mod fallback;
mod fetch;
mod get;
mod includes;
mod inspect;
mod keys;
mod ls;
mod metrics;
mod misses;
mod monitor;
mod output;
mod pieces;
mod pin;
mod plan;
mod prewarm;
mod progress;
mod python;
mod rm;
mod run;
mod select;
mod serve;
mod signer;
mod sizes;
mod source;
mod status;
mod token;
mod top;
mod traced;
mod verify;
mod version;
mod view;
mod warm;
mod whole;
mod why;

use std::{ffi::OsString, future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};

pub(crate) use error::CliError;

/// A cluster-wide cache of compiled GPU code.
///
/// What one node compiled once, every other node fetches, checks and runs.
#[derive(Debug, Parser)]
#[command(name = "kiln", version = kiln::VERSION, after_help = after_help(), propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Where to begin, for whoever has read nothing else.
const FIRST_STEPS: &str = "\
First steps:
  kiln dev             three nodes on this machine; it says what to type next
  kiln doctor          what is missing here, and what to do about it
  kiln COMMAND --help  every command, with examples";

fn after_help() -> String {
    format!("{FIRST_STEPS}\n\n{}", error::EXIT_CODES)
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Dev(dev::Dev),
    Compile(Box<compile::Compile>),
    Warm(Box<warm::Warm>),
    Get(get::Get),
    Ls(ls::Ls),
    Why(why::Why),
    Verify(Box<verify::VerifyArgs>),
    Attest(Box<attest::AttestArgs>),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Rm(rm::Rm),
    Status(status::Status),
    Cluster(cluster::ClusterArgs),
    Signer(signer::SignerArgs),
    Token(token::TokenArgs),
    Audit(audit::AuditArgs),
    Exec(exec::Exec),
    Inspect(inspect::Inspect),
    Plan(plan::Plan),
    Run(Box<run::Run>),
    Metrics(metrics::Metrics),
    Top(top::Top),
    Explain(explain::Explain),
    Monitor(monitor::Monitor),
    Emergency(emergency::EmergencyArgs),
    Completions(completions::Completions),
    Man(completions::Man),
    Version(version::Version),
    Certs(certs::Certs),
    Doctor(doctor::Doctor),
}

/// What every client command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    endpoints: client::Endpoints,
    /// Print JSON, one object a line; errors too.
    #[arg(long, global = true)]
    json: bool,
}

/// The short way for bytes.
#[derive(Debug, Clone, Args)]
pub(crate) struct SocketArgs {
    /// Socket of the node on this machine: bytes come as mapped memory instead
    /// of through gRPC.
    #[arg(long, value_name = "PATH", env = "KILN_SOCKET")]
    socket: Option<PathBuf>,
}

/// The tenant whose keys a command is about.
#[derive(Debug, Clone, Args)]
pub(crate) struct NamespaceArgs {
    /// Namespace of the keys; the node's default where none is given.
    #[arg(long, value_name = "NAME", env = "KILN_NAMESPACE", default_value = "")]
    namespace: String,
}

/// Parses the command line, runs it and settles the exit code.
pub(crate) fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error, std::env::args_os().skip(1)),
    };
    let json = command.json();
    match command.run() {
        Ok(code) => code,
        Err(error) => {
            if !(json && output::json(&error.view()).is_ok()) {
                eprintln!("error: {}", error.for_people());
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// What clap answers by itself: help and the version, or what is wrong with the arguments.
fn usage(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let json = error.use_stderr() && wants_json(arguments);
    if !(json && output::json(&told(error).view()).is_ok()) {
        // Who reads it may be gone.
        let _ = error.print();
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Whether `--json` is among the arguments, which could not be read; what stands behind
/// `--` is another command's.
fn wants_json(mut arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.by_ref().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// As every other error, without the lines of help around it.
fn told(error: &clap::Error) -> CliError {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    CliError::Usage(first.split_whitespace().collect::<Vec<_>>().join(" "))
}

impl Command {
    fn run(self) -> Result<ExitCode, CliError> {
        let done = match self {
            Self::Serve(command) => command.run(),
            Self::Dev(command) => command.run(),
            Self::Compile(command) => client(command.run()),
            Self::Warm(command) => client(command.run()),
            Self::Get(command) => client(command.run()),
            Self::Ls(command) => client(command.run()),
            Self::Why(command) => client(command.run()),
            Self::Verify(command) => client(command.run()),
            Self::Attest(command) => client(command.run()),
            Self::Pin(command) => client(command.run()),
            Self::Unpin(command) => client(command.run()),
            Self::Rm(command) => client(command.run()),
            Self::Status(command) => client(command.run()),
            Self::Cluster(command) => client(command.run()),
            Self::Signer(command) => client(command.run()),
            Self::Token(command) => client(command.run()),
            Self::Audit(command) => client(command.run()),
            Self::Exec(command) => command.run(),
            Self::Inspect(command) => client(command.run()),
            Self::Plan(command) => client(command.run()),
            Self::Metrics(command) => client(command.run()),
            Self::Explain(command) => command.run(),
            Self::Monitor(command) => client(command.run()),
            Self::Emergency(command) => client(command.run()),
            Self::Completions(command) => command.run(Cli::command()),
            Self::Man(command) => command.run(Cli::command()),
            Self::Version(command) => client(command.run()),
            Self::Doctor(command) => command.run(),
            Self::Certs(command) => command.run(),
            // Its exit code is its command's.
            Self::Run(command) => return command.run(),
            Self::Top(command) => client(command.run()),
        };
        done.map(|()| ExitCode::SUCCESS)
    }

    fn json(&self) -> bool {
        match self {
            Self::Dev(command) => command.json,
            Self::Serve(_) | Self::Completions(_) | Self::Man(_) => false,
            Self::Compile(command) => command.client.json,
            Self::Get(command) => command.client.json,
            Self::Ls(command) => command.client.json,
            Self::Why(command) => command.client.json,
            Self::Verify(command) => command.client.json,
            Self::Attest(command) => command.client.json,
            Self::Pin(command) => command.client.json,
            Self::Unpin(command) => command.client.json,
            Self::Rm(command) => command.client.json,
            Self::Status(command) => command.client.json,
            Self::Cluster(command) => command.client.json,
            Self::Signer(command) => command.client.json,
            Self::Token(command) => command.client.json,
            Self::Audit(command) => command.client.json,
            Self::Exec(command) => command.json,
            Self::Warm(command) => command.client.json,
            Self::Inspect(command) => command.client.json,
            Self::Plan(command) => command.client.json,
            Self::Metrics(command) => command.client.json,
            Self::Explain(command) => command.json,
            Self::Monitor(command) => command.client.json,
            Self::Emergency(command) => command.client.json,
            Self::Version(command) => command.json,
            Self::Doctor(command) => command.json,
            Self::Certs(command) => command.json,
            // stdout is its command's: its own errors go to stderr as text.
            Self::Run(_) => false,
            Self::Top(command) => command.client.json,
        }
    }
}

/// A client needs one thread; a daemon's runtime is its own affair.
fn client(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("kiln "), "{} shows no example", command.get_name());
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }

    #[test]
    fn a_wrong_argument_is_an_error_as_any_other() {
        let line = ["kiln", "ls", "--json", "--frob"];
        let error = told(&Cli::try_parse_from(line).unwrap_err());
        assert_eq!(error.exit_code(), 2);
        let json = serde_json::to_value(error.view()).unwrap();
        assert_eq!(json["error"]["kind"], "usage");
        assert_eq!(json["error"]["message"], "unexpected argument '--frob' found");
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        assert!(wants("ls --frob --json"));
        assert!(!wants("run --frob -- kiln ls --json"));
    }

    #[test]
    fn json_is_known_before_a_command_runs() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().command.json();
        assert!(parse("kiln status --json"));
        assert!(parse("kiln cluster remove 3 --json"));
        assert!(!parse("kiln compile a.cu"));
    }
}
