//! Language models of sixteen layers, of which as many are different as wanted.

use std::{
    io::{Cursor, Read, Write},
    path::Path,
};

use kiln_proto::{Target, pb};
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

const MODEL: &str = "tests/fixtures/models/qwen3_lm_f32_static.new.pt2";
/// Norms of a layer: one before attention, one each of queries and keys, one after.
const NORMS: usize = 4;
/// When each of them is changed: those before attention first, in all layers, then those after.
const TURN: [usize; NORMS] = [0, 2, 3, 1];
const LAYERS: usize = 16;

/// The model in pieces, with so many of its norms unlike all others. Each tenant has keys of
/// its own.
pub(crate) fn request(changed: usize, tenant: usize) -> pb::CompileRequest {
    let program =
        pb::ExportedProgram { name: "model.pt2".into(), archive: archive(changed).into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![Target::cubin(90).into()],
        backend: "native".into(),
        piecewise: pb::Piecewise::Always.into(),
        namespace: format!("run-{tenant}"),
        ..Default::default()
    }
}

/// The epsilon of the norm at that position.
fn epsilon(norm: usize, changed: usize) -> f64 {
    let (layer, of) = (norm / NORMS, norm % NORMS);
    let turn = if norm == NORMS * LAYERS { usize::MAX } else { TURN[of] * LAYERS + layer };
    let own = if turn < changed { turn + 1 } else { 0 };
    1e-6 * (own + 1) as f64
}

fn archive(changed: usize) -> Vec<u8> {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL)).unwrap();
    let mut from = ZipArchive::new(Cursor::new(bytes)).unwrap();
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
        for (norm, old) in epsilons.into_iter().enumerate() {
            *old = epsilon(norm, changed).into();
        }
        to.start_file(name, SimpleFileOptions::default()).unwrap();
        to.write_all(json.to_string().as_bytes()).unwrap();
    }
    to.finish().unwrap().into_inner()
}
