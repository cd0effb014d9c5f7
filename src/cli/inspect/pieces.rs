//! What a whole is stitched of.
//!
//! Invariant: how often a piece runs is what `stitching.json` says; its key is what the
//! signed manifest says, or, of a folder, what was written there with it.

use std::collections::BTreeMap;

use kiln::exec::layout::{PIECE_KEYS, STITCHING};
use kiln_native::split::stitch::Stitching;
use kiln_proto::{FailureKind, Manifest};
use serde::{Deserialize, Serialize};

use super::{
    super::{CliError, output::size, view},
    Files,
};

/// One piece.
#[derive(Debug, Serialize)]
pub(super) struct Piece {
    index: usize,
    /// Absent: the folder does not say.
    key: Option<String>,
    artifact: Option<String>,
    /// Of its pack. Absent where only the folder is known.
    bytes: Option<u64>,
    /// How often the whole runs it. Absent: it has no `stitching.json`.
    runs: Option<usize>,
}

/// As `pieces.json` has it.
#[derive(Deserialize)]
struct Named {
    key: String,
    pack: String,
}

/// The pieces of an artifact, of which `manifest` is known where it came from a node.
pub(super) fn of(files: &Files, manifest: Option<&Manifest>) -> Result<Vec<Piece>, CliError> {
    let corrupt = |name: &str, why: serde_json::Error| {
        CliError::failed(FailureKind::Corrupt, format!("{name}: {why}"))
    };
    let stitching = files.get(STITCHING).map(|bytes| serde_json::from_slice::<Stitching>(bytes));
    let stitching = stitching.transpose().map_err(|e| corrupt(STITCHING, e))?;
    let mut runs = BTreeMap::<usize, usize>::new();
    for call in stitching.iter().flat_map(|stitching| &stitching.calls) {
        *runs.entry(call.piece).or_default() += 1;
    }
    let named = match files.get(PIECE_KEYS) {
        Some(bytes) if stitching.is_some() => {
            serde_json::from_slice::<Vec<Named>>(bytes).map_err(|e| corrupt(PIECE_KEYS, e))?
        }
        _ => Vec::new(),
    };
    let signed = manifest.map(view::pieces).unwrap_or_default();
    let interfaces = stitching.as_ref().map_or(0, |stitching| stitching.pieces.len());
    let piece = |index: usize| {
        let (signed, named) = (signed.get(index), named.get(index));
        let key = signed.map(|piece| piece.key.clone());
        let artifact = signed.map(|piece| piece.artifact.clone());
        Piece {
            index,
            key: key.or_else(|| named.map(|named| named.key.clone())),
            artifact: artifact.or_else(|| named.map(|named| named.pack.clone())),
            bytes: signed.map(|piece| piece.bytes),
            runs: stitching.is_some().then(|| runs.get(&index).copied().unwrap_or(0)),
        }
    };
    Ok((0..interfaces.max(signed.len())).map(piece).collect())
}

/// `whole of 3 pieces, 30 runs`.
pub(super) fn summary(pieces: &[Piece]) -> Option<String> {
    let runs: usize = pieces.iter().filter_map(|piece| piece.runs).sum();
    let whole = view::whole_of(pieces.len());
    match (pieces.is_empty(), runs) {
        (true, _) => None,
        (false, 0) => Some(whole),
        (false, 1) => Some(format!("{whole}, 1 run")),
        (false, runs) => Some(format!("{whole}, {runs} runs")),
    }
}

/// Where code is that the whole does not have itself.
pub(super) fn has_no_code(pieces: &[Piece]) -> CliError {
    let keys: Vec<String> = pieces.iter().map(|piece| piece.shown_key()).collect();
    CliError::NotFound(format!(
        "it is a {}, which have the code; inspect one of them: {}",
        view::whole_of(pieces.len()),
        keys.join(", ")
    ))
}

impl Piece {
    fn shown_key(&self) -> String {
        self.key.clone().unwrap_or_else(|| format!("pieces/{}", self.index))
    }

    pub(super) fn row(&self) -> [String; 4] {
        let dash = || "-".to_owned();
        [
            self.index.to_string(),
            self.shown_key(),
            self.bytes.map_or_else(dash, size),
            self.runs.map_or_else(dash, |runs| runs.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::{ArtifactKey, Digest, PieceRef};

    use super::*;
    use crate::cli::fetch::tests::artifact;

    fn stitching() -> Vec<u8> {
        let zero = Digest::of(b"");
        let interface = serde_json::json!({
            "graph": zero.to_string(), "inputs": zero.to_string(), "takes": [], "gives": []
        });
        let call = |piece: usize| serde_json::json!({ "piece": piece, "args": [], "results": [] });
        serde_json::to_vec(&serde_json::json!({
            "version": 1, "symbols": [], "inputs": [], "outputs": [], "workspace_bytes": 0,
            "pieces": [interface, interface], "values": [], "copies": [],
            "calls": [call(0), call(1), call(1)],
        }))
        .unwrap()
    }

    #[test]
    fn a_whole_says_what_it_is_stitched_of() {
        let files: Files = [(STITCHING.to_owned(), stitching())].into();
        let piece = |n: u8| PieceRef {
            key: ArtifactKey::from_bytes([n; 32]),
            pack: Digest::of(&[n]),
            pack_size: 2048,
        };
        let (mut manifest, _) = artifact(&[("a", b"b")]);
        manifest.pieces = vec![piece(1), piece(2)];
        let pieces = of(&files, Some(&manifest)).unwrap();
        assert_eq!(summary(&pieces).unwrap(), "whole of 2 pieces, 3 runs");
        assert_eq!(pieces[1].row(), ["1", "02".repeat(32).as_str(), "2.0 KiB", "2"]);
        let refused = has_no_code(&pieces).to_string();
        assert!(refused.contains(&"01".repeat(32)), "{refused}");
        let json = serde_json::to_value(&pieces).unwrap();
        assert_eq!(json[0]["artifact"], Digest::of(&[1]).to_string());
    }

    #[test]
    fn a_folder_says_what_was_written_with_it() {
        let named = br#"[{"key":"k0","pack":"p0"},{"key":"k1","pack":"p1"}]"#.to_vec();
        let mut files: Files = [(PIECE_KEYS.to_owned(), named)].into();
        assert!(of(&files, None).unwrap().is_empty(), "no whole, whatever that file is");
        files.insert(STITCHING.to_owned(), stitching());
        let pieces = of(&files, None).unwrap();
        assert_eq!(pieces[1].row(), ["1", "k1", "-", "2"]);
        files.remove(PIECE_KEYS);
        assert_eq!(of(&files, None).unwrap()[0].row()[1], "pieces/0");
        files.insert(STITCHING.to_owned(), b"{}".to_vec());
        assert_eq!(of(&files, None).unwrap_err().exit_code(), 12);
    }
}
