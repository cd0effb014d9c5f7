//! `kiln doctor`: what is the matter on this machine, one line a check.
//!
//! Invariant: every check ends within a bound, leaves nothing behind, and says what to do
//! where it is not well; the settings are those that `kiln serve` would have.

mod access;
mod cluster;
mod disk;
mod object;
mod ports;
mod sandbox;
mod sockets;
mod tools;

use std::{future::Future, path::PathBuf, time::Duration};

use clap::Args;
use kiln::config::Layers;
use serde::Serialize;

use super::{CliError, output, serve};

pub(crate) use tools::found as nvrtc_found;

/// What one check may take; Python imports torch in less.
const LONGEST: Duration = Duration::from_secs(45);

const EXAMPLES: &str = "\
Examples:
  kiln doctor
  kiln doctor --config /etc/kiln.toml --json
  kiln doctor --set object.url=s3://bucket/kiln

Give what `kiln serve` is given: its file, its environment, its settings. Exit code 1 where
anything is a problem.";

/// Look what is the matter on this machine: compilers, ports, disk, object store, cluster.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Doctor {
    /// TOML file with the node's configuration.
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the node's data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Any other key of the configuration. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = serve::setting)]
    settings: Vec<(String, String)>,
    /// Print JSON, one object a check; errors too.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Not there, and not asked for.
    Off,
    Problem,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: String,
    state: State,
    said: String,
    /// What to do; empty where nothing is.
    advice: String,
}

/// Where what is said begins, of a check with a short name.
const INDENT: usize = 26;

impl Check {
    fn ok(name: &str, said: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, said: said.into(), advice: String::new() }
    }

    fn off(name: &str, said: impl Into<String>, advice: impl Into<String>) -> Self {
        let (said, advice) = (said.into(), advice.into());
        Self { name: name.into(), state: State::Off, said, advice }
    }

    fn problem(name: &str, said: impl Into<String>, advice: impl Into<String>) -> Self {
        let (said, advice) = (said.into(), advice.into());
        Self { name: name.into(), state: State::Problem, said, advice }
    }

    fn for_people(&self, width: Option<usize>) -> String {
        let state = match self.state {
            State::Ok => "ok",
            State::Off => "-",
            State::Problem => "PROBLEM",
        };
        let advice = if self.advice.is_empty() { "" } else { ": " };
        let line = format!("{state:<7}  {:<15}  {}{advice}{}", self.name, self.said, self.advice);
        output::wrapped(&line, INDENT, width)
    }
}

impl Doctor {
    pub(crate) fn run(self) -> Result<(), CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(self.look());
        // A disk that hangs is told of, and not waited for.
        runtime.shutdown_background();
        result
    }

    async fn look(self) -> Result<(), CliError> {
        let mut flags = self.settings.clone();
        flags.extend(self.data_dir.iter().map(|d| ("data_dir".into(), d.display().to_string())));
        let layers =
            Layers { file: self.config.clone(), environment: std::env::vars().collect(), flags };
        let config = layers.load()?;
        let mut found: Vec<Check> = layers
            .slips()
            .into_iter()
            .map(|slip| Check::problem("settings", slip, "correct its name, or unset it"))
            .collect();
        let config = &config;
        let (nvrtc, python, disk, object, sockets, (ports, node)) = tokio::join!(
            bounded("nvrtc", tools::nvrtc(config)),
            bounded("python", tools::python(config)),
            bounded("disk", disk::check(config)),
            bounded("object store", object::check(config)),
            bounded("sockets", sockets::check(config)),
            ports::check(config),
        );
        let access = access::check(config);
        for checks in [nvrtc, python, sandbox::check(), ports, access, disk, object, sockets] {
            found.extend(checks);
        }
        found.extend(bounded("cluster", cluster::check(node, ports::speaks_tls(config))).await);
        self.tell(&found)
    }

    fn tell(&self, found: &[Check]) -> Result<(), CliError> {
        for check in found {
            match self.json {
                true => output::json(check)?,
                false => output::line(check.for_people(output::width()))?,
            }
        }
        match found.iter().filter(|check| check.state == State::Problem).count() {
            0 => Ok(()),
            n => Err(CliError::Local(anyhow::anyhow!(
                "{n} of {} checks found a problem",
                found.len()
            ))),
        }
    }
}

/// What `check` finds, or that it takes too long.
async fn bounded(name: &str, check: impl Future<Output = Vec<Check>>) -> Vec<Check> {
    tokio::time::timeout(LONGEST, check).await.unwrap_or_else(|_| {
        let said = format!("no answer within {} s", LONGEST.as_secs());
        vec![Check::problem(name, said, "see why it hangs, and try again")]
    })
}

/// The settings of a node whose listeners are all free ports.
#[cfg(test)]
fn settings(data_dir: &std::path::Path) -> kiln::config::Config {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    kiln::config::Config {
        data_dir: data_dir.to_owned(),
        grpc_listen: any,
        http_listen: any,
        transfer_listen: any,
        resp_listen: None,
        ..kiln::config::Config::default()
    }
}
