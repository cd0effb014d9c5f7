//! From pieces to a stitching.
//!
//! Invariant: memory is shared only between values of which one is read for the
//! last time before the other is made, or by the call that makes the other in
//! its place.

use std::collections::HashMap;

use kiln_proto::graph::{Dim, Graph, InputKind, TensorType, ValueId};

use super::{Arg, Call, Copy, Interface, Spec, Stitching, VERSION, Value, in_place::in_place};
use crate::{
    eager,
    plan::{Expr, Memory, Sized, place_sized},
    size::Size,
    split::{Piece, Split, SplitError, symbols::Sizes},
};

/// How the pieces of `split` make `graph`.
pub fn stitch(graph: &Graph, split: &Split) -> Result<Stitching, SplitError> {
    let whole = eager::interface(graph).map_err(SplitError::Graph)?;
    let sizes = Sizes::of(graph, 1);
    let mut made = Made { values: Vec::new(), bytes: Vec::new(), number: HashMap::new() };
    for (position, input) in graph.inputs.iter().enumerate() {
        made.number.insert(input.value, Arg::Input(position));
    }
    let (mut calls, mut pieces) = (Vec::new(), Vec::new());
    for piece in &split.pieces {
        pieces.push(interface(split.graph(piece), piece));
    }
    for item in &split.items {
        let args = item.graph.inputs.iter().zip(&item.inputs).map(|(input, edge)| {
            match (&input.kind, made.number.get(&edge.value)) {
                (InputKind::Constant(_), _) | (_, None) => Arg::Constant,
                (_, Some(arg)) => *arg,
            }
        });
        let args: Vec<Arg> = args.collect();
        for arg in &args {
            if let Arg::Value(value) = arg {
                made.values[*value].to = item.index;
            }
        }
        let results =
            item.outputs.iter().map(|edge| made.value(edge.value, &edge.ty, item.index, &sizes));
        let results = results.collect::<Result<Vec<usize>, SplitError>>()?;
        calls.push(Call { piece: item.piece, args, results, in_place: None });
    }
    let mut copies = Vec::new();
    let mut taken = vec![false; made.values.len()];
    for (output, value) in graph.outputs.iter().enumerate() {
        match made.number.get(value) {
            Some(Arg::Value(value)) if !taken[*value] => {
                taken[*value] = true;
                made.values[*value].memory = Memory::Output(output);
            }
            Some(from) => copies.push(Copy { output, from: *from }),
            None => {}
        }
    }
    let may: Vec<Option<usize>> =
        split.pieces.iter().map(|piece| in_place(split.graph(piece))).collect();
    let workspace_bytes = made.place(&mut calls, &may);
    Ok(Stitching {
        version: VERSION,
        symbols: whole.symbols,
        inputs: whole.inputs,
        outputs: whole.outputs,
        workspace_bytes,
        pieces,
        values: made.values,
        calls,
        copies,
    })
}

/// The values so far.
struct Made {
    values: Vec<Value>,
    bytes: Vec<Size>,
    /// What each value of the graph is.
    number: HashMap<ValueId, Arg>,
}

impl Made {
    fn value(
        &mut self,
        id: ValueId,
        ty: &TensorType,
        from: usize,
        sizes: &Sizes<'_>,
    ) -> Result<usize, SplitError> {
        let shape = ty.shape.iter().map(|dim| sizes.size(dim).map(|size| size.to_plan()));
        let shape = shape.collect::<Result<_, _>>().map_err(SplitError::Size)?;
        let memory = Memory::Workspace(Expr::Known(0));
        self.bytes.push(sizes.bytes_of(ty).map_err(SplitError::Size)?);
        self.values.push(Value { dtype: ty.dtype, shape, memory, from, to: from });
        self.number.insert(id, Arg::Value(self.values.len() - 1));
        Ok(self.values.len() - 1)
    }

    /// Gives each value of the workspace its place; `may` has for each piece the
    /// input in whose place it can make its result.
    fn place(&mut self, calls: &mut [Call], may: &[Option<usize>]) -> Expr {
        let in_workspace = |value: &Value| matches!(value.memory, Memory::Workspace(_));
        // Values that share one slot.
        let mut slots: Vec<Sized> = Vec::new();
        let mut slot_of: Vec<Option<usize>> = vec![None; self.values.len()];
        for (index, call) in calls.iter_mut().enumerate() {
            for result in &call.results {
                let value = &self.values[*result];
                if !in_workspace(value) {
                    continue;
                }
                let given = may[call.piece].and_then(|at| match call.args.get(at) {
                    Some(Arg::Value(given)) => Some((at, *given)),
                    _ => None,
                });
                let reused = given.filter(|(_, given)| {
                    let uses = call.args.iter().filter(|arg| **arg == Arg::Value(*given)).count();
                    let ends = self.values[*given].to == index && uses == 1;
                    ends && slot_of[*given].is_some() && self.bytes[*given] == self.bytes[*result]
                });
                match reused {
                    Some((at, given)) => {
                        call.in_place = Some(at);
                        slot_of[*result] = slot_of[given];
                        slot_of[given].into_iter().for_each(|slot| slots[slot].to = value.to);
                    }
                    None => {
                        let bytes = self.bytes[*result].clone();
                        slot_of[*result] = Some(slots.len());
                        slots.push(Sized { bytes, from: value.from, to: value.to });
                    }
                }
            }
        }
        let (offsets, end) = place_sized(&slots);
        for (value, slot) in self.values.iter_mut().zip(slot_of) {
            if let Some(slot) = slot {
                value.memory = Memory::Workspace(offsets[slot].to_plan());
            }
        }
        end.to_plan()
    }
}

fn interface(graph: &Graph, piece: &Piece) -> Interface {
    let spec = |id: ValueId, constant| {
        let TensorType { dtype, shape, .. } = &graph.value(id).ty;
        Spec { dtype: *dtype, shape: shape.iter().map(Dim::known).collect(), constant }
    };
    let takes = graph.inputs.iter();
    let [of_graph, of_inputs] = piece.digests();
    Interface {
        graph: of_graph,
        inputs: of_inputs,
        compiler: None,
        takes: takes
            .map(|input| spec(input.value, matches!(input.kind, InputKind::Constant(_))))
            .collect(),
        gives: graph.outputs.iter().map(|output| spec(*output, false)).collect(),
    }
}
