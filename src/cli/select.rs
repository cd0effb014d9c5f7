//! Which entries of the index a command is about, and finding them.
//!
//! Invariant: what a node answers is looked at again here, so that one of an earlier
//! version, which knows fewer filters, makes no command take more entries than were meant.

use std::time::Duration;

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use kiln::{
    clock,
    scan::order::{Order, Ordered},
};
use kiln_proto::{Manifest, pb, pb::ListOrder, value};

use super::{CliError, client::Client, fetch};

/// Entries that are asked for at once.
const PAGE: u32 = 500;
/// Most that a node puts in order by itself.
const MOST_ORDERED: usize = 1000;

/// What entries have to have.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Filters {
    /// Only entries whose label has this text in it.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) label: Option<String>,
    /// Only entries of this compiler: cuda, native, inductor, ...
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) compiler: Option<String>,
    /// Only entries that were made longer ago than this: 30d, 12h, 1h 30m.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Option<Duration>,
}

/// By what a listing is ordered. Names come from A to Z, and of figures the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortField {
    Key,
    Label,
    Target,
    Compiler,
    Namespace,
    /// Pieces included.
    #[value(alias = "size")]
    Bytes,
    #[value(alias = "compile", alias = "compile_seconds")]
    CompileSeconds,
    Hits,
    /// The oldest first.
    #[value(alias = "created")]
    Age,
    /// What was used longest ago first, and before that what never was.
    #[value(alias = "last-use", alias = "last_used", alias = "used")]
    LastUsed,
}

impl From<SortField> for ListOrder {
    fn from(field: SortField) -> Self {
        match field {
            SortField::Key => Self::Key,
            SortField::Label => Self::Label,
            SortField::Target => Self::Target,
            SortField::Compiler => Self::Compiler,
            SortField::Namespace => Self::Namespace,
            SortField::Bytes => Self::Bytes,
            SortField::CompileSeconds => Self::CompileSeconds,
            SortField::Hits => Self::Hits,
            SortField::Age => Self::Age,
            SortField::LastUsed => Self::LastUsed,
        }
    }
}

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// First digits of keys.
    pub(crate) prefix: String,
    /// Entries of all namespaces where it is empty.
    pub(crate) namespace: String,
    pub(crate) filters: Filters,
    /// Also the requests that are kept beside what was compiled of them.
    pub(crate) requests: bool,
    /// `None`: that of the keys.
    pub(crate) order: Option<Order>,
    /// At most so many; 0: all.
    pub(crate) limit: usize,
    /// Whether those beyond the limit are counted too, for which a node reads its whole index.
    pub(crate) sum: bool,
}

/// What was found.
pub(crate) struct Selected {
    pub(crate) entries: Vec<(pb::Entry, Manifest)>,
    /// All that match, beside those that are here; `None`: the node does not say.
    pub(crate) matching: Option<pb::ListCount>,
    /// The clock that ages are counted to, in Unix milliseconds.
    pub(crate) now_unix_ms: u64,
}

impl Selection {
    /// Asks one node. May be repeated at another one.
    pub(crate) async fn find(&self, client: &mut Client) -> Result<Selected, CliError> {
        let before = self
            .filters
            .older_than
            .map(|age| clock::unix_ms().saturating_sub(clock::milliseconds(age)).max(1));
        if let Some(order) = self.order
            && (1..=MOST_ORDERED).contains(&self.limit)
            && let Some(first) = self.first(client, order, before).await?
        {
            return Ok(first);
        }
        self.all(client, before).await
    }

    /// Whether all of these are meant. Else the node ordered and counted others too, and those
    /// that are meant may be among what it left out.
    fn all_meant(&self, entries: &[(pb::Entry, Manifest)], before: Option<u64>) -> bool {
        entries.iter().all(|(_, manifest)| self.has(manifest, before))
    }

    /// The first ones, as the node orders them; `None`: it is of a version that does not, or
    /// that knows fewer filters.
    async fn first(
        &self,
        client: &mut Client,
        order: Order,
        before: Option<u64>,
    ) -> Result<Option<Selected>, CliError> {
        let request = pb::ListRequest {
            order: order.field.into(),
            reverse: order.reverse,
            count: true,
            limit: u32::try_from(self.limit).unwrap_or(u32::MAX),
            ..self.request(before)
        };
        let page = client.list(request).await.map_err(|e| CliError::from_status(&e))?;
        let pb::ListResponse { entries, matching, now_unix_ms, .. } = page.into_inner();
        if matching.is_none() {
            return Ok(None);
        }
        let entries = entries.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let meant = self.all_meant(&entries, before);
        Ok(meant.then_some(Selected { entries, matching, now_unix_ms }))
    }

    /// Page by page, in the order of the keys, and then in that which is wanted.
    async fn all(&self, client: &mut Client, before: Option<u64>) -> Result<Selected, CliError> {
        // In another order any entry may be among the first.
        let most = match (self.limit, self.order) {
            (0, _) | (_, Some(_)) => usize::MAX,
            (limit, None) => limit,
        };
        let mut found = Selected { entries: Vec::new(), matching: None, now_unix_ms: 0 };
        let mut after = bytes::Bytes::new();
        let whole = loop {
            let room = u32::try_from(most - found.entries.len()).unwrap_or(PAGE);
            let first = after.is_empty();
            let request = pb::ListRequest {
                limit: PAGE.min(room),
                after,
                // Where all are listed they are counted here.
                count: first && most < usize::MAX && self.sum,
                ..self.request(before)
            };
            let page = client.list(request).await.map_err(|e| CliError::from_status(&e))?;
            let page = page.into_inner();
            found.now_unix_ms = page.now_unix_ms;
            found.matching = found.matching.or(page.matching);
            let Some(last) = page.entries.last() else { break true };
            after = read(last.clone())?.1.key.as_bytes().to_vec().into();
            for entry in page.entries {
                let (entry, manifest) = read(entry)?;
                if self.has(&manifest, before) && found.entries.len() < most {
                    found.entries.push((entry, manifest));
                }
            }
            if !page.more {
                break true;
            }
            if found.entries.len() >= most {
                break false;
            }
        };
        if whole {
            let bytes = found.entries.iter().map(|(_, manifest)| manifest.pack_size);
            let bytes = bytes.fold(0, u64::saturating_add);
            found.matching = Some(pb::ListCount { entries: found.entries.len() as u64, bytes });
        }
        if let Some(order) = self.order {
            found.entries.sort_by_cached_key(|(entry, manifest)| {
                let (hits, last_used_unix_ms) = (entry.hits, entry.last_used_unix_ms);
                order.place(Ordered { manifest, hits, last_used_unix_ms })
            });
        }
        if self.limit > 0 {
            found.entries.truncate(self.limit);
        }
        if found.now_unix_ms == 0 {
            found.now_unix_ms = clock::unix_ms();
        }
        Ok(found)
    }

    fn request(&self, before: Option<u64>) -> pb::ListRequest {
        pb::ListRequest {
            prefix: self.prefix.clone(),
            namespace: self.namespace.clone(),
            label: self.filters.label.clone().unwrap_or_default(),
            compiler: self.filters.compiler.clone().unwrap_or_default(),
            created_before_unix_ms: before.unwrap_or_default(),
            no_requests: self.hides_requests(),
            ..Default::default()
        }
    }

    /// Whoever names their compiler means them.
    fn hides_requests(&self) -> bool {
        !self.requests && self.filters.compiler.as_deref() != Some(value::REQUEST_FAMILY)
    }

    fn has(&self, manifest: &Manifest, before: Option<u64>) -> bool {
        let compiler = &manifest.fingerprint.compiler;
        let Filters { label, compiler: wanted, .. } = &self.filters;
        let created = manifest.created_unix_ms;
        (self.namespace.is_empty() || self.namespace == manifest.namespace)
            && label.as_ref().is_none_or(|label| manifest.label.contains(label))
            && wanted.as_ref().is_none_or(|wanted| wanted == compiler)
            && before.is_none_or(|before| created != 0 && created < before)
            && !(self.hides_requests() && compiler == value::REQUEST_FAMILY)
    }
}

fn read(mut entry: pb::Entry) -> Result<(pb::Entry, Manifest), CliError> {
    let manifest = fetch::manifest(entry.manifest.take().unwrap_or_default())?;
    Ok((entry, manifest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fetch::tests::artifact;

    #[test]
    fn what_an_old_node_lists_is_looked_at_again() {
        let (manifest, _) = artifact(&[("module.cubin", b"12345")]);
        let manifest = Manifest { created_unix_ms: 1000, ..manifest };
        let has = |filters: Filters, namespace: &str, before| {
            let namespace = namespace.to_owned();
            Selection { filters, namespace, ..Selection::default() }.has(&manifest, before)
        };
        let label = |text: &str| Filters { label: Some(text.into()), ..Filters::default() };
        let compiler = |text: &str| Filters { compiler: Some(text.into()), ..Filters::default() };
        assert!(has(Filters::default(), "", None));
        assert!(has(label("k.c"), "", None) && !has(label("other"), "", None));
        assert!(has(compiler(&manifest.fingerprint.compiler), "", None));
        assert!(!has(compiler("cud"), "", None), "a compiler by its whole name");
        assert!(has(Filters::default(), &manifest.namespace, None));
        assert!(!has(Filters::default(), "nobody", None));
        assert!(has(Filters::default(), "", Some(1001)));
        assert!(!has(Filters::default(), "", Some(1000)));
        let undated = Manifest { created_unix_ms: 0, ..manifest.clone() };
        assert!(!Selection::default().has(&undated, Some(1001)), "nobody knows its age");
    }

    #[test]
    fn what_an_old_node_puts_first_is_not_taken_for_the_first_that_is_meant() {
        let (manifest, _) = artifact(&[("module.cubin", b"12345")]);
        let other = Manifest { label: "another".into(), ..manifest.clone() };
        let filters = Filters { label: Some(manifest.label.clone()), ..Filters::default() };
        let selection = Selection { filters, ..Selection::default() };
        let meant = (pb::Entry::default(), manifest);
        assert!(
            selection.all_meant(std::slice::from_ref(&meant), None)
                && selection.all_meant(&[], None)
        );
        assert!(!selection.all_meant(&[meant, (pb::Entry::default(), other)], None));
    }
}
