//! `kiln rm`: remove wrong artifacts from the whole fleet.
//!
//! Invariant: several artifacts go only where a filter on the command line says which, and
//! whoever sits at the terminal, or `--yes`, agreed to their number. The request that is kept
//! beside an artifact goes with it.

use std::collections::HashSet;

use clap::{Args, builder::NonEmptyStringValueParser};
use kiln_proto::{ArtifactKey, value};

use super::{
    CliError, ClientArgs,
    client::Client,
    confirm::YesArgs,
    keys::KeyArg,
    output::{self, size},
    select::{Filters, Selection},
};

mod removal;
#[cfg(test)]
mod tests;

use removal::{Chosen, Removal};

const EXAMPLES: &str = "\
Examples:
  kiln rm 3f2a91c0 --reason 'wrong results on driver 580.65'
  kiln rm --label attention --older-than 30d --dry-run
  kiln rm --namespace team-a --compiler inductor --reason 'torch 2.11.0' --yes";

/// Remove a wrong artifact, or all that a filter names, from the whole fleet at once.
///
/// The keys are free for a new compile afterwards. The reason is kept with the
/// removal, for whoever asks later: `kiln why KEY` tells it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Rm {
    /// The key, or its first digits; without one, a filter says which.
    #[arg(required_unless_present_any = ["namespace", "label", "compiler", "older_than"])]
    #[arg(conflicts_with_all = ["label", "compiler", "older_than"])]
    key: Option<KeyArg>,
    /// Why: recorded in the index.
    #[arg(long, required_unless_present = "dry_run", default_value_if("dry_run", "true", ""))]
    reason: Option<String>,
    /// Only entries of this namespace. Where none is given, those of all, or of
    /// KILN_NAMESPACE where that is set; which alone removes nothing.
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    namespace: Option<String>,
    #[command(flatten)]
    filters: Filters,
    /// Say what would go, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    yes: YesArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Rm {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let mut client = self.client.endpoints.connect().await?;
        let namespace = match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => std::env::var("KILN_NAMESPACE").unwrap_or_default(),
        };
        match &self.key {
            Some(key) => {
                let key = key.resolve(&mut client, &namespace).await?;
                self.remove_one(&mut client, key).await
            }
            None => self.remove_all(client, namespace).await,
        }
    }

    async fn remove_one(&self, client: &mut Client, key: ArtifactKey) -> Result<(), CliError> {
        let found = one(client, &key).await?;
        let kept = match &found {
            Some(chosen) => one(client, &chosen.kept()).await?,
            None => None,
        };
        if self.dry_run || self.yes.asks() {
            let chosen = found.ok_or_else(|| nothing(&key))?;
            if self.dry_run {
                let chosen: Vec<_> = std::iter::once(chosen).chain(kept).collect();
                return removal::tell(&chosen, self.client.json);
            }
            let Chosen { label, target, .. } = chosen;
            let what = format!("Remove {label:?} for {target} ({key}) from all nodes?");
            self.yes.confirm(&what)?;
        }
        // First, so that where this fails the same command may be given again.
        if let Some(kept) = kept {
            removal::tombstone(client, &kept.key, self.reason()).await?;
        }
        if !removal::tombstone(client, &key, self.reason()).await? {
            return Err(nothing(&key));
        }
        match self.client.json {
            true => output::json(&serde_json::json!({ "key": key.to_string(), "removed": true })),
            false => output::line(format_args!("removed {key}")),
        }
    }

    async fn remove_all(&self, mut client: Client, namespace: String) -> Result<(), CliError> {
        let (chosen, beside) = self.chosen(&mut client, namespace).await?;
        let all = [beside.as_slice(), chosen.as_slice()].concat();
        if self.dry_run {
            return removal::tell(&all, self.client.json);
        }
        if chosen.is_empty() {
            return match self.client.json {
                true => Ok(()),
                false => output::line("nothing matches: nothing was removed"),
            };
        }
        let bytes = all.iter().fold(0, |sum: u64, one| sum.saturating_add(one.bytes));
        let pinned = all.iter().filter(|one| one.pinned).count();
        let pinned = if pinned > 0 { format!(", {pinned} of them pinned,") } else { String::new() };
        let (count, bytes) = (removal::entries(all.len()), size(bytes));
        self.yes.confirm_many(
            &format!("Remove {count}{pinned} of {bytes} from all nodes?"),
            &format!("{count} would go: see which with --dry-run, and then give --yes"),
        )?;
        Removal { reason: self.reason(), json: self.client.json }.run(client, chosen, beside).await
    }

    /// All that the filters name, and the requests that are kept beside it and that they do
    /// not name.
    async fn chosen(
        &self,
        client: &mut Client,
        namespace: String,
    ) -> Result<(Vec<Chosen>, Vec<Chosen>), CliError> {
        let filters = self.filters.clone();
        let selection = Selection { namespace, filters, requests: true, ..Default::default() };
        let found = selection.find(client).await?;
        let chosen: Vec<_> = found.entries.iter().map(Chosen::of).collect();
        let Filters { compiler, older_than, .. } = &self.filters;
        if chosen.is_empty() || (compiler.is_none() && older_than.is_none()) {
            return Ok((chosen, Vec::new()));
        }
        // A request has another compiler than its artifact, and is a moment younger.
        let filters =
            Filters { compiler: Some(value::REQUEST_FAMILY.into()), ..Filters::default() };
        let requests = Selection { filters, ..selection }.find(client).await?.entries;
        let known: HashSet<_> = chosen.iter().map(|one| one.key).collect();
        let beside: HashSet<_> = chosen.iter().map(Chosen::kept).collect();
        let requests = requests.iter().map(Chosen::of);
        let more = requests.filter(|one| beside.contains(&one.key) && !known.contains(&one.key));
        let more = more.collect();
        Ok((chosen, more))
    }

    fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or_default()
    }
}

/// The entry of `key`, where the node that is asked knows one.
async fn one(client: &mut Client, key: &ArtifactKey) -> Result<Option<Chosen>, CliError> {
    let prefix = key.to_string();
    let selection = Selection { prefix, requests: true, limit: 1, ..Default::default() };
    Ok(selection.find(client).await?.entries.first().map(Chosen::of))
}

fn nothing(key: &ArtifactKey) -> CliError {
    CliError::NotFound(format!("there is no artifact of key {key}"))
}
