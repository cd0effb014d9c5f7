//! `kiln why`: what separates a key from its nearest stored neighbour.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use kiln_proto::{ArtifactKey, Component, Difference, Digest, KeyField, Manifest, convert, pb};

use super::{
    CliError, ClientArgs,
    client::Client,
    fetch,
    keys::KeyArg,
    output,
    source::SourceArgs,
    view::{self, StoredPieceView, WhyView},
};

const EXAMPLES: &str = "\
Examples:
  kiln why block.pt2 --target sm_90
  kiln why 3f2a91c0
  kiln why k.cu -D TILE=64 --json";

/// Say why a key was not answered by its nearest stored neighbour.
///
/// Of a file: the key that `kiln compile` with the same options would ask for;
/// nothing is compiled.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Why {
    /// A key, its first digits, or a file to compile.
    #[arg(value_name = "KEY|FILE")]
    subject: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Why {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let asked = async |client| self.explain(client).await;
        let view = self.client.endpoints.attempt(asked).await?;
        if self.client.json {
            return output::json(&view);
        }
        output::line(for_people(&view))
    }

    async fn explain(&self, mut client: Client) -> Result<WhyView, CliError> {
        let subject = match subject(&self.subject)? {
            Subject::File(file) => {
                pb::explain_request::Subject::Request(self.source.request(file)?)
            }
            Subject::Key(key) => {
                let key = key.resolve(&mut client, &self.source.namespace.namespace).await?;
                pb::explain_request::Subject::Key(key.as_bytes().to_vec().into())
            }
        };
        let request = pb::ExplainRequest { subject: Some(subject) };
        let answer = client.explain(request).await.map_err(|e| CliError::from_status(&e))?;
        let answer = answer.into_inner();
        let pieces = match answer.stored {
            true => self.pieces(&mut client, answer.key.clone()).await?,
            false => Vec::new(),
        };
        Ok(WhyView { pieces, ..view(answer)? })
    }

    /// What the artifact of `key` is stitched of, and which of these are stored.
    async fn pieces(
        &self,
        client: &mut Client,
        key: Bytes,
    ) -> Result<Vec<StoredPieceView>, CliError> {
        let namespace = &self.source.namespace.namespace;
        let Some(whole) = look_up(client, key, namespace).await? else { return Ok(Vec::new()) };
        let mut pieces = Vec::with_capacity(whole.pieces.len());
        for (piece, shown) in whole.pieces.iter().zip(view::pieces(&whole)) {
            let key = piece.key.as_bytes().to_vec().into();
            let found = look_up(client, key, namespace).await?;
            let stored = found.is_some_and(|found| found.pack_digest == piece.pack);
            pieces.push(StoredPieceView { piece: shown, stored });
        }
        Ok(pieces)
    }
}

async fn look_up(
    client: &mut Client,
    key: Bytes,
    namespace: &str,
) -> Result<Option<Manifest>, CliError> {
    let request = pb::LookupRequest { key, linearizable: false, namespace: namespace.to_owned() };
    let answer = client.lookup(request).await.map_err(|e| CliError::from_status(&e))?;
    let signed = answer.into_inner().entry.and_then(|entry| entry.manifest);
    signed.map(fetch::manifest).transpose()
}

pub(super) enum Subject<'a> {
    File(&'a Path),
    Key(KeyArg),
}

/// A file that exists is one, whatever its name looks like.
pub(super) fn subject(text: &Path) -> Result<Subject<'_>, CliError> {
    if text.is_file() {
        return Ok(Subject::File(text));
    }
    let shown = text.display().to_string();
    shown
        .parse()
        .map(Subject::Key)
        .map_err(|why| CliError::Usage(format!("{shown:?} is no file, and {why}")))
}

fn view(answer: pb::ExplainResponse) -> Result<WhyView, CliError> {
    let unreadable = |e: convert::InvalidField| anyhow::anyhow!("the node's answer: {e}");
    let key = convert::key("key", &answer.key).map_err(unreadable)?;
    let nearest = (!answer.nearest.is_empty())
        .then(|| convert::key("nearest", &answer.nearest))
        .transpose()
        .map_err(unreadable)?;
    let difference = |d: pb::Difference| Difference {
        component: d.component,
        field: d.field,
        ours: d.ours,
        theirs: d.theirs,
    };
    let component = |c: pb::Component| Component {
        name: c.name,
        digest: Digest::try_from(&*c.digest).unwrap_or(Digest::from_bytes([0; 32])),
        fields: c
            .fields
            .into_iter()
            .map(|f| KeyField { name: f.name, value: f.value, derived: f.derived })
            .collect(),
    };
    Ok(WhyView {
        key: key.to_string(),
        stored: answer.stored,
        nearest: nearest.as_ref().map(ArtifactKey::to_string),
        differences: answer.differences.into_iter().map(difference).collect(),
        components: answer.components.into_iter().map(component).collect(),
        looked_at: answer.looked_at,
        entries: answer.entries,
        cut: answer.cut,
        pieces: Vec::new(),
        ended: Some(answer.ended).filter(|ended| !ended.is_empty()),
    })
}

fn for_people(view: &WhyView) -> String {
    let state = match (view.stored, view.pieces.len()) {
        (false, _) => "is not stored".to_owned(),
        (true, 0) => "is stored".to_owned(),
        (true, pieces) => format!("is stored, a {}:", view::whole_of(pieces)),
    };
    let mut lines = vec![format!("{} {state}", view.key)];
    for StoredPieceView { piece, stored } in &view.pieces {
        let state = if *stored { "is stored" } else { "is not stored: it is compiled again" };
        lines.push(format!("  piece {} {} {state}", piece.index, piece.key));
    }
    if let Some(ended) = &view.ended {
        lines.push(format!("its last artifact is no more: {ended}"));
        if view.components.is_empty() {
            return lines.join("\n");
        }
    }
    if view.cut {
        let (seen, all) = (view.looked_at, view.entries);
        lines.push(format!("looked at {seen} of {all} entries in time: a nearer one may exist"));
    }
    let Some(nearest) = &view.nearest else {
        lines.push("no other entry is near it".into());
        return lines.join("\n");
    };
    let only = if view.differences.len() == 1 { "only this differs" } else { "these differ" };
    lines.push(format!("nearest entry {nearest}; {only}:"));
    for d in &view.differences {
        let shown =
            |value: &str| if value.is_empty() { "nothing".into() } else { value.to_owned() };
        lines.push(format!(
            "  {}.{}: {} against {}",
            d.component,
            d.field,
            shown(&d.ours),
            shown(&d.theirs)
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::ExplainResponse {
        pb::ExplainResponse {
            key: vec![1; 32].into(),
            stored: false,
            nearest: vec![2; 32].into(),
            components: Vec::new(),
            differences: vec![pb::Difference {
                component: "fingerprint".into(),
                field: "driver".into(),
                ours: "580.65".into(),
                theirs: String::new(),
            }],
            looked_at: 2,
            entries: 3,
            cut: false,
            ended: String::new(),
        }
    }

    #[test]
    fn a_removed_key_says_why() {
        let reason = "wrong (removed 2026-11-28T05:00:00Z by node 1)";
        let answer = pb::ExplainResponse {
            key: vec![1; 32].into(),
            ended: reason.into(),
            ..Default::default()
        };
        let text = for_people(&view(answer).unwrap());
        assert!(text.ends_with(&format!("its last artifact is no more: {reason}")), "{text}");
    }

    #[test]
    fn the_one_difference_is_named() {
        let text = for_people(&view(answer()).unwrap());
        assert!(text.contains("only this differs"), "{text}");
        assert!(text.ends_with("fingerprint.driver: 580.65 against nothing"), "{text}");
    }

    #[test]
    fn a_search_that_was_cut_says_so() {
        let shown = |cut| for_people(&view(pb::ExplainResponse { cut, ..answer() }).unwrap());
        assert!(shown(true).contains("looked at 2 of 3 entries"), "{}", shown(true));
        assert!(!shown(false).contains("looked at"));
    }

    #[test]
    fn a_whole_shows_which_piece_is_missing() {
        let piece = |index, stored| StoredPieceView {
            piece: view::PieceRefView {
                index,
                key: format!("key-{index}"),
                artifact: String::new(),
                bytes: 1,
            },
            stored,
        };
        let known = view(pb::ExplainResponse { stored: true, ..answer() }).unwrap();
        let text = for_people(&WhyView { pieces: vec![piece(0, true), piece(1, false)], ..known });
        assert!(text.contains("is stored, a whole of 2 pieces:"), "{text}");
        assert!(text.contains("piece 0 key-0 is stored\n"), "{text}");
        assert!(text.contains("piece 1 key-1 is not stored"), "{text}");
        let json = serde_json::to_value(piece(1, false)).unwrap();
        assert_eq!((&json["index"], &json["stored"]), (&1.into(), &false.into()));
    }

    #[test]
    fn the_json_shape_holds() {
        let json = serde_json::to_value(view(answer()).unwrap()).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            [
                "key",
                "stored",
                "nearest",
                "differences",
                "components",
                "looked_at",
                "entries",
                "cut",
                "pieces",
                "ended"
            ]
        );
        assert_eq!(json["differences"][0]["ours"], "580.65");
        let alone = pb::ExplainResponse { nearest: Default::default(), ..answer() };
        assert_eq!(
            serde_json::to_value(view(alone).unwrap()).unwrap()["nearest"],
            serde_json::Value::Null
        );
    }

    #[test]
    fn a_file_wins_over_a_key_of_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("beef");
        assert!(matches!(subject(Path::new("beef")), Ok(Subject::Key(_))));
        std::fs::write(&file, "").unwrap();
        assert!(matches!(subject(&file), Ok(Subject::File(_))));
        assert!(subject(Path::new("no such thing")).is_err());
    }
}
