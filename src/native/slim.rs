//! A torch.export archive without what no compile reads: the values of its
//! parameters and buffers, and its sample inputs.
//!
//! Invariant: the archive that comes out has the same key as the one that went
//! in; weights are skipped on the disk, never read.

use std::io::{Cursor, Read, Seek};

use kiln_proto::Failure;
use zip::{ZipWriter, result::ZipError, write::SimpleFileOptions};

use super::archive::{directory, invalid};

/// Copies `archive` but for its weights, which are empty then.
pub fn slim(archive: impl Read + Seek) -> Result<Vec<u8>, Failure> {
    copy(archive).map_err(|e| invalid(format!("not a complete .pt2 archive: {e}")))
}

fn copy(archive: impl Read + Seek) -> Result<Vec<u8>, ZipError> {
    let mut from = directory(archive)?;
    let mut to = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..from.len() {
        let entry = from.by_index_raw(index)?;
        let name = entry.name()?.into_owned();
        match name.split_once('/').map_or("", |(_, path)| path) {
            path if path.starts_with("data/sample_inputs/") => {}
            path if path.starts_with("data/weights/") && !path.ends_with(".json") => {
                to.start_file(name, SimpleFileOptions::default())?;
            }
            _ => to.raw_copy_file(entry)?,
        }
    }
    Ok(to.finish()?.into_inner())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{fixtures::with_weights, read_graph};

    #[test]
    fn weights_go_and_the_graph_stays() {
        let small = crate::tests::fixture("block_bf16.211.pt2");
        let archive = with_weights(&small, 1 << 20);
        let slimmed = slim(Cursor::new(&archive)).unwrap();
        assert!(slimmed.len() < small.len() + 4096, "{} of {}", slimmed.len(), small.len());
        let graph = |archive: &[u8]| format!("{:?}", read_graph(archive).unwrap());
        assert_eq!(graph(&slimmed), graph(&archive));
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let failure = slim(Cursor::new(b"PK\x03\x04rest")).unwrap_err();
        assert!(failure.message.contains("complete .pt2"), "{failure}");
    }
}
