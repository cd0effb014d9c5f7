//! In which order of dimensions a tensor is carried from one piece to the next.
//!
//! A piece gives its outputs densely in row-major order. What the exporter has in another
//! order came out of a transposition, which costs nothing where the next operation reads
//! through it, and a copy where it must lie so. So it is carried as it lies: the piece that
//! makes it ends with a permutation, and each that reads it begins with the inverse one.
//!
//! Invariant: the order follows from the tensor's type alone; what the caller of the whole
//! gives or gets is never carried in another one.

use kiln_proto::graph::{Argument, Dim, Node, TensorType, ValueId};

use super::{
    flow::Flow,
    symbols::{Sizes, dense},
};
use crate::size::Size;

/// The operation that turns a tensor.
const PERMUTE: &str = "aten.permute.default";
/// What follows the tensor's name in that of the operation.
pub(super) const TURNED: &str = "_turned";

/// Of the dimensions in which `value` is carried, which one of its own each is; `None`: it is
/// carried as it is.
pub(super) fn order(flow: &Flow<'_>, sizes: &Sizes<'_>, value: ValueId) -> Option<Vec<usize>> {
    if flow.input[value.0].is_some() || flow.is_output[value.0] {
        return None;
    }
    in_memory(&flow.graph.value(value).ty, sizes)
}

/// The dimensions in the order of memory, where that is another than their own and the tensor
/// is dense in it. A dimension of one element stays where it is.
fn in_memory(ty: &TensorType, sizes: &Sizes<'_>) -> Option<Vec<usize>> {
    if ty.offset != Dim::Static(0) {
        return None;
    }
    let long = |dim: &usize| ty.shape[*dim] != Dim::Static(1);
    let places: Vec<usize> = (0..ty.shape.len()).filter(long).collect();
    let mut left = places.clone();
    let mut order: Vec<usize> = (0..ty.shape.len()).collect();
    let mut step = Size::from(1);
    for place in places.into_iter().rev() {
        let next = left.iter().rposition(|dim| {
            ty.strides.get(*dim).is_some_and(|stride| sizes.size(stride).as_ref() == Ok(&step))
        })?;
        let dim = left.remove(next);
        step = &step * &sizes.size(&ty.shape[dim]).ok()?;
        order[place] = dim;
    }
    (!order.is_sorted()).then_some(order)
}

/// Where each dimension went.
pub(super) fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
    inverse
}

/// The type of a tensor of type `ty` that is carried in `order`.
pub(super) fn carried(ty: &TensorType, order: &[usize]) -> TensorType {
    let shape: Vec<Dim> = order.iter().map(|dim| ty.shape[*dim].clone()).collect();
    let (strides, offset) = (dense(&shape), Dim::Static(0));
    TensorType { dtype: ty.dtype, shape, strides, offset, device: ty.device.clone() }
}

/// The type of such a tensor once it is turned back.
pub(super) fn turned_back(ty: &TensorType, order: &[usize]) -> TensorType {
    let carried = carried(ty, order);
    let back = inverse(order);
    let strides = back.iter().map(|dim| carried.strides[*dim].clone()).collect();
    TensorType { shape: ty.shape.clone(), strides, ..carried }
}

/// Turns `from`, whose name in the whole is `name`, to `to`.
pub(super) fn turn(name: &str, from: ValueId, order: &[usize], to: ValueId) -> Node {
    let dims = order.iter().map(|dim| *dim as i64).collect();
    let args = vec![
        ("self".to_owned(), Argument::Tensor(from)),
        ("dims".to_owned(), Argument::Ints(dims)),
    ];
    Node { name: format!("{name}{TURNED}"), op: PERMUTE.to_owned(), args, outputs: vec![to] }
}
