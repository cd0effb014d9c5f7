//! What a program leaves in its inputs, written there by the kernels themselves.
//!
//! Invariant: a temporary that is written to an input where it is computed reads of inputs
//! that are written to that one alone, each element where it writes it, and nothing else reads
//! that one; any other is written by a copy, which nothing reads and which waits for all
//! that reads the input.

use kiln_proto::{Failure, FailureKind, graph::Graph};

use crate::{
    archive::invalid,
    core::Program,
    loops::{Def, Expr, Id, Loops, Source, Temp, row_major},
    schedule::sources,
    size::Size,
};

/// Finds, or makes, the temporaries that are written to inputs.
pub(crate) fn place(program: &Program, graph: &Graph, loops: &mut Loops) -> Result<(), Failure> {
    if let Some(input) = program.misfit() {
        let name = &graph.value(graph.inputs[input].value).name;
        return Err(invalid(format!("what is left in input {name:?} has not its type and shape")));
    }
    let first = program.returned();
    for (at, input) in (first..).zip(&program.updates) {
        let Some(own) = program.inputs.iter().find(|own| own.position == *input) else { continue };
        let value = program.value(own.value);
        let dense = row_major(&value.shape);
        let lies = own.strides.iter().zip(&dense).zip(&value.shape);
        if !lies.into_iter().all(|((own, dense), size)| own == dense || size.is(1)) {
            let name = &graph.value(graph.inputs[*input].value).name;
            let why = format!("input {name:?} is written to and is not in row-major order");
            return Err(Failure::new(FailureKind::UnsupportedOp, why));
        }
        let temp = loops.outputs[at];
        if !is_direct(program, loops, temp, *input) {
            let Temp { dtype, numel, origins, .. } = loops.temps[temp].clone();
            let load = Expr::Load { source: Source::Temp(temp), dtype, index: Size::var(0) };
            let def = Def::Map(loops.exprs.add(load));
            loops.temps.push(Temp { dtype, numel, def, origins });
            loops.outputs[at] = loops.temps.len() - 1;
        }
    }
    loops.updates = loops.outputs[first..].iter().copied().zip(program.updates.clone()).collect();
    Ok(())
}

/// Whether `temp` may be written to `input` where it is computed.
fn is_direct(program: &Program, loops: &Loops, temp: usize, input: usize) -> bool {
    let read = sources(loops, temp);
    let updated = |source: &Source| matches!(source, Source::Input(other) if *other != input && program.updates.contains(other));
    if read.iter().any(updated) {
        return false;
    }
    if read.contains(&Source::Input(input)) {
        let Def::Map(id) = loops.temps[temp].def else { return false };
        if !reads_in_place(loops, [id], input, &Size::var(0)) {
            return false;
        }
    }
    // Where others read what was there before, a copy that waits for them all writes it: so
    // several that are written to never wait for each other.
    let mut others = (0..loops.temps.len()).filter(|other| *other != temp);
    others.all(|other| !sources(loops, other).contains(&Source::Input(input)))
}

/// Whether what `roots` load of `input` is at `place` alone.
pub(crate) fn reads_in_place(
    loops: &Loops,
    roots: impl IntoIterator<Item = Id>,
    input: usize,
    place: &Size,
) -> bool {
    loops.exprs.reachable(roots).into_iter().all(|part| match loops.exprs.get(part) {
        Expr::Load { source: Source::Input(other), index, .. } if *other == input => index == place,
        _ => true,
    })
}
