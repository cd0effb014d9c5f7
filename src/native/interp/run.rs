//! Node after node.
//!
//! Invariant: a tensor is held from its definition to its last reader, and all
//! that are held at once stay within the bound.

use std::borrow::Cow;

use kiln_proto::{Failure, FailureKind, graph::DType};

use super::{
    Precision, Settings, Tensor, invalid,
    step::{Step, compute},
    tensor::{Data, Dense, is_float, row_major, width},
};
use crate::{
    bind,
    core::{Program, ValueId},
};

/// Runs `program`. `inputs` has the tensors of the graph's inputs by position,
/// constants among them; the strides are the caller's own.
pub fn run(
    program: &Program,
    inputs: &[Tensor<'_>],
    settings: &Settings,
) -> Result<Vec<Tensor<'static>>, Failure> {
    let given = given(program, inputs)?;
    let shapes: Vec<&[usize]> = given.iter().map(|tensor| tensor.shape.as_slice()).collect();
    let symbols = bind::bind(program, &shapes)?;
    let mut memory = Memory::new(program, settings.memory_bytes);
    let mut sources = vec![None; program.values.len()];
    for (input, tensor) in program.inputs.iter().zip(given) {
        sources[input.value.0] = Some(tensor);
    }
    for (index, node) in program.nodes.iter().enumerate() {
        let context = |failure: Failure| {
            let Failure { kind, message } = failure;
            let (op, origin) = (&node.op, node.origin);
            Failure::new(kind, format!("operation {index}, {op:?} of node {origin}: {message}"))
        };
        for read in &node.reads {
            memory.load(*read, &sources).map_err(context)?;
        }
        let value = program.value(node.writes);
        let shape = bind::shape(value, &symbols).map_err(context)?;
        width(value.dtype).and(memory.reserve(&shape)).map_err(context)?;
        let reads: Result<Vec<&Dense>, Failure> =
            node.reads.iter().map(|read| memory.get(*read)).collect();
        let step = Step {
            op: &node.op,
            reads: reads.map_err(context)?,
            dtypes: node.reads.iter().map(|read| program.value(*read).dtype).collect(),
            dtype: value.dtype,
            shape: &shape,
            symbols: &symbols,
            precision: settings.precision,
        };
        let result = compute(&step).map_err(context)?;
        step.expect(&result.shape).map_err(context)?;
        memory.put(node.writes, result);
        memory.release(index);
    }
    program
        .outputs
        .iter()
        .map(|output| {
            memory.load(*output, &sources)?;
            let Dense { shape, data } = memory.get(*output)?;
            let dtype = match (settings.precision, program.value(*output).dtype) {
                (Precision::Exact, dtype) if is_float(dtype) => DType::F64,
                (_, dtype) => dtype,
            };
            let (bytes, strides) = (Cow::Owned(data.to_bytes(dtype)), row_major(shape));
            Ok(Tensor { dtype, shape: shape.clone(), strides, bytes })
        })
        .collect()
}

/// The tensors of the program's inputs, of the types that it says.
fn given<'t, 'a>(
    program: &Program,
    inputs: &'t [Tensor<'a>],
) -> Result<Vec<&'t Tensor<'a>>, Failure> {
    let tensors = program.inputs.iter().map(|input| {
        let position = input.position;
        let tensor = inputs.get(position);
        let tensor = tensor.ok_or_else(|| invalid(format!("input {position} is missing")))?;
        let dtype = program.value(input.value).dtype;
        if tensor.dtype != dtype {
            let got = tensor.dtype;
            return Err(invalid(format!("input {position} is {got}, not {dtype}")));
        }
        Ok(tensor)
    });
    tensors.collect()
}

/// The tensors that are alive.
struct Memory {
    values: Vec<Option<Dense>>,
    /// Those that nothing reads after this node.
    dead_after: Vec<Vec<ValueId>>,
    held: u64,
    most: u64,
}

impl Memory {
    fn new(program: &Program, most: u64) -> Self {
        let mut last = vec![None; program.values.len()];
        for (index, node) in program.nodes.iter().enumerate() {
            for value in node.reads.iter().chain([&node.writes]) {
                last[value.0] = Some(index);
            }
        }
        for output in &program.outputs {
            last[output.0] = None;
        }
        let mut dead_after = vec![Vec::new(); program.nodes.len()];
        for (value, last) in last.into_iter().enumerate() {
            if let Some(index) = last {
                dead_after[index].push(ValueId(value));
            }
        }
        Self { values: vec![None; program.values.len()], dead_after, held: 0, most }
    }

    /// Makes an input's elements numbers, when it is first read.
    fn load(&mut self, id: ValueId, sources: &[Option<&Tensor<'_>>]) -> Result<(), Failure> {
        if let (None, Some(tensor)) = (&self.values[id.0], sources[id.0]) {
            self.reserve(&tensor.shape)?;
            let data = Data::read(tensor)?;
            self.values[id.0] = Some(Dense { shape: tensor.shape.clone(), data });
        }
        Ok(())
    }

    fn get(&self, id: ValueId) -> Result<&Dense, Failure> {
        let value = self.values[id.0].as_ref();
        value.ok_or_else(|| invalid(format!("value {} is read before it is there", id.0)))
    }

    fn put(&mut self, id: ValueId, value: Dense) {
        self.values[id.0] = Some(value);
    }

    fn reserve(&mut self, shape: &[usize]) -> Result<(), Failure> {
        let bytes = shape.iter().try_fold(8u64, |n, size| n.checked_mul(*size as u64));
        match bytes.and_then(|bytes| self.held.checked_add(bytes)) {
            Some(held) if held <= self.most => self.held = held,
            _ => {
                let (held, most) = (self.held, self.most);
                let why = format!("a tensor {shape:?} beside {held} bytes is over {most} bytes");
                return Err(Failure::new(FailureKind::OutOfMemory, why));
            }
        }
        Ok(())
    }

    fn release(&mut self, index: usize) {
        for id in std::mem::take(&mut self.dead_after[index]) {
            if let Some(value) = self.values[id.0].take() {
                self.held -= 8 * value.data.len() as u64;
            }
        }
    }
}
