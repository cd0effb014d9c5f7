//! A language model of sixteen equal layers, and others that differ from it by their norms.
//!
//! Invariant: two of them have the same layer in common where its norms have the same epsilons.

use std::io::{Cursor, Read, Write};

use kiln_proto::{Target, pb};
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

/// Norms of a layer: one before attention, one each of queries and keys, one after.
pub(crate) const NORMS: usize = 4;
/// Layers; after all of them comes the norm of the head.
pub(crate) const LAYERS: usize = 16;
const MODEL: &str = "qwen3_lm_f32_static.new";

/// The archive of a fixture.
pub(crate) fn archive(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models");
    std::fs::read(format!("{folder}/{name}.pt2")).unwrap()
}

/// The language model with what `epsilon` makes of each norm's own, by its number.
pub(crate) fn with_epsilons(epsilon: impl Fn(usize, f64) -> f64) -> Vec<u8> {
    let mut from = ZipArchive::new(Cursor::new(archive(MODEL))).unwrap();
    let mut to = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..from.len() {
        let entry = from.by_index_raw(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        if !name.ends_with("/models/model.json") {
            to.raw_copy_file(entry).unwrap();
            continue;
        }
        drop(entry);
        let mut text = String::new();
        from.by_index(index).unwrap().read_to_string(&mut text).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let nodes = json.pointer_mut("/graph_module/graph/nodes").unwrap();
        let epsilons = nodes.as_array_mut().unwrap().iter_mut().filter_map(|node| {
            let is_add = node["target"] == "torch.ops.aten.add.Tensor";
            node.pointer_mut("/inputs/1/arg/as_float").filter(|_| is_add)
        });
        let epsilons: Vec<_> = epsilons.collect();
        assert_eq!(epsilons.len(), NORMS * LAYERS + 1);
        for (norm, own) in epsilons.into_iter().enumerate() {
            *own = epsilon(norm, own.as_f64().unwrap()).into();
        }
        to.start_file(name, SimpleFileOptions::default()).unwrap();
        to.write_all(json.to_string().as_bytes()).unwrap();
    }
    to.finish().unwrap().into_inner()
}

/// A request for an archive, compiled by the native compiler.
pub(crate) fn request(
    archive: Vec<u8>,
    piecewise: pb::Piecewise,
    namespace: &str,
) -> pb::CompileRequest {
    let program = pb::ExportedProgram { name: "model.pt2".into(), archive: archive.into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![Target::cubin(90).into()],
        namespace: namespace.into(),
        backend: "native".into(),
        piecewise: piecewise.into(),
        ..Default::default()
    }
}
