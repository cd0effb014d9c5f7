//! The pieces that a compile in pieces waits for: what its node asks of the others.
//!
//! Invariant: a list is as long as a whole may have pieces and its bytes are bounded, in the
//! log as in every replica's memory, whoever asks for it.

use kiln_proto::{ArtifactKey, Digest, Fingerprint, MAX_PIECES, NodeId, Token};
use serde::{Deserialize, Serialize};

/// Most bytes of one encoded list, of which the keys and estimates of the longest one take
/// 48 KiB. `apply` asks for it: whoever changes it gives old commands another meaning.
const MOST_BYTES: usize = 64 << 10;

/// The pieces that one whole waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The key of the artifact that is stitched of them.
    pub whole: ArtifactKey,
    /// The live token of that key: the list ends with this lease.
    pub token: Token,
    /// The node that holds the lease.
    pub node: NodeId,
    /// The blob with the encoded request, which `node` serves.
    pub request: Digest,
    /// Its size.
    pub request_bytes: u64,
    /// Each key once, in the order of the whole.
    pub pieces: Vec<WantedPiece>,
    /// The compiler that a node must have to compile them.
    pub fingerprint: Fingerprint,
}

/// One piece of a list.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WantedPiece {
    /// Its key.
    pub key: ArtifactKey,
    /// How long its compile takes, in seconds: an estimate.
    pub seconds: f32,
    /// Bytes of memory that it takes: an estimate.
    pub memory: u64,
}

impl Wanted {
    /// What every list must hold, whoever made it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.pieces.len() > MAX_PIECES {
            return Err(format!("{} wanted pieces, at most {MAX_PIECES}", self.pieces.len()));
        }
        let estimates = |piece: &WantedPiece| piece.seconds.is_finite() && piece.seconds >= 0.0;
        if !self.pieces.iter().all(estimates) {
            return Err("a piece's estimate is no number of seconds".into());
        }
        let mut keys: Vec<_> = self.pieces.iter().map(|piece| piece.key).collect();
        keys.push(self.whole);
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a wanted piece comes twice, or is the whole itself".into());
        }
        match crate::codec::encode(self) {
            Ok(bytes) if bytes.len() <= MOST_BYTES => Ok(()),
            Ok(bytes) => Err(format!("a wanted list of {} bytes", bytes.len())),
            Err(e) => Err(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pieces: usize) -> Wanted {
        let piece = |n: usize| WantedPiece {
            key: ArtifactKey::from_bytes(*Digest::of(&n.to_le_bytes()).as_bytes()),
            seconds: 1e9,
            memory: u64::MAX,
        };
        Wanted {
            whole: ArtifactKey::from_bytes([1; 32]),
            token: Token(u64::MAX),
            node: u64::MAX,
            request: Digest::of(b"request"),
            request_bytes: u64::MAX,
            pieces: (0..pieces).map(piece).collect(),
            fingerprint: Fingerprint::new("native", [("nvrtc", "13.0.88")]),
        }
    }

    #[test]
    fn the_longest_list_is_taken_and_a_longer_one_is_not() {
        assert_eq!(list(MAX_PIECES).check(), Ok(()));
        assert!(list(MAX_PIECES + 1).check().is_err());
    }

    #[test]
    fn a_list_that_is_not_what_it_says_is_refused() {
        let broken: [fn(&mut Wanted); 6] = [
            |w| w.pieces[1] = w.pieces[0],
            |w| w.pieces[1].key = w.whole,
            |w| w.pieces[0].seconds = f32::NAN,
            |w| w.pieces[0].seconds = -1.0,
            |w| w.pieces[0].seconds = f32::INFINITY,
            |w| w.fingerprint.compiler = "x".repeat(MOST_BYTES),
        ];
        for break_it in broken {
            let mut wanted = list(2);
            break_it(&mut wanted);
            assert!(wanted.check().is_err(), "{wanted:?}");
        }
    }
}
