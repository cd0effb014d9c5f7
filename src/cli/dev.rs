//! `kiln dev`: a whole cluster of real processes on loopback.
//!
//! Invariant: no node outlives this process, however it ends, and the same
//! folder comes back as the same members.

mod loading;
mod node;
mod plan;
mod ports;
mod table;

use std::{
    fs,
    io::{IsTerminal, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use kiln::config::Layers;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{CliError, output, serve::stop_on_signal};
use node::{Ended, Node};
use plan::Plan;
use ports::Ports;

const EXAMPLES: &str = "\
Examples:
  kiln dev --nodes 3 --dir /tmp/kiln
  kiln dev --nodes 3 --dir /tmp/kiln --object file:///tmp/kiln/l3
  kiln dev --dir /tmp/kiln                 # the same nodes again

It says where the nodes are when all are ready, and stays in the foreground;
ctrl-C stops all nodes. A node that ends is not restarted: do that with
kiln serve --config DIR/node-N/config.toml. Logs are in DIR/node-N/log.

On a terminal that is a table, and new nodes take the ports 7400 to 7403, 7410
to 7413 and so on where they are free. Else, and with --json, it is one JSON
line, and ports are free ones.";

/// Run a cluster of real processes on loopback, for development.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Dev {
    /// Nodes, of which the first 1, 3 or 5 found the cluster and the others
    /// join. Default: as many as the folder has, or 3.
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Folder for all that the nodes keep.
    #[arg(long, value_name = "DIR", default_value = "kiln-dev")]
    dir: PathBuf,
    /// Object tier that the nodes share: file:///FOLDER or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "URL")]
    object: Option<String>,
    /// TOML file that new nodes' configuration starts from.
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG")]
    config: Option<PathBuf>,
    /// A key of every node's configuration. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = super::serve::setting)]
    settings: Vec<(String, String)>,
    /// Give up where the nodes are not ready after this long.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    ready_timeout: Duration,
    /// A node that was told to stop is killed after this long.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    stop_timeout: Duration,
    /// Print JSON where stdout is a terminal, too.
    #[arg(long)]
    pub(super) json: bool,
}

/// The line that is printed when all nodes are ready.
#[derive(Debug, Serialize)]
struct ReadyLine {
    nodes: Vec<node::NodeView>,
}

impl Dev {
    /// Runs the cluster until ctrl-C, or until all nodes have ended.
    pub(crate) fn run(self) -> Result<(), CliError> {
        // Children die with the thread that started them: this one, the main one.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.supervise())
    }

    async fn supervise(self) -> Result<(), CliError> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let dir =
            self.dir.canonicalize().with_context(|| format!("open {}", self.dir.display()))?;
        let lock = lock(&dir)?;
        let object = self.object.iter().map(|url| ("object.url".to_owned(), url.clone()));
        let base = Layers {
            file: self.config.clone(),
            environment: std::env::vars().collect(),
            flags: self.settings.iter().cloned().chain(object).collect(),
        };
        for slip in base.slips() {
            eprintln!("warning: {slip}");
        }
        let people = !self.json && stdout().is_terminal();
        // Until the nodes have ended: others then take other ports.
        let ports = if people { Ports::for_people() } else { Ports::free() };
        let plans = plan::plan(&dir, self.nodes, &base, &ports)?;
        for plan in &plans {
            ports::until_free(plan.number, &plan.config).await?;
        }
        let stop = CancellationToken::new();
        let signals = stop_on_signal(stop.clone())?;
        let mut running = JoinSet::new();
        let mut started = self.start(plans, &mut running, &stop).await;
        if people && let Ok(nodes) = &mut started {
            tokio::select! {
                () = loading::until_loaded(nodes) => {}
                () = stop.cancelled() => {}
            }
        }
        let announced = started.and_then(|nodes| match stop.is_cancelled() {
            true => Ok(()),
            false if people => output::line(table::for_people(&nodes, &dir)),
            false => output::json(&ReadyLine { nodes }),
        });
        if announced.is_err() {
            stop.cancel();
        }
        let mut failed = 0;
        while let Some(ended) = running.join_next().await {
            let ended = ended.map_err(anyhow::Error::from)?;
            if !stop.is_cancelled() {
                failed += 1;
                eprintln!("{ended}");
            }
        }
        signals.abort();
        drop((lock, ports));
        announced?;
        match stop.is_cancelled() {
            true => Ok(()),
            false => Err(anyhow::anyhow!("all {failed} nodes have ended").into()),
        }
    }

    /// Starts all nodes, hands each to a task that watches it, and waits until
    /// all are ready.
    async fn start(
        &self,
        plans: Vec<Plan>,
        running: &mut JoinSet<Ended>,
        stop: &CancellationToken,
    ) -> Result<Vec<node::NodeView>, CliError> {
        // New nodes that join do so one after the other, so that ids rise with the numbers.
        let (joining, founding): (Vec<_>, Vec<_>) = plans.into_iter().partition(Plan::joins);
        let mut ready = Vec::new();
        let mut spawn = |plan| -> Result<node::Signal, CliError> {
            let (node, signal) = Node::spawn(plan)?;
            running.spawn(node.watch(stop.clone(), self.stop_timeout));
            Ok(signal)
        };
        for plan in founding {
            ready.push(spawn(plan)?);
        }
        let all = async {
            let waiting = ready.into_iter().map(node::Signal::ready);
            let mut nodes = futures::future::try_join_all(waiting).await?;
            for plan in joining {
                nodes.push(spawn(plan)?.ready().await?);
            }
            Ok::<_, CliError>(nodes)
        };
        tokio::select! {
            ready = tokio::time::timeout(self.ready_timeout, all) => match ready {
                Ok(ready) => Ok(ready?),
                Err(_) => Err(CliError::Unreachable(format!(
                    "the nodes are not ready after {}; see {}/node-*/log",
                    humantime::format_duration(self.ready_timeout),
                    self.dir.display()
                ))),
            },
            () = stop.cancelled() => Ok(Vec::new()),
        }
    }
}

/// Two clusters in one folder would be two masters of one data folder.
fn lock(dir: &std::path::Path) -> Result<fs::File, CliError> {
    let path = dir.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CliError::Refused(format!(
            "another kiln dev runs in {}: stop it, or name another --dir",
            dir.display()
        ))),
        Err(e) => Err(std::io::Error::from(e).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_master() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert_eq!(lock(dir.path()).unwrap_err().exit_code(), 21);
        drop(held);
        lock(dir.path()).unwrap();
    }
}
