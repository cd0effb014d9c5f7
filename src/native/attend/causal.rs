//! Tests of positions: which of them say that a row sees the keys up to its own.
//!
//! Invariant: a test that is called causal is `column <= row` at every place.

use super::flow::{Flow, Side, sides};
use crate::{
    core::{Domain, Fun, Number, Op, ValueId},
    size::Size,
};

/// Longest chain of operations from a test to the positions: sums have two sides.
const DEEPEST: usize = 12;

/// `row * i + column * j + start` at row i and column j of the last two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    row: i64,
    column: i64,
    start: i64,
}

/// Whether `value`, or what it is not, is true where a column is not past its row.
pub(super) fn is_causal(flow: &Flow<'_>, value: ValueId, truth: bool) -> bool {
    below_zero(flow, value, truth, DEEPEST) == Some(Line { row: -1, column: 1, start: 0 })
}

/// A line that is zero or less exactly where `value` is `truth`.
fn below_zero(flow: &Flow<'_>, value: ValueId, truth: bool, depth: usize) -> Option<Line> {
    let depth = depth.checked_sub(1)?;
    let (_, node) = flow.writer(value)?;
    let Op::Map { fun, domain, .. } = &node.op else {
        // The same test in more places.
        let from = *node.reads.first().filter(|_| keeps_last(flow, value))?;
        return below_zero(flow, from, truth, depth);
    };
    let sides = sides(node);
    if matches!(fun, Fun::Not | Fun::BitNot) && *domain == Domain::Bool {
        return below_zero(flow, sides[0].tensor()?, !truth, depth);
    }
    let (Domain::Int, [a, b]) = (domain, &sides[..]) else { return None };
    let (a, b) = (side(flow, a, depth)?, side(flow, b, depth)?);
    let line = match fun {
        Fun::Le => a.plus(b, -1)?,
        Fun::Lt => a.plus(b, -1)?.after()?,
        Fun::Ge => b.plus(a, -1)?,
        Fun::Gt => b.plus(a, -1)?.after()?,
        _ => return None,
    };
    if truth { Some(line) } else { line.times(-1)?.after() }
}

/// Whether a view only repeats what it reads along dimensions before the last
/// two, or has more of those.
fn keeps_last(flow: &Flow<'_>, value: ValueId) -> bool {
    let Some((_, node)) = flow.writer(value) else { return false };
    let Some(from) = node.reads.first() else { return false };
    let (from, to) = (flow.shape(*from), flow.shape(value));
    let last = |shape: &[_]| shape.len().checked_sub(2);
    match (&node.op, last(from), last(to)) {
        (Op::Expand, Some(a), Some(b)) => from[a..] == to[b..],
        (Op::Reshape, Some(a), Some(b)) => {
            let ones = from[..a].iter().chain(&to[..b]).all(|size| size.is(1));
            ones && from[a..] == to[b..]
        }
        _ => false,
    }
}

fn side(flow: &Flow<'_>, side: &Side, depth: usize) -> Option<Line> {
    match side {
        Side::Tensor(value) => line(flow, *value, depth),
        Side::Number(Number::Int(start)) => Some(Line { row: 0, column: 0, start: *start }),
        Side::Number(_) => None,
    }
}

/// `value` as a line.
fn line(flow: &Flow<'_>, value: ValueId, depth: usize) -> Option<Line> {
    let depth = depth.checked_sub(1)?;
    let (_, node) = flow.writer(value)?;
    let shape = flow.shape(value);
    match &node.op {
        Op::Iota { start: Number::Int(start), step: Number::Int(step) } => {
            // One position stays the same wherever it is repeated.
            let column = if shape[0].is(1) { 0 } else { *step };
            Some(Line { row: 0, column, start: *start })
        }
        Op::Full(Number::Int(start)) => Some(Line { row: 0, column: 0, start: *start }),
        Op::Expand => line(flow, node.reads[0], depth),
        Op::Reshape => {
            let of = line(flow, node.reads[0], depth)?;
            // Nothing or one dimension has more than one element: where it is now.
            let places = |shape: &[Size]| -> Vec<usize> {
                let rank = shape.len();
                (0..rank).filter(|dim| !shape[*dim].is(1)).map(|dim| rank - 1 - dim).collect()
            };
            let (from, to) = (places(flow.shape(node.reads[0])), places(shape));
            match (&from[..], &to[..]) {
                ([], []) => Some(Line { row: 0, column: 0, ..of }),
                ([from @ (0 | 1)], [to @ (0 | 1)]) => {
                    let step = if *from == 0 { of.column } else { of.row };
                    let (row, column) = if *to == 0 { (0, step) } else { (step, 0) };
                    Some(Line { row, column, ..of })
                }
                _ => None,
            }
        }
        // Positions of positions: each of the last dimension's, wherever else they are.
        Op::Index { dims, .. } => {
            let (of, at) = (line(flow, node.reads[0], depth)?, *node.reads.last()?);
            let at = line(flow, at, depth)?;
            let whole = dims.len() == flow.shape(node.reads[0]).len();
            let from_start = [at.row, at.column, at.start].iter().all(|part| *part >= 0);
            (whole && from_start && of.row == 0)
                .then(|| Line { start: of.start, row: 0, column: 0 }.plus(at, of.column))?
        }
        Op::Map { fun, domain: Domain::Int, .. } => {
            let sides = sides(node);
            match (fun, &sides[..]) {
                (Fun::Id, [x]) => side(flow, x, depth),
                (Fun::Add, [a, b]) => side(flow, a, depth)?.plus(side(flow, b, depth)?, 1),
                (Fun::Sub, [a, b]) => side(flow, a, depth)?.plus(side(flow, b, depth)?, -1),
                _ => None,
            }
        }
        _ => None,
    }
}

impl Line {
    fn times(self, by: i64) -> Option<Self> {
        let times = |x: i64| x.checked_mul(by);
        Some(Self { row: times(self.row)?, column: times(self.column)?, start: times(self.start)? })
    }

    fn plus(self, other: Self, times: i64) -> Option<Self> {
        let other = other.times(times)?;
        Some(Self {
            row: self.row.checked_add(other.row)?,
            column: self.column.checked_add(other.column)?,
            start: self.start.checked_add(other.start)?,
        })
    }

    /// One more: less than zero becomes zero or less.
    fn after(self) -> Option<Self> {
        Some(Self { start: self.start.checked_add(1)?, ..self })
    }
}
