//! Three voters as real processes, which may be killed, paused and asked.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use kiln::config::Config;
use kiln_proto::{pb, pb::kiln_client::KilnClient};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::transport::Channel;

const VOTERS: usize = 3;
/// Between two questions about the leader: the resolution of that row.
const POLL: Duration = Duration::from_millis(20);
/// Bound on anything that is waited for.
const SOON: Duration = Duration::from_secs(120);

/// The `kiln` that runs: another one than this build's where it is named.
pub(crate) fn program() -> String {
    let named = std::env::var("KILN_BENCH_BINARY").or_else(|_| std::env::var("KILN_BINARY"));
    named.unwrap_or_else(|_| env!("CARGO_BIN_EXE_kiln").to_owned())
}

pub(crate) struct Nodes {
    folder: tempfile::TempDir,
    nodes: Vec<Process>,
}

struct Process {
    id: u64,
    config: Config,
    /// `None` while it is dead.
    child: Option<Child>,
}

impl Nodes {
    /// Three nodes, each with what `configure` changes; it is told the clusters' folder.
    pub(crate) async fn start(configure: impl Fn(&Path, &mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held: Vec<_> =
            (0..4 * VOTERS).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let ports: Vec<SocketAddr> = held.iter().map(|l| l.local_addr().unwrap()).collect();
        drop(held);
        let ports: Vec<_> = ports.chunks(4).collect();
        let configs = ports.iter().enumerate().map(|(i, own)| {
            let mut config = Config {
                data_dir: folder.path().join(format!("node-{i}")),
                grpc_listen: own[0],
                http_listen: own[1],
                transfer_listen: own[2],
                resp_listen: Some(own[3]),
                ..Config::default()
            };
            config.start.expect = VOTERS;
            config.start.peers = ports.iter().map(|p| p[2].to_string()).collect();
            config.memory.bytes = 64 << 20;
            configure(folder.path(), &mut config);
            Process { id: 0, config, child: None }
        });
        let mut nodes = Self { nodes: configs.collect(), folder };
        for i in 0..VOTERS {
            nodes.spawn(i);
        }
        for i in 0..VOTERS {
            nodes.wait_ready(i).await;
        }
        nodes
    }

    fn spawn(&mut self, i: usize) {
        let file = self.folder.path().join(format!("{i}.toml"));
        std::fs::write(&file, toml::to_string(&self.nodes[i].config).unwrap()).unwrap();
        let log = self.folder.path().join(format!("{i}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program());
        command.args(["serve", "--config"]).arg(file).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        self.nodes[i].child = Some(command.spawn().unwrap());
    }

    async fn wait_ready(&mut self, i: usize) {
        let stdout = self.nodes[i].child.as_mut().unwrap().stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        self.nodes[i].id = ready["id"].as_u64().unwrap();
    }

    pub(crate) async fn restart(&mut self, i: usize) {
        self.spawn(i);
        self.wait_ready(i).await;
    }

    /// SIGKILL, and the end of the process.
    pub(crate) async fn kill(&mut self, i: usize) {
        self.nodes[i].child.take().unwrap().kill().await.unwrap();
    }

    pub(crate) fn signal(&self, i: usize, signal: Signal) {
        let pid = self.nodes[i].child.as_ref().unwrap().id().unwrap();
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    pub(crate) fn others(&self, i: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| *other != i).collect()
    }

    /// How a node was started.
    pub(crate) fn config(&self, i: usize) -> &Config {
        &self.nodes[i].config
    }

    /// The id that the cluster gave it.
    pub(crate) fn id(&self, i: usize) -> u64 {
        self.nodes[i].id
    }

    pub(crate) fn resp(&self, i: usize) -> SocketAddr {
        self.nodes[i].config.resp_listen.unwrap()
    }

    pub(crate) fn grpc(&self, i: usize) -> KilnClient<Channel> {
        let endpoint = format!("http://{}", self.nodes[i].config.grpc_listen);
        KilnClient::new(Channel::from_shared(endpoint).unwrap().connect_lazy())
    }

    pub(crate) async fn status(&self, i: usize) -> Option<pb::StatusResponse> {
        let asked = async { self.grpc(i).status(pb::StatusRequest::default()).await };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?.ok()?;
        Some(answer.into_inner())
    }

    /// The leader, once all nodes name the same one, have a quorum and applied as much.
    pub(crate) async fn settled(&self) -> usize {
        let end = Instant::now() + SOON;
        loop {
            let all = (0..self.nodes.len()).map(|i| self.status(i));
            let all: Option<Vec<_>> = futures::future::join_all(all).await.into_iter().collect();
            if let Some(all) = all {
                let same = |s: &pb::StatusResponse| (s.leader, s.applied, s.term, s.quorum);
                let first = same(&all[0]);
                if first.3 && all.iter().all(|status| same(status) == first) {
                    let leader = self.nodes.iter().position(|node| node.id == first.0);
                    return leader.unwrap();
                }
            }
            assert!(Instant::now() < end, "the nodes did not settle: see {:?}", self.folder);
            tokio::time::sleep(POLL).await;
        }
    }

    /// How long since `began` until a survivor follows another leader than `old`.
    pub(crate) async fn elected(
        &self,
        survivors: &[usize],
        old: usize,
        began: Instant,
    ) -> Duration {
        loop {
            for i in survivors {
                let Some(status) = self.status(*i).await else { continue };
                if status.quorum && status.leader != 0 && status.leader != self.nodes[old].id {
                    return began.elapsed();
                }
            }
            assert!(began.elapsed() < SOON, "no other leader");
            tokio::time::sleep(POLL).await;
        }
    }
}
