//! `kiln audit`: what the audit log of a node says, and whether it is as it was written.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kiln::audit::{self, Found, Line};
use kiln_proto::pb;

use super::{CliError, ClientArgs, output};

const EXAMPLES: &str = "\
Examples:
  kiln audit show --data-dir /var/lib/kiln --last 20
  kiln audit show --data-dir /var/lib/kiln --event denied --json
  kiln audit verify --data-dir /var/lib/kiln --node 3
  kiln audit verify --data-dir /mnt/copy/kiln --offline

Each node has its own log, below its data folder. What was cut off at its end is found by
asking the cluster how far it had come, which it is told once a minute.";

/// Read the audit log of a node, and check it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    what: What,
    /// The node's data folder.
    #[arg(long, value_name = "DIR", global = true, default_value = "kiln-data")]
    data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print its lines.
    Show {
        /// Only events of this kind: publish, remove, denied, ...
        #[arg(long, value_name = "EVENT")]
        event: Option<String>,
        /// Only the last so many.
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Whether no line was changed, taken out, moved or cut off.
    Verify {
        /// Whose log it is; without, the node's that is asked.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        node: u64,
        /// Ask no cluster: what was cut off at the end is not found then.
        #[arg(long)]
        offline: bool,
    },
}

impl AuditArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        match &self.what {
            What::Show { event, last } => self.show(event.as_deref(), *last),
            What::Verify { node, offline } => self.verify(*node, *offline).await,
        }
    }

    fn read(
        &self,
        known: Option<(u64, [u8; 32])>,
        see: impl FnMut(&Line),
    ) -> Result<Found, CliError> {
        let folder = audit::folder(&self.data_dir);
        let found = audit::verify(&folder, known, see);
        found.map_err(|e| {
            CliError::Usage(format!("read {}: {e}; is --data-dir right?", folder.display()))
        })
    }

    fn show(&self, event: Option<&str>, last: Option<usize>) -> Result<(), CliError> {
        let most = last.unwrap_or(usize::MAX);
        let mut lines = std::collections::VecDeque::new();
        self.read(None, |line| {
            if event.is_none_or(|event| event == line.event) {
                lines.push_back(line.clone());
                if lines.len() > most {
                    lines.pop_front();
                }
            }
        })?;
        for line in &lines {
            if self.client.json {
                output::json(line)?;
                continue;
            }
            let Line { at, event, who, subject, namespace, detail, .. } = line;
            let within =
                if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
            let said = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            output::line(format_args!("{at}  {event:<14}{subject}{within} by {who}{said}"))?;
        }
        Ok(())
    }

    async fn verify(&self, node: u64, offline: bool) -> Result<(), CliError> {
        let known = match offline {
            true => None,
            false => {
                let mut client = self.client.endpoints.connect().await?;
                let request = pb::AuditHeadRequest { node };
                let asked = client.audit_head(request).await;
                let head = asked.map_err(|e| CliError::from_status(&e))?.into_inner();
                <[u8; 32]>::try_from(&head.digest[..]).ok().map(|digest| (head.sequence, digest))
            }
        };
        let found = self.read(known, |_| {})?;
        let Found { first, last, lost, problems } = &found;
        let compared = known.map(|(sequence, _)| sequence);
        if self.client.json {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            output::json(&serde_json::json!({
                "ok": problems.is_empty(), "first": first, "last": last, "lost": lost,
                "compared_to": compared, "problems": problems,
            }))?;
        } else {
            for problem in problems {
                output::line(format_args!("WRONG: {problem}"))?;
            }
            output::line(format_args!("lines {first} to {last}; events in no line: {lost}"))?;
            output::line(format_args!(
                "{}",
                match compared {
                    Some(sequence) => format!("the cluster knows of line {sequence}"),
                    None =>
                        "the cluster knows of no line: what was cut off at the end is not found"
                            .into(),
                }
            ))?;
        }
        match problems.len() {
            0 => Ok(()),
            wrong => Err(CliError::failed(
                kiln_proto::FailureKind::Corrupt,
                format!("the audit log is not as it was written: {wrong} places"),
            )),
        }
    }
}
