//! Whether a stitching that came from anywhere can be run.
//!
//! Invariant: one that passes refers to nothing that it does not have, reads no
//! value before it is made, and makes each output once.

use kiln_proto::graph::DType;

use super::{Arg, Call, Spec, Stitching, VERSION, Value};
use crate::{
    plan::{CONSTANT, CallError, Expr, Memory},
    version,
};

/// Most bytes of the file.
const LARGEST: usize = 64 << 20;
/// Most of anything in it.
const MOST: usize = 1 << 16;

/// What is wrong with a stitching.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is no stitching.
    #[error("it cannot be read: {0}")]
    Text(String),
    /// It is of another version: compile again, or use a newer Kiln.
    #[error(
        "version {0}, and this Kiln reads {VERSION}: use the one that wrote it, or compile again"
    )]
    Version(u32),
    /// It is larger than any model's.
    #[error("{what}: {count}, at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Allowed.
        most: usize,
    },
    /// Give other inputs.
    #[error("{0}")]
    Inputs(String),
    /// Sizes that cannot be.
    #[error("{0}")]
    Sizes(String),
    /// A call of a piece that is not there.
    #[error("call {call} is of piece {piece}, which is not there")]
    Piece {
        /// Which call.
        call: usize,
        /// Which piece.
        piece: usize,
    },
    /// Other pieces than it is stitched of.
    #[error("{count} pieces, not {wanted}")]
    Pieces {
        /// How many there are.
        count: usize,
        /// How many it is made of.
        wanted: usize,
    },
    /// A piece that is another than the one that was stitched.
    #[error("piece {piece} does not fit: {why}")]
    Unfit {
        /// Which.
        piece: usize,
        /// How.
        why: String,
    },
    /// A call with more or fewer arguments or results than its piece has.
    #[error("call {call} has not the arguments and results of its piece")]
    Count {
        /// Which call.
        call: usize,
    },
    /// An argument that is not there, or of another type than the piece takes.
    #[error("call {call}: argument {arg} is not what the piece takes")]
    Argument {
        /// Which call.
        call: usize,
        /// Which argument.
        arg: usize,
    },
    /// A result of another type than the piece gives.
    #[error("call {call}: result {result} is not what the piece gives")]
    Result {
        /// Which call.
        call: usize,
        /// Which result.
        result: usize,
    },
    /// A value is read before it is made: calls in the wrong order, or in a circle.
    #[error("call {call} reads value {value} before it is made")]
    Early {
        /// Which call.
        call: usize,
        /// Which value.
        value: usize,
    },
    /// A value that two results are.
    #[error("value {value} is made twice")]
    Twice {
        /// Which value.
        value: usize,
    },
    /// A value that no call makes, or not the one that it names.
    #[error("value {value} is not made where it says")]
    NeverMade {
        /// Which value.
        value: usize,
    },
    /// A value whose last reader is another than it says.
    #[error("value {value} does not live as long as it says")]
    Life {
        /// Which value.
        value: usize,
    },
    /// A value outside of all memory.
    #[error("value {value} lies outside of the memory that there is")]
    Memory {
        /// Which value.
        value: usize,
    },
    /// Two values in one place.
    #[error("values {a} and {b} are alive together and share memory")]
    Overlap {
        /// One.
        a: usize,
        /// The other.
        b: usize,
    },
    /// A call that cannot work in place does.
    #[error("call {call} cannot work in place")]
    InPlace {
        /// Which call.
        call: usize,
    },
    /// An output that nothing makes, or several do, or of another type.
    #[error("output {output} is not made once, as it says")]
    Output {
        /// Which.
        output: usize,
    },
}

impl Stitching {
    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Maps with keys that are no text, the only failure, do not occur.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a file that may come from anywhere.
    pub fn read(bytes: &[u8]) -> Result<Self, Broken> {
        within("bytes", bytes.len(), LARGEST)?;
        // The version first: another version's may not even parse.
        if let Some(other) = version::said(bytes).filter(|said| *said != VERSION) {
            return Err(Broken::Version(other));
        }
        let read: Self = serde_json::from_slice(bytes).map_err(|e| Broken::Text(e.to_string()))?;
        read.check()?;
        Ok(read)
    }

    /// Whether it hangs together, as far as that depends on no size.
    pub fn check(&self) -> Result<(), Broken> {
        if self.version != VERSION {
            return Err(Broken::Version(self.version));
        }
        let lists = [
            ("symbols", self.symbols.len()),
            ("inputs", self.inputs.len()),
            ("outputs", self.outputs.len()),
            ("pieces", self.pieces.len()),
            ("values", self.values.len()),
            ("calls", self.calls.len()),
            ("copies", self.copies.len()),
        ];
        lists.into_iter().try_for_each(|(what, count)| within(what, count, MOST))?;
        self.as_plan().check().map_err(|error| match error {
            CallError::Inputs(why) | CallError::Plan(why) => Broken::Sizes(why),
        })?;
        self.check_calls()?;
        self.check_outputs()?;
        if self.symbols.is_empty() {
            let shapes = self.inputs.iter().map(|input| known(&input.shape));
            let shapes = shapes.collect::<Option<Vec<_>>>();
            let shapes = shapes.ok_or_else(|| Broken::Sizes("an input has no size".to_owned()))?;
            self.laid_out(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn check_calls(&self) -> Result<(), Broken> {
        let mut made = vec![false; self.values.len()];
        let mut last: Vec<usize> = self.values.iter().map(|value| value.from).collect();
        for (at, call) in self.calls.iter().enumerate() {
            let piece = self.pieces.get(call.piece);
            let piece = piece.ok_or(Broken::Piece { call: at, piece: call.piece })?;
            if (piece.takes.len(), piece.gives.len()) != (call.args.len(), call.results.len()) {
                return Err(Broken::Count { call: at });
            }
            for (position, (arg, wanted)) in call.args.iter().zip(&piece.takes).enumerate() {
                if let Arg::Value(value) = arg {
                    if made.get(*value) == Some(&false) {
                        return Err(Broken::Early { call: at, value: *value });
                    }
                    last.get_mut(*value).into_iter().for_each(|last| *last = at);
                }
                if !self.fits(*arg, wanted) {
                    return Err(Broken::Argument { call: at, arg: position });
                }
            }
            for (position, (value, wanted)) in call.results.iter().zip(&piece.gives).enumerate() {
                let Some(Value { dtype, shape, from, .. }) = self.values.get(*value) else {
                    return Err(Broken::Result { call: at, result: position });
                };
                if wanted.constant || !agrees(*dtype, shape, wanted) {
                    return Err(Broken::Result { call: at, result: position });
                }
                if std::mem::replace(&mut made[*value], true) {
                    return Err(Broken::Twice { value: *value });
                }
                if *from != at {
                    return Err(Broken::NeverMade { value: *value });
                }
            }
            if call.in_place.is_some_and(|arg| !self.may_replace(at, call, arg)) {
                return Err(Broken::InPlace { call: at });
            }
        }
        if let Some(value) = made.iter().position(|made| !made) {
            return Err(Broken::NeverMade { value });
        }
        match self.values.iter().zip(last).position(|(value, last)| value.to != last) {
            Some(value) => Err(Broken::Life { value }),
            None => Ok(()),
        }
    }

    /// Whether `arg` can be what `wanted` says.
    fn fits(&self, arg: Arg, wanted: &Spec) -> bool {
        match arg {
            Arg::Constant => wanted.constant,
            Arg::Input(at) => self.inputs.get(at).is_some_and(|input| {
                let given = input.kind != CONSTANT && !wanted.constant;
                given && agrees(input.dtype, &input.shape, wanted)
            }),
            Arg::Value(at) => self
                .values
                .get(at)
                .is_some_and(|value| !wanted.constant && agrees(value.dtype, &value.shape, wanted)),
        }
    }

    /// Whether the only result of `call` can take the place of argument `arg`.
    fn may_replace(&self, at: usize, call: &Call, arg: usize) -> bool {
        let (Some(Arg::Value(given)), [result]) = (call.args.get(arg), &call.results[..]) else {
            return false;
        };
        let uses = call.args.iter().filter(|other| **other == Arg::Value(*given)).count();
        let (given, result) = (&self.values[*given], &self.values[*result]);
        let width = given.dtype.bytes() == result.dtype.bytes();
        let in_workspace = matches!(given.memory, Memory::Workspace(_));
        let same = given.shape == result.shape && given.memory == result.memory;
        uses == 1 && width && in_workspace && same && given.to == at
    }

    fn check_outputs(&self) -> Result<(), Broken> {
        let mut made = vec![0usize; self.outputs.len()];
        let mut make = |output: usize| match made.get_mut(output) {
            Some(made) => {
                *made += 1;
                Ok(())
            }
            None => Err(Broken::Output { output }),
        };
        for (index, value) in self.values.iter().enumerate() {
            match value.memory {
                Memory::Output(at) => make(at)?,
                Memory::Input(_) => return Err(Broken::Memory { value: index }),
                Memory::Workspace(_) => {}
            }
        }
        for copy in &self.copies {
            make(copy.output)?;
            let output = &self.outputs[copy.output];
            let same = match copy.from {
                Arg::Input(at) => self
                    .inputs
                    .get(at)
                    .is_some_and(|x| (x.dtype, &x.shape) == (output.dtype, &output.shape)),
                // The memory of others is gone by then.
                Arg::Value(at) => self.values.get(at).is_some_and(|x| {
                    matches!(x.memory, Memory::Output(_)) && x.dtype == output.dtype
                }),
                Arg::Constant => false,
            };
            if !same {
                return Err(Broken::Output { output: copy.output });
            }
        }
        match made.iter().position(|made| *made != 1) {
            Some(output) => Err(Broken::Output { output }),
            None => Ok(()),
        }
    }
}

fn within(what: &'static str, count: usize, most: usize) -> Result<(), Broken> {
    if count <= most { Ok(()) } else { Err(Broken::TooMany { what, count, most }) }
}

/// Whether a tensor of that type can be what `wanted` says.
fn agrees(dtype: DType, shape: &[Expr], wanted: &Spec) -> bool {
    let size = |(own, wanted): (&Expr, &Option<u64>)| match (own.known(), wanted) {
        (Some(own), Some(wanted)) => u64::try_from(own) == Ok(*wanted),
        _ => true,
    };
    dtype == wanted.dtype
        && shape.len() == wanted.shape.len()
        && shape.iter().zip(&wanted.shape).all(size)
}

fn known(shape: &[Expr]) -> Option<Vec<usize>> {
    shape.iter().map(|size| usize::try_from(size.known()?).ok()).collect()
}
