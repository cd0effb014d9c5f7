//! A problem to try: sizes, what hides keys, how the inputs lie in memory.

use kiln_proto::graph::DType;

use crate::codegen::attention::{Bounds, Problem};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mask {
    None,
    /// One for each head, added; some rows see nothing.
    Float,
    /// The same, but what is hidden has the lowest number of all.
    Lowest,
    /// One for each batch; some rows see nothing.
    Bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Layout {
    /// `[b, h, s, d]`.
    Dense,
    /// `[b, s, h, d]`, as a projection leaves it.
    Split,
    /// Rows that start anywhere.
    Odd,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) dtype: DType,
    /// b, h, g, s, t, d, e.
    pub(super) sizes: [usize; 7],
    pub(super) causal: bool,
    pub(super) mask: Mask,
    pub(super) layout: Layout,
    pub(super) scale: f32,
}

pub(super) const BASE: Case = Case {
    dtype: DType::BF16,
    sizes: [1, 2, 2, 33, 33, 64, 64],
    causal: false,
    mask: Mask::None,
    layout: Layout::Dense,
    scale: 0.3,
};

impl Case {
    pub(super) fn problem(&self) -> Problem {
        let [b, h, g, s, t, d, e] = self.sizes.map(|size| size as u64);
        Problem {
            dtype: self.dtype,
            batch: Bounds::known(b),
            heads: h,
            group: h / g,
            rows: Bounds::known(s),
            keys: Bounds::known(t),
            d,
            e,
            aligned: self.aligned(),
        }
    }

    pub(super) fn aligned(&self) -> bool {
        let chunk = if self.dtype == DType::F32 { 4 } else { 8 };
        let [.., d, e] = self.sizes;
        self.layout != Layout::Odd && d % chunk == 0 && e % chunk == 0
    }

    /// Strides of `[b, heads, rows, width]`.
    fn strides(&self, heads: usize, rows: usize, width: usize) -> [usize; 3] {
        match self.layout {
            Layout::Dense => [heads * rows * width, rows * width, width],
            Layout::Split => [heads * rows * width, width, heads * width],
            Layout::Odd => [heads * rows * (width + 3), rows * (width + 3), width + 3],
        }
    }

    /// How many elements q, k and v take, and their strides.
    pub(super) fn shapes(&self) -> [(usize, [usize; 3]); 3] {
        let [b, h, g, s, t, d, e] = self.sizes;
        [(h, s, d), (g, t, d), (g, t, e)].map(|(heads, rows, width)| {
            let strides = self.strides(heads, rows, width);
            (b * heads * rows * (width + 3), strides)
        })
    }
}
