//! `kiln emergency`: do without compilers or cache for a while.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand, ValueEnum};
use kiln_proto::pb;
use serde::Serialize;

use super::{CliError, ClientArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln emergency status
  kiln emergency on compilers --reason 'the toolkit is being exchanged'
  kiln emergency on cache
  kiln emergency off";

/// Do without a node's compilers or its cache, or stop doing so.
///
/// Without compilers, what is stored is still served, and what would have to be compiled is
/// refused at once. Without the cache each request is compiled alone, and nothing is kept.
/// What is turned on here stays until it is turned off; the monitor turns on and off by
/// itself what it sees fail and recover.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EmergencyArgs {
    #[command(subcommand)]
    turn: Turn,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Turn {
    /// Begin to do without.
    On {
        /// Without what; both where nothing is said.
        system: Option<SystemArg>,
        /// Why, for those who look at the node.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Stop doing without. The disk tier is swept and looked at first; if it does not work
    /// the cache stays off.
    Off {
        /// What is to be used again; both where nothing is said.
        system: Option<SystemArg>,
    },
    /// Show what the node does without.
    Status,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SystemArg {
    Compilers,
    Cache,
}

/// What a node does without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ModeView {
    compilers: Option<CauseView>,
    cache: Option<CauseView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CauseView {
    /// `monitor` or `person`.
    by: String,
    why: String,
    since_unix_ms: u64,
}

impl EmergencyArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let request = self.turn.request();
        let asked = self.client.endpoints.attempt(async |mut client| {
            client.emergency(request.clone()).await.map_err(|e| CliError::from_status(&e))
        });
        let mode = asked.await?.into_inner().mode.unwrap_or_default();
        let view = ModeView::from(mode);
        match self.client.json {
            true => output::json(&view),
            false => output::line(view),
        }
    }
}

impl Turn {
    fn request(self) -> pb::EmergencyRequest {
        use pb::EmergencyTurn::{Begin, End, Unspecified};
        let (turn, system, reason) = match self {
            Self::On { system, reason } => (Begin, system, reason),
            Self::Off { system } => (End, system, String::new()),
            Self::Status => (Unspecified, None, String::new()),
        };
        let system = match system {
            None => pb::EmergencySystem::Unspecified,
            Some(SystemArg::Compilers) => pb::EmergencySystem::Compilers,
            Some(SystemArg::Cache) => pb::EmergencySystem::Cache,
        };
        pb::EmergencyRequest { turn: turn.into(), system: system.into(), reason }
    }
}

impl From<pb::EmergencyMode> for ModeView {
    fn from(mode: pb::EmergencyMode) -> Self {
        let cause = |cause: pb::EmergencyCause| CauseView {
            by: cause.by,
            why: cause.why,
            since_unix_ms: cause.since_unix_ms,
        };
        Self { compilers: mode.compilers.map(cause), cache: mode.cache.map(cause) }
    }
}

impl fmt::Display for ModeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = [("compilers", &self.compilers), ("cache", &self.cache)];
        let told: Vec<String> = off
            .into_iter()
            .filter_map(|(name, cause)| {
                let CauseView { by, why, since_unix_ms } = cause.as_ref()?;
                Some(format!("{name} off since {} by {by}: {why}", time(*since_unix_ms)))
            })
            .collect();
        match told.is_empty() {
            true => f.write_str("the node does without nothing"),
            false => f.write_str(&told.join("; ")),
        }
    }
}

/// A time as people read it.
pub(crate) fn time(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    humantime::format_rfc3339_seconds(time.unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
}
