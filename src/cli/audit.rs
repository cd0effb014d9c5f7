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

/// The line without what would begin another one, or move the cursor: its writers choose
/// words in it.
fn plain(line: &Line) -> Line {
    let mut plain = line.clone();
    let Line { at, event, who, subject, namespace, detail, .. } = &mut plain;
    for text in [at, event, who, subject, namespace, detail] {
        if text.chars().any(is_hidden) {
            let shown = text.chars().map(|char| match is_hidden(char) {
                true => char.escape_unicode().to_string(),
                false => char.to_string(),
            });
            *text = shown.collect();
        }
    }
    plain
}

/// Control characters, and those that turn the direction of what follows.
fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
        let mut lines = Vec::new();
        self.read(None, |line| {
            if event.is_none_or(|event| event == line.event) {
                lines.push(line.clone());
            }
        })?;
        // Part by part they come; of one time, in the order of each part.
        lines.sort_by(|a, b| a.at.cmp(&b.at));
        let most = last.unwrap_or(usize::MAX);
        for line in &lines[lines.len().saturating_sub(most)..] {
            if self.client.json {
                output::json(line)?;
                continue;
            }
            let Line { at, event, who, subject, namespace, detail, .. } = &plain(line);
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
        let Found { first, last, lost, problems, .. } = &found;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_words_of_a_caller_are_a_line_of_their_own() {
        let detail = "x\n2026-11-28T00:00:00Z  create_token\u{1b}[2K ü \u{202e}".to_owned();
        let shown = plain(&Line { detail, ..Line::default() }).detail;
        assert!(!shown.chars().any(is_hidden), "{shown:?}");
        assert!(shown.contains("\\u{a}2026") && shown.contains('ü'), "{shown}");
    }
}
