//! `kiln ls`: what the index holds.

use clap::Args;
use kiln_proto::{pb, value};

use super::{
    CliError, ClientArgs, fetch,
    output::{self, seconds, size, table},
    view::{self, EntryView},
};

const PAGE: u32 = 500;

const EXAMPLES: &str = "\
Examples:
  kiln ls
  kiln ls --namespace team-a
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
    pub(crate) client: ClientArgs,
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
        let entries = self.client.endpoints.attempt(async |client| self.list(client).await).await?;
        if self.client.json {
            return entries.iter().try_for_each(output::json);
        }
        output::line(table(HEADING, &entries.iter().map(row).collect::<Vec<_>>()))
    }

    async fn list(&self, mut client: super::client::Client) -> Result<Vec<EntryView>, CliError> {
        let most = if self.limit == 0 { usize::MAX } else { self.limit as usize };
        let mut found: Vec<EntryView> = Vec::new();
        let mut after = Default::default();
        loop {
            let request = pb::ListRequest {
                prefix: self.prefix.clone(),
                namespace: self.namespace.clone(),
                limit: PAGE.min(u32::try_from(most - found.len()).unwrap_or(PAGE)),
                after,
            };
            let page = client.list(request).await.map_err(|e| CliError::from_status(&e))?;
            let page = page.into_inner();
            let Some(last) = page.entries.last() else { return Ok(found) };
            after = fetch::manifest(last.manifest.clone().unwrap_or_default())?
                .key
                .as_bytes()
                .to_vec()
                .into();
            for entry in &page.entries {
                let manifest = fetch::manifest(entry.manifest.clone().unwrap_or_default())?;
                if self.requests || manifest.fingerprint.compiler != value::REQUEST_FAMILY {
                    found.push(EntryView::new(entry, &manifest));
                }
            }
            if !page.more || found.len() >= most {
                return Ok(found);
            }
        }
    }
}

const HEADING: [&str; 8] =
    ["KEY", "LABEL", "TARGET", "SIZE", "COMPILE", "HITS", "HELD BY", "FLAGS"];

fn row(entry: &EntryView) -> [String; 8] {
    let flags = [(entry.stored, "stored"), (entry.pinned, "pinned")];
    let flags = flags.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned());
    let whole = (!entry.pieces.is_empty()).then(|| view::whole_of(entry.pieces.len()));
    let flags: Vec<_> = flags.chain(whole).collect();
    let bytes = entry.pieces.iter().fold(entry.bytes, |sum, piece| sum.saturating_add(piece.bytes));
    let holders: Vec<_> = entry.holders.iter().map(u64::to_string).collect();
    [
        entry.key[..16].to_owned(),
        entry.label.clone(),
        entry.target.clone(),
        size(bytes),
        seconds(entry.compile_seconds),
        entry.hits.to_string(),
        holders.join(","),
        flags.join(","),
    ]
}

#[cfg(test)]
mod tests {
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
            manifest: None,
        };
        let view = EntryView::new(&entry, &manifest);
        let row = row(&view);
        assert_eq!((row[1].as_str(), row[5].as_str()), ("k.cu", "7"));
        assert_eq!((row[6].as_str(), row[7].as_str()), ("1,3", "stored"));
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
                "pieces"
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
        let row = row(&view);
        assert_eq!((row[3].as_str(), row[7].as_str()), ("2.0 KiB", "pinned,whole of 2 pieces"));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["pieces"][1]["key"], "02".repeat(32));
        assert_eq!(json["pieces"][1]["index"], 1);
    }
}
