//! Graphs by hand.

use kiln_proto::graph::{
    Argument, DType, Dim, Graph, Input, InputKind, Node, Symbol, TensorType, Value, ValueId,
};

use crate::interp::Tensor;

/// A graph under construction: all of it is `f32` on the CPU, unless said otherwise.
#[derive(Default)]
pub(in crate::tests) struct Build {
    pub(in crate::tests) graph: Graph,
}

impl Build {
    fn value(&mut self, dtype: DType, shape: &[&str]) -> ValueId {
        let id = ValueId(self.graph.values.len());
        let shape: Vec<Dim> = shape
            .iter()
            .map(|dim| dim.parse().map_or_else(|_| Dim::Symbolic((*dim).to_owned()), Dim::Static))
            .collect();
        let mut strides = vec![Dim::Static(1); shape.len()];
        for dim in (1..shape.len()).rev() {
            let text = |dim: &Dim| match dim {
                Dim::Static(size) => size.to_string(),
                Dim::Symbolic(formula) => formula.clone(),
            };
            let formula = format!("{}*{}", text(&strides[dim]), text(&shape[dim]));
            strides[dim - 1] = match (strides[dim].known(), shape[dim].known()) {
                (Some(stride), Some(size)) => Dim::Static(stride * size),
                _ => Dim::Symbolic(formula),
            };
        }
        let (offset, device) = (Dim::Static(0), "cpu".to_owned());
        let ty = TensorType { dtype, shape, strides, offset, device };
        self.graph.values.push(Value { name: format!("v{}", id.0), ty });
        id
    }

    pub(in crate::tests) fn symbol(&mut self, name: &str) {
        let name = name.to_owned();
        self.graph.symbols.push(Symbol { name, min: Some(2), max: Some(64) });
    }

    pub(in crate::tests) fn input(&mut self, shape: &[&str]) -> ValueId {
        let value = self.value(DType::F32, shape);
        self.graph.inputs.push(Input { value, kind: InputKind::User });
        value
    }

    pub(in crate::tests) fn node_of(
        &mut self,
        dtype: DType,
        op: &str,
        args: Vec<(&str, Argument)>,
        shape: &[&str],
    ) -> ValueId {
        let output = self.value(dtype, shape);
        let name = format!("n{}", self.graph.nodes.len());
        let args = args.into_iter().map(|(name, arg)| (name.to_owned(), arg)).collect();
        self.graph.nodes.push(Node { name, op: format!("aten.{op}"), args, outputs: vec![output] });
        output
    }

    pub(in crate::tests) fn node(
        &mut self,
        op: &str,
        args: &[(&str, ValueId)],
        shape: &[&str],
    ) -> ValueId {
        let args = args.iter().map(|(name, value)| (*name, Argument::Tensor(*value))).collect();
        self.node_of(DType::F32, op, args, shape)
    }

    pub(in crate::tests) fn output(mut self, values: &[ValueId]) -> Graph {
        self.graph.outputs = values.to_vec();
        self.graph
    }
}

/// Numbers that differ from each other.
pub(super) fn numbers(shape: &[usize]) -> Tensor<'static> {
    let count: usize = shape.iter().product();
    let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
    let bytes: Vec<u8> = (0..count).flat_map(|i| number(i).to_le_bytes()).collect();
    Tensor::dense(DType::F32, shape, bytes)
}

/// `relu` of `neg` of ... `x`, each `[n]`, so many.
pub(super) fn chain(n: &str, length: usize) -> Graph {
    let mut build = Build::default();
    if n.parse::<u64>().is_err() {
        build.symbol(n);
    }
    let mut x = build.input(&[n]);
    for i in 0..length {
        x = build.node(["neg.default", "exp.default"][i % 2], &[("self", x)], &[n]);
    }
    build.output(&[x])
}

/// So many products with a weight of its own each, `relu` between them.
pub(super) fn products(length: usize) -> Graph {
    let mut build = Build::default();
    let mut x = build.input(&["4", "8"]);
    for _ in 0..length {
        let w = build.input(&["8", "8"]);
        x = build.node("mm.default", &[("self", x), ("mat2", w)], &["4", "8"]);
        x = build.node("relu.default", &[("self", x)], &["4", "8"]);
    }
    build.output(&[x])
}
