//! From the configuration to the settings of each part.
//!
//! Invariant: the only place that knows both; parts never see the whole
//! configuration.

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use kiln_cluster::{Joining, NodeFacts, Settings as ClusterSettings, Start, Timings};
use kiln_proto::NodeId;

use super::NodeError;
use crate::{
    cache::{
        Budget, BudgetSettings, CollectSettings, DiskSettings, EvictionSettings, MemorySettings,
        ObjectSettings, SystemClock, Tiers, TiersSettings,
    },
    check::{CheckSettings, Checker},
    compiler::{
        CompilerSettings, Compilers, Environment, Limits, PoolSettings, PythonSettings,
        ToolchainSettings,
    },
    config::{self, CollectConfig, Config, EvictionPolicy},
    manager,
    monitor::{Bounds, CoreSettings, Form, Knob, MonitorSettings, Receiver, Rules, WindowSettings},
    resp,
    telemetry::trace,
};

/// Time that a flight may take beyond one compile: queues, waits for others.
const FLIGHT_SLACK: Duration = Duration::from_secs(300);
/// Longest wait for memory that other blobs take.
const BLOB_WAIT: Duration = Duration::from_secs(5);
/// In which a Redis client must move 64 KiB of a long value.
const RESP_PROGRESS: Duration = Duration::from_secs(10);
/// After which a Redis command, or transaction, begins with no further key.
const RESP_LONGEST: Duration = Duration::from_secs(60);

/// Opens L1, L2 and L3; at most `blobs` exist at once.
pub(super) async fn tiers(config: &Config, blobs: usize) -> Result<Arc<Tiers>, NodeError> {
    let eviction = match config.disk.policy {
        EvictionPolicy::Cost => EvictionSettings::default(),
        EvictionPolicy::Lru => EvictionSettings::Lru,
    };
    let settings = TiersSettings {
        memory: MemorySettings {
            capacity: ByteSize(config.memory.bytes),
            max_entries: config.memory.entries as u64,
        },
        disk: DiskSettings {
            path: config.disk_path(),
            capacity: ByteSize(config.disk.bytes),
            eviction,
            ..DiskSettings::default()
        },
        object: object_settings(config)?,
    };
    Ok(Arc::new(Tiers::open(settings, budget(config, blobs), Arc::new(SystemClock)).await?))
}

/// How L3 is reached.
pub fn object_settings(config: &Config) -> Result<ObjectSettings, NodeError> {
    let credentials = config.object.credentials()?;
    Ok(ObjectSettings {
        url: config.object.url.clone(),
        endpoint: config.object.endpoint.clone(),
        region: config.object.region.clone(),
        access_key_id: credentials.as_ref().map(|c| c.access_key_id.clone()),
        secret_access_key: credentials.map(|c| c.secret_access_key),
        ..ObjectSettings::default()
    })
}

/// Memory for blobs: L1's, and that of what is on its way in or out.
fn budget(config: &Config, blobs: usize) -> Budget {
    Budget::new(BudgetSettings {
        bytes: config.memory.bytes.saturating_add(config.bytes_in_flight()),
        blobs: blobs as u64,
        wait: BLOB_WAIT,
    })
}

/// How L3's garbage is collected.
pub(super) fn collect(config: &Config) -> CollectSettings {
    let CollectConfig { orphan_after, grace, every } = config.object.collect;
    CollectSettings { orphan_after, grace, every }
}

fn program() -> Result<PathBuf, NodeError> {
    let doing = || "find this executable".into();
    std::env::current_exe().map_err(|source| NodeError::Io { doing: doing(), source })
}

/// What runs artifacts to see whether they are right: as many at once as compile.
pub(super) fn checker(config: &Config) -> Result<Checker, NodeError> {
    let settings = CheckSettings {
        pool: PoolSettings {
            workers: NonZero::new(config.concurrency()).unwrap_or(NonZero::<usize>::MIN),
            ..PoolSettings::default()
        },
        limits: Limits { time: config.compile.check_limit, ..limits(config) },
    };
    Ok(Checker::new(settings, &program()?, &config.data_dir.join("checks")))
}

/// Starts to look for the toolchains.
pub(super) fn compilers(config: &Config) -> Result<Compilers, NodeError> {
    let program = program()?;
    let settings = CompilerSettings {
        toolchain: ToolchainSettings {
            nvrtc: config.compile.nvrtc.clone(),
            ..ToolchainSettings::default()
        },
        pool: PoolSettings {
            workers: NonZero::new(config.concurrency()).unwrap_or(NonZero::<usize>::MIN),
            queue: config.compile.queue,
            ..PoolSettings::default()
        },
        limits: limits(config),
        python: PythonSettings {
            interpreter: config.compile.python.clone(),
            pool: PoolSettings {
                workers: NonZero::new(config.compile.python_workers)
                    .unwrap_or(NonZero::<usize>::MIN),
                queue: config.compile.queue,
                ..PoolSettings::default()
            },
        },
    };
    let folder = config.data_dir.join("workers");
    Ok(Compilers::start(&settings, &Environment::of_process(), &program, Path::new(&folder)))
}

/// The index's settings.
pub(super) fn cluster(config: &Config, facts: NodeFacts) -> ClusterSettings {
    let start = match config.start.join.is_empty() {
        false => Start::Join { peers: config.start.join.clone() },
        true => Start::Expect { voters: config.start.expect, peers: config.start.peers.clone() },
    };
    let timings = Timings {
        heartbeat: config.cluster.heartbeat,
        election_min: config.cluster.election_min,
        election_max: config.cluster.election_max,
        lease_ttl: config.cluster.lease_ttl,
        dead_after: config.cluster.dead_after,
        ..Timings::default()
    };
    ClusterSettings {
        data_dir: config.data_dir.join("index"),
        start,
        facts,
        timings,
        voter: config.cluster.voter,
        log_entries: config.cluster.log_entries,
        context: trace::outgoing,
        dial: None,
        joining: Joining {
            token_file: config.start.join_token_file.clone(),
            needs_token: config.cluster.join_needs_token,
            needs_proof: config.tls.members.proofs.are_required(),
            witness: None,
            refusals: None,
        },
    }
}

/// The settings of the port for Redis clients.
pub(super) fn resp(config: &Config) -> resp::Settings {
    resp::Settings {
        wait: config.resp.wait,
        // Validated with the rest of the configuration.
        families: config.resp.family_waits().unwrap_or_default(),
        max_value: config.resp.max_value,
        max_connections: config.resp.max_connections,
        users: config.resp.users.clone(),
        namespace: config.namespace.default.clone(),
        audits_values: config.audit.enabled && config.audit.values,
        progress: RESP_PROGRESS,
        longest: RESP_LONGEST,
    }
}

/// How the node watches itself.
pub(super) fn monitor(config: &Config, node: NodeId) -> MonitorSettings {
    let (monitor, optimizer) = (&config.monitor, &config.optimizer);
    MonitorSettings {
        every: monitor.every,
        emergency: monitor.emergency,
        core: CoreSettings {
            node,
            windows: WindowSettings { cycles: monitor.window, enough: monitor.enough },
            rules: Rules {
                apply: optimizer.apply,
                judged_after: optimizer.judged_after,
                rest: optimizer.rest,
            },
            bounds: bounds(config),
        },
    }
}

/// How far the optimizer may go, with 0 resolved.
fn bounds(config: &Config) -> Bounds {
    let optimizer = &config.optimizer;
    let or = |set: u64, else_: u64| if set == 0 { else_ } else { set };
    let workers = |configured: usize| {
        let (least, configured) = (optimizer.workers_min as u64, configured as u64);
        (least, or(optimizer.workers_max as u64, configured.saturating_mul(2)))
    };
    let (memory, disk) = (config.memory.bytes, config.disk.bytes);
    let (wait, limit) = (config.resp.wait, config.compile.memory_limit);
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut bounds = BTreeMap::from([
        (Knob::CompileWorkers, workers(config.concurrency())),
        (Knob::PythonWorkers, workers(config.compile.python_workers)),
        (Knob::MemoryBytes, (or(optimizer.memory_min, memory / 4), memory)),
        (Knob::DiskBytes, (or(optimizer.disk_min, disk / 2), or(optimizer.disk_max, disk))),
        (Knob::RespWait, (millis(optimizer.wait_min.min(wait)), millis(wait))),
        (Knob::CompileMemory, (limit, or(optimizer.compile_memory_max, limit.saturating_mul(2)))),
        (Knob::CleanUp, (0, 0)),
    ]);
    if optimizer.policy {
        bounds.insert(Knob::Eviction, (0, 1));
    }
    Bounds(bounds)
}

/// Who is told of alerts.
pub(super) fn receivers(config: &Config) -> Result<Vec<Receiver>, NodeError> {
    let named = [
        (Form::Webhook, &config.alerts.webhook),
        (Form::Alertmanager, &config.alerts.alertmanager),
    ];
    let named = named.into_iter().filter_map(|(form, url)| Some((form, url.as_ref()?)));
    let receiver = |(form, url): (Form, &String)| {
        Receiver::new(form, url).map_err(|why| NodeError::Alerts(form.name(), why))
    };
    named.map(receiver).collect()
}

/// The manager's settings.
pub(super) fn manager(config: &Config) -> manager::Settings {
    let limits = limits(config);
    manager::Settings {
        flight_limit: limits.time + FLIGHT_SLACK,
        limits,
        copies: match config.publish.copies {
            config::Copies::Nodes(nodes) => manager::Copies::Nodes(nodes),
            config::Copies::Object => manager::Copies::Object,
        },
        keep_requests: config.compile.keep_requests,
        spot_checks: config.trust.spot_checks,
        // Validated with the rest of the configuration.
        roots: config.trust.roots().unwrap_or_default(),
    }
}

fn limits(config: &Config) -> Limits {
    Limits { time: config.compile.time_limit, memory_bytes: config.compile.memory_limit }
}
