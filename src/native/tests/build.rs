//! Programs built by hand, for what no exported fixture reaches.

use half::{bf16, f16};
use kiln_proto::{
    Target,
    graph::{Argument, DType, Dim, Graph, Input, InputKind, Node, TensorType, Value, ValueId},
};

use crate::{Lowered, Options, lower_graph};

/// Strides of a dense tensor in row-major order.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    strides
}

#[derive(Default)]
pub(super) struct Program {
    pub(super) graph: Graph,
}

impl Program {
    pub(super) fn input(&mut self, dtype: DType, shape: &[usize], strides: &[usize]) -> ValueId {
        let value = self.value(dtype, shape, strides);
        self.graph.inputs.push(Input { value, kind: InputKind::User });
        value
    }

    pub(super) fn node(
        &mut self,
        op: &str,
        args: &[(&str, Argument)],
        dtype: DType,
        shape: &[usize],
    ) -> ValueId {
        let out = self.value(dtype, shape, &row_major(shape));
        let args = args.iter().map(|(name, arg)| ((*name).to_owned(), arg.clone())).collect();
        let (name, op) = (format!("n{}", out.0), op.to_owned());
        self.graph.nodes.push(Node { name, op, args, outputs: vec![out] });
        out
    }

    pub(super) fn compile(&self) -> Lowered {
        self.compile_for(Target::cubin(80))
    }

    pub(super) fn compile_for(&self, target: Target) -> Lowered {
        let options = Options { fuse: true, fast_math: false, parallel: true };
        lower_graph(&self.graph, String::new(), options, target).unwrap()
    }

    fn value(&mut self, dtype: DType, shape: &[usize], strides: &[usize]) -> ValueId {
        let id = ValueId(self.graph.values.len());
        let dims = |sizes: &[usize]| sizes.iter().map(|s| Dim::Static(*s as u64)).collect();
        let ty = TensorType {
            dtype,
            shape: dims(shape),
            strides: dims(strides),
            offset: Dim::Static(0),
            device: "cpu".to_owned(),
        };
        self.graph.values.push(Value { name: format!("v{}", id.0), ty });
        id
    }
}

/// Numbers in -1 to 1 that bf16 holds, from a seed.
pub(super) fn noise(count: usize, seed: &mut u64) -> Vec<f32> {
    let mut next = || {
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32(((*seed >> 40) as f32) / 8_388_608.0 - 1.0).to_f32()
    };
    (0..count).map(|_| next()).collect()
}

pub(super) fn bytes(numbers: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

pub(super) fn floats(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let two = |b: &[u8]| [b[0], b[1]];
    match dtype {
        DType::F32 => {
            let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            bytes.chunks_exact(4).map(|b| f64::from(four(b))).collect()
        }
        DType::BF16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(two(b)).to_f64()).collect()
        }
        _ => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(two(b)).to_f64()).collect(),
    }
}
