//! The core program to loops: views become indices, element-wise operations
//! expressions; buffers are made only where a value must be in memory.
//!
//! A value stays an expression while that is cheaper than to store it: it is
//! computed again by each reader. Stored is what several readers would compute
//! at a price, what a matrix product or an attention reads through no affine
//! walk, and what the caller gets. Fusion then keeps most of those in registers.
//!
//! Invariant: an expression over the dimensions of its shape is valid at every
//! index of that shape.

mod compute;
mod contract;
mod reduce;
mod views;

use std::collections::{BTreeMap, BTreeSet};

use kiln_proto::{
    Failure, FailureKind, Target,
    graph::{DType, Graph, InputKind},
};

use crate::{
    attend::Origins,
    core::{Fun, Node, Number, Op, Program, ValueId},
    loops::{Def, Domain, Expr, Id, Loops, Source, Temp, domain_of, flattened, numel, unflattened},
    size::{Atom, Bounds, Size},
};

/// Expressions of more parts than this are stored: it bounds kernels.
const MOST_PARTS: usize = 160;
/// So are those with more loads.
const MOST_LOADS: usize = 16;
/// Elements that one of a packed tensor holds, at most.
const PACKED: i64 = 8;

/// Lowers `program`, which `graph` became; `origins` are those beside a node's own.
pub(crate) fn lower(
    program: &Program,
    graph: &Graph,
    origins: &Origins,
    target: Target,
) -> Result<Loops, Failure> {
    let mut lowering = Lowering {
        program,
        target,
        loops: Loops { symbols: program.symbols.clone(), ..Loops::default() },
        values: vec![None; program.values.len()],
        uses: uses(program),
        in_memory: in_memory(program),
        origins: vec![BTreeSet::new(); program.values.len()],
        pending: BTreeSet::new(),
        runs: BTreeMap::new(),
    };
    lowering.loops.inputs = graph.inputs.iter().map(|i| graph.value(i.value).ty.dtype).collect();
    let constants = graph.inputs.iter().enumerate();
    let constants = constants.filter(|(_, i)| matches!(i.kind, InputKind::Constant(_)));
    lowering.loops.constants = constants.map(|(i, _)| Source::Input(i)).collect();
    let settled = graph.inputs.iter().enumerate();
    let settled = settled
        .filter(|(at, i)| !matches!(i.kind, InputKind::User) && !program.updates.contains(at));
    lowering.loops.settled = settled.map(|(i, _)| Source::Input(i)).collect();
    for input in &program.inputs {
        let value = program.value(input.value);
        let index = Size::default();
        let index = (0..value.shape.len())
            .filter(|dim| !value.shape[*dim].is(1))
            .fold(index, |sum, dim| &sum + &(&Size::var(dim) * &input.strides[dim]));
        let source = Source::Input(input.position);
        let expr = lowering.loops.exprs.add(Expr::Load { source, dtype: value.dtype, index });
        lowering.values[input.value.0] =
            Some(Lazy { expr, dtype: value.dtype, shape: value.shape.clone() });
    }
    for node in &program.nodes {
        let read = node.reads.iter().flat_map(|read| &lowering.origins[read.0]);
        let more = origins.get(&node.writes).into_iter().flatten();
        lowering.pending = read.chain(more).copied().chain([node.origin]).collect();
        let temps = lowering.loops.temps.len();
        let lazy = lowering.node(node).map_err(|why| {
            let origin = &graph.nodes[node.origin];
            Failure::new(
                FailureKind::UnsupportedOp,
                format!("node {:?} ({}): {why}", origin.name, origin.op),
            )
        })?;
        lowering.values[node.writes.0] = Some(lazy);
        if lowering.loops.temps.len() == temps {
            lowering.origins[node.writes.0] = std::mem::take(&mut lowering.pending);
        }
        lowering.store_if_dear(node.writes);
    }
    for output in &program.outputs {
        let temp = lowering.output(*output);
        lowering.loops.outputs.push(temp);
    }
    Ok(lowering.loops)
}

/// How many nodes and outputs read each value.
fn uses(program: &Program) -> Vec<usize> {
    let mut uses = vec![0; program.values.len()];
    let reads = program.nodes.iter().flat_map(|node| &node.reads).chain(&program.outputs);
    reads.for_each(|read| uses[read.0] += 1);
    uses
}

/// The values that a product reads, as they are or by a view of them.
fn in_memory(program: &Program) -> Vec<bool> {
    let mut found = vec![false; program.values.len()];
    program.outputs.iter().for_each(|output| found[output.0] = true);
    for node in program.nodes.iter().rev() {
        let reads = match &node.op {
            Op::MatMul
            | Op::GroupedMatMul
            | Op::Attention { .. }
            | Op::CumSum { .. }
            | Op::TopK { .. } => true,
            Op::Reshape | Op::Permute(_) | Op::Expand | Op::Slice { .. } => found[node.writes.0],
            _ => false,
        };
        if reads {
            node.reads.iter().for_each(|read| found[read.0] = true);
        }
    }
    found
}

/// A tensor that is not in memory, or not densely: an expression over its dimensions.
#[derive(Debug, Clone)]
struct Lazy {
    expr: Id,
    dtype: DType,
    shape: Vec<Size>,
}

struct Lowering<'a> {
    program: &'a Program,
    target: Target,
    loops: Loops,
    values: Vec<Option<Lazy>>,
    uses: Vec<usize>,
    /// Which values products, or the like, read: those will be stored in any case.
    in_memory: Vec<bool>,
    /// For each value, the graph's nodes whose work its expression still has to do.
    origins: Vec<BTreeSet<usize>>,
    /// Those that the next buffer does.
    pending: BTreeSet<usize>,
    /// The temporaries that have the positions of a value's rows, sorted chunk by chunk, the
    /// greatest first or last.
    runs: BTreeMap<(usize, bool), usize>,
}

impl Lowering<'_> {
    fn node(&mut self, node: &Node) -> Result<Lazy, String> {
        let out = self.program.value(node.writes).clone();
        match &node.op {
            Op::Map { fun, domain, args } => self.map(node, *fun, *domain, args, &out),
            Op::Reduce { how, dims } => self.reduce(node, *how, dims, &out),
            Op::CumSum { dim } => self.cumsum(node, *dim, &out),
            Op::TopK { k, largest, positions } => self.top_k(node, *k, *largest, *positions, &out),
            Op::MatMul => self.matmul(node, &out),
            Op::GroupedMatMul => self.grouped(node, &out),
            Op::Attention { .. } => self.attention(node, &out),
            Op::Iota { start, step } => Ok(self.iota(start, step, &out)),
            Op::Full(number) => {
                let domain = domain_of(out.dtype);
                let expr = self.number(number, domain);
                let expr = self.rounded(expr, out.dtype);
                Ok(Lazy { expr, dtype: out.dtype, shape: out.shape })
            }
            Op::Pad { .. } | Op::Cat { .. } => self.joined(node, &out),
            Op::Gather { .. } | Op::Index { .. } => self.indexed(node, &out),
            _ => self.view_op(node, &out),
        }
    }

    fn read(&self, value: ValueId) -> Result<Lazy, String> {
        self.values[value.0].clone().ok_or_else(|| "reads what is not computed".to_owned())
    }

    /// Stores a value that several would compute again at a price.
    fn store_if_dear(&mut self, value: ValueId) {
        let Some(lazy) = self.values[value.0].clone() else { return };
        let parts = self.loops.exprs.reachable([lazy.expr]);
        let exprs = &self.loops.exprs;
        let in_memory = self.in_memory[value.0];
        let heavy = parts.iter().any(|part| match exprs.get(*part) {
            Expr::Apply(fun, ..) => {
                is_heavy(*fun) && (in_memory || self.for_each(*part, &lazy.shape))
            }
            _ => false,
        });
        let total = numel(&lazy.shape);
        let (mut loads, mut whole) = (0, 0);
        for part in &parts {
            if let Expr::Load { source, .. } = exprs.get(*part) {
                loads += 1;
                let of = match source {
                    Source::Temp(temp) => self.loops.temps[*temp].numel == total,
                    Source::Input(input) => self.input_numel(*input) == total,
                };
                whole += usize::from(of);
            }
        }
        let shared = self.uses[value.0] > 1 && (heavy || whole > 1 || loads > 4);
        if shared || parts.len() > MOST_PARTS || loads > MOST_LOADS {
            self.pending = std::mem::take(&mut self.origins[value.0]);
            let stored = self.stored(&lazy);
            self.values[value.0] = Some(stored);
        }
    }

    /// Whether `part` is computed for each element of `shape`: what is the same along
    /// a dimension, the root of a row's mean say, costs next to nothing again.
    fn for_each(&self, part: Id, shape: &[Size]) -> bool {
        let exprs = &self.loops.exprs;
        let below = exprs.reachable([part]);
        let varies = |dim: usize| {
            below.iter().any(|part| match exprs.get(*part) {
                Expr::Load { index, .. } | Expr::Index(index) => index.has_var(dim),
                Expr::Below(a, b) => a.has_var(dim) || b.has_var(dim),
                _ => false,
            })
        };
        (0..shape.len()).all(|dim| shape[dim].is(1) || varies(dim))
    }

    fn input_numel(&self, position: usize) -> Size {
        let input = self.program.inputs.iter().find(|input| input.position == position);
        input.map_or_else(Size::default, |input| numel(&self.program.value(input.value).shape))
    }

    /// A new buffer that holds `lazy`, in the order of what it reads: the
    /// result is a view of it.
    fn stored(&mut self, lazy: &Lazy) -> Lazy {
        let order = self.memory_order(lazy);
        self.stored_in_order(lazy, &order)
    }

    /// A new buffer with the dimensions of `lazy` in `order`, outermost first.
    fn stored_in_order(&mut self, lazy: &Lazy, order: &[usize]) -> Lazy {
        let Lazy { dtype, shape, .. } = lazy;
        let ordered: Vec<Size> = order.iter().map(|dim| shape[*dim].clone()).collect();
        let total = numel(&ordered);
        let extents = [total.clone()];
        let bounds = Bounds { symbols: &self.program.symbols, vars: &extents };
        let indices = unflattened(&Size::var(0), &ordered, &bounds);
        let mut vars = vec![Size::default(); shape.len()];
        for (place, dim) in order.iter().enumerate() {
            vars[*dim] = indices[place].clone();
        }
        let def = self.loops.exprs.substitute(lazy.expr, &bounds, &vars, &mut |_, _, _| None);
        let temp = self.temp(*dtype, total, Def::Map(def));
        let places: Vec<Size> = order.iter().map(|dim| Size::var(*dim)).collect();
        let index = flattened(&without_ones(&places, &ordered), &ordered);
        self.load(temp, *dtype, index, shape)
    }

    fn temp(&mut self, dtype: DType, numel: Size, def: Def) -> usize {
        self.loops.temps.push(Temp {
            dtype,
            numel,
            def,
            origins: self.pending.iter().copied().collect(),
        });
        self.loops.temps.len() - 1
    }

    fn load(&mut self, temp: usize, dtype: DType, index: Size, shape: &[Size]) -> Lazy {
        let expr = Expr::Load { source: Source::Temp(temp), dtype, index };
        Lazy { expr: self.loops.exprs.add(expr), dtype, shape: shape.to_vec() }
    }

    /// A dense temporary as a tensor of `shape`.
    fn dense(&mut self, temp: usize, dtype: DType, shape: &[Size]) -> Lazy {
        let vars: Vec<Size> = (0..shape.len()).map(Size::var).collect();
        let index = flattened(&without_ones(&vars, shape), shape);
        self.load(temp, dtype, index, shape)
    }

    /// The dimensions by the strides of the first whole tensor that is read, or else of the
    /// largest that has a part for about each.
    fn memory_order(&self, lazy: &Lazy) -> Vec<usize> {
        let identity: Vec<usize> = (0..lazy.shape.len()).collect();
        let total = numel(&lazy.shape);
        for part in self.loops.exprs.reachable([lazy.expr]) {
            let Expr::Load { source, index, .. } = self.loops.exprs.get(part) else { continue };
            let whole = match source {
                Source::Temp(temp) => self.loops.temps[*temp].numel == total,
                Source::Input(input) => self.input_numel(*input) == total,
            };
            let stride =
                |dim: &usize| index.linear_in(&Atom::Var(*dim)).and_then(|(f, _)| f.known());
            let strides: Option<Vec<i64>> = identity.iter().map(stride).collect();
            if let (true, Some(strides)) = (whole, strides) {
                let mut order = identity;
                order.sort_by_key(|dim| {
                    std::cmp::Reverse(match lazy.shape[*dim].is(1) {
                        true => i64::MAX,
                        false => strides[*dim],
                    })
                });
                return order;
            }
        }
        self.order_of_packed(lazy).unwrap_or(identity)
    }

    /// The dimensions by how far their middles lie in the largest tensor that is read, of several
    /// elements in one: where that has an element for at least [`PACKED`] of the value's.
    fn order_of_packed(&self, lazy: &Lazy) -> Option<Vec<usize>> {
        let total = numel(&lazy.shape).known()?;
        let loads = self.loops.exprs.reachable([lazy.expr]).into_iter().filter_map(|part| {
            let Expr::Load { source, index, .. } = self.loops.exprs.get(part) else { return None };
            let size = match source {
                Source::Temp(temp) => self.loops.temps[*temp].numel.known()?,
                Source::Input(input) => self.input_numel(*input).known()?,
            };
            (size >= total / PACKED).then_some((size, index))
        });
        let (_, index) = loads.max_by_key(|(size, _)| *size)?;
        let bounds = Bounds { symbols: &self.program.symbols, vars: &lazy.shape };
        let at = |dim: usize, position: i64| {
            let zero = |atom: &Atom| match atom {
                Atom::Var(var) => Some(Size::from(if *var == dim { position } else { 0 })),
                _ => None,
            };
            index.substituted(&bounds, &zero).known()
        };
        let far = |dim: usize| {
            let middle = lazy.shape[dim].known()? / 2;
            let from = at(dim, middle)? - at(dim, 0)?;
            Some(if middle == 0 { i64::MAX } else { from / middle })
        };
        let strides = (0..lazy.shape.len()).map(far).collect::<Option<Vec<i64>>>()?;
        let mut order: Vec<usize> = (0..strides.len()).collect();
        order.sort_by_key(|dim| std::cmp::Reverse(strides[*dim]));
        Some(order)
    }

    /// The temporary that holds an output: dense, and for nobody else.
    fn output(&mut self, value: ValueId) -> usize {
        let Some(lazy) = self.values[value.0].clone() else { return 0 };
        if let Expr::Load { source: Source::Temp(temp), index, .. } =
            self.loops.exprs.get(lazy.expr)
        {
            let vars: Vec<Size> = (0..lazy.shape.len()).map(Size::var).collect();
            let dense = flattened(&without_ones(&vars, &lazy.shape), &lazy.shape);
            let stored = &self.loops.temps[*temp];
            let whole = stored.numel == numel(&lazy.shape) && stored.dtype == lazy.dtype;
            if whole && dense == *index && !self.loops.outputs.contains(temp) {
                return *temp;
            }
        }
        let order: Vec<usize> = (0..lazy.shape.len()).collect();
        self.pending = std::mem::take(&mut self.origins[value.0]);
        let stored = self.stored_in_order(&lazy, &order);
        match self.loops.exprs.get(stored.expr) {
            Expr::Load { source: Source::Temp(temp), .. } => {
                let temp = *temp;
                // Readers after this one may as well read it here.
                self.values[value.0] = Some(stored);
                temp
            }
            _ => 0,
        }
    }

    /// A number of the program in `domain`.
    fn number(&mut self, number: &Number, domain: Domain) -> Id {
        let expr = match number {
            Number::Bool(bit) => Expr::Number(Domain::Bool, u64::from(*bit)),
            Number::Int(int) => Expr::Number(Domain::Int, *int as u64),
            Number::Float(float) if domain == Domain::Double => {
                Expr::Number(Domain::Double, float.to_bits())
            }
            Number::Float(float) => Expr::Number(Domain::Float, float.to_bits()),
            Number::Size(size) => Expr::Index(size.clone()),
        };
        let id = self.loops.exprs.add(expr);
        self.loops.exprs.convert(id, domain)
    }

    /// `expr` as an element of `dtype`.
    fn rounded(&mut self, expr: Id, dtype: DType) -> Id {
        let expr = self.loops.exprs.convert(expr, domain_of(dtype));
        self.loops.exprs.rounded(expr, dtype)
    }
}

/// Dimensions of one element have one index.
fn without_ones(indices: &[Size], shape: &[Size]) -> Vec<Size> {
    let index =
        |(index, size): (&Size, &Size)| if size.is(1) { Size::default() } else { index.clone() };
    indices.iter().zip(shape).map(index).collect()
}

fn is_heavy(fun: Fun) -> bool {
    use Fun::*;
    !matches!(
        fun,
        Id | Neg
            | Abs
            | Sign
            | Floor
            | Ceil
            | Trunc
            | Round
            | Not
            | BitNot
            | IsNan
            | IsInf
            | Add
            | Sub
            | Mul
            | Min
            | Max
            | And
            | Or
            | Xor
            | Shl
            | Shr
            | Eq
            | Ne
            | Lt
            | Le
            | Gt
            | Ge
            | Where
    )
}
