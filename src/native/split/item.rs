//! The pieces of a graph.
//!
//! Invariant: items are in an order in which they can run, and two of one piece
//! have equal keys.

use std::collections::{BTreeSet, HashMap};

use kiln_proto::{
    Digest,
    graph::{Graph, TensorType, ValueId},
};

use super::{
    Settings, SplitError, carried, cut,
    estimate::{Costs, Estimates},
    flow::Flow,
    groups::{Groups, groups},
    order::{self, Unit},
    part::{Part, laid_out, part},
    pattern::{self, Repeat, repeats, signatures},
    symbols::Sizes,
};
use crate::{Identity, attend, core::Program, identify_graph};

/// A tensor that flows into or out of a piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// In the whole.
    pub value: ValueId,
    /// As exported, to show.
    pub name: String,
    /// As the piece has it.
    pub ty: TensorType,
    /// Of the dimensions that the piece has, which one of the whole's each is; `None`: the
    /// same.
    pub order: Option<Vec<usize>>,
}

/// A part of a graph.
#[derive(Debug, Clone)]
pub struct SplitItem {
    /// In the order of running.
    pub index: usize,
    /// The whole's nodes that it has.
    pub nodes: Vec<usize>,
    /// In the order of its graph's.
    pub inputs: Vec<Edge>,
    /// In the order of its graph's.
    pub outputs: Vec<Edge>,
    /// What its compile takes.
    pub estimates: Estimates,
    /// A program of its own, with the exporter's names.
    pub graph: Graph,
    /// Position in [`Split::pieces`].
    pub piece: usize,
}

/// What is compiled: equal items are one.
#[derive(Debug, Clone)]
pub struct Piece {
    /// What of its key follows from the graph.
    pub identity: Identity,
    /// The items that are equal to it; the first has its graph.
    pub items: Vec<usize>,
}

/// A graph in pieces.
#[derive(Debug, Clone)]
pub struct Split {
    /// In an order in which they can run.
    pub items: Vec<SplitItem>,
    /// The different ones among them, by first appearance.
    pub pieces: Vec<Piece>,
    /// What a compile of the whole takes.
    pub whole: Estimates,
    /// Operations that the graph was cut at.
    pub cut_at: usize,
    /// Equal layers: how often each kind comes.
    pub layers: Vec<usize>,
}

impl Piece {
    /// Equal for equal pieces.
    pub fn digests(&self) -> [Digest; 2] {
        [self.identity.graph.digest, self.identity.inputs.digest]
    }
}

impl Split {
    /// The graph of a piece.
    pub fn graph(&self, piece: &Piece) -> &Graph {
        &self.items[piece.items[0]].graph
    }

    /// What all compiles take together, each piece compiled once.
    pub fn distinct_seconds(&self) -> f64 {
        let pieces = self.pieces.iter();
        pieces.map(|piece| self.items[piece.items[0]].estimates.compile_seconds).sum()
    }
}

/// Splits `graph`, which became `program`.
pub(super) fn split(
    graph: &Graph,
    program: &Program,
    settings: &Settings,
) -> Result<Split, SplitError> {
    let flow = Flow::of(graph);
    let sizes = Sizes::of(graph, settings.assumed_size);
    let mut fused = program.clone();
    attend::attend(&mut fused, graph);
    let costs = Costs::of(graph, &fused, &sizes, settings.coefficients);
    let groups = groups(&flow, program, &settings.at);
    let Arranged { units, sequence, found, shared } = arranged(&flow, &groups, settings);
    let crossing = cut::crossings(&flow, &units, &sizes);
    let mut cuts = BTreeSet::from([0, units.len()]);
    for repeat in &found {
        let layers = cut::layers(*repeat, &crossing, &units, &groups);
        // One layer alone, beside a changed one, is a layer too.
        cuts.extend(pattern::times(&sequence, layers[0]..layers[1]));
        cuts.extend(layers);
        cuts.insert(shared);
    }
    let is_core = |unit: &Unit| unit.iter().any(|node| groups.of[*node].is_some());
    let cores = (0..units.len()).filter(|at| is_core(&units[*at]));
    cuts.extend(cores.flat_map(|at| [at, at + 1]));
    let ends: Vec<usize> = cuts.iter().copied().collect();
    for range in ends.windows(2).map(|ends| ends[0]..ends[1]) {
        cuts.extend(cut::within(&flow, &units, range, &costs, &settings.budget, &sizes));
    }
    let ends: Vec<usize> = cuts.into_iter().collect();
    let mut split = Split {
        items: Vec::new(),
        pieces: Vec::new(),
        whole: costs.sum(flow.live.iter().copied()),
        cut_at: groups.count,
        layers: found.iter().map(|repeat| repeat.times).collect(),
    };
    let mut known: HashMap<[Digest; 2], usize> = HashMap::new();
    for ends in ends.windows(2).filter(|ends| ends[0] < ends[1]) {
        let nodes: Vec<usize> = units[ends[0]..ends[1]].iter().flatten().copied().collect();
        add(&mut split, &mut known, (&flow, &sizes, &costs), part(&flow, &sizes, &nodes)?)?;
    }
    Ok(split)
}

/// The units in the order of cutting, and what repeats in it.
struct Arranged {
    units: Vec<Unit>,
    /// Equal numbers for units that do the same.
    sequence: Vec<u32>,
    found: Vec<Repeat>,
    /// How many units at the start are for all layers.
    shared: usize,
}

fn arranged(flow: &Flow<'_>, groups: &Groups, settings: &Settings) -> Arranged {
    let single = vec![None; flow.graph.nodes.len()];
    let units = order::units(flow, &groups.of);
    // Groups that need each other are no groups: one node never needs itself.
    let units = units.or_else(|| order::units(flow, &single)).unwrap_or_default();
    if !settings.layers {
        return Arranged { units, sequence: Vec::new(), found: Vec::new(), shared: 0 };
    }
    let across = cut::across(flow, &units, groups);
    let (units, first) = order::hoisted(flow, units, &across);
    let sequence = signatures(flow, &units);
    let found = repeats(&sequence, settings.least_layer);
    let more: Vec<usize> =
        found.iter().flat_map(|repeat| cut::shared(flow, &units, *repeat)).collect();
    if more.iter().all(|unit| *unit < first) {
        return Arranged { units, sequence, found, shared: first };
    }
    let all: Vec<usize> = more.into_iter().chain(0..first).collect();
    let (units, shared) = order::hoisted(flow, units, &all);
    let sequence = signatures(flow, &units);
    let found = repeats(&sequence, settings.least_layer);
    Arranged { units, sequence, found, shared }
}

fn add(
    split: &mut Split,
    known: &mut HashMap<[Digest; 2], usize>,
    (flow, sizes, costs): (&Flow<'_>, &Sizes<'_>, &Costs),
    part: Part,
) -> Result<(), SplitError> {
    let Part { graph, nodes, inputs, outputs } = part;
    let index = split.items.len();
    let identity = identify_graph(&graph, String::new());
    let identity = identity.ok_or_else(|| SplitError::Inexact {
        node: nodes.first().map(|node| flow.graph.nodes[*node].name.clone()).unwrap_or_default(),
    })?;
    let digests = [identity.graph.digest, identity.inputs.digest];
    let piece = *known.entry(digests).or_insert(split.pieces.len());
    match split.pieces.get_mut(piece) {
        Some(piece) => piece.items.push(index),
        None => split.pieces.push(Piece { identity, items: vec![index] }),
    }
    let edge = |(value, own): (&ValueId, ValueId)| {
        let name = flow.graph.value(*value).name.clone();
        let order = carried::order(flow, sizes, *value);
        Edge { value: *value, name, ty: graph.value(own).ty.clone(), order }
    };
    let given = graph.inputs.iter().map(|input| input.value);
    let inputs: Vec<Edge> = inputs.iter().zip(given).map(edge).collect();
    let outputs: Vec<Edge> = outputs.iter().zip(graph.outputs.iter().copied()).map(edge).collect();
    let outputs = outputs.into_iter().map(|edge| Edge { ty: laid_out(&edge.ty), ..edge }).collect();
    let estimates = costs.sum(nodes.iter().copied());
    split.items.push(SplitItem { index, nodes, inputs, outputs, estimates, graph, piece });
    Ok(())
}
