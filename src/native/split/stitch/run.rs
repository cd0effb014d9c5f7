//! The stitched whole in the interpreter: on the memory that the stitching says.
//!
//! Invariant: what a call reads is what lies in that memory when it runs, so that
//! a wrong place or a wrong life gives wrong numbers here as on a device.

use std::borrow::Cow;

use kiln_proto::{Failure, FailureKind, graph::DType};

use super::{Arg, Broken, Laid, Stitching};
use crate::{
    eager::Eager,
    interp::{Settings, Tensor},
    plan::Base,
};

/// Runs a piece.
pub type RunPiece<'a> =
    dyn FnMut(usize, &[Tensor<'_>]) -> Result<Vec<Tensor<'static>>, Failure> + 'a;

/// What memory holds before anything is written to it.
const UNWRITTEN: u8 = 0xa5;

/// Runs the whole once: `pieces` in the stitching's order, `inputs` in the order
/// of its inputs, at constants anything.
pub fn run(
    stitching: &Stitching,
    pieces: &[Eager],
    inputs: &[Tensor<'_>],
    settings: &Settings,
) -> Result<Vec<Tensor<'static>>, Failure> {
    run_with(stitching, inputs, settings, &mut |piece, args| match pieces.get(piece) {
        Some(piece) => piece.run(args, settings),
        None => Err(Failure::new(FailureKind::InvalidInput, "it is missing".to_owned())),
    })
}

/// Runs the whole once, where `call` runs a piece: its position and its inputs, at
/// constants anything.
pub fn run_with(
    stitching: &Stitching,
    inputs: &[Tensor<'_>],
    settings: &Settings,
    call: &mut RunPiece<'_>,
) -> Result<Vec<Tensor<'static>>, Failure> {
    let shapes: Vec<&[usize]> = inputs.iter().map(|tensor| tensor.shape.as_slice()).collect();
    let laid = stitching.laid_out(&shapes).map_err(|broken| failure(&broken))?;
    let unwritten = |bytes: u64| match usize::try_from(bytes) {
        Ok(bytes) if bytes as u64 <= settings.memory_bytes => Ok(vec![UNWRITTEN; bytes]),
        _ => Err(Failure::new(FailureKind::OutOfMemory, format!("{bytes} bytes between pieces"))),
    };
    let mut memory = Memory {
        workspace: unwritten(laid.workspace_bytes)?,
        outputs: laid.outputs.iter().map(|o| unwritten(o.bytes)).collect::<Result<_, _>>()?,
    };
    for (at, step) in stitching.calls.iter().enumerate() {
        let about = |failure: Failure| {
            Failure::new(failure.kind, format!("piece {}, call {at}: {failure}", step.piece))
        };
        let args: Vec<Tensor<'_>> = step
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Input(input) => borrowed(&inputs[*input]),
                Arg::Value(value) => memory.read(stitching, &laid, *value),
                Arg::Constant => Tensor::dense(DType::U8, &[0], Vec::new()),
            })
            .collect();
        let results = call(step.piece, &args).map_err(about)?;
        drop(args);
        for (value, result) in step.results.iter().zip(results) {
            let wanted = (stitching.values[*value].dtype, &laid.values[*value].shape);
            if (result.dtype, &result.shape) != wanted {
                let Tensor { dtype, shape, .. } = &result;
                let why = format!("gives {dtype} {shape:?} for value {value}, not {wanted:?}");
                return Err(about(Failure::new(FailureKind::Corrupt, why)));
            }
            memory.write(&laid, *value, &result.bytes);
        }
    }
    for copy in &stitching.copies {
        let from = match copy.from {
            Arg::Input(input) => inputs[input].to_dense()?.bytes.into_owned(),
            Arg::Value(value) => memory.read(stitching, &laid, value).bytes.into_owned(),
            Arg::Constant => continue,
        };
        memory.outputs[copy.output] = from;
    }
    let outputs = memory.outputs.into_iter().zip(&laid.outputs).zip(&stitching.outputs);
    Ok(outputs
        .map(|((bytes, layout), output)| Tensor::dense(output.dtype, &layout.shape, bytes))
        .collect())
}

struct Memory {
    workspace: Vec<u8>,
    outputs: Vec<Vec<u8>>,
}

impl Memory {
    fn read<'m>(&'m self, stitching: &Stitching, laid: &Laid, value: usize) -> Tensor<'m> {
        let place = &laid.values[value];
        let memory = match place.base {
            Base::Output(at) => &self.outputs[at],
            _ => &self.workspace,
        };
        // Laid out within it.
        let bytes = &memory[place.offset as usize..][..place.bytes as usize];
        Tensor::dense(stitching.values[value].dtype, &place.shape, bytes)
    }

    fn write(&mut self, laid: &Laid, value: usize, bytes: &[u8]) {
        let place = &laid.values[value];
        let memory = match place.base {
            Base::Output(at) => &mut self.outputs[at],
            _ => &mut self.workspace,
        };
        memory[place.offset as usize..][..place.bytes as usize].copy_from_slice(bytes);
    }
}

fn borrowed<'t>(tensor: &'t Tensor<'_>) -> Tensor<'t> {
    let Tensor { dtype, shape, strides, bytes } = tensor;
    let (shape, strides, bytes) = (shape.clone(), strides.clone(), Cow::Borrowed(&bytes[..]));
    Tensor { dtype: *dtype, shape, strides, bytes }
}

fn failure(broken: &Broken) -> Failure {
    let kind = match broken {
        Broken::Inputs(_) => FailureKind::InvalidInput,
        _ => FailureKind::Corrupt,
    };
    Failure::new(kind, broken.to_string())
}
