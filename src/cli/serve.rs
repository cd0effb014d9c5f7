//! `kiln serve`: one node.
//!
//! Invariant: stdout has nothing but one JSON line, written when the node is
//! ready; the log goes to stderr.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use kiln::{
    config::{Config, Layers, LogFormat},
    node::{Node, ReadyInfo as Ready},
    telemetry::trace::{self, Tracing},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{
    Layer,
    filter::{FilterExt, dynamic_filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::{CliError, output};

const EXAMPLES: &str = "\
Examples:
  kiln serve --data-dir /var/lib/kiln
  kiln serve --config /etc/kiln.toml --set memory.bytes=4GiB
  kiln serve --expect 3 --peer dns:kiln.default.svc:7402 --advertise kiln-0.kiln
  kiln serve --join 10.0.0.1:7402 --data-dir /var/lib/kiln
  kiln serve --config /etc/kiln.toml --print-config
  kiln serve --print-config --all > /etc/kiln.toml

Every key of the configuration is also an environment variable: memory.bytes is
KILN_MEMORY_BYTES. Flags override the environment, and that overrides the file.";

/// Run one node of a cluster.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    /// TOML file with the configuration.
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG")]
    config: Option<PathBuf>,
    /// Folder for the node's identity, log, index and disk tier.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the gRPC port, for clients; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    grpc_listen: Option<SocketAddr>,
    /// Address of the HTTP port: the dashboard, /metrics, /healthz, /readyz.
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<SocketAddr>,
    /// Address of the members' port, for the other nodes alone.
    #[arg(long, value_name = "ADDR")]
    transfer_listen: Option<SocketAddr>,
    /// Unix socket for clients on this machine.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Address of the port for Redis clients, or off.
    #[arg(long, value_name = "ADDR|off")]
    resp_listen: Option<String>,
    /// Unix socket for Redis clients on this machine.
    #[arg(long, value_name = "PATH")]
    resp_socket: Option<PathBuf>,
    /// Host under which other nodes reach this one.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Take plain text from other machines: whoever reaches a port can then read and change
    /// what every node runs.
    #[arg(long)]
    insecure: bool,
    /// Found a cluster of this many voters with the --peer nodes.
    #[arg(long, alias = "bootstrap-expect", value_name = "N")]
    expect: Option<usize>,
    /// The members' port of a founding voter: HOST:PORT, or dns:NAME:PORT. May be repeated.
    #[arg(long = "peer", value_name = "ADDR", value_delimiter = ',')]
    peers: Vec<String>,
    /// Join the cluster of the node with this members' port. May be repeated.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', conflicts_with = "expect")]
    join: Vec<String>,
    /// Object tier: s3://BUCKET/PREFIX or file:///FOLDER.
    #[arg(long, value_name = "URL")]
    object: Option<String>,
    /// Log level, or directives such as info,kiln=debug.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Any other key of the configuration. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Print the merged configuration as TOML, and stop.
    #[arg(long)]
    print_config: bool,
    /// With --print-config: every setting there is with its default, unit, environment
    /// variable and what it does, whatever this node is told.
    #[arg(long, requires = "print_config")]
    all: bool,
    /// Write the ready line into this file as well, once it is complete.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, such as memory.bytes=4GiB".into()),
    }
}

impl Serve {
    /// Runs a node until it is told to stop.
    pub(crate) fn run(self) -> Result<(), CliError> {
        if self.all {
            return output::line(Config::reference().trim_end());
        }
        let layers = self.layers(std::env::vars().collect());
        for slip in layers.slips() {
            eprintln!("warning: {slip}");
        }
        let config = layers.load()?;
        if self.print_config {
            return output::line(config.to_toml().trim_end());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.serve(config))
    }

    fn layers(&self, environment: Vec<(String, String)>) -> Layers {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
        let address = |address: Option<SocketAddr>| address.map(|a| a.to_string());
        let list = |list: &[String]| (!list.is_empty()).then(|| list.join(","));
        let named = [
            ("data_dir", path(&self.data_dir)),
            ("grpc_listen", address(self.grpc_listen)),
            ("http_listen", address(self.http_listen)),
            ("transfer_listen", address(self.transfer_listen)),
            ("socket", path(&self.socket)),
            ("resp_listen", self.resp_listen.clone()),
            ("resp_socket", path(&self.resp_socket)),
            ("advertise", self.advertise.clone()),
            ("insecure", self.insecure.then(|| "true".to_owned())),
            ("start.expect", self.expect.map(|n| n.to_string())),
            ("start.peers", list(&self.peers)),
            ("start.join", list(&self.join)),
            ("object.url", self.object.clone()),
            ("log.level", self.log_level.clone()),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let flags = self.settings.iter().cloned().chain(named).collect();
        Layers { file: self.config.clone(), environment, flags }
    }

    async fn serve(self, config: Config) -> Result<(), CliError> {
        let stop = CancellationToken::new();
        let tracing = start_log(&config, stop.clone())?;
        let signals = stop_on_signal(stop.clone())?;
        let ready_file = self.ready_file;
        let served = run_node(config, stop, |ready| {
            if let Some(path) = &ready_file {
                write_whole(path, &ready).with_context(|| format!("write {}", path.display()))?;
            }
            output::json(&ready).map_err(anyhow::Error::from)
        });
        let served = served.await;
        tracing.end().await;
        signals.abort();
        served.map_err(CliError::of_node)
    }
}

/// Starts the node, tells that it is ready, and runs it until `stop`.
async fn run_node(
    config: Config,
    stop: CancellationToken,
    announce: impl FnOnce(Ready) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let metrics = kiln::node::install_metrics()?;
    let node = tokio::select! {
        node = Node::start(config, metrics) => node?,
        // Told to stop while it still waited for the other nodes.
        () = stop.cancelled() => return Ok(()),
    };
    announce(node.ready().clone())?;
    Ok(node.run_until(stop).await?)
}

/// The first SIGINT or SIGTERM stops in order; a second ends the process.
pub(crate) fn stop_on_signal(
    stop: CancellationToken,
) -> std::io::Result<tokio::task::JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                std::process::exit(130);
            }
            stop.cancel();
        }
    }))
}

/// A reader of the file sees nothing or all of it.
fn write_whole(path: &Path, ready: &Ready) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut temp, ready)?;
    writeln!(temp)?;
    temp.persist(path)?;
    Ok(())
}

/// Starts the log and the traces; needs the runtime. From `stop` on the Raft library says
/// nothing: that it was stopped is an error to it, with all its state.
fn start_log(config: &Config, stop: CancellationToken) -> Result<Tracing, CliError> {
    let tracing = Tracing::start(&config.trace).context("trace.endpoint")?;
    // Whatever is logged names the call that it is about.
    let calls = format!("{}=info", trace::TARGET).parse().map_err(anyhow::Error::from)?;
    let filter = config.log.filter().map_err(CliError::Usage)?.add_directive(calls);
    let filter = filter.and(dynamic_filter_fn(move |line, _| says(line.target(), &stop)));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let traces = tracing.layer();
    match config.log.format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let log = log.with_ansi(ansi).with_filter(filter);
            tracing_subscriber::registry().with(traces).with(log).init();
        }
        LogFormat::Json => {
            let log = log.json().with_filter(filter);
            tracing_subscriber::registry().with(traces).with(log).init();
        }
    }
    Ok(tracing)
}

/// Whether a line of `target` belongs into the log of a node that `stop` ends.
fn says(target: &str, stop: &CancellationToken) -> bool {
    !stop.is_cancelled() || !target.starts_with("openraft")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        serve: Serve,
    }

    fn config(line: &str, environment: &[(&str, &str)]) -> Config {
        let serve = Probe::try_parse_from(line.split(' ')).unwrap().serve;
        let environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        serve.layers(environment.collect()).load().unwrap()
    }

    #[test]
    fn flags_override_the_environment() {
        let environment =
            [("KILN_GRPC_LISTEN", "127.0.0.1:1"), ("KILN_HTTP_LISTEN", "127.0.0.1:2")];
        let config = config(
            "probe --grpc-listen 127.0.0.1:0 --set memory.bytes=4GiB --set start.peers=x:1 \
             --expect 3 --peer a:1,b:2 --peer c:3 --object file:///l3 --resp-listen off",
            &environment,
        );
        assert_eq!((config.grpc_listen.port(), config.http_listen.port()), (0, 2));
        assert_eq!(config.memory.bytes, 4 << 30);
        assert_eq!(config.start.peers, ["a:1", "b:2", "c:3"], "a named flag beats --set");
        assert_eq!(config.object.url.as_deref(), Some("file:///l3"));
        assert_eq!(config.resp_listen, None);
    }

    #[test]
    fn an_orderly_stop_is_no_error_of_the_raft_library() {
        let (stop, buffer) = (CancellationToken::new(), Written::default());
        let token = stop.clone();
        let filter = Config::default().log.filter().unwrap();
        let filter = filter.and(dynamic_filter_fn(move |line, _| says(line.target(), &token)));
        let log = tracing_subscriber::fmt::layer().with_writer(buffer.clone()).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
            let line = |text| tracing::error!(target: "openraft::core", "{text}");
            line("first");
            stop.cancel();
            line("second");
            tracing::info!(target: "kiln::node", "third");
        });
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        assert!(text.contains("first") && text.contains("third"), "{text}");
        assert!(!text.contains("second"), "{text}");
    }

    /// What a log wrote.
    #[derive(Clone, Default)]
    struct Written(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl tracing_subscriber::fmt::MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn founding_and_joining_exclude_each_other() {
        assert!(Probe::try_parse_from(["probe", "--expect", "3", "--join", "a:1"]).is_err());
        assert_eq!(config("probe --join a:1", &[]).start.join, ["a:1"]);
        assert_eq!(config("probe --bootstrap-expect 1", &[]).start.expect, 1);
    }

    #[test]
    fn the_ready_line_holds_its_shape() {
        let ready = Ready {
            id: 3,
            grpc: "127.0.0.1:1".into(),
            http: "127.0.0.1:2".into(),
            transfer: "127.0.0.1:3".into(),
            socket: None,
            resp: Some("127.0.0.1:4".into()),
            resp_socket: None,
            compilers: vec!["eager".into()],
            missing: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ready.json");
        write_whole(&file, &ready).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(
            text,
            "{\"id\":3,\"grpc\":\"127.0.0.1:1\",\"http\":\"127.0.0.1:2\",\
             \"transfer\":\"127.0.0.1:3\",\"socket\":null,\
             \"resp\":\"127.0.0.1:4\",\"resp_socket\":null,\
             \"compilers\":[\"eager\"],\"missing\":[]}\n"
        );
        assert_eq!(serde_json::from_str::<Ready>(&text).unwrap(), ready);
    }
}
