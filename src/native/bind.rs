//! What callers' shapes say about a program's symbols.
//!
//! Invariant: once symbols are bound, every input has exactly the shape that
//! the program says, and each symbol is within its range.

use kiln_proto::{Failure, FailureKind};

use crate::{
    core::{Program, Value},
    size::{Atom, Size},
};

/// Where a symbol's value is seen: that dimension is `scale * symbol + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// Position in [`Program::inputs`].
    pub input: usize,
    /// Which of its dimensions.
    pub dim: usize,
    /// Factor of the symbol: at least one.
    pub scale: i64,
    /// What is added to it.
    pub offset: i64,
}

/// For each symbol the plainest dimension that decides it.
pub fn sights(program: &Program) -> Result<Vec<Sight>, Failure> {
    (0..program.symbols.len())
        .map(|symbol| {
            let dims = program.inputs.iter().enumerate().flat_map(|(input, given)| {
                let dims = program.value(given.value).shape.iter().enumerate();
                dims.filter_map(move |(dim, size)| {
                    let (scale, offset) = size.linear_in(&Atom::Symbol(symbol))?;
                    let (scale, offset) = (scale.known()?, offset.known()?);
                    (scale > 0).then_some(Sight { input, dim, scale, offset })
                })
            });
            dims.min_by_key(|sight| (sight.scale, sight.offset != 0)).ok_or_else(|| {
                let why = format!("no input's shape says what symbol s{symbol} is");
                Failure::new(FailureKind::UnsupportedOp, why)
            })
        })
        .collect()
}

/// The symbols' values, where `shapes` has the shapes of [`Program::inputs`].
pub fn bind(program: &Program, shapes: &[&[usize]]) -> Result<Vec<i64>, Failure> {
    let refuse = |why: String| Err(Failure::new(FailureKind::InvalidInput, why));
    let size_of = |input: usize, dim: usize| {
        shapes.get(input).and_then(|shape| shape.get(dim)).and_then(|n| i64::try_from(*n).ok())
    };
    let mut bound = Vec::with_capacity(program.symbols.len());
    for (symbol, Sight { input, dim, scale, offset }) in sights(program)?.into_iter().enumerate() {
        let place = format!("dimension {dim} of input {input}");
        let Some(size) = size_of(input, dim) else {
            return refuse(format!("there is no {place}"));
        };
        let scaled = size.saturating_sub(offset);
        if scaled % scale != 0 {
            return refuse(format!("{place} is {size}, not {scale} * s{symbol} + {offset}"));
        }
        let range = program.symbols[symbol];
        let value = scaled / scale;
        if value < range.min || value > range.max {
            let most = match range.max {
                i64::MAX => String::new(),
                most => format!(" and at most {most}"),
            };
            let least = range.min;
            return refuse(format!(
                "{place} makes s{symbol} {value}: it must be at least {least}{most}"
            ));
        }
        bound.push(value);
    }
    for (input, given) in program.inputs.iter().enumerate() {
        let expected = shape(program.value(given.value), &bound)?;
        let shape = shapes.get(input).copied().unwrap_or_default();
        if expected != shape {
            return refuse(format!("input {input} has shape {shape:?}, not {expected:?}"));
        }
    }
    Ok(bound)
}

/// The sizes of `value`, where `symbols` has those of all symbols.
pub fn shape(value: &Value, symbols: &[i64]) -> Result<Vec<usize>, Failure> {
    value.shape.iter().map(|size| known(size, symbols)).collect()
}

/// `size` as the size of something.
fn known(size: &Size, symbols: &[i64]) -> Result<usize, Failure> {
    let value = size.value(symbols).and_then(|value| usize::try_from(value).ok());
    value.ok_or_else(|| {
        let why = format!("a size of {size} cannot be, with symbols {symbols:?}");
        Failure::new(FailureKind::InvalidInput, why)
    })
}
