//! Attention in pieces to attention: a core program to a core program.
//!
//! `matmul(softmax(masks(scale * q k^T)), v)`, as models written by hand and
//! `run_decompositions` export it, would be two products with a softmax of all
//! scores between them. As [`Op::Attention`] it is one kernel, which keeps no
//! scores.
//!
//! Invariant: a rewritten program computes the same numbers, or nearer ones:
//! scores are not rounded, weights to the type of the values where the pieces do
//! so or come from a `scaled_dot_product_attention` of that type. What a mask
//! hides with minus infinity does not count, whatever it is. Where this does not
//! hold, where somebody else reads the scores or weights, or where the kernels
//! of attention are not made for the sizes, the pieces stay.

mod causal;
mod emit;
mod flow;
mod mask;
mod operand;
mod scores;
mod softmax;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use kiln_proto::graph::{DType, Graph};

use self::{
    emit::Emit,
    flow::{Flow, is_float},
    mask::Masks,
    operand::Operand,
};
use crate::{
    core::{Empty, Fun, Node, Op, Program, ValueId},
    loops::numel,
    size::Size,
};

/// Widest head: wider ones are better off as products.
const WIDEST: i64 = 256;

/// For values whose node does the work of several of the graph's: those.
pub(crate) type Origins = BTreeMap<ValueId, BTreeSet<usize>>;

/// Rewrites what is attention in `program`, which `graph` became. Values that nobody needs any more
/// stay in its list, without a writer.
pub(crate) fn attend(program: &mut Program, graph: &Graph) -> Origins {
    let flow = Flow::of(program, graph);
    let products = (0..program.nodes.len()).filter(|i| program.nodes[*i].op == Op::MatMul);
    let mut found: BTreeMap<usize, Found> =
        products.filter_map(|index| Some((index, find(&flow, index)?))).collect();
    let mut origins = Origins::new();
    if found.is_empty() {
        return origins;
    }
    let (mut nodes, mut masks) = (Vec::with_capacity(program.nodes.len()), Vec::new());
    for (index, node) in std::mem::take(&mut program.nodes).into_iter().enumerate() {
        match found.remove(&index) {
            Some(found) => {
                let mut emit = Emit { program, nodes: Vec::new(), origin: node.origin };
                let (attention, from) = found.emit(&mut emit, &mut masks);
                origins.insert(attention, from);
                nodes.append(&mut emit.nodes);
            }
            None => nodes.push(node),
        }
    }
    program.nodes = live(nodes, &program.outputs);
    origins
}

/// Those of `nodes` that the outputs need. Of two writers of a value the first
/// counts: the second is the view that the first took the place of.
fn live(nodes: Vec<Node>, outputs: &[ValueId]) -> Vec<Node> {
    let mut written = HashSet::new();
    let mut nodes: Vec<Node> =
        nodes.into_iter().filter(|node| written.insert(node.writes)).collect();
    let mut needed: HashSet<ValueId> = outputs.iter().copied().collect();
    for node in nodes.iter().rev() {
        if needed.contains(&node.writes) {
            needed.extend(&node.reads);
        }
    }
    nodes.retain(|node| needed.contains(&node.writes));
    nodes
}

/// Attention in pieces.
struct Found {
    q: Operand,
    k: Operand,
    v: Operand,
    /// Batch, heads, positions of q; positions of k.
    four: [Size; 4],
    /// Last sizes of q and v.
    d: Size,
    e: Size,
    scale: f64,
    masks: Masks,
    empty: Empty,
    /// In which it is computed.
    dtype: DType,
    /// What it gives, of four dimensions or not.
    out: ValueId,
    origins: BTreeSet<usize>,
}

/// The attention that ends with the product at `index`.
fn find(flow: &Flow<'_>, index: usize) -> Option<Found> {
    let last = &flow.program.nodes[index];
    let (weights, out) = (last.reads[0], last.writes);
    let (mut inner, mut shapes) = (vec![index], Vec::new());
    let softmax =
        softmax::softmax(flow, through(flow, weights, &mut inner, &mut shapes)?, &mut inner)?;
    let scores = scores::scores(flow, softmax.of)?;
    inner.extend(&scores.inner);
    if !is_closed(flow, &inner, index) {
        return None;
    }
    let [q, k] = flow.program.nodes[scores.product].reads[..] else { return None };
    let operands = [(q, true), (k, true), (last.reads[1], false)];
    let [q_own, k_own, v_own] = operands.map(|(value, _)| flow.shape(value));
    let [q, k, v] = operands.map(|(value, scaled)| Operand::of(flow, value, scaled));
    shapes.extend(scores.shapes);
    let target = only_view(flow, out);
    shapes.extend(target.map(|view| flow.shape(view).to_vec()));
    shapes.extend(q.shapes());
    let four = four(flow.shape(softmax.of), &shapes)?;
    let [_, _, s, t] = &four;
    let (d, e) = (q_own.last()?, v_own.last()?);
    let narrow = |size: &Size| size.known().is_some_and(|size| (1..=WIDEST).contains(&size));
    let ends = |shape: &[Size], last: [&Size; 2]| {
        let lead = shape.len() - 2;
        numel(&shape[..lead]) == &four[0] * &four[1] && [&shape[lead], &shape[lead + 1]] == last
    };
    let fit = ends(q_own, [s, d]) && ends(k_own, [d, t]) && ends(v_own, [t, e]);
    let scale = scores.scale * q.factor * k.factor;
    if !fit || !ends(flow.shape(out), [s, e]) || !narrow(d) || !narrow(e) || t.is(0) {
        return None;
    }
    // A kernel has it as `f32`.
    if !(scale as f32).is_normal() {
        return None;
    }
    let nodes = inner.iter().map(|node| flow.program.nodes[*node].origin);
    Some(Found {
        dtype: dtype(flow, [&q, &k, &v], [operands[0].0, last.reads[1]], out, softmax.safe)?,
        masks: Masks::of(flow, &scores.layers, &four)?,
        origins: [&q, &k, &v].into_iter().flat_map(|x| x.origins.clone()).chain(nodes).collect(),
        out: target.filter(|view| flow.shape(*view).len() == 4).unwrap_or(out),
        empty: if softmax.safe { Empty::Zero } else { Empty::Nan },
        d: d.clone(),
        e: e.clone(),
        q,
        k,
        v,
        scale,
        four,
    })
}

/// What `value` is a cast or another shape of, its rows the same.
fn through(
    flow: &Flow<'_>,
    mut value: ValueId,
    inner: &mut Vec<usize>,
    shapes: &mut Vec<Vec<Size>>,
) -> Option<ValueId> {
    loop {
        value = flow.uncast(value, inner);
        let shape = flow.shape(value);
        shapes.push(shape.to_vec());
        let (index, Node { op: Op::Reshape, reads, .. }) = flow.writer(value)? else {
            return Some(value);
        };
        let from = flow.shape(reads[0]);
        if from.len() < 2 || shape.len() < 2 || from[from.len() - 2..] != shape[shape.len() - 2..] {
            return None;
        }
        inner.push(index);
        value = reads[0];
    }
}

/// Whether only they read each other, and all read what the last one gives.
fn is_closed(flow: &Flow<'_>, inner: &[usize], last: usize) -> bool {
    inner.iter().filter(|index| **index != last).all(|index| {
        let value = flow.program.nodes[*index].writes;
        let known = flow.readers(value).iter().all(|reader| inner.contains(reader));
        known && !flow.program.outputs.contains(&value)
    })
}

/// The only thing that is made of `value`, if that is a view of four dimensions.
fn only_view(flow: &Flow<'_>, value: ValueId) -> Option<ValueId> {
    let ([reader], false) = (flow.readers(value), flow.program.outputs.contains(&value)) else {
        return None;
    };
    let Node { op, writes, .. } = &flow.program.nodes[*reader];
    (*op == Op::Reshape && flow.shape(*writes).len() == 4).then_some(*writes)
}

/// Batch, heads, and the last two sizes of scores that are `own`; `shapes` are
/// those in which they or what they are made of appear.
fn four(own: &[Size], shapes: &[Vec<Size>]) -> Option<[Size; 4]> {
    let (lead, [s, t]) = own.split_last_chunk::<2>()?;
    let all = numel(lead);
    let seen = shapes.iter().filter_map(|shape| match &shape[..] {
        [b, h, rows, _] if h.known().is_some() && rows == s && b * h == all => Some([b, h]),
        _ => None,
    });
    let one = Size::from(1);
    let [b, h] = match (seen.map(|[b, h]| [b.clone(), h.clone()]).next(), lead) {
        (Some(seen), _) => seen,
        (None, [first, rest @ ..]) if !rest.is_empty() && numel(rest).known().is_some() => {
            [first.clone(), numel(rest)]
        }
        // As it lies in memory, whoever reads it.
        (None, _) => [all, one],
    };
    Some([b, h, s.clone(), t.clone()])
}

/// The type of one kernel for all three, which loses nothing that the pieces have.
fn dtype(
    flow: &Flow<'_>,
    bases: [&Operand; 3],
    [q, v]: [ValueId; 2],
    out: ValueId,
    safe: bool,
) -> Option<DType> {
    let (first, wide) = (bases[0].dtype, DType::F32);
    let same = bases.iter().all(|base| base.dtype == first);
    let read = flow.dtype(v);
    if same && is_float(first) && read == first {
        return Some(first);
    }
    // As `scaled_dot_product_attention` is decomposed: it has weights of its own type.
    if same && safe && is_float(first) && becomes(flow, out, first) {
        return Some(first);
    }
    (flow.dtype(q) == wide && read == wide).then_some(wide)
}

/// Whether all that is made of `value` is made of it in that type.
fn becomes(flow: &Flow<'_>, value: ValueId, dtype: DType) -> bool {
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        let readers = flow.readers(value);
        if readers.is_empty() || flow.program.outputs.contains(&value) {
            return false;
        }
        for reader in readers {
            let node = &flow.program.nodes[*reader];
            match &node.op {
                Op::Reshape | Op::Permute(_) => left.push(node.writes),
                Op::Map { fun: Fun::Id, .. } if flow.dtype(node.writes) == dtype => {}
                _ => return false,
            }
        }
    }
    true
}

impl Found {
    /// The attention, and the graph's nodes that it is.
    fn emit(self, emit: &mut Emit<'_>, known: &mut mask::Known) -> (ValueId, BTreeSet<usize>) {
        let Self { four: [b, h, s, t], d, e, dtype, .. } = self;
        let shape = |rows: &Size, width: &Size| [b.clone(), h.clone(), rows.clone(), width.clone()];
        let mut reads = vec![
            self.q.emit(emit, dtype, &shape(&s, &d), false),
            self.k.emit(emit, dtype, &shape(&t, &d), true),
            self.v.emit(emit, dtype, &shape(&t, &e), false),
        ];
        let Masks { causal, hidden, .. } = self.masks;
        reads.extend(self.masks.emit(emit, known));
        let op = Op::Attention { causal, scale: self.scale, hidden, empty: self.empty };
        let whole = shape(&s, &e);
        let value = emit.value(self.out).clone();
        if value.shape == whole {
            emit.write(op, reads, self.out);
            return (self.out, self.origins);
        }
        let attention = emit.node(op, reads, value.dtype, whole.to_vec());
        emit.write(Op::Reshape, vec![attention], self.out);
        (attention, self.origins)
    }
}
