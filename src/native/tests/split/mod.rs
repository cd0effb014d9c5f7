//! Graphs in pieces: stitched they compute what they do as a whole.

pub(super) mod build;
mod costs;
mod hostile;
mod keys;
mod linked;
mod memory;
mod models;
mod native;
mod random;
mod rules;
mod strategy;
mod validate;

use kiln_proto::graph::Graph;

use crate::{
    eager::Eager,
    interp::{Settings as Run, Tensor},
    read_graph,
    split::{Settings, Split, split, stitch, stitch::Stitching},
};

/// Pieces as small as they get.
fn finest() -> Settings {
    let mut settings = Settings { least_layer: 2, ..Settings::default() };
    settings.budget.most_operations = 1;
    settings
}

fn model(name: &str) -> Graph {
    read_graph(&super::fixture(&format!("models/{name}.pt2"))).unwrap()
}

/// A graph that was split and stitched, and can be run.
struct Stitched {
    split: Split,
    stitching: Stitching,
    pieces: Vec<Eager>,
}

fn stitched(graph: &Graph, settings: &Settings) -> Result<Stitched, String> {
    let split = split(graph, settings).map_err(|e| e.to_string())?;
    let stitching = stitch::stitch(graph, &split).map_err(|e| e.to_string())?;
    // As somebody else gets it.
    let read = Stitching::read(&stitching.to_bytes()).map_err(|e| e.to_string())?;
    if read != stitching {
        return Err("it is not what was written".to_owned());
    }
    let pieces = split.pieces.iter().map(|piece| Eager::new(split.graph(piece)));
    let pieces = pieces.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    Ok(Stitched { split, stitching, pieces })
}

impl Stitched {
    fn run(&self, inputs: &[Tensor<'_>]) -> Result<Vec<Tensor<'static>>, String> {
        let run = stitch::run(&self.stitching, &self.pieces, inputs, &Run::default());
        run.map_err(|e| e.to_string())
    }
}

/// Runs `graph` in pieces and as a whole, bit for bit the same.
fn same(
    graph: &Graph,
    cases: &[Vec<Tensor<'static>>],
    settings: &Settings,
) -> Result<Stitched, String> {
    let stitched = stitched(graph, settings)?;
    let whole = Eager::new(graph).map_err(|e| e.to_string())?;
    for case in cases {
        let expected = whole.run(case, &Run::default()).map_err(|e| e.to_string())?;
        let found = stitched.run(case)?;
        if expected.len() != found.len() {
            return Err(format!("{} outputs, not {}", found.len(), expected.len()));
        }
        if let Some(at) = (0..expected.len()).find(|at| expected[*at] != found[*at]) {
            let (found, expected) = (found[at].to_f64(), expected[at].to_f64());
            return Err(format!("output {at} is {found:?}, not {expected:?}"));
        }
    }
    Ok(stitched)
}
