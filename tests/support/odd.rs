//! A program with an operation that none of our compilers has a rule for.

use std::io::{Cursor, Read, Write};

use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

const UNKNOWN: &str = "torch.ops.aten.special_bessel_j0.default";

/// A decoder block whose activation is `UNKNOWN`, as an archive.
pub(crate) fn archive() -> Vec<u8> {
    let known = "tests/fixtures/models/llama_block_f32_static.new.pt2";
    let known = std::fs::read(format!("{}/{known}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut from = ZipArchive::new(Cursor::new(known)).unwrap();
    let mut to = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..from.len() {
        let mut entry = from.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let path = entry.name().unwrap().into_owned();
        if path.ends_with("/models/model.json") {
            let text = String::from_utf8(bytes).unwrap();
            let changed = text.replace("torch.ops.aten.silu.default", UNKNOWN);
            assert_ne!(changed, text);
            bytes = changed.into_bytes();
        }
        to.start_file(path, SimpleFileOptions::default()).unwrap();
        to.write_all(&bytes).unwrap();
    }
    to.finish().unwrap().into_inner()
}
