//! Which operations give a view of what they read, and how to write through one.
//!
//! Invariant: what is said to be a view is one in PyTorch, and what is said to be new is not;
//! where that follows from strides that are not known here, neither is said.

use kiln_proto::graph::{Argument, Dim, Graph, Node, TensorType, ValueId};

use crate::{
    decompose::{Symbols, dimension},
    size::Size,
};

/// Always a view.
const VIEWS: [&str; 44] = [
    "view",
    "_reshape_alias",
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "mT",
    "mH",
    "adjoint",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "slice",
    "select",
    "narrow",
    "unsqueeze",
    "squeeze",
    "expand",
    "broadcast_to",
    "expand_as",
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "tensor_split",
    "hsplit",
    "vsplit",
    "dsplit",
    "detach",
    "detach_",
    "alias",
    "view_as",
    "diagonal",
    "unfold",
    "view_as_real",
    "view_as_complex",
    "real",
    "imag",
    "as_strided",
    "lift_fresh",
    "unflatten",
    "broadcast_tensors",
    "meshgrid",
];

/// Like what it reads, and that itself where nothing is to change.
const SAME: [&str; 9] = [
    "contiguous",
    "to",
    "type_as",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "positive",
    "resolve_conj",
    "resolve_neg",
];

/// The exporter's number of row-major order.
const CONTIGUOUS: i64 = 1;

/// A view where strides allow one.
const RESHAPES: [&str; 5] = ["reshape", "flatten", "ravel", "reshape_as", "atleast_1d"];

/// What an operation gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Memory of its own.
    New,
    /// A view of what it reads.
    View,
    /// One of both.
    Unknown,
}

/// The name and arguments of an operation.
type Operation = (&'static str, Vec<(&'static str, Argument)>);

/// What the strides of a graph say.
pub(super) struct Layouts<'a> {
    graph: &'a Graph,
    symbols: Symbols<'a>,
}

impl<'a> Layouts<'a> {
    pub(super) fn of(graph: &'a Graph) -> Self {
        Self { graph, symbols: Symbols::of(graph) }
    }

    /// What `node` gives.
    pub(super) fn how(&self, node: &Node) -> How {
        let name = node.op.split('.').nth(1).unwrap_or_default();
        if VIEWS.contains(&name) {
            return How::View;
        }
        let Some((from, to)) = self.both(node) else { return How::New };
        let alike = from.dtype == to.dtype && from.shape == to.shape && from.device == to.device;
        match name {
            // In another order than row-major one: a copy, unless that is how it lies.
            "contiguous"
                if !matches!(
                    node.arg("memory_format"),
                    None | Some(Argument::None | Argument::Layout(CONTIGUOUS))
                ) =>
            {
                match (alike, from.strides == to.strides) {
                    (true, false) => How::New,
                    _ => How::Unknown,
                }
            }
            "contiguous" => match (self.is_contiguous(from), self.is_contiguous(to)) {
                // Of what is not in order a copy is made.
                (Some(true), _) => How::View,
                (Some(false), Some(true)) => How::New,
                _ => How::Unknown,
            },
            "to" if node.arg("copy") == Some(&Argument::Bool(true)) => How::New,
            // With nothing to drop it is the tensor itself, also where a model is trained.
            "dropout" | "feature_dropout" | "alpha_dropout"
                if node.arg("train") == Some(&Argument::Bool(true)) =>
            {
                match node.arg("p") {
                    Some(Argument::Float(p)) if *p == 0.0 => How::View,
                    Some(Argument::Int(0)) => How::View,
                    Some(Argument::Float(_) | Argument::Int(_)) => How::New,
                    _ => How::Unknown,
                }
            }
            // A permutation and a copy; of a factor of one there is nothing to do.
            "pixel_shuffle" | "pixel_unshuffle" if from.shape == to.shape => How::Unknown,
            name if SAME.contains(&name) => match (alike, from.strides == to.strides) {
                (false, _) => How::New,
                (true, true) => How::View,
                (true, false) => How::Unknown,
            },
            name if RESHAPES.contains(&name) => self.reshaped(from, to),
            // Of one operand it may turn it around and no more.
            "einsum" if node.tensors().count() == 1 => How::Unknown,
            _ => How::New,
        }
    }

    /// The types of the first tensor that a node reads, and of the first that it gives.
    fn both(&self, node: &Node) -> Option<(&'a TensorType, &'a TensorType)> {
        let from = self.graph.value(node.tensors().next()?);
        Some((&from.ty, &self.graph.value(*node.outputs.first()?).ty))
    }

    fn size(&self, dim: &Dim) -> Option<Size> {
        self.symbols.size(dim).ok()
    }

    fn sizes(&self, dims: &[Dim]) -> Option<Vec<Size>> {
        dims.iter().map(|dim| self.size(dim)).collect()
    }

    /// Whether elements lie in row-major order; none: that cannot be told.
    fn is_contiguous(&self, ty: &TensorType) -> Option<bool> {
        let (shape, strides) = (self.sizes(&ty.shape)?, self.sizes(&ty.strides)?);
        let mut wanted = Size::from(1);
        for (size, stride) in shape.iter().zip(&strides).rev() {
            if size.is(1) {
                continue;
            }
            if *stride != wanted {
                let both_known = stride.known().is_some() && wanted.known().is_some();
                return both_known.then_some(false);
            }
            wanted = &wanted * size;
        }
        Some(true)
    }

    /// What the same elements under another shape are: PyTorch makes a copy only where no
    /// strides give them.
    fn reshaped(&self, from: &TensorType, to: &TensorType) -> How {
        if from.shape == to.shape || self.is_contiguous(from) == Some(true) {
            return How::View;
        }
        // A copy lies in order.
        if self.is_contiguous(to) == Some(false) {
            return How::View;
        }
        let known = |dims: &[Dim]| dims.iter().map(Dim::known).collect::<Option<Vec<u64>>>();
        match (known(&from.shape), known(&from.strides), known(&to.shape)) {
            (Some(shape), Some(strides), Some(new)) if fits(&shape, &strides, &new) => How::View,
            (Some(_), Some(_), Some(_)) => How::New,
            _ => How::Unknown,
        }
    }

    /// The operation that writes `part` where `node` took its output number `output` from
    /// `whole`, of type `ty`. None: there is none. Some of none: `part` is the whole.
    pub(super) fn inverse(
        &self,
        node: &Node,
        output: usize,
        ty: &TensorType,
        whole: ValueId,
        part: ValueId,
    ) -> Option<Option<Operation>> {
        if self.how(node) != How::View {
            return None;
        }
        let name = node.op.split('.').nth(1)?;
        let rank = ty.shape.len();
        let tensor = Argument::Tensor;
        let dim = |name: &str, default: i64| match node.arg(name) {
            None => dimension(default, rank).ok(),
            Some(Argument::Int(dim)) => dimension(*dim, rank).ok(),
            Some(_) => None,
        };
        let placed = |op, more: Vec<(&'static str, Argument)>| {
            let mut args = vec![("self", tensor(whole)), ("src", tensor(part))];
            args.extend(more);
            Some(Some((op, args)))
        };
        let given = |names: &[&'static str]| -> Vec<(&'static str, Argument)> {
            let found = names.iter().filter_map(|name| Some((*name, node.arg(name)?.clone())));
            found.collect()
        };
        match name {
            "slice" => {
                placed("aten.slice_scatter.default", given(&["dim", "start", "end", "step"]))
            }
            "select" => placed("aten.select_scatter.default", given(&["dim", "index"])),
            "unbind" => {
                let at = vec![("dim", int(dim("dim", 0)?)), ("index", int(output))];
                placed("aten.select_scatter.default", at)
            }
            "narrow" => {
                let start = node.arg("start")?.clone();
                placed(
                    "aten.slice_scatter.default",
                    vec![("dim", int(dim("dim", 0)?)), ("start", start)],
                )
            }
            "split" | "split_with_sizes" | "chunk" | "tensor_split" => {
                let dim = dim("dim", 0)?;
                let lengths = node
                    .outputs
                    .iter()
                    .map(|part| self.graph.value(*part).ty.shape.get(dim).and_then(Dim::known));
                let lengths: Vec<u64> = lengths.collect::<Option<_>>()?;
                let start: u64 = lengths[..output].iter().sum();
                let end = start + lengths[output];
                let more = [("dim", dim as i64), ("start", start as i64), ("end", end as i64)];
                let more = more.map(|(name, number)| (name, Argument::Int(number)));
                placed("aten.slice_scatter.default", more.to_vec())
            }
            "permute" => {
                let Some(Argument::Ints(order)) = node.arg("dims") else { return None };
                let mut back = vec![0; rank];
                for (place, dim) in order.iter().enumerate() {
                    *back.get_mut(dimension(*dim, rank).ok()?)? = place as i64;
                }
                let args = vec![("self", tensor(part)), ("dims", Argument::Ints(back))];
                Some(Some(("aten.permute.default", args)))
            }
            "transpose" | "swapaxes" | "swapdims" => {
                let names = match node.arg("axis0") {
                    Some(_) => ["axis0", "axis1"],
                    None => ["dim0", "dim1"],
                };
                let (a, b) = (int(dim(names[0], 0)?), int(dim(names[1], 0)?));
                let args = vec![("self", tensor(part)), ("dim0", a), ("dim1", b)];
                Some(Some(("aten.transpose.int", args)))
            }
            "t" | "mT" | "numpy_T" if rank <= 2 => {
                let order = (0..rank as i64).rev().collect();
                let args = vec![("self", tensor(part)), ("dims", Argument::Ints(order))];
                Some(Some(("aten.permute.default", args)))
            }
            "alias" | "detach" | "detach_" | "lift_fresh" => Some(None),
            name if SAME.contains(&name) => Some(None),
            "view" if node.arg("dtype").is_some() => None,
            "view" | "_reshape_alias" | "unsqueeze" | "squeeze" | "view_as" | "unflatten"
            | "expand" | "broadcast_to" | "expand_as" | "reshape" | "flatten" | "ravel"
            | "reshape_as" | "atleast_1d" | "broadcast_tensors" => {
                // Of an expansion only where it repeats nothing.
                let ones = |dims: &[Dim]| {
                    dims.iter().filter(|dim| dim.known() != Some(1)).cloned().collect::<Vec<_>>()
                };
                let new = &self.graph.value(*node.outputs.get(output)?).ty;
                let expands = name.contains("expand") || name.contains("broadcast");
                if expands && ones(&new.shape) != ones(&ty.shape) {
                    return None;
                }
                let shape = Argument::Sizes(ty.shape.iter().cloned().map(Some).collect());
                let args = vec![("self", tensor(part)), ("shape", shape)];
                Some(Some(("aten.reshape.default", args)))
            }
            _ => None,
        }
    }
}

fn int(number: usize) -> Argument {
    Argument::Int(number as i64)
}

/// Whether strides give the elements of `shape`, which lie by `strides`, under `new` in the
/// same order: each run of dimensions that lie as one is cut as `new` is.
fn fits(shape: &[u64], strides: &[u64], new: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut left = new.iter().rev().copied().peekable();
    let (mut run, mut cut, mut innermost) = (1u64, 1u64, strides.last().copied().unwrap_or(1));
    for at in (0..shape.len()).rev() {
        run = run.saturating_mul(shape[at]);
        // A dimension of one may have any stride.
        let ends =
            at == 0 || shape[at - 1] != 1 && strides[at - 1] != run.saturating_mul(innermost);
        if !ends {
            continue;
        }
        while let Some(size) = left.next_if(|size| cut < run || *size == 1) {
            cut = cut.saturating_mul(size);
        }
        if cut != run {
            return false;
        }
        (run, cut) = (1, 1);
        innermost = if at > 0 { strides[at - 1] } else { 1 };
    }
    left.all(|size| size == 1)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_reshape_is_a_view_where_strides_allow_it() {
        // (shape, strides, new shape, what PyTorch does)
        for (shape, strides, new, view) in [
            (vec![4, 6], vec![6, 1], vec![24], true),
            (vec![4, 6], vec![1, 4], vec![24], false),
            (vec![4, 6], vec![1, 4], vec![2, 2, 6], true),
            (vec![4, 6], vec![1, 4], vec![4, 2, 3], true),
            (vec![4, 6], vec![1, 4], vec![8, 3], false),
            (vec![4, 3], vec![6, 2], vec![12], true),
            (vec![4, 3], vec![6, 1], vec![12], false),
            (vec![2, 5, 4, 8], vec![160, 8, 40, 1], vec![2, 5, 32], false),
            (vec![2, 1, 4, 8], vec![32, 8, 8, 1], vec![2, 1, 32], true),
            (vec![1, 4, 8], vec![7, 8, 1], vec![32], true),
            (vec![4, 1, 8], vec![8, 3, 1], vec![32], true),
            (vec![3], vec![2], vec![3, 1], true),
            (vec![], vec![], vec![1, 1], true),
            (vec![0, 3], vec![1, 9], vec![0], true),
        ] {
            assert_eq!(fits(&shape, &strides, &new), view, "{shape:?} by {strides:?} as {new:?}");
        }
    }
}
