//! A cluster of real processes, and questions to it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kiln::config::Config;
use kiln_proto::{ArtifactKey, SignedManifest, pb, pb::kiln_client::KilnClient};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Request, Status, transport::Channel};

use crate::ports::{Held, hold_ports};

/// Bound on anything that a test waits for.
pub(crate) const SOON: Duration = Duration::from_secs(60);
const MESSAGE_BYTES: usize = 64 << 20;
/// Of one node: gRPC, HTTP, transfer, RESP.
const PORTS: usize = 4;

/// Changes a node's configuration before it starts.
pub(crate) type Configure = fn(usize, &mut Config);

pub(crate) struct TestCluster {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) nodes: Vec<TestNode>,
}

pub(crate) struct TestNode {
    pub(crate) id: u64,
    pub(crate) config: Config,
    /// The hard limit of descriptors, where the system's is not meant.
    pub(crate) descriptors: Option<u64>,
    folder: PathBuf,
    child: Option<Child>,
    ready: Value,
    /// So that it can come back to where it was.
    _ports: Held,
}

/// What a compile ended with.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    pub(crate) key: ArtifactKey,
    pub(crate) outcome: pb::Outcome,
    pub(crate) tier: pb::Tier,
    pub(crate) manifest: SignedManifest,
    /// Of what is in pieces.
    pub(crate) pieces: Vec<pb::Piece>,
    pub(crate) strategy: pb::Strategy,
    /// Whether all of it was seen to be right.
    pub(crate) check: pb::Check,
    /// That it is not what was asked for.
    pub(crate) fallback: Option<pb::Fallback>,
    /// What was tried before.
    pub(crate) tried: Vec<pb::Rung>,
}

impl TestCluster {
    /// `n` voters with a shared local-folder L3.
    pub(crate) async fn start(n: usize) -> Self {
        Self::start_with(n, |_, _| {}).await
    }

    pub(crate) async fn start_with(n: usize, configure: Configure) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join("object");
        std::fs::create_dir(&object).unwrap();
        let ports: Vec<_> = (0..n).map(|_| hold_ports(PORTS).unwrap()).collect();
        let peers: Vec<String> = ports.iter().map(|own| own.addresses[2].to_string()).collect();
        let mut nodes = Vec::new();
        for (i, ports) in ports.into_iter().enumerate() {
            let own = &ports.addresses;
            let home = folder.path().join(format!("node-{i}"));
            std::fs::create_dir(&home).unwrap();
            let mut config = Config {
                data_dir: home.join("data"),
                grpc_listen: own[0],
                http_listen: own[1],
                transfer_listen: own[2],
                resp_listen: Some(own[3]),
                socket: Some(home.join("kiln.sock")),
                resp_socket: Some(home.join("resp.sock")),
                ..Config::default()
            };
            config.start.expect = n;
            config.start.peers = peers.clone();
            config.cluster.lease_ttl = Duration::from_secs(3);
            config.object.url = Some(format!("file://{}", object.display()));
            config.memory.bytes = 256 << 20;
            // They come behind the answers: so that entries and packs can be counted.
            config.compile.keep_requests = 0;
            configure(i, &mut config);
            nodes.push(TestNode::new(home, config, ports));
        }
        for node in &mut nodes {
            node.spawn();
        }
        for node in &mut nodes {
            assert!(node.wait_ready().await, "no cluster");
        }
        Self { folder, nodes }
    }

    /// A node that is not running yet, joining this cluster.
    pub(crate) fn newcomer(&mut self, configure: Configure) -> usize {
        let i = self.nodes.len();
        let home = self.folder.path().join(format!("node-{i}"));
        std::fs::create_dir(&home).unwrap();
        let ports = hold_ports(PORTS).unwrap();
        let own = &ports.addresses;
        let mut config = Config {
            data_dir: home.join("data"),
            grpc_listen: own[0],
            http_listen: own[1],
            transfer_listen: own[2],
            resp_listen: Some(own[3]),
            socket: Some(home.join("kiln.sock")),
            resp_socket: Some(home.join("resp.sock")),
            ..self.nodes[0].config.clone()
        };
        config.start = kiln::config::StartConfig::default();
        config.start.join =
            self.nodes.iter().map(|node| node.config.transfer_listen.to_string()).collect();
        configure(i, &mut config);
        self.nodes.push(TestNode::new(home, config, ports));
        i
    }

    /// The index of the node that leads, once one of `among` says so and means it.
    pub(crate) async fn leader(&self, among: &[usize]) -> usize {
        eventually("a leader", async || {
            for i in among {
                let Ok(status) = self.nodes[*i].status().await else { continue };
                let leads = self.nodes.iter().position(|node| node.id == status.leader);
                if let Some(leader) = leads.filter(|l| status.quorum && among.contains(l)) {
                    return Some(leader);
                }
            }
            None
        })
        .await
    }

    /// A counter summed over the nodes.
    pub(crate) async fn counter(&self, name: &str) -> u64 {
        let mut sum = 0;
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            sum += node.counter(name).await;
        }
        sum
    }
}

impl TestNode {
    fn new(folder: PathBuf, config: Config, ports: Held) -> Self {
        let ready = Value::Null;
        Self { id: 0, config, descriptors: None, folder, child: None, ready, _ports: ports }
    }

    /// Starts the process without waiting for it.
    pub(crate) fn spawn(&mut self) {
        let file = self.folder.join("config.toml");
        std::fs::write(&file, toml::to_string(&self.config).unwrap()).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let kiln = std::env::var("KILN_BINARY").unwrap_or(env!("CARGO_BIN_EXE_kiln").into());
        let mut command = match self.descriptors {
            None => Command::new(kiln),
            Some(limit) => {
                let mut limited = Command::new("sh");
                limited.args(["-c", "ulimit -n $0 && exec \"$@\"", &limit.to_string(), &kiln]);
                limited
            }
        };
        let child = command
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .env("KILN_CRASH_FILE", self.crash_file())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits for the ready line; false when the process ended before.
    pub(crate) async fn wait_ready(&mut self) -> bool {
        let stdout = self.child.as_mut().unwrap().stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(SOON, lines.next_line()).await;
        let Ok(line) = line else { panic!("node is not ready in time:\n{}", self.log()) };
        let Ok(Some(line)) = line else {
            eprintln!("node ended early:\n{}", self.log());
            return false;
        };
        self.ready = serde_json::from_str(&line).unwrap();
        self.id = self.ready["id"].as_u64().unwrap();
        true
    }

    pub(crate) async fn restart(&mut self) {
        self.spawn();
        assert!(self.wait_ready().await, "no restart");
    }

    /// SIGKILL, and the end of it.
    pub(crate) async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.unwrap();
    }

    /// Where builds with the feature `crash-points` read at which step they end.
    pub(crate) fn crash_file(&self) -> PathBuf {
        self.folder.join("crash")
    }

    /// The exit code of a process that ends by itself.
    #[allow(dead_code, reason = "for tests/cluster")]
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        timeout(SOON, child.wait()).await.expect("ends in time").unwrap().code()
    }

    /// Whether the process ended by itself, and was not waited for yet.
    #[allow(dead_code, reason = "for tests/crash")]
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    #[allow(dead_code, reason = "for tests/crash")]
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGTERM, and a tidy end.
    pub(crate) async fn terminate(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        let ended = timeout(SOON, child.wait()).await.expect("ends in time").unwrap();
        assert!(ended.success(), "{ended}:\n{}", self.log());
    }

    /// SIGSTOP: it answers nothing, and its connections stay.
    pub(crate) async fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
        let threads = format!("/proc/{}/task", self.pid());
        let stopped = async || {
            let threads = std::fs::read_dir(&threads).unwrap().flatten();
            let stat =
                |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat"));
            let mut states = threads.filter_map(|thread| stat(thread).ok());
            states.all(|stat| stat.contains(") T ")).then_some(())
        };
        eventually("the process to stand still", stopped).await;
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.config.data_dir
    }

    /// Files below the data folder that hold packs.
    pub(crate) fn packs(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, found);
                } else if !path.to_string_lossy().contains("quarantine") {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    let hex = name.len() >= 60 && name.bytes().all(|b| b.is_ascii_hexdigit());
                    found.extend(hex.then_some(path));
                }
            }
        }
        let mut found = Vec::new();
        walk(self.data(), &mut found);
        found
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) async fn client(&self) -> KilnClient<Channel> {
        let endpoint = format!("http://{}", self.config.grpc_listen);
        let channel = Channel::from_shared(endpoint).unwrap().connect_lazy();
        KilnClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    pub(crate) async fn status(&self) -> Result<pb::StatusResponse, Status> {
        let asked = self.client().await.status(pb::StatusRequest::default()).await;
        asked.map(tonic::Response::into_inner)
    }

    pub(crate) async fn counter(&self, name: &str) -> u64 {
        let status = self.status().await.unwrap();
        let found = status.counters.iter().find(|c| c.name == name);
        found.unwrap_or_else(|| panic!("no counter {name}")).value
    }

    /// Compiles, and returns how it ended for the one target.
    pub(crate) async fn compile(&self, request: pb::CompileRequest) -> Result<Compiled, Status> {
        self.compile_watching(request, |_| {}).await
    }

    /// The same, with each event before the last told to `watch`.
    pub(crate) async fn compile_watching(
        &self,
        request: pb::CompileRequest,
        mut watch: impl FnMut(&pb::compile_event::Event),
    ) -> Result<Compiled, Status> {
        let mut events = self.client().await.compile(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            let event = event.event.unwrap();
            if let pb::compile_event::Event::Done(done) = event {
                let manifest = SignedManifest::from(done.manifest.clone().unwrap());
                let key = manifest.read_unverified().unwrap().key;
                let (outcome, tier) = (done.outcome(), done.tier());
                let (pieces, strategy) = (done.pieces, done.strategy.unwrap_or_default());
                let check = done.check.unwrap();
                let (fallback, tried) = (done.fallback, done.tried);
                return Ok(Compiled {
                    key,
                    outcome,
                    tier,
                    manifest,
                    pieces,
                    strategy,
                    check,
                    fallback,
                    tried,
                });
            }
            watch(&event);
        }
        Err(Status::internal("the stream ended without a result"))
    }

    /// All bytes of an artifact.
    pub(crate) async fn fetch(
        &self,
        key: &ArtifactKey,
    ) -> Result<(pb::FetchHeader, Vec<u8>), Status> {
        let request = pb::FetchRequest {
            key: bytes_of(key),
            namespace: NAMESPACE.into(),
            ..Default::default()
        };
        let mut chunks = self.client().await.fetch(request).await?.into_inner();
        let (mut header, mut pack) = (None, Vec::new());
        while let Some(chunk) = chunks.message().await? {
            match chunk.chunk.unwrap() {
                pb::fetch_chunk::Chunk::Header(found) => header = Some(found),
                pb::fetch_chunk::Chunk::Data(bytes) => pack.extend_from_slice(&bytes),
            }
        }
        Ok((header.unwrap(), pack))
    }

    pub(crate) async fn lookup(&self, key: &ArtifactKey) -> Result<Option<pb::Entry>, Status> {
        let request = pb::LookupRequest {
            key: bytes_of(key),
            linearizable: false,
            namespace: NAMESPACE.into(),
        };
        let found = self.client().await.lookup(Request::new(request)).await?;
        Ok(found.into_inner().entry)
    }
}

/// The tenant of every test.
pub(crate) const NAMESPACE: &str = "default";

pub(crate) fn bytes_of(key: &ArtifactKey) -> prost::bytes::Bytes {
    prost::bytes::Bytes::copy_from_slice(key.as_bytes())
}

/// A CUDA source for sm_90.
pub(crate) fn cuda(source: impl Into<String>) -> pb::CompileRequest {
    let cuda = pb::CudaSource {
        name: "test.cu".into(),
        source: source.into().into_bytes().into(),
        ..Default::default()
    };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Cuda(cuda)),
        targets: vec![kiln_proto::Target::cubin(90).into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    }
}

/// A kernel whose name, and so whose key, is `name`.
pub(crate) fn saxpy(name: &str) -> pb::CompileRequest {
    cuda(format!(
        "extern \"C\" __global__ void {name}(int n, float a, const float* x, float* y) {{\n\
         int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] += a * x[i]; }}\n"
    ))
}

/// A source that keeps the compiler busy for some seconds per `weight` of 30.
pub(crate) fn slow(name: &str, weight: usize) -> pb::CompileRequest {
    let mut source = String::new();
    for k in 0..weight {
        source.push_str(&format!(
            "extern \"C\" __global__ void {name}_{k}(float* x) {{\n float a = x[threadIdx.x];\n\
             #pragma unroll\n for (int i = 0; i < 400; i++) a = a * x[i] + __sinf(a + {k}.0f * i);\n\
             x[threadIdx.x] = a; }}\n"
        ));
    }
    cuda(source)
}

/// Waits until `ask` answers, asking again and again, at most [`SOON`].
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        sleep_until(Instant::now() + Duration::from_millis(50)).await;
    }
}

/// The code in an error's metadata.
pub(crate) fn code(status: &Status) -> Option<&str> {
    status.metadata().get("kiln-code")?.to_str().ok()
}

/// The kind in an error's metadata.
pub(crate) fn kind(status: &Status) -> Option<&str> {
    status.metadata().get("kiln-kind")?.to_str().ok()
}

/// The metrics page of a node.
pub(crate) async fn metrics(node: &TestNode) -> String {
    http(node, "/metrics").await.1
}

/// Status code and body of a page on a node's HTTP port.
pub(crate) async fn http(node: &TestNode, path: &str) -> (u16, String) {
    try_http(node, path).await.expect("an answer")
}

/// The same of a node that may not listen yet.
pub(crate) async fn try_http(node: &TestNode, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(node.config.http_listen).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let code = answer.split(' ').nth(1)?.parse().ok()?;
    Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
}
