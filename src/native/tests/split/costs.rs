//! What compiles cost: sources for NVRTC with what the estimates count in them.

use std::{fmt::Write, path::Path};

use kiln_proto::Target;

use super::finest;
use crate::{
    fixtures::load,
    lower_parsed, read_graph,
    split::{Settings, split},
};

/// `KILN_COSTS=DIR` writes a source for each whole and each piece of the models of
/// `sm_90`, and `costs.csv`: file, operations, products, attentions. Compile them
/// one after the other, each in a process of its own, and fit
/// [`crate::split::Coefficients`] to seconds and memory.
#[test]
#[ignore = "writes files"]
fn write() {
    let folder = std::env::var("KILN_COSTS").unwrap();
    let (folder, mut table) = (Path::new(&folder), String::new());
    let mut seen = std::collections::BTreeSet::new();
    let mut put = |graph: &kiln_proto::graph::Graph| {
        let one = Settings { at: Vec::new(), layers: false, ..Settings::default() };
        let found = split(graph, &one).unwrap().whole;
        let lowered = lower_parsed(graph, &Default::default(), Target::cubin(90)).unwrap();
        if seen.insert(lowered.source.clone()) {
            let name = format!("{}.cu", seen.len());
            std::fs::write(folder.join(&name), lowered.source).unwrap();
            let (all, products, attentions) = (found.operations, found.products, found.attentions);
            writeln!(table, "{name},{all},{products},{attentions}").unwrap();
        }
    };
    for fixture in load("models").iter().filter(|fixture| fixture.name.contains("bf16")) {
        let graph = read_graph(&fixture.archive).unwrap();
        put(&graph);
        for settings in [Settings::default(), finest()] {
            let split = split(&graph, &settings).unwrap();
            split.pieces.iter().step_by(3).for_each(|piece| put(split.graph(piece)));
        }
    }
    std::fs::write(folder.join("costs.csv"), table).unwrap();
}
