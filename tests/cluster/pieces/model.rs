//! A language model of sixteen equal layers, and others that differ from it by little.

use std::io::{Cursor, Read, Write};

use kiln_proto::{Target, pb};
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

/// Different pieces of the language model: embedding and positions; before, at and
/// after attention; the head.
pub(super) const PIECES: usize = 5;
/// Norms of a layer, and so epsilons.
const NORMS: usize = 4;
const LAYERS: usize = 16;
const NAMESPACE: &str = "default";

pub(super) fn archive(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models");
    std::fs::read(format!("{folder}/{name}.pt2")).unwrap()
}

/// The language model with another epsilon in the norm of that number.
pub(super) fn changed(norm: usize) -> Vec<u8> {
    with_epsilons(|at, epsilon| if at == norm { 0.5 } else { epsilon })
}

/// The language model with what `epsilon` makes of each norm's own, by its number.
pub(super) fn with_epsilons(epsilon: impl Fn(usize, f64) -> f64) -> Vec<u8> {
    let mut from = ZipArchive::new(Cursor::new(archive("qwen3_lm_f32_static.new"))).unwrap();
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

/// The norm before attention in one layer.
pub(super) const fn in_layer(layer: usize) -> usize {
    NORMS * layer
}

/// The norm of the head, which is after all layers.
pub(super) const HEAD: usize = NORMS * LAYERS;

/// A request for an archive.
pub(super) fn request(archive: Vec<u8>, piecewise: pb::Piecewise) -> pb::CompileRequest {
    let program = pb::ExportedProgram { name: "model.pt2".into(), archive: archive.into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![Target::cubin(90).into()],
        namespace: NAMESPACE.into(),
        backend: "native".into(),
        piecewise: piecewise.into(),
        ..Default::default()
    }
}

/// A request for the interpreter's own artifacts in pieces: what runs without a GPU.
pub(super) fn eager(archive: Vec<u8>, verify: pb::Verify) -> pb::CompileRequest {
    pb::CompileRequest {
        targets: vec![Target::any().into()],
        backend: "eager".into(),
        verify: verify.into(),
        ..request(archive, pb::Piecewise::Always)
    }
}

/// The language model in pieces.
pub(super) fn whole() -> pb::CompileRequest {
    request(archive("qwen3_lm_f32_static.new"), pb::Piecewise::Always)
}
