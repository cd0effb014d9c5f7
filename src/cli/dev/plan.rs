//! Which nodes a folder has, and each node's configuration file.
//!
//! Invariant: what a node was given once is read back from its file. Flags and the
//! environment change it, but never what makes it this node: its ports, its folders and
//! its founding peers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use kiln::config::{Config, Layers};

use super::ports::Ports;
use crate::cli::CliError;

/// Founders of a new cluster where no number is given.
const NODES: usize = 3;
const MOST_NODES: usize = 64;
/// A unix socket's path has at most this many bytes.
const LONGEST_SOCKET_PATH: usize = 107;

/// One node of the folder.
#[derive(Debug)]
pub(super) struct Plan {
    /// 1, 2, … as in `node-1`; its id in the cluster is the cluster's to give.
    pub(super) number: usize,
    pub(super) folder: PathBuf,
    pub(super) config_file: PathBuf,
    pub(super) config: Config,
}

/// The nodes of `dir`, with new ones up to `wanted`; writes their files.
pub(super) fn plan(
    dir: &Path,
    wanted: Option<usize>,
    base: &Layers,
    ports: &Ports,
) -> Result<Vec<Plan>, CliError> {
    let known = (1..).take_while(|n| config_file(dir, *n).is_file()).count();
    let wanted = wanted.unwrap_or(if known > 0 { known } else { NODES });
    if wanted == 0 {
        return Err(CliError::Usage("--nodes 0: a cluster has at least 1 node".into()));
    }
    if wanted > MOST_NODES {
        let why = "there can be up to";
        return Err(CliError::Usage(format!(
            "--nodes {wanted}: {why} {MOST_NODES} on one machine"
        )));
    }
    if wanted < known {
        return Err(CliError::Usage(format!(
            "--nodes {wanted}: {} has {known} nodes already, which belong to one cluster; take \
             another --dir for fewer",
            dir.display()
        )));
    }
    let mut plans = Vec::new();
    for number in 1..=known {
        let file = config_file(dir, number);
        let layers = Layers {
            file: Some(file),
            environment: base
                .environment
                .iter()
                .filter(|(name, _)| !is_own(name))
                .cloned()
                .collect(),
            flags: base.flags.clone(),
        };
        plans.push(Plan::new(dir, number, layers.load()?));
    }
    plans.extend(fresh(dir, known, wanted, base, &plans, ports)?);
    for plan in &plans {
        plan.write()?;
    }
    Ok(plans)
}

/// What each node of a folder has for itself: one value for all would be wrong.
const OWN: [&str; 12] = [
    "KILN_DATA_DIR",
    "KILN_GRPC_LISTEN",
    "KILN_HTTP_LISTEN",
    "KILN_TRANSFER_LISTEN",
    "KILN_RESP_LISTEN",
    "KILN_ADVERTISE",
    "KILN_SOCKET",
    "KILN_RESP_SOCKET",
    "KILN_START_EXPECT",
    "KILN_START_PEERS",
    "KILN_START_JOIN",
    "KILN_CONFIG",
];

fn is_own(variable: &str) -> bool {
    OWN.contains(&variable)
}

fn fresh(
    dir: &Path,
    known: usize,
    wanted: usize,
    base: &Layers,
    old: &[Plan],
    ports: &Ports,
) -> Result<Vec<Plan>, CliError> {
    let addresses = ports.of(known + 1..=wanted)?;
    // The largest number of voters that these nodes allow.
    let founders = [5, 3, 1].into_iter().find(|n| *n <= wanted).unwrap_or(1);
    let members = old.iter().map(|plan| plan.config.transfer_listen);
    let members: Vec<_> =
        members.chain(addresses.iter().map(|a| a[2])).map(|a| a.to_string()).collect();
    let mut plans = Vec::new();
    for (number, address) in (known + 1..).zip(&addresses) {
        let founds = known == 0 && number <= founders;
        let (expect, peers, join) = match founds {
            true => (founders, members[..founders].join(","), String::new()),
            false => (1, String::new(), members[..known.max(founders)].join(",")),
        };
        let folder = folder(dir, number);
        let own = [
            ("data_dir", folder.join("data").display().to_string()),
            ("grpc_listen", address[0].to_string()),
            ("http_listen", address[1].to_string()),
            ("transfer_listen", address[2].to_string()),
            ("resp_listen", address[3].to_string()),
            ("advertise", address[0].ip().to_string()),
            ("start.expect", expect.to_string()),
            ("start.peers", peers),
            ("start.join", join),
        ];
        let mut layers = base.clone();
        layers.flags.extend(own.map(|(key, value)| (key.to_owned(), value)));
        let mut config = layers.load()?;
        // A folder too deep for a socket's address only costs the short cut.
        let socket = |name| {
            Some(folder.join(name)).filter(|path| path.as_os_str().len() <= LONGEST_SOCKET_PATH)
        };
        config.socket = socket("kiln.sock");
        config.resp_socket = socket("resp.sock");
        plans.push(Plan::new(dir, number, config));
    }
    Ok(plans)
}

impl Plan {
    fn new(dir: &Path, number: usize, config: Config) -> Self {
        Self { number, folder: folder(dir, number), config_file: config_file(dir, number), config }
    }

    /// Whether the node is new and joins a cluster that others found.
    pub(super) fn joins(&self) -> bool {
        !self.config.start.join.is_empty() && !self.config.data_dir.exists()
    }

    fn write(&self) -> Result<(), CliError> {
        let wrote = || format!("write {}", self.config_file.display());
        fs::create_dir_all(&self.folder).with_context(wrote)?;
        let text = format!("# Written by kiln dev; flags change it.\n{}", self.config.to_toml());
        fs::write(&self.config_file, text).with_context(wrote)?;
        Ok(())
    }
}

fn folder(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("node-{number}"))
}

fn config_file(dir: &Path, number: usize) -> PathBuf {
    folder(dir, number).join("config.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(dir: &Path, wanted: Option<usize>, flags: &[(&str, &str)]) -> Vec<Plan> {
        let flags = flags.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        plan(dir, wanted, &Layers { flags, ..Layers::default() }, &Ports::free()).unwrap()
    }

    #[test]
    fn three_nodes_found_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let plans = planned(dir.path(), None, &[("object.url", "file:///tmp/l3")]);
        assert_eq!(plans.len(), 3);
        let mut ports: Vec<_> = plans
            .iter()
            .map(|p| &p.config)
            .flat_map(|c| [c.grpc_listen, c.http_listen, c.transfer_listen, c.resp_listen.unwrap()])
            .collect();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 12, "each listener has its own port");
        for plan in &plans {
            assert_eq!(plan.config.start.expect, 3);
            assert_eq!(plan.config.start.peers, plans[0].config.start.peers);
            assert_eq!(plan.config.object.url.as_deref(), Some("file:///tmp/l3"));
            assert!(plan.config.grpc_listen.ip().is_loopback());
        }
    }

    #[test]
    fn the_same_folder_gives_the_same_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let first = planned(dir.path(), Some(3), &[("memory.bytes", "64MiB")]);
        let again = planned(dir.path(), None, &[("object.url", "file:///tmp/l3")]);
        for (first, again) in first.iter().zip(&again) {
            let mut expected = first.config.clone();
            expected.object.url = Some("file:///tmp/l3".into());
            assert_eq!(again.config, expected, "remembered, and changed by the flag alone");
        }
    }

    #[test]
    fn the_environment_changes_a_folder_that_is_there_already() {
        let dir = tempfile::tempdir().unwrap();
        let first = planned(dir.path(), Some(1), &[]);
        let variables = [
            ("KILN_COMPILE_PYTHON", "/venv/bin/python"),
            ("KILN_MEMORY_BYTES", "64MiB"),
            ("KILN_GRPC_LISTEN", "127.0.0.1:1"),
            ("KILN_DATA_DIR", "/elsewhere"),
        ];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let base = Layers { environment, ..Layers::default() };
        let again = &plan(dir.path(), None, &base, &Ports::free()).unwrap()[0].config;
        assert_eq!(again.compile.python.as_deref(), Some(Path::new("/venv/bin/python")));
        assert_eq!(again.memory.bytes, 64 << 20);
        assert_eq!(again.grpc_listen, first[0].config.grpc_listen, "it stays this node");
        assert_eq!(again.data_dir, first[0].config.data_dir);
        // Nothing of it is forgotten by the next start.
        let kept = &planned(dir.path(), None, &[])[0].config;
        assert_eq!(kept.compile.python.as_deref(), Some(Path::new("/venv/bin/python")));
    }

    #[test]
    fn a_number_of_nodes_that_cannot_be_is_refused_for_its_own_reason() {
        let dir = tempfile::tempdir().unwrap();
        planned(dir.path(), Some(3), &[]);
        let refused = |wanted| {
            plan(dir.path(), Some(wanted), &Layers::default(), &Ports::free()).unwrap_err()
        };
        for (wanted, why) in [(0, "at least 1"), (2, "another --dir"), (65, "up to 64")] {
            let told = refused(wanted).to_string();
            assert!(told.contains(why), "{told}");
        }
        assert!(!refused(0).to_string().contains("64"));
    }

    #[test]
    fn more_nodes_join() {
        let dir = tempfile::tempdir().unwrap();
        let first = planned(dir.path(), Some(3), &[]);
        let more = planned(dir.path(), Some(4), &[]);
        assert_eq!(more[3].config.start.expect, 1);
        assert_eq!(more[3].config.start.join, first[0].config.start.peers);
        let refused = plan(dir.path(), Some(2), &Layers::default(), &Ports::free()).unwrap_err();
        assert_eq!(refused.exit_code(), 2, "{refused}");
    }

    #[test]
    fn an_even_number_has_an_odd_number_of_founders() {
        let dir = tempfile::tempdir().unwrap();
        let plans = planned(dir.path(), Some(4), &[]);
        let founding: Vec<_> = plans.iter().map(|p| p.config.start.expect).collect();
        assert_eq!(founding, [3, 3, 3, 1]);
        assert_eq!(plans[3].config.start.join, plans[0].config.start.peers);
    }
}
