//! Index arithmetic: a tensor as an affine walk over somebody's elements.
//!
//! Invariant: each operation here reaches the elements that PyTorch's view of
//! the same name reaches, in the same order.

/// Sizes, and how far each dimension steps, in elements of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strided {
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Strides of a dense tensor in row-major order.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    strides
}

impl Strided {
    /// All of a dense tensor.
    pub(super) fn dense(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), strides: row_major(shape) }
    }

    /// Whether element `i` in row-major order is the source's element `i`.
    pub(super) fn is_dense(&self) -> bool {
        same_walk(&self.shape, &self.strides, &row_major(&self.shape))
    }

    /// Dimension `i` is the former `order[i]`.
    pub(super) fn permuted(&self, order: &[usize]) -> Self {
        Self {
            shape: order.iter().map(|dim| self.shape[*dim]).collect(),
            strides: order.iter().map(|dim| self.strides[*dim]).collect(),
        }
    }

    /// Broadcast to `shape`, aligned at the end.
    pub(super) fn broadcast(&self, shape: &[usize]) -> Self {
        let new = shape.len() - self.shape.len();
        let stride = |(dim, size): (usize, &usize)| match dim.checked_sub(new) {
            Some(dim) if self.shape[dim] == *size => self.strides[dim],
            _ => 0,
        };
        let strides = shape.iter().enumerate().map(stride).collect();
        Self { shape: shape.to_vec(), strides }
    }

    /// The same elements in the same order under another shape, if an affine
    /// walk reaches them.
    pub(super) fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        // Runs of dimensions that step like one, innermost first: (size, stride).
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            match runs.last_mut() {
                _ if *size == 1 => {}
                Some((run, step)) if *stride == *run * *step => *run *= size,
                _ => runs.push((*size, *stride)),
            }
        }
        let mut strides = vec![0; shape.len()];
        let mut runs = runs.into_iter();
        let mut run = (1, 1);
        for (size, stride) in shape.iter().zip(&mut strides).rev() {
            if *size == 1 {
                continue;
            }
            if run.0 == 1 {
                run = runs.next()?;
            }
            if !run.0.is_multiple_of(*size) {
                return None;
            }
            *stride = run.1;
            run = (run.0 / size, run.1 * size);
        }
        (run.0 == 1 && runs.next().is_none()).then_some(Self { shape: shape.to_vec(), strides })
    }
}

/// Whether two walks over `shape` reach the same elements: the strides of
/// dimensions with one element do not matter.
pub(super) fn same_walk(shape: &[usize], a: &[usize], b: &[usize]) -> bool {
    shape.iter().zip(a.iter().zip(b)).all(|(size, (a, b))| *size == 1 || a == b)
}

/// Joins neighbouring dimensions of `shape` that step like one in every walk;
/// returns the shape that is left and each walk's strides over it. Dimensions
/// before and after `fence` are never joined with each other.
pub(super) fn collapse(
    shape: &[usize],
    walks: &[Vec<usize>],
    fence: usize,
) -> (Vec<usize>, Vec<Vec<usize>>, usize) {
    let mut sizes: Vec<usize> = Vec::new();
    let mut strides: Vec<Vec<usize>> = vec![Vec::new(); walks.len()];
    let mut before = 0;
    for (dim, size) in shape.iter().enumerate() {
        if *size == 1 {
            continue;
        }
        let starts = dim >= fence && sizes.len() == before;
        let joins = !starts
            && !sizes.is_empty()
            && walks
                .iter()
                .zip(&strides)
                .all(|(walk, out)| out.last().is_some_and(|outer| *outer == walk[dim] * size));
        if joins {
            if let Some(last) = sizes.last_mut() {
                *last *= size;
            }
            for (walk, out) in walks.iter().zip(&mut strides) {
                if let Some(last) = out.last_mut() {
                    *last = walk[dim];
                }
            }
        } else {
            sizes.push(*size);
            for (walk, out) in walks.iter().zip(&mut strides) {
                out.push(walk[dim]);
            }
        }
        if dim < fence {
            before = sizes.len();
        }
    }
    (sizes, strides, before)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The elements that a walk reaches, in order.
    fn elements(shape: &[usize], strides: &[usize]) -> Vec<usize> {
        shape.iter().zip(strides).fold(vec![0], |so_far, (size, stride)| {
            so_far.iter().flat_map(|at| (0..*size).map(move |i| at + i * stride)).collect()
        })
    }

    fn walk(w: &Strided) -> Vec<usize> {
        elements(&w.shape, &w.strides)
    }

    /// A permuted and broadcast dense tensor.
    fn strided() -> impl Strategy<Value = Strided> {
        proptest::collection::vec((1usize..4, any::<bool>()), 0..5)
            .prop_flat_map(|dims| {
                let order: Vec<usize> = (0..dims.len()).collect();
                (Just(dims), Just(order).prop_shuffle())
            })
            .prop_map(|(dims, order)| {
                let small: Vec<usize> = dims
                    .iter()
                    .map(|(size, broadcast)| if *broadcast { 1 } else { *size })
                    .collect();
                let full: Vec<usize> = dims.iter().map(|(size, _)| *size).collect();
                Strided::dense(&small).broadcast(&full).permuted(&order)
            })
    }

    /// Another shape with as many elements.
    fn factored(total: usize, seed: u64) -> Vec<usize> {
        let (mut left, mut shape, mut seed) = (total, Vec::new(), seed);
        while left > 1 {
            let divisors: Vec<usize> = (1..=left).filter(|d| left % d == 0).collect();
            let factor = divisors[seed as usize % divisors.len()];
            shape.push(factor);
            left /= factor;
            seed = seed / 3 + 1;
        }
        shape
    }

    proptest! {
        #[test]
        fn a_reshape_keeps_elements_and_order(w in strided(), seed in any::<u64>()) {
            let shape = factored(w.shape.iter().product(), seed);
            if let Some(new) = w.reshaped(&shape) {
                prop_assert_eq!(walk(&new), walk(&w));
            } else {
                prop_assert!(!w.is_dense(), "a dense tensor takes every shape");
            }
        }

        #[test]
        fn collapsing_keeps_elements_and_order(
            w in strided(), fence in 0usize..6,
        ) {
            let dense = row_major(&w.shape);
            let fence = fence.min(w.shape.len());
            let walks = [w.strides.clone(), dense];
            let (shape, strides, before) = collapse(&w.shape, &walks, fence);
            for (walk, collapsed) in walks.iter().zip(&strides) {
                prop_assert_eq!(elements(&w.shape, walk), elements(&shape, collapsed));
            }
            let outer: usize = w.shape[..fence].iter().product();
            prop_assert_eq!(outer, shape[..before].iter().product::<usize>());
        }
    }

    #[test]
    fn merging_across_a_broadcast_is_not_affine() {
        let row = Strided::dense(&[3]).broadcast(&[2, 3]);
        assert_eq!(row.reshaped(&[6]), None);
        assert_eq!(row.reshaped(&[2, 1, 3]).unwrap().strides, [0, 0, 1]);
    }
}
