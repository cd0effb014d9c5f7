//! What a fuzzer feeds to this port.

use std::time::Duration;

use futures::FutureExt;

use super::decode::{Arg, Decoder, Step};
use crate::cache::{Arrivals, Budget, BudgetSettings};

/// Longest argument that is taken.
const LONGEST: usize = 1 << 20;
/// Memory for arguments that arrive.
const ROOM: u64 = 4 << 20;

/// The first byte says in which pieces the rest comes in.
pub(crate) fn requests(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else { return };
    let settings = BudgetSettings { bytes: ROOM, blobs: 1024, wait: Duration::ZERO };
    let arrivals = Arrivals::new(Budget::new(settings));
    let mut decoder = Decoder::new(LONGEST);
    let mut pieces = bytes.chunks(usize::from(*piece).max(1));
    loop {
        match decoder.next() {
            Err(_) => return,
            Ok(Step::Read) => match pieces.next() {
                Some(piece) => decoder.space().extend_from_slice(piece),
                None => return,
            },
            Ok(Step::Admit(size)) => {
                let admitted = arrivals.admit(size as u64).now_or_never().and_then(Result::ok);
                if decoder.admit(admitted).is_err() {
                    return;
                }
            }
            Ok(Step::Request(request)) => {
                let held = request.args.iter().map(|arg| match arg {
                    Arg::Bytes(bytes) => bytes.len(),
                    Arg::Blob(blob) => blob.len(),
                    Arg::Skipped(_) => 0,
                });
                assert!(held.sum::<usize>() <= bytes.len(), "more than came");
                assert!(!request.args.is_empty(), "a request without a name");
            }
        }
    }
}
