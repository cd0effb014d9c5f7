//! A program as a plan without kernels: names, types and shapes for its callers.
//!
//! Invariant: names are positions, so that one artifact serves every program
//! of its key.

use kiln_proto::Failure;

use super::invalid;
use crate::{
    bind,
    core::{Program, Value},
    plan::{Expr, Plan, Symbol, Tensor, version_for},
    size::Size,
};

/// The plan of `program`, whose inputs are of those kinds.
pub(super) fn plan(program: &Program, kinds: &[&str]) -> Result<Plan, Failure> {
    let sights = bind::sights(program)?;
    let symbols = program.symbols.iter().zip(sights).map(|(range, sight)| Symbol {
        min: range.min,
        max: (range.max != i64::MAX).then_some(range.max),
        input: sight.input,
        dim: sight.dim,
        scale: sight.scale,
        offset: sight.offset,
    });
    let exprs = |sizes: &[Size]| sizes.iter().map(Size::to_plan).collect::<Vec<_>>();
    let inputs = program.inputs.iter().zip(kinds).enumerate().map(|(i, (input, kind))| {
        let Value { dtype, shape } = program.value(input.value);
        let (name, kind) = (format!("in{i}"), (*kind).to_owned());
        let (shape, strides) = (exprs(shape), exprs(&input.strides));
        let updated = program.updates.contains(&input.position);
        Tensor { name, kind, dtype: *dtype, shape, strides, updated }
    });
    let outputs = program.outputs[..program.returned()].iter().enumerate().map(|(i, output)| {
        let Value { dtype, shape } = program.value(*output);
        let mut strides = vec![Size::from(1); shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = &strides[dim] * &shape[dim];
        }
        let (name, kind) = (format!("out{i}"), "output".to_owned());
        let (shape, strides) = (exprs(shape), exprs(&strides));
        Tensor { name, kind, dtype: *dtype, shape, strides, updated: false }
    });
    Ok(Plan {
        version: version_for(&program.updates, &[]),
        target: "any".to_owned(),
        symbols: symbols.collect(),
        inputs: inputs.collect(),
        outputs: outputs.collect(),
        workspace_bytes: Expr::Known(0),
        buffers: Vec::new(),
        kernels: Vec::new(),
    })
}

/// Sizes that depend on nothing: those of a constant.
pub(super) fn known(shape: &[Expr]) -> Result<Vec<usize>, Failure> {
    let size = |size: &Expr| size.known().and_then(|size| usize::try_from(size).ok());
    let sizes: Option<Vec<usize>> = shape.iter().map(size).collect();
    sizes.ok_or_else(|| invalid("a constant has a size that is not known"))
}
