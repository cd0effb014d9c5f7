//! `kiln ls`: what the index holds.

use clap::Args;
use kiln::scan::order::Order;
use serde::Serialize;

use super::{
    CliError, ClientArgs,
    output::{self, ago, fitting, seconds, short, size},
    select::{Filters, Selected, Selection, SortField},
    view::{self, EntryView},
};

const EXAMPLES: &str = "\
Examples:
  kiln ls
  kiln ls --namespace team-a --label attention --older-than 30d
  kiln ls --sort hits --limit 20
  kiln ls --prefix 3f2a --json";

/// List the entries of the index.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Ls {
    /// Only keys that start with these hex digits.
    #[arg(long, value_name = "HEX", default_value = "", value_parser = hex_digits)]
    prefix: String,
    /// At most this many entries; 0: all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: u32,
    /// Also the requests that are kept beside what was compiled of them.
    #[arg(long)]
    requests: bool,
    /// Only entries of this namespace; those of all where none is given.
    #[arg(long, value_name = "NAME", env = "KILN_NAMESPACE", default_value = "")]
    namespace: String,
    #[command(flatten)]
    filters: Filters,
    /// In this order: names from A to Z, of figures the largest first, of ages the oldest.
    #[arg(long, value_name = "FIELD", value_enum)]
    sort: Option<SortField>,
    /// The other way round.
    #[arg(long)]
    reverse: bool,
    /// Count those beyond --limit too, for which the node reads its whole index; with --json,
    /// a last line that says how many there are, as the table does.
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// How much was shown of how much.
#[derive(Debug, Serialize)]
struct SummaryView {
    shown: u64,
    /// Entries that match, and the bytes of their packs; null: the node does not say.
    entries: Option<u64>,
    bytes: Option<u64>,
}

fn hex_digits(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain && text.len() <= 64 {
        Ok(text.to_owned())
    } else {
        Err("lower-case hex digits".into())
    }
}

impl Ls {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let selection = self.selection();
        let found =
            self.client.endpoints.attempt(async |mut client| selection.find(&mut client).await);
        let found = found.await?;
        let entries = found.entries.iter();
        let views: Vec<_> =
            entries.map(|(entry, manifest)| EntryView::new(entry, manifest)).collect();
        let summary = SummaryView::of(&found);
        if self.client.json {
            views.iter().try_for_each(output::json)?;
            return match self.summary {
                true => output::json(&serde_json::json!({ "summary": summary })),
                false => Ok(()),
            };
        }
        let rows: Vec<_> = views.iter().map(|view| row(view, found.now_unix_ms)).collect();
        output::line(fitting(HEADING, &rows, SPARE, output::width()))?;
        output::line(summary.for_people())
    }

    fn selection(&self) -> Selection {
        let order = match (self.sort, self.reverse) {
            (None, false) => None,
            (field, reverse) => {
                Some(Order { field: field.unwrap_or(SortField::Key).into(), reverse })
            }
        };
        Selection {
            prefix: self.prefix.clone(),
            namespace: self.namespace.clone(),
            filters: self.filters.clone(),
            requests: self.requests,
            order,
            limit: self.limit as usize,
            sum: self.summary,
        }
    }
}

impl SummaryView {
    fn of(found: &Selected) -> Self {
        Self {
            shown: found.entries.len() as u64,
            entries: found.matching.map(|count| count.entries),
            bytes: found.matching.map(|count| count.bytes),
        }
    }

    fn for_people(&self) -> String {
        let entries = |n: u64| if n == 1 { "1 entry".to_owned() } else { format!("{n} entries") };
        match (self.entries, self.bytes) {
            (Some(all), Some(bytes)) if all == self.shown => {
                format!("{}, {}", entries(all), size(bytes))
            }
            (Some(all), Some(bytes)) => {
                format!("{}, {}; {} of them shown", entries(all), size(bytes), self.shown)
            }
            _ => format!("{} shown; there are more: --summary counts them", entries(self.shown)),
        }
    }
}

const HEADING: [&str; 10] =
    ["KEY", "LABEL", "TARGET", "SIZE", "COMPILE", "HITS", "AGE", "LAST USE", "HELD BY", "FLAGS"];

/// What a narrow terminal has no room for, in this order.
const SPARE: &[&str] = &["HELD BY", "LAST USE", "FLAGS", "COMPILE", "AGE"];

fn row(entry: &EntryView, now_unix_ms: u64) -> [String; 10] {
    let flags = [(entry.stored, "stored"), (entry.pinned, "pinned")];
    let flags = flags.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned());
    let whole = (!entry.pieces.is_empty()).then(|| view::whole_of(entry.pieces.len()));
    let flags: Vec<_> = flags.chain(whole).collect();
    let bytes = entry.pieces.iter().fold(entry.bytes, |sum, piece| sum.saturating_add(piece.bytes));
    let holders: Vec<_> = entry.holders.iter().map(u64::to_string).collect();
    let since = |time: Option<u64>| {
        time.map_or_else(|| "-".to_owned(), |time| ago(now_unix_ms.saturating_sub(time)))
    };
    [
        short(&entry.key).to_owned(),
        entry.label.clone(),
        entry.target.clone(),
        size(bytes),
        seconds(entry.compile_seconds),
        entry.hits.to_string(),
        since(entry.created_unix_ms),
        since(entry.last_used_unix_ms),
        holders.join(","),
        flags.join(","),
    ]
}

#[cfg(test)]
mod tests {
    use kiln_proto::pb;

    use super::*;
    use crate::cli::fetch::tests::artifact;

    #[test]
    fn entries_show_what_matters() {
        let (manifest, _) = artifact(&[("module.cubin", b"12345")]);
        let entry = pb::Entry {
            epoch: 1,
            stored: true,
            pinned: false,
            holders: vec![1, 3],
            hits: 7,
            generation: 0,
            last_used_unix_ms: 5000,
            manifest: None,
        };
        let view = EntryView::new(&entry, &manifest);
        let row = row(&view, 95_000);
        assert_eq!((row[1].as_str(), row[5].as_str()), ("k.cu", "7"));
        assert_eq!((row[6].as_str(), row[7].as_str()), ("-", "90 s"), "its age is not known");
        assert_eq!((row[8].as_str(), row[9].as_str()), ("1,3", "stored"));
        let json = serde_json::to_value(&view).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            [
                "key",
                "label",
                "target",
                "compiler",
                "namespace",
                "artifact",
                "bytes",
                "compile_seconds",
                "epoch",
                "stored",
                "pinned",
                "hits",
                "producer",
                "holders",
                "pieces",
                "created_unix_ms",
                "last_used_unix_ms"
            ]
        );
    }

    #[test]
    fn a_whole_says_of_how_many_pieces() {
        let (mut manifest, _) = artifact(&[("stitching.json", b"1234")]);
        let piece = |n: u8| kiln_proto::PieceRef {
            key: kiln_proto::ArtifactKey::from_bytes([n; 32]),
            pack: kiln_proto::Digest::of(&[n]),
            pack_size: 1022,
        };
        manifest.pieces = vec![piece(1), piece(2)];
        let view = EntryView::new(&pb::Entry { pinned: true, ..Default::default() }, &manifest);
        let row = row(&view, 0);
        assert_eq!((row[3].as_str(), row[9].as_str()), ("2.0 KiB", "pinned,whole of 2 pieces"));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["pieces"][1]["key"], "02".repeat(32));
        assert_eq!(json["pieces"][1]["index"], 1);
    }

    #[test]
    fn the_last_line_says_how_much_there_is() {
        let said = |shown, entries: Option<u64>| {
            SummaryView { shown, entries, bytes: entries.map(|n| n * 1024) }.for_people()
        };
        assert_eq!(said(1, Some(1)), "1 entry, 1.0 KiB");
        assert_eq!(said(2, Some(3)), "3 entries, 3.0 KiB; 2 of them shown");
        assert_eq!(said(5, None), "5 entries shown; there are more: --summary counts them");
    }
}
