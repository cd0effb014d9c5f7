//! A program by its values: who writes each, who reads it, which are one number.
//!
//! Invariant: says nothing of values that it did not look at; a number is the
//! one that the tensor's type holds.

use std::collections::BTreeMap;

use kiln_proto::graph::{DType, Graph, InputKind};

use crate::{
    core::{Domain, Fun, Input, Node, Number, Op, Operand, Program, ValueId},
    decompose::stored,
    interp::Tensor,
    size::Size,
};

/// Longest chain of operations that is looked through.
pub(super) const DEEPEST: usize = 24;

pub(super) struct Flow<'a> {
    pub(super) program: &'a Program,
    writer: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
    /// Constant inputs of one element.
    constants: BTreeMap<ValueId, f64>,
}

impl<'a> Flow<'a> {
    pub(super) fn of(program: &'a Program, graph: &Graph) -> Self {
        let mut writer = vec![None; program.values.len()];
        let mut readers = vec![Vec::new(); program.values.len()];
        for (index, node) in program.nodes.iter().enumerate() {
            writer[node.writes.0] = Some(index);
            node.reads.iter().for_each(|read| readers[read.0].push(index));
        }
        let constant = |input: &Input| {
            let value = program.value(input.value);
            let InputKind::Constant(constant) = &graph.inputs[input.position].kind else {
                return None;
            };
            let alone = value.shape.iter().all(|size| size.is(1));
            let shape = vec![1; value.shape.len()];
            let tensor = Tensor::dense(value.dtype, &shape, constant.data.as_slice());
            let number = tensor.to_f64().ok().filter(|_| alone)?;
            Some((input.value, *number.first()?))
        };
        let constants = program.inputs.iter().filter_map(constant).collect();
        Self { program, writer, readers, constants }
    }

    /// The node that writes `value`, with its place.
    pub(super) fn writer(&self, value: ValueId) -> Option<(usize, &'a Node)> {
        let index = self.writer[value.0]?;
        Some((index, &self.program.nodes[index]))
    }

    /// The nodes that read `value`, by place.
    pub(super) fn readers(&self, value: ValueId) -> &[usize] {
        &self.readers[value.0]
    }

    pub(super) fn shape(&self, value: ValueId) -> &'a [Size] {
        &self.program.value(value).shape
    }

    pub(super) fn dtype(&self, value: ValueId) -> DType {
        self.program.value(value).dtype
    }

    /// The operands of the map `fun` that writes `value`.
    pub(super) fn map(&self, value: ValueId, fun: Fun) -> Option<(usize, Vec<Side>)> {
        let (index, node) = self.writer(value)?;
        match &node.op {
            Op::Map { fun: found, .. } if *found == fun => Some((index, sides(node))),
            _ => None,
        }
    }

    /// The number that all of `value` is.
    pub(super) fn number(&self, value: ValueId) -> Option<f64> {
        self.number_within(value, DEEPEST)
    }

    fn number_within(&self, value: ValueId, depth: usize) -> Option<f64> {
        let Some((_, node)) = self.writer(value) else {
            return self.constants.get(&value).copied();
        };
        let dtype = self.dtype(value);
        let read = |place: usize| self.number_within(node.reads[place], depth.checked_sub(1)?);
        let number = match &node.op {
            Op::Full(number) => plain(number)?,
            Op::Reshape | Op::Expand | Op::Permute(_) => read(0)?,
            Op::Map { fun, domain, args } => {
                let [Operand::Read(0)] = args[..] else { return None };
                match fun {
                    Fun::Id => read(0)?,
                    _ if *domain != Domain::Float => return None,
                    Fun::Sqrt => read(0)?.sqrt(),
                    Fun::Rsqrt => 1.0 / read(0)?.sqrt(),
                    Fun::Reciprocal => 1.0 / read(0)?,
                    _ => return None,
                }
            }
            _ => return None,
        };
        plain(&stored(Number::Float(number), dtype))
    }

    /// The number that an operand is.
    pub(super) fn constant(&self, side: &Side) -> Option<f64> {
        match side {
            Side::Tensor(value) => self.number(*value),
            Side::Number(number) => plain(number),
        }
    }

    /// `value` before it was brought to other float types.
    pub(super) fn uncast(&self, value: ValueId, inner: &mut Vec<usize>) -> ValueId {
        let mut value = value;
        while let Some((index, sides)) = self.map(value, Fun::Id) {
            let [Side::Tensor(from)] = sides[..] else { break };
            if !is_float(self.dtype(from)) || !is_float(self.dtype(value)) {
                break;
            }
            inner.push(index);
            value = from;
        }
        value
    }
}

/// An operand of a map.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Side {
    Tensor(ValueId),
    Number(Number),
}

impl Side {
    pub(super) fn tensor(&self) -> Option<ValueId> {
        match self {
            Self::Tensor(value) => Some(*value),
            Self::Number(_) => None,
        }
    }
}

pub(super) fn sides(node: &Node) -> Vec<Side> {
    let Op::Map { args, .. } = &node.op else { return Vec::new() };
    let side = |arg: &Operand| match arg {
        Operand::Read(read) => Side::Tensor(node.reads[*read]),
        Operand::Number(number) => Side::Number(number.clone()),
    };
    args.iter().map(side).collect()
}

fn plain(number: &Number) -> Option<f64> {
    match number {
        Number::Bool(truth) => Some(f64::from(u8::from(*truth))),
        Number::Int(int) => Some(*int as f64),
        Number::Float(float) => Some(*float),
        Number::Size(size) => size.known().map(|size| size as f64),
    }
}

pub(super) const fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}
