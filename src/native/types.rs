//! Shapes and element types with fixed sizes, and PyTorch's rules for them.
//!
//! Invariant: a [`Type`] has from one to 2^40 elements, so products of its
//! sizes never overflow.

use kiln_proto::graph::DType;

/// Most elements of one tensor.
const MOST_ELEMENTS: u64 = 1 << 40;

/// A tensor's element type and sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

/// An operand, as promotion sees it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operand<'a> {
    Tensor(&'a Type),
    /// A number in the program: takes part only against tensors of whole numbers.
    Scalar,
}

/// Whether kernels can be generated for tensors of `dtype`.
pub(super) const fn is_supported(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Number of elements, if within limits.
pub(super) fn elements(shape: &[usize]) -> Result<usize, String> {
    let mut product = 1u64;
    for size in shape {
        product = product.saturating_mul(*size as u64);
    }
    match product {
        0 => Err(format!("shape {shape:?} has no elements")),
        1..=MOST_ELEMENTS => Ok(product as usize),
        _ => Err(format!("shape {shape:?} has more than {MOST_ELEMENTS} elements")),
    }
}

/// The type of an element-wise result: among floating types, tensors with
/// dimensions decide; those without take part only among themselves.
pub(super) fn promote(operands: &[Operand<'_>]) -> Option<DType> {
    let of = |wanted: fn(&Type) -> bool| {
        operands
            .iter()
            .filter_map(|o| match o {
                Operand::Tensor(ty) if wanted(ty) => Some(ty.dtype),
                _ => None,
            })
            .reduce(promote_two)
    };
    of(|ty| !ty.shape.is_empty()).or_else(|| of(|ty| ty.shape.is_empty()))
}

fn promote_two(a: DType, b: DType) -> DType {
    // f16 and bf16 hold numbers that the other cannot.
    if a == b { a } else { DType::F32 }
}

/// The shape that both broadcast to.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let size =
        |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, x) | (x, 1) => Ok(x),
            _ => Err(format!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// A dimension that may count from the end.
pub(super) fn dimension(dim: i64, rank: usize) -> Result<usize, String> {
    let from_start = if dim < 0 { dim + rank as i64 } else { dim };
    usize::try_from(from_start)
        .ok()
        .filter(|d| *d < rank)
        .ok_or_else(|| format!("dimension {dim} of a tensor with {rank}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ty(dtype: DType, shape: &[usize]) -> Type {
        Type { dtype, shape: shape.to_vec() }
    }

    #[test]
    fn promotion_is_pytorchs() {
        let t = Operand::Tensor;
        let (half, brain) = (ty(DType::F16, &[2]), ty(DType::BF16, &[2]));
        let (full, scalar) = (ty(DType::F32, &[2]), ty(DType::F32, &[]));
        assert_eq!(promote(&[t(&half), t(&brain)]), Some(DType::F32));
        assert_eq!(promote(&[t(&half), t(&full)]), Some(DType::F32));
        assert_eq!(promote(&[t(&half), t(&scalar)]), Some(DType::F16));
        assert_eq!(promote(&[t(&scalar), Operand::Scalar]), Some(DType::F32));
        assert_eq!(promote(&[t(&brain), Operand::Scalar]), Some(DType::BF16));
        assert_eq!(promote(&[Operand::Scalar]), None);
    }

    fn shape() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(1usize..4, 0..5)
    }

    proptest! {
        #[test]
        fn broadcasting_is_symmetric_and_reaches_both(a in shape(), b in shape()) {
            let (ab, ba) = (broadcast(&a, &b), broadcast(&b, &a));
            prop_assert_eq!(ab.clone().ok(), ba.ok());
            if let Ok(both) = ab {
                prop_assert_eq!(broadcast(&both, &a).ok(), Some(both.clone()));
                prop_assert_eq!(broadcast(&both, &b).ok(), Some(both));
            }
        }
    }
}
