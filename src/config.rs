//! What a node can be told: plain serde with documented defaults.
//!
//! Invariant: a [`Config`] from [`Layers::load`] was validated, and each of its
//! values came from the last of defaults, file, environment and flags that set
//! it. A key that does not exist is an error wherever it is written.

mod access;
mod audit;
mod cluster;
mod credentials;
mod level;
mod load;
mod monitor;
mod prewarm;
mod publish;
mod reference;
mod resp;
mod slips;
mod tls;
mod trace;
mod trust;
mod units;
mod validate;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use access::{AccessConfig, OidcConfig};
pub use audit::AuditConfig;
pub use cluster::{ClusterConfig, StartConfig};
pub use credentials::Credentials;
pub use load::{ConfigError, Layers, environment_names};
pub use monitor::{AlertsConfig, MonitorConfig, OptimizerConfig};
pub use prewarm::PrewarmConfig;
pub use publish::{Copies, PublishConfig};
pub use resp::RespConfig;
pub use tls::{ClientsTlsConfig, MembersTlsConfig, Proofs, TlsConfig};
pub use trace::TraceConfig;
pub use trust::TrustConfig;

/// Everything that `kiln serve` is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where this node keeps its identity, log, index and disk tier.
    /// An empty folder makes a new node. Default: `kiln-data`.
    pub data_dir: PathBuf,
    /// The API for clients. Default: `127.0.0.1:7400`.
    pub grpc_listen: SocketAddr,
    /// `/metrics`, `/healthz`, `/readyz`. Default: `127.0.0.1:7401`.
    pub http_listen: SocketAddr,
    /// The members' port, for the other nodes alone: Raft, membership, artifact bytes.
    /// Default: `127.0.0.1:7402`.
    pub transfer_listen: SocketAddr,
    /// Unix socket on which clients of this machine get descriptors of sealed
    /// memory, and the API. Default: none; with `access.required` `kiln.sock` below `data_dir`.
    pub socket: Option<PathBuf>,
    /// Redis clients, or `off`. Default: `127.0.0.1:7403`.
    #[serde(with = "units::address")]
    pub resp_listen: Option<SocketAddr>,
    /// Unix socket for Redis clients of this machine. Default: none.
    pub resp_socket: Option<PathBuf>,
    /// Who may connect to these sockets, as octal digits: `0666` for processes of
    /// every user, who can then read and write as any client. Default: `0600`.
    pub socket_mode: String,
    /// Host under which other nodes reach this one. Default: the listen
    /// addresses' own, which must then not be a wildcard.
    pub advertise: Option<String>,
    /// Listen in plain text where other machines reach it. Default: false.
    pub insecure: bool,
    /// How an empty node finds its cluster.
    pub start: StartConfig,
    /// Cluster timings.
    pub cluster: ClusterConfig,
    /// L1.
    pub memory: MemoryConfig,
    /// L2.
    pub disk: DiskConfig,
    /// L3.
    pub object: ObjectConfig,
    /// Compilers.
    pub compile: CompileConfig,
    /// What is fetched before anybody asks for it.
    pub prewarm: PrewarmConfig,
    /// What Redis clients may do.
    pub resp: RespConfig,
    /// What an acknowledged publication is worth.
    pub publish: PublishConfig,
    /// What a request that names no namespace gets.
    pub namespace: NamespaceConfig,
    /// The daemon's own log, on stderr.
    pub log: LogConfig,
    /// TLS between members and with clients.
    pub tls: TlsConfig,
    /// Rights of clients.
    pub access: AccessConfig,
    /// Who did what, in files below `data_dir`.
    pub audit: AuditConfig,
    /// What is believed of what others sign.
    pub trust: TrustConfig,
    /// Traces of requests, for an OpenTelemetry collector.
    pub trace: TraceConfig,
    /// How the node watches itself.
    pub monitor: MonitorConfig,
    /// What the monitor may change.
    pub optimizer: OptimizerConfig,
    /// Who is told of what is wrong.
    pub alerts: AlertsConfig,
}

/// L1: verified bytes in sealed memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Most bytes. Default: 1 GiB.
    #[serde(with = "units::bytes")]
    pub bytes: u64,
    /// Most entries; each holds a file descriptor. As many more may be on their way
    /// in or out. Default: 4096.
    pub entries: usize,
    /// Most bytes, beside these, of what is on its way in or out: values that are
    /// received, packs that are published or sent to slow readers. 0: half of `bytes`,
    /// at least 256 MiB. Default: 0.
    #[serde(with = "units::bytes")]
    pub in_flight: u64,
}

/// L2: content-addressed files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Most bytes. Default: 20 GiB.
    #[serde(with = "units::bytes")]
    pub bytes: u64,
    /// What is evicted first. Default: `cost`.
    pub policy: EvictionPolicy,
    /// Default: `tier` below `data_dir`.
    pub path: Option<PathBuf>,
}

/// What a full disk tier gives up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvictionPolicy {
    /// What saves the fewest compile seconds per byte, decayed by time since use.
    Cost,
    /// What was used longest ago.
    Lru,
}

/// L3: an object store that all nodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectConfig {
    /// `s3://BUCKET/PREFIX` or `file:///FOLDER`. Default: no object tier.
    pub url: Option<String>,
    /// Of an S3 that is not AWS: `http://127.0.0.1:8333`.
    pub endpoint: Option<String>,
    /// S3 region. Default: `us-east-1`.
    pub region: String,
    /// Profile of the AWS shared credentials file. Default: the environment's
    /// `AWS_*`, else the container's or the instance's credentials.
    pub profile: Option<String>,
    /// What becomes of objects that nothing needs.
    pub collect: CollectConfig,
}

/// The collector of L3's garbage, which the leader runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectConfig {
    /// Age at which an object to which nothing refers is condemned: longer than an
    /// upload and its commit can take, clocks' differences included. Default: 1 day.
    #[serde(with = "humantime_serde")]
    pub orphan_after: Duration,
    /// From then until it is deleted: longer than a reader relies on what the index
    /// said. Default: 1 h.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Between two passes over the store. Default: 10 min.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
}

/// Limits and libraries of compiles, each of which is a child process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompileConfig {
    /// A compile that runs longer is stopped: C004. Default: 10 min.
    #[serde(with = "humantime_serde")]
    pub time_limit: Duration,
    /// Address space of a compile; one that asks for more fails: C005. Default: 8 GiB.
    #[serde(with = "units::bytes")]
    pub memory_limit: u64,
    /// Compiles at once; 0: one for each core. Default: 0.
    pub concurrency: usize,
    /// Requests that wait for a free compiler of a kind; one more is refused as busy.
    /// Default: 1024.
    pub queue: usize,
    /// NVRTC: the library or its folder. Default: looked for in `LD_LIBRARY_PATH`,
    /// `CUDA_HOME`, the active virtual environment, CUDA's usual folders, and last in
    /// Kiln's cache folder.
    pub nvrtc: Option<PathBuf>,
    /// A Python interpreter that has torch: the node then has the compilers
    /// `inductor` and `inductor-standalone`, and with NVRTC `mixed`. Default: none.
    pub python: Option<PathBuf>,
    /// Programs that Inductor compiles at once; one more worker waits warm. Default: 1.
    pub python_workers: usize,
    /// A check (`kiln compile --verify`) that runs longer is stopped, and what it ran is
    /// not published; a third of it is the reference interpreter's. Default: 90 s.
    #[serde(with = "humantime_serde")]
    pub check_limit: Duration,
    /// Bound on a request that names none. Default: 15 min.
    #[serde(with = "humantime_serde")]
    pub default_deadline: Duration,
    /// Largest request that is kept beside its artifact, so that a later toolchain can
    /// compile it again (`kiln plan --prewarm`); 0: none is kept. Default: 16 MiB.
    #[serde(with = "units::bytes")]
    pub keep_requests: u64,
}

/// What a request that names no namespace gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceConfig {
    /// Its namespace. Default: `default`.
    pub default: String,
}

/// The daemon's own log, on stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or directives: `info,kiln=debug`. Default: `info,openraft=warn`.
    pub level: String,
    /// For people or for machines. Default: `text`.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data_dir: "kiln-data".into(),
            grpc_listen: loopback(7400),
            http_listen: loopback(7401),
            transfer_listen: loopback(7402),
            socket: None,
            resp_listen: Some(loopback(7403)),
            resp_socket: None,
            socket_mode: "0600".into(),
            advertise: None,
            insecure: false,
            start: StartConfig::default(),
            cluster: ClusterConfig::default(),
            memory: MemoryConfig::default(),
            disk: DiskConfig::default(),
            object: ObjectConfig::default(),
            compile: CompileConfig::default(),
            prewarm: PrewarmConfig::default(),
            resp: RespConfig::default(),
            publish: PublishConfig::default(),
            namespace: NamespaceConfig::default(),
            log: LogConfig::default(),
            tls: TlsConfig::default(),
            access: AccessConfig::default(),
            audit: AuditConfig::default(),
            trust: TrustConfig::default(),
            trace: TraceConfig::default(),
            monitor: MonitorConfig::default(),
            optimizer: OptimizerConfig::default(),
            alerts: AlertsConfig::default(),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { bytes: GIB, entries: 4096, in_flight: 0 }
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { bytes: 20 * GIB, policy: EvictionPolicy::Cost, path: None }
    }
}

impl Default for ObjectConfig {
    fn default() -> Self {
        Self {
            url: None,
            endpoint: None,
            region: "us-east-1".into(),
            profile: None,
            collect: CollectConfig::default(),
        }
    }
}

impl Default for CollectConfig {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { orphan_after: 24 * 60 * minute, grace: 60 * minute, every: 10 * minute }
    }
}

impl Default for CompileConfig {
    fn default() -> Self {
        Self {
            time_limit: Duration::from_secs(600),
            memory_limit: 8 * GIB,
            concurrency: 0,
            queue: 1024,
            nvrtc: None,
            python: None,
            python_workers: 1,
            check_limit: Duration::from_secs(90),
            default_deadline: Duration::from_secs(900),
            keep_requests: 16 * MIB,
        }
    }
}

impl Default for NamespaceConfig {
    fn default() -> Self {
        Self { default: "default".into() }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info,openraft=warn".into(), format: LogFormat::Text }
    }
}

impl Config {
    /// The folder of the disk tier.
    pub fn disk_path(&self) -> PathBuf {
        self.disk.path.clone().unwrap_or_else(|| self.data_dir.join("tier"))
    }

    /// The unix socket for clients of this machine. Where callers need a right there is one
    /// always: the first token is made at it.
    pub fn socket_path(&self) -> Option<PathBuf> {
        let own = || self.access.required.then(|| self.data_dir.join("kiln.sock"));
        self.socket.clone().or_else(own)
    }

    /// `bound`, a listener's real address, as other nodes reach it.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(host) if host.contains(':') => format!("[{host}]:{}", bound.port()),
            Some(host) => format!("{host}:{}", bound.port()),
            None => bound.to_string(),
        }
    }

    /// The permissions that `socket_mode` names.
    pub fn socket_permissions(&self) -> Option<u32> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777)
    }

    /// Bytes of blobs beside L1, with 0 resolved.
    pub fn bytes_in_flight(&self) -> u64 {
        match self.memory.in_flight {
            0 => (self.memory.bytes / 2).max(256 * MIB),
            bytes => bytes,
        }
    }

    /// Compiles at once, with 0 resolved to the number of cores.
    pub fn concurrency(&self) -> usize {
        match self.compile.concurrency {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// The whole configuration as a file that [`Layers::load`] reads back as it is.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|e| format!("# cannot be written: {e}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_key_families_are_read_from_text() {
        let families = vec!["pt2:a=b::*=1m 30s".into(), "plain:*=0s".into()];
        let config = RespConfig { families, ..RespConfig::default() };
        let expected = [("pt2:a=b::*", 90), ("plain:*", 0)]
            .map(|(pattern, wait)| (pattern.to_owned(), Duration::from_secs(wait)));
        assert_eq!(config.family_waits().unwrap(), expected);
    }

    #[test]
    fn advertised_addresses_keep_the_real_port() {
        let bound: SocketAddr = "10.0.0.5:4711".parse().unwrap();
        let with = |advertise: Option<&str>| {
            Config { advertise: advertise.map(str::to_owned), ..Config::default() }
                .advertised(bound)
        };
        assert_eq!(with(None), "10.0.0.5:4711");
        assert_eq!(with(Some("kiln-0.kiln")), "kiln-0.kiln:4711");
        assert_eq!(with(Some("fd00::5")), "[fd00::5]:4711");
    }

    #[test]
    fn the_disk_tier_lives_with_the_data_unless_told_otherwise() {
        let mut config = Config { data_dir: "/var/lib/kiln".into(), ..Config::default() };
        assert_eq!(config.disk_path(), PathBuf::from("/var/lib/kiln/tier"));
        config.disk.path = Some("/nvme".into());
        assert_eq!(config.disk_path(), PathBuf::from("/nvme"));
    }
}
