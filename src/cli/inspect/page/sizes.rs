//! Sizes of one call: what a plan comes to where its symbols are numbers.
//!
//! Invariant: the plan itself takes these sizes. Where they are nobody's, they are called
//! examples.

use std::collections::BTreeSet;

use kiln_native::{
    plan::{self, Arg, Call, Expr, Memory, Plan},
    split::stitch::{self, Stitching},
};

use super::{
    part::{Kind, Part},
    times::Times,
};

/// What a symbol is in an example, where the plan takes it.
const EXAMPLE: i64 = 64;
/// Symbols of a line, at most.
const MOST_SHOWN: usize = 4;

/// A call with known sizes.
pub(super) struct Sizes {
    pub(super) call: Call,
    pub(super) from: From,
}

/// Where sizes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// The plan leaves none open.
    Plan,
    /// A measurement.
    Measured,
    /// Nobody called it so.
    Example,
}

/// Memory that a kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Held {
    Input(usize),
    Output(usize),
    Buffer(usize),
}

impl Sizes {
    /// A call with inputs of these shapes, or as the plan has them, or of an example's; `None`:
    /// the plan takes none of these.
    pub(super) fn of(plan: &Plan, measured: Option<&[Vec<usize>]>) -> Option<Self> {
        let call = |shapes: &[Vec<usize>]| {
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            plan.call(&shapes).ok()
        };
        if let Some(call) = measured.and_then(call) {
            let from = if plan.symbols.is_empty() { From::Plan } else { From::Measured };
            return Some(Self { call, from });
        }
        let example = |wanted: i64| {
            let symbols = plan.symbols.iter().map(|symbol| {
                let least = symbol.min.max(0);
                wanted.clamp(least, symbol.max.unwrap_or(i64::MAX).max(least))
            });
            call(&shapes_of(plan, &symbols.collect::<Vec<_>>())?)
        };
        let from = if plan.symbols.is_empty() { From::Plan } else { From::Example };
        let call = example(EXAMPLE).or_else(|| example(0))?;
        Some(Self { call, from })
    }

    /// `s0 = 64`, of the first symbols.
    pub(super) fn shown(&self) -> String {
        let symbols = self.call.symbols.iter().enumerate().take(MOST_SHOWN);
        let shown: Vec<String> = symbols.map(|(i, value)| format!("s{i} = {value}")).collect();
        match self.call.symbols.len().saturating_sub(MOST_SHOWN) {
            0 => shown.join(", "),
            others => format!("{} and {others} more", shown.join(", ")),
        }
    }

    /// The number that a size comes to.
    pub(super) fn number(&self, expr: &Expr) -> Option<u64> {
        u64::try_from(expr.value(&self.call.symbols)?).ok()
    }
}

/// For each part a call: of the measurement's shapes where it was measured, and of pieces what
/// the first call of the whole gives them.
pub(super) fn of_parts(parts: &[Part], times: Option<&Times>) -> Vec<Option<Sizes>> {
    let mut all: Vec<Option<Sizes>> = Vec::with_capacity(parts.len());
    // The last whole, whose pieces come behind it.
    let mut whole: Option<(&Stitching, Option<(stitch::Laid, From)>)> = None;
    for part in parts {
        let measured = times.filter(|times| part.piece.is_none() && times.size == part.size);
        let measured = measured.and_then(|times| times.shapes.as_deref());
        let given = match (part.piece, &whole) {
            (Some(piece), Some((stitching, Some((laid, from))))) => {
                given(stitching, piece, laid).map(|shapes| (shapes, *from))
            }
            _ => None,
        };
        let plan = part.kind.plan();
        all.push(match given {
            Some((shapes, from)) => plan.and_then(|plan| {
                let of = Sizes::of(plan, Some(&shapes))?;
                Some(Sizes { from: if of.from == From::Measured { from } else { of.from }, ..of })
            }),
            None => plan.and_then(|plan| Sizes::of(plan, measured)),
        });
        if let Kind::Whole(of) = &part.kind {
            // Once for all its pieces.
            let sizes = all.last().and_then(Option::as_ref);
            let laid = sizes.and_then(|sizes| Some((laid_out(&of.0, sizes)?, sizes.from)));
            whole = Some((&of.0, laid));
        }
    }
    all
}

/// Where a whole has everything in that call.
pub(super) fn laid_out(stitching: &Stitching, sizes: &Sizes) -> Option<stitch::Laid> {
    let inputs = sizes.call.inputs.iter();
    let shapes: Vec<&[usize]> = inputs.map(|input| input.shape.as_slice()).collect();
    stitching.laid_out(&shapes).ok()
}

/// The shapes that the first call of a piece gives it.
fn given(stitching: &Stitching, piece: usize, laid: &stitch::Laid) -> Option<Vec<Vec<usize>>> {
    let call = stitching.calls.iter().find(|call| call.piece == piece)?;
    let shape = |arg: &stitch::Arg| match arg {
        stitch::Arg::Input(at) => Some(laid.inputs.get(*at)?.shape.clone()),
        stitch::Arg::Value(at) => Some(laid.values.get(*at)?.shape.clone()),
        stitch::Arg::Constant => Some(Vec::new()),
    };
    call.args.iter().map(shape).collect()
}

/// What the plan's inputs look like with these symbols.
fn shapes_of(plan: &Plan, symbols: &[i64]) -> Option<Vec<Vec<usize>>> {
    plan.inputs.iter().map(|input| Some(input.layout(symbols)?.shape)).collect()
}

/// A buffer, laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Laid {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Where the plan's buffers lie; `None`: its size is no number.
pub(super) fn buffers(plan: &Plan, sizes: &Sizes) -> Vec<Option<Laid>> {
    let laid = |buffer: &plan::Buffer| {
        let mut bytes = buffer.dtype.bytes();
        for size in &buffer.shape {
            bytes = bytes.checked_mul(sizes.number(size)?)?;
        }
        Some(Laid { offset: sizes.number(&buffer.offset)?, bytes })
    };
    plan.buffers.iter().map(laid).collect()
}

/// The memory that a kernel is given, each once.
pub(super) fn held(
    plan: &Plan,
    kernel: usize,
    laid: Option<(&Sizes, &[Option<Laid>])>,
) -> BTreeSet<Held> {
    let memory = plan.kernels[kernel].args.iter().filter_map(|arg| match arg {
        Arg::Memory(memory) => Some(memory),
        Arg::Map(map) => Some(&map.memory),
        Arg::Size(_) => None,
    });
    let buffer = |offset: &Expr| {
        let number = laid.and_then(|(sizes, _)| sizes.number(offset));
        let lies = |(at, buffer): &(usize, &plan::Buffer)| {
            if !(buffer.from..=buffer.to.max(buffer.from)).contains(&kernel) {
                return false;
            }
            let place = laid.and_then(|(_, laid)| laid.get(*at).copied().flatten());
            match (number, place) {
                (Some(number), Some(Laid { offset, bytes })) => {
                    (offset..offset.saturating_add(bytes.max(1))).contains(&number)
                }
                _ => buffer.offset == *offset,
            }
        };
        plan.buffers.iter().enumerate().find(lies).map(|(at, _)| Held::Buffer(at))
    };
    let held = memory.filter_map(|memory| match memory {
        Memory::Input(at) => Some(Held::Input(*at)),
        Memory::Output(at) => Some(Held::Output(*at)),
        Memory::Workspace(offset) => buffer(offset),
    });
    held.collect()
}

/// Bytes of that memory.
pub(super) fn bytes(sizes: &Sizes, laid: &[Option<Laid>], held: &BTreeSet<Held>) -> Option<u64> {
    let mut all = 0u64;
    for held in held {
        let bytes = match held {
            Held::Input(at) => sizes.call.inputs.get(*at)?.bytes,
            Held::Output(at) => sizes.call.outputs.get(*at)?.bytes,
            Held::Buffer(at) => (*laid.get(*at)?)?.bytes,
        };
        all = all.checked_add(bytes)?;
    }
    Some(all)
}
