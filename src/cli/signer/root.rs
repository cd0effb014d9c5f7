//! `kiln signer root`, `issue` and `key`: what is done beside the root's key, off the nodes.
//!
//! Invariant: nothing here speaks to a node; the root's key is in one file, which is its
//! owner's alone, and never in any output.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use kiln::{clock, identity};
use kiln_proto::root::{RootStatement, Says, SignerCertificate};

use super::file;
use crate::cli::{CliError, output};

const DAY_MS: u64 = 24 * 3600 * 1000;

#[derive(Debug, Args)]
pub(super) struct RootArgs {
    #[command(subcommand)]
    what: RootWhat,
}

#[derive(Debug, Subcommand)]
enum RootWhat {
    /// Make the root's key, in a new file. Keep it off the nodes: whoever has it says whose
    /// code the fleet runs.
    Init {
        /// The new file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write what makes the key the cluster's root, once that is added; and whether a signer
    /// without a certificate is believed.
    Sign {
        /// The root's key, as `init` made it.
        #[arg(long, value_name = "FILE")]
        root: PathBuf,
        /// Believe no signer without a certificate.
        #[arg(long)]
        required: bool,
        /// The new file, for `kiln signer add`.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        of: Of,
    },
    /// Write that another key is to be the root. It is as soon as it says so itself, by
    /// `root sign`, and has certified every node that the present one had to.
    Next {
        /// The public key of the next root, as its `init` showed it; this root's own: none is to
        /// be, after all.
        #[arg(value_name = "KEY", value_parser = file::key)]
        next: ed25519_dalek::VerifyingKey,
        /// The present root's key, as `init` made it.
        #[arg(long, value_name = "FILE")]
        root: PathBuf,
        /// The new file, for `kiln signer add`.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        of: Of,
    },
}

/// What each statement has.
#[derive(Debug, Args)]
struct Of {
    /// The cluster that it is for, as `kiln signer list` shows it; it counts in no other one.
    #[arg(long, value_name = "ID", value_parser = cluster)]
    cluster: u64,
    /// Of two statements about one thing the one with the higher number counts. Without: the
    /// milliseconds of this machine's clock, which has to be right then.
    #[arg(long, value_name = "N")]
    serial: Option<u64>,
}

impl Of {
    fn serial(&self) -> u64 {
        self.serial.unwrap_or_else(clock::unix_ms)
    }

    fn statement(&self, says: Says) -> RootStatement {
        RootStatement { serial: self.serial(), cluster: self.cluster, says }
    }
}

/// A cluster's name, as people write it.
fn cluster(text: &str) -> Result<u64, String> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let read = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    let why = "a cluster's name has 16 hexadecimal digits: kiln signer list shows it";
    read.filter(|cluster| *cluster != 0).ok_or_else(|| why.to_owned())
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The signer's public key in hexadecimal: `kiln signer list` and `kiln signer key` show it.
    #[arg(value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    key: String,
    /// The root's key, as `kiln signer root init` made it.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// A namespace in which it may sign, the beginning of some with * behind, or *; again for
    /// more.
    #[arg(long = "namespace", value_name = "NAME", required = true, value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Only as the node of this id.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    node: Option<u64>,
    /// For people: whose it is.
    #[arg(long, default_value = "")]
    name: String,
    /// Days that it is good for. Without: until the key is revoked, or another certificate
    /// is added for it. What it signed misses when it is over.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: Option<u64>,
    /// The new file, for `kiln signer add`.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// Data folder of the node; its key is made there if the node has not run yet.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

impl RootArgs {
    pub(super) fn run(self, json: bool) -> Result<(), CliError> {
        let key = match &self.what {
            RootWhat::Init { file } => identity::create(file),
            RootWhat::Sign { root, .. } | RootWhat::Next { root, .. } => identity::read(root),
        };
        let key = key.map_err(|e| CliError::Usage(e.to_string()))?;
        let public = hex::encode(key.verifying_key().as_bytes());
        let written = match self.what {
            RootWhat::Init { file } => file,
            RootWhat::Sign { required, out, of, .. } => {
                file::write(&out, &key, &of.statement(Says::Root { required }))?;
                out
            }
            RootWhat::Next { next, out, of, .. } => {
                file::write(&out, &key, &of.statement(Says::Next { key: next.to_bytes() }))?;
                out
            }
        };
        told(json, "root", &public, &written)
    }
}

impl IssueArgs {
    pub(super) fn run(self, json: bool) -> Result<(), CliError> {
        let key = file::key(&self.key).map_err(CliError::Usage)?;
        let root = identity::read(&self.root).map_err(|e| CliError::Usage(e.to_string()))?;
        let now = clock::unix_ms();
        let certificate = SignerCertificate {
            key: key.to_bytes(),
            node: self.node,
            name: self.name,
            namespaces: self.namespaces,
            // Clocks of other machines may be behind.
            not_before_unix_ms: now.saturating_sub(DAY_MS / 24),
            not_after_unix_ms: self.days.map(|days| now + days * DAY_MS),
        };
        file::write(&self.out, &root, &self.of.statement(Says::Signer(certificate)))?;
        told(json, "key", &hex::encode(key.as_bytes()), &self.out)
    }
}

impl KeyArgs {
    pub(super) fn run(self, json: bool) -> Result<(), CliError> {
        let key = identity::load_or_create(&self.data_dir);
        let key = key.map_err(|e| CliError::Usage(e.to_string()))?;
        let public = hex::encode(key.verifying_key().as_bytes());
        match json {
            true => output::json(&serde_json::json!({ "key": public })),
            false => output::line(public),
        }
    }
}

fn told(json: bool, what: &str, key: &str, written: &std::path::Path) -> Result<(), CliError> {
    let written = written.display().to_string();
    match json {
        true => output::json(&serde_json::json!({ what: key, "written": written })),
        false => output::line(format_args!("wrote {written} ({what} {key})")),
    }
}
