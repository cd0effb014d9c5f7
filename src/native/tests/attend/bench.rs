//! Graphs with attention in pieces: built, rewritten, and as kernels beside the
//! interpreter, which keeps the pieces.

use kiln_proto::{
    Digest,
    graph::{Argument, Constant, DType, Graph, InputKind, ValueId},
};

use crate::{
    Options, attend,
    core::{self, Op},
    decompose::decompose,
    interp::{Settings, Tensor, run},
    lower_graph,
    tests::{
        EMULATED,
        build::{Program, bytes, noise, row_major},
        emulator::Module,
    },
};

/// A tensor of the graph, with its type and shape.
#[derive(Debug, Clone)]
pub(super) struct T {
    pub(super) id: ValueId,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

/// A graph under construction, with its inputs.
#[derive(Default)]
pub(super) struct Bench {
    program: Program,
    inputs: Vec<Vec<u8>>,
    names: Vec<&'static str>,
    /// Kernels that there may be beside attention.
    pub(super) others: usize,
    seed: u64,
}

pub(super) const LOW: f32 = f32::NEG_INFINITY;

impl Bench {
    /// Numbers in -1 to 1.
    pub(super) fn input(&mut self, dtype: DType, shape: &[usize]) -> T {
        self.seed += 1;
        let count = shape.iter().product();
        let data = noise(count, &mut self.seed.clone());
        self.given(dtype, shape, &data)
    }

    /// Those elements, repeated as often as it takes.
    pub(super) fn given(&mut self, dtype: DType, shape: &[usize], elements: &[f32]) -> T {
        let count: usize = shape.iter().product();
        let all: Vec<f32> = elements.iter().copied().cycle().take(count).collect();
        self.inputs.push(match dtype {
            DType::Bool => all.iter().map(|x| u8::from(*x != 0.0)).collect(),
            dtype => bytes(&all, dtype),
        });
        let id = self.program.input(dtype, shape, &row_major(shape));
        T { id, dtype, shape: shape.to_vec() }
    }

    /// A whole number that is part of the graph.
    pub(super) fn constant(&mut self, number: i64) -> T {
        let data = number.to_le_bytes().to_vec();
        self.inputs.push(data.clone());
        let id = self.program.input(DType::I64, &[], &[]);
        if let Some(input) = self.program.graph.inputs.last_mut() {
            input.kind = InputKind::Constant(Constant { digest: Digest::of(&data), data });
        }
        T { id, dtype: DType::I64, shape: Vec::new() }
    }

    /// An operation with `args` after its tensors, named as its schema has them.
    pub(super) fn op(
        &mut self,
        op: &str,
        tensors: &[(&str, &T)],
        args: &[(&str, Argument)],
        (dtype, shape): (DType, &[usize]),
    ) -> T {
        let tensors = tensors.iter().map(|(name, t)| (*name, Argument::Tensor(t.id)));
        let all: Vec<(&str, Argument)> = tensors.chain(args.iter().cloned()).collect();
        let id = self.program.node(&format!("aten.{op}"), &all, dtype, shape);
        T { id, dtype, shape: shape.to_vec() }
    }

    pub(super) fn matmul(&mut self, a: &T, b: &T) -> T {
        let (rank, mut shape) = (a.shape.len(), a.shape.clone());
        shape[rank - 1] = b.shape[b.shape.len() - 1];
        self.op("matmul.default", &[("self", a), ("other", b)], &[], (a.dtype, &shape))
    }

    pub(super) fn transposed(&mut self, x: &T) -> T {
        let (rank, mut shape) = (x.shape.len(), x.shape.clone());
        shape.swap(rank - 2, rank - 1);
        let dims = [("dim0", Argument::Int(-2)), ("dim1", Argument::Int(-1))];
        self.op("transpose.int", &[("self", x)], &dims, (x.dtype, &shape))
    }

    /// `q k^T`
    pub(super) fn products(&mut self, q: &T, k: &T) -> T {
        let k = self.transposed(k);
        self.matmul(q, &k)
    }

    pub(super) fn scaled(&mut self, x: &T, by: f64) -> T {
        let by = [("other", Argument::Float(by))];
        self.op("mul.Tensor", &[("self", x)], &by, (x.dtype, &x.shape))
    }

    /// An operation of two tensors of one type, one of which has the result's shape.
    pub(super) fn binary(&mut self, op: &str, a: &T, b: &T) -> T {
        let count = |t: &T| t.shape.iter().product::<usize>();
        let shape = if count(a) > count(b) { &a.shape } else { &b.shape };
        self.op(op, &[("self", a), ("other", b)], &[], (a.dtype, shape))
    }

    pub(super) fn fill(&mut self, x: &T, mask: &T, value: f64) -> T {
        let value = [("value", Argument::Float(value))];
        let tensors = [("self", x), ("mask", mask)];
        self.op("masked_fill.Scalar", &tensors, &value, (x.dtype, &x.shape))
    }

    pub(super) fn cast(&mut self, x: &T, dtype: DType) -> T {
        let to = [("dtype", Argument::DType(dtype))];
        self.op("_to_copy.default", &[("self", x)], &to, (dtype, &x.shape))
    }

    pub(super) fn view(&mut self, x: &T, shape: &[usize]) -> T {
        let size = Argument::Ints(shape.iter().map(|n| *n as i64).collect());
        self.op("view.default", &[("self", x)], &[("size", size)], (x.dtype, shape))
    }

    pub(super) fn expand(&mut self, x: &T, shape: &[usize]) -> T {
        let size = Argument::Ints(shape.iter().map(|n| *n as i64).collect());
        self.op("expand.default", &[("self", x)], &[("size", size)], (x.dtype, shape))
    }

    /// Positions along dimension `dim` of two.
    pub(super) fn positions(&mut self, count: usize, dim: usize) -> T {
        let end = [("end", Argument::Int(count as i64))];
        let line = self.op("arange.default", &[], &end, (DType::I64, &[count]));
        let shape = if dim == 0 { [count, 1] } else { [1, count] };
        self.view(&line, &shape)
    }

    /// Whether the key is not past the row.
    pub(super) fn causal(&mut self, s: usize, t: usize) -> T {
        let (rows, keys) = (self.positions(s, 0), self.positions(t, 1));
        let sides = [("self", &keys), ("other", &rows)];
        self.op("le.Tensor", &sides, &[], (DType::Bool, &[s, t]))
    }

    pub(super) fn softmax(&mut self, x: &T) -> T {
        self.softmax_of(x, "softmax.int", -1)
    }

    pub(super) fn softmax_of(&mut self, x: &T, op: &str, dim: i64) -> T {
        self.op(op, &[("self", x)], &[("dim", Argument::Int(dim))], (x.dtype, &x.shape))
    }

    /// A result, with a name for messages.
    pub(super) fn output(&mut self, name: &'static str, x: &T) {
        self.names.push(name);
        self.program.graph.outputs.push(x.id);
    }

    pub(super) fn graph(&mut self) -> &mut Graph {
        &mut self.program.graph
    }

    pub(super) fn graph_ref(&self) -> &Graph {
        &self.program.graph
    }

    /// The program after the pass, and how often it did something.
    pub(super) fn rewritten(&self) -> (core::Program, usize) {
        let mut program = decompose(&self.program.graph).unwrap();
        let count = attend::attend(&mut program, &self.program.graph).len();
        (program, count)
    }

    /// What each attention is, in order: causal or not, and the types of what it reads.
    pub(super) fn attentions(&self) -> Vec<(bool, Vec<DType>)> {
        let (program, count) = self.rewritten();
        let dtype = |read: &core::ValueId| program.value(*read).dtype;
        let all = program.nodes.iter().filter_map(|node| match node.op {
            Op::Attention { causal, .. } => Some((causal, node.reads.iter().map(dtype).collect())),
            _ => None,
        });
        let all: Vec<_> = all.collect();
        assert_eq!(all.len(), count);
        all
    }

    /// Compares kernels with the pieces. Each output is one attention, and nothing
    /// else has a kernel but what they call for.
    pub(super) fn check(&self, relative: f64) {
        let options = Options { fuse: true, fast_math: false, parallel: true };
        let graph = &self.program.graph;
        let lowered = lower_graph(graph, String::new(), options, EMULATED).unwrap();
        if std::env::var_os("KILN_SHOW").is_some() {
            println!("{}", lowered.source);
        }
        let kernels: Vec<&str> = lowered.plan.kernels.iter().map(|k| k.name.as_str()).collect();
        let of = |kind: &str| kernels.iter().filter(|name| name.ends_with(kind)).count();
        assert_eq!((of("_attention"), of("_product")), (self.names.len(), 0), "{kernels:?}");
        let others = kernels.len() - self.names.len();
        assert!(others <= self.others, "{kernels:?}");
        let pieces = decompose(graph).unwrap();
        let shape = |id: ValueId| -> Vec<usize> {
            let dims = graph.value(id).ty.shape.iter();
            dims.map(|dim| dim.known().unwrap() as usize).collect()
        };
        let inputs: Vec<Tensor<'_>> = (graph.inputs.iter().zip(&self.inputs))
            .map(|(input, bytes)| {
                let dtype = graph.value(input.value).ty.dtype;
                Tensor::dense(dtype, &shape(input.value), bytes.as_slice())
            })
            .collect();
        let expected = run(&pieces, &inputs, &Settings::default()).unwrap();
        let found = Module::build(&lowered).run(&self.inputs);
        for ((name, expected), found) in self.names.iter().zip(&expected).zip(found) {
            let found = Tensor::dense(expected.dtype, &expected.shape, found).to_f64().unwrap();
            let expected = expected.to_f64().unwrap();
            let most = expected.iter().copied().filter(|x| x.is_finite()).fold(0.1, f64::max);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let near = (found - expected).abs() <= relative * most;
                let same = near || (found.is_nan() && expected.is_nan());
                assert!(same, "{name} at {at}: {found} for {expected}");
            }
        }
    }
}
