//! Removing many artifacts, one by one.
//!
//! Invariant: each that was not removed is named at the end with the reason, those that were
//! not tried any more are counted, and the command fails then.

use std::{collections::HashSet, io::IsTerminal, time::Duration};

use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_proto::{ArtifactKey, Manifest, pb, value};
use serde::Serialize;

use crate::cli::{
    CliError,
    client::Client,
    output::{self, fitting, short, size},
};

/// Removals under way at once: each waits for a commit.
const AT_ONCE: usize = 16;
const TICK: Duration = Duration::from_millis(100);
/// Failures that are named on a line of their own.
const MOST_NAMED: usize = 1000;

/// An artifact that is to go.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Chosen {
    pub(super) key: ArtifactKey,
    pub(super) label: String,
    pub(super) target: String,
    pub(super) compiler: String,
    pub(super) namespace: String,
    pub(super) bytes: u64,
    pub(super) pinned: bool,
}

impl Chosen {
    pub(super) fn of((entry, manifest): &(pb::Entry, Manifest)) -> Self {
        Self {
            key: manifest.key,
            label: manifest.label.clone(),
            target: manifest.target.to_string(),
            compiler: manifest.fingerprint.compiler.clone(),
            namespace: manifest.namespace.clone(),
            bytes: manifest.pack_size,
            pinned: entry.pinned,
        }
    }

    /// The key of the request that it was compiled of, where that is kept.
    pub(super) fn kept(&self) -> ArtifactKey {
        value::request_components(&self.namespace, &self.key).key()
    }
}

/// `1 entry`, `3 entries`.
pub(super) fn entries(count: usize) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

/// Says what would go.
pub(super) fn tell(chosen: &[Chosen], json: bool) -> Result<(), CliError> {
    if json {
        return chosen.iter().try_for_each(|one| {
            let mut value = serde_json::to_value(one).map_err(anyhow::Error::from)?;
            // As all other commands have it, and as a removal tells it.
            value["key"] = one.key.to_string().into();
            value["removed"] = false.into();
            value["dry_run"] = true.into();
            output::json(&value)
        });
    }
    let row = |one: &Chosen| {
        let flags = if one.pinned { "pinned" } else { "" };
        [
            short(&one.key.to_string()).to_owned(),
            one.label.clone(),
            one.target.clone(),
            one.compiler.clone(),
            size(one.bytes),
            flags.to_owned(),
        ]
    };
    let rows: Vec<_> = chosen.iter().map(row).collect();
    let heading = ["KEY", "LABEL", "TARGET", "COMPILER", "SIZE", "FLAGS"];
    output::line(fitting(heading, &rows, &["FLAGS", "TARGET"], output::width()))?;
    let bytes = chosen.iter().fold(0, |sum: u64, one| sum.saturating_add(one.bytes));
    let (count, bytes) = (entries(chosen.len()), size(bytes));
    output::line(format_args!("{count} of {bytes} would go; nothing was removed"))
}

/// Whether there was anything to remove.
pub(super) async fn tombstone(
    client: &mut Client,
    key: &ArtifactKey,
    reason: &str,
) -> Result<bool, CliError> {
    let (key, reason) = (key.as_bytes().to_vec().into(), reason.to_owned());
    let answer = client.tombstone(pb::TombstoneRequest { key, reason }).await;
    Ok(answer.map_err(|e| CliError::from_status(&e))?.into_inner().existed)
}

/// How far a removal is.
struct Course {
    bar: ProgressBar,
    failed: Vec<(Chosen, CliError)>,
    removed: usize,
    gone: usize,
    /// No node can serve it.
    unserved: bool,
}

/// How many artifacts are removed.
pub(super) struct Removal<'a> {
    pub(super) reason: &'a str,
    pub(super) json: bool,
}

impl Removal<'_> {
    /// Removes all of `chosen`, and first the requests `beside` it: by an artifact that is gone
    /// nobody finds its request, so one that stays keeps its artifact. Once no node can serve
    /// it, no more are tried.
    pub(super) async fn run(
        &self,
        client: Client,
        mut chosen: Vec<Chosen>,
        beside: Vec<Chosen>,
    ) -> Result<(), CliError> {
        let all = chosen.len() + beside.len();
        let mut course = Course {
            bar: self.bar(all as u64),
            failed: Vec::new(),
            removed: 0,
            gone: 0,
            unserved: false,
        };
        self.remove(&client, beside, &mut course).await?;
        let stays: HashSet<_> = course.failed.iter().map(|(one, _)| one.key).collect();
        chosen.retain(|one| !stays.contains(&one.kept()));
        if !course.unserved {
            self.remove(&client, chosen, &mut course).await?;
        }
        let Course { bar, failed, removed, gone, unserved } = course;
        bar.finish_and_clear();
        let untried = all - removed - gone - failed.len();
        if !self.json {
            let beside =
                if gone > 0 { format!("; {gone} were gone already") } else { String::new() };
            output::line(format_args!("removed {}{beside}", entries(removed)))?;
        }
        self.settle(&failed, untried, all, unserved)
    }

    async fn remove(
        &self,
        client: &Client,
        chosen: Vec<Chosen>,
        course: &mut Course,
    ) -> Result<(), CliError> {
        let removing = chosen.into_iter().map(|one| {
            let mut client = client.clone();
            async move {
                let done = tombstone(&mut client, &one.key, self.reason).await;
                (one, done)
            }
        });
        let mut removing = stream::iter(removing).buffer_unordered(AT_ONCE);
        while let Some((one, done)) = removing.next().await {
            course.bar.inc(1);
            match done {
                Ok(existed) => {
                    // A whole goes with its piece.
                    if existed {
                        course.removed += 1
                    } else {
                        course.gone += 1
                    }
                    if self.json {
                        output::json(&serde_json::json!({
                            "key": one.key.to_string(), "removed": existed,
                        }))?;
                    }
                }
                Err(error) => {
                    course.unserved |= matches!(error, CliError::Unreachable(_));
                    course.failed.push((one, error));
                }
            }
            if course.unserved {
                break;
            }
        }
        Ok(())
    }

    fn settle(
        &self,
        failed: &[(Chosen, CliError)],
        untried: usize,
        all: usize,
        unserved: bool,
    ) -> Result<(), CliError> {
        if failed.is_empty() {
            return Ok(());
        }
        for (one, error) in failed.iter().take(MOST_NAMED) {
            let (key, error) = (one.key.to_string(), error.to_string());
            match self.json {
                true => output::json(&serde_json::json!({
                    "key": key, "removed": false, "failed": error,
                }))?,
                false => eprintln!("not removed: {key} {:?}: {error}", one.label),
            }
        }
        let mut told = format!("{} of {} were not removed", failed.len(), entries(all));
        if untried > 0 {
            told += &format!(", and {untried} more were not tried, or their removal is not known");
        }
        told += ": give the same command again";
        Err(if unserved {
            CliError::Unreachable(told)
        } else {
            CliError::Local(anyhow::anyhow!(told))
        })
    }

    fn bar(&self, all: u64) -> ProgressBar {
        let shown = !self.json && std::io::stderr().is_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(all), target);
        // A template that cannot be read is the library's own instead.
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} removed {eta}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        bar
    }
}
